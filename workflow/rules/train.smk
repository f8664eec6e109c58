# Features -> trained runs. One job per (dataset, encoder, method) trains all splits and learning rates.
# With training.split_jobs a job per split trains them, and train_runs only writes runs.json.

# Training allocates tensors of hundreds of sizes. With these settings glibc keeps up to 256 MiB of freed memory and
# oneDNN keeps the kernels of 32,768 shapes instead of 1,024. Neither changes a number.
TRAINING_CACHES = (
    "MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432 "
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY=32768"
)


rule train_runs:
    input:
        bags=lambda w: PLAN.trained_bags(w.dataset),
        manifests=features_of,
        parts=lambda w: PLAN.training_parts(w.dataset, w.encoder, w.method),
    output:
        f"{RESULTS}/{{dataset}}/runs/{{encoder}}/{{method}}/runs.json",
    log:
        f"{RESULTS}/logs/train_runs/{{dataset}}/{{encoder}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_runs/{{dataset}}/{{encoder}}/{{method}}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=lambda w: 0 if CONFIG.training.is_split(w.method) else 1,
        mem_mb=memory(12000),
        runtime=720,
    params:
        folder=results_of,
        training=lambda w: training_options(CONFIG, w.dataset, w.method).text,
        method=lambda w: PLAN.method_options(w.dataset, w.method),
        part="",
        caches=TRAINING_CACHES,
        stage_version=stage_versions.RUNS,
    shell:
        "{params.caches} python -m smmil.train --dataset {wildcards.dataset} --encoder {wildcards.encoder:q} --method {wildcards.method} "
        "--bags {input.bags:q} --instances {params.folder:q}/instances "
        "--features {params.folder:q}/features/{wildcards.encoder} --manifests {input.manifests:q} "
        "--config-json {params.training:q} --method-options {params.method:q} "
        "--out {params.folder:q}/runs/{wildcards.encoder}/{wildcards.method} {params.part} --done {output:q} 2>&1 | tee {log:q}"


use rule train_runs as train_part with:
    input:
        bags=lambda w: PLAN.trained_bags(w.dataset),
        manifests=features_of,
    output:
        f"{RESULTS}/{{dataset}}/runs/{{encoder}}/{{method}}/parts/split{{seed}}.json",
    log:
        f"{RESULTS}/logs/train_part/{{dataset}}/{{encoder}}/{{method}}/split{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_part/{{dataset}}/{{encoder}}/{{method}}/split{{seed}}.tsv"
    wildcard_constraints:
        seed=r"\d+",
    resources:
        gpu=1,
        mem_mb=memory(12000),
        runtime=720,
    params:
        part="--part {seed}",
