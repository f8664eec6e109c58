# Features -> trained runs. One job per (dataset, encoder, method): splits and learning rates inside.
# Cut into parts (one per split), the gathering job finds every run finished and only writes runs.json.


rule train_part:
    # the runs of one split, where training.split_jobs asks for a job per split
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        manifests=lambda w: feature_manifests(w.dataset, w.encoder),
    output:
        f"{RESULTS}/{{dataset}}/runs/{{encoder}}/{{method}}/parts/split{{seed}}.json",
    log:
        f"{RESULTS}/logs/train_part/{{dataset}}/{{encoder}}/{{method}}/split{{seed}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_part/{{dataset}}/{{encoder}}/{{method}}/split{{seed}}.tsv"
    wildcard_constraints:
        seed=r"\d+",
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: 12000 * attempt,
        runtime=720,
    params:
        folder=f"{RESULTS}/{{dataset}}",
        training=training_json,
        method=method_json,
        stage_version=stage_versions.RUNS,
    shell:
        "{TRAINING_CACHES} python -m smmil.train --dataset {wildcards.dataset} --encoder {wildcards.encoder:q} --method {wildcards.method} "
        "--bags {input.bags:q} --instances {params.folder:q}/instances "
        "--features {params.folder:q}/features/{wildcards.encoder} --manifests {input.manifests:q} "
        "--config-json {params.training:q} --method-options {params.method:q} "
        "--out {params.folder:q}/runs/{wildcards.encoder}/{wildcards.method} --part {wildcards.seed} --done {output:q} 2>&1 | tee {log:q}"


rule train_runs:
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        manifests=lambda w: feature_manifests(w.dataset, w.encoder),
        parts=parts_of,
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
        mem_mb=lambda w, attempt: 12000 * attempt,
        runtime=720,
    params:
        folder=f"{RESULTS}/{{dataset}}",
        training=training_json,
        method=method_json,
        stage_version=stage_versions.RUNS,
    shell:
        "{TRAINING_CACHES} python -m smmil.train --dataset {wildcards.dataset} --encoder {wildcards.encoder:q} --method {wildcards.method} "
        "--bags {input.bags:q} --instances {params.folder:q}/instances "
        "--features {params.folder:q}/features/{wildcards.encoder} --manifests {input.manifests:q} "
        "--config-json {params.training:q} --method-options {params.method:q} "
        "--out {params.folder:q}/runs/{wildcards.encoder}/{wildcards.method} --done {output:q} 2>&1 | tee {log:q}"
