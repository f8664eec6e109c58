# Trained runs -> predictions of test bags, and scores of other bags.


rule predict_runs:
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        manifests=lambda w: feature_manifests(w.dataset, w.encoder),
        runs=f"{RESULTS}/{{dataset}}/runs/{{encoder}}/{{method}}/runs.json",
    output:
        f"{RESULTS}/{{dataset}}/predictions/{{encoder}}/{{method}}/index.json",
    log:
        f"{RESULTS}/logs/predict_runs/{{dataset}}/{{encoder}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/predict_runs/{{dataset}}/{{encoder}}/{{method}}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: 12000 * attempt,
        runtime=120,
    params:
        folder=f"{RESULTS}/{{dataset}}",
        stage_version=stage_versions.PREDICTIONS,
    shell:
        "python -m smmil.predictions --runs {input.runs:q} --bags {input.bags:q} --instances {params.folder:q}/instances "
        "--features {params.folder:q}/features/{wildcards.encoder} --manifests {input.manifests:q} "
        "--out {params.folder:q}/predictions/{wildcards.encoder}/{wildcards.method} --index {output:q} 2>&1 | tee {log:q}"


rule scores:
    # bags of datasets that train nothing, scored with runs of another dataset
    input:
        [
            f"{RESULTS}/{dataset}/scores/{with_runs.dataset}/{with_runs.encoder}/{with_runs.method}/scores.csv"
            for dataset, chosen in SCORED.items()
            for with_runs in [chosen.score_with]
            if files_of(
                "runs", [(with_runs.dataset, with_runs.encoder, with_runs.method)]
            )
        ],


rule score_bags:
    # the same code path as predict_runs, other bags
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        manifests=lambda w: feature_manifests(w.dataset, w.encoder),
        runs=f"{RESULTS}/{{trained}}/runs/{{encoder}}/{{method}}/runs.json",
    output:
        f"{RESULTS}/{{dataset}}/scores/{{trained}}/{{encoder}}/{{method}}/scores.csv",
    log:
        f"{RESULTS}/logs/score_bags/{{dataset}}/{{trained}}/{{encoder}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_bags/{{dataset}}/{{trained}}/{{encoder}}/{{method}}.tsv"
    conda:
        "../../envs/train.yaml"
    resources:
        gpu=1,
        mem_mb=lambda w, attempt: 12000 * attempt,
        runtime=120,
    params:
        folder=f"{RESULTS}/{{dataset}}",
        stage_version=stage_versions.PREDICTIONS,
    shell:
        "python -m smmil.score --runs {input.runs:q} --bags {input.bags:q} "
        "--instances {params.folder:q}/instances "
        "--features {params.folder:q}/features/{wildcards.encoder} --manifests {input.manifests:q} "
        "--out $(dirname {output:q}) 2>&1 | tee {log:q}"
