# Trained runs -> predictions of test bags, and scores of other bags.


rule predict_runs:
    input:
        bags=rules.list_bags.output.bags,
        manifests=features_of,
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
        mem_mb=memory(12000),
        runtime=120,
    params:
        module="smmil.predictions",
        folder=results_of,
        index=lambda w, output: ["--index", output[0]],
        stage_version=stage_versions.PREDICTIONS,
    shell:
        "python -m {params.module} --runs {input.runs:q} --bags {input.bags:q} --instances {params.folder:q}/instances "
        "--features {params.folder:q}/features/{wildcards.encoder} --manifests {input.manifests:q} "
        '--out "$(dirname {output:q})" {params.index:q} 2>&1 | tee {log:q}'


use rule predict_runs as score_bags with:
    input:
        bags=rules.list_bags.output.bags,
        manifests=features_of,
        runs=f"{RESULTS}/{{trained}}/runs/{{encoder}}/{{method}}/runs.json",
    output:
        f"{RESULTS}/{{dataset}}/scores/{{trained}}/{{encoder}}/{{method}}/scores.csv",
    log:
        f"{RESULTS}/logs/score_bags/{{dataset}}/{{trained}}/{{encoder}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_bags/{{dataset}}/{{trained}}/{{encoder}}/{{method}}.tsv"
    params:
        module="smmil.score",
        index=[],


rule scores:
    # bags of datasets that train nothing, scored with runs of another dataset
    input:
        PLAN.scores(),
