# Stored predictions, logs and thumbnails -> figures, attention maps -> one page.


rule draw_figures:
    # learning curves and score histograms
    input:
        runs=lambda w: of_methods("runs", w, "/runs.json"),
        index=lambda w: of_methods("predictions", w, "/index.json"),
        metrics=lambda w: of_methods("metrics", w, ".json"),
    output:
        f"{RESULTS}/{{dataset}}/figures/{{encoder}}/figures.json",
    log:
        f"{RESULTS}/logs/draw_figures/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_figures/{{dataset}}/{{encoder}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        stage_version=FIGURES_VERSION,
    shell:
        "python -m smmil.figures --dataset {wildcards.dataset} --runs {input.runs:q} --index {input.index:q} "
        "--metrics {input.metrics:q} --out $(dirname {output:q}) 2>&1 | tee {log:q}"


rule draw_maps:
    # attention maps beside the ground truth
    input:
        manifests=instance_manifests,
        index=lambda w: of_methods("predictions", w, "/index.json"),
        metrics=lambda w: of_methods("metrics", w, ".json"),
    output:
        f"{RESULTS}/{{dataset}}/maps/{{encoder}}/maps.json",
    log:
        f"{RESULTS}/logs/draw_maps/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_maps/{{dataset}}/{{encoder}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        instances=f"{RESULTS}/{{dataset}}/instances",
        bags=CONFIG.report.map_bags,
        stage_version=MAPS_VERSION,
    shell:
        "python -m smmil.maps --dataset {wildcards.dataset} --instances {params.instances:q} --index {input.index:q} "
        "--metrics {input.metrics:q} --bags {params.bags} --out $(dirname {output:q}) 2>&1 | tee {log:q}"


rule write_report:
    input:
        metrics=main_metrics(),
        qc=expand(
            "{results}/{dataset}/qc/counts.json", results=RESULTS, dataset=[*USED]
        ),
        figures=per_dataset("figures"),
        maps=per_dataset("maps"),
        manifests=lambda w: [
            manifest
            for dataset, chosen in USED.items()
            for manifest in feature_manifests(dataset, chosen.table_encoder)
        ],
        runs=[
            f"{RESULTS}/{dataset}/runs/{chosen.table_encoder}/{method}/runs.json"
            for dataset, chosen in TRAINED.items()
            for method in CONFIG.methods
        ],
    output:
        f"{RESULTS}/report/index.html",
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        layout=table_layout(),
        stage_version=REPORT_VERSION,
    shell:
        "python -m smmil.report --title smmil --layout {params.layout:q} --metrics {input.metrics:q} --qc {input.qc:q} "
        "--figures {input.figures:q} --maps {input.maps:q} --manifests {input.manifests:q} --runs {input.runs:q} "
        "--out {output:q} 2>&1 | tee {log:q}"


rule report:
    input:
        rules.write_report.output,
