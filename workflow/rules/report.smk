# Stored predictions, logs and thumbnails -> figures, attention maps -> one page.
from smmil.fig_job import figure_layout
from smmil.outputs import FIGURES, datasets as datasets_of


wildcard_constraints:
    figure="|".join(FIGURES),
    picture="histograms|curves|resources",


def of_figure(kind, suffix):
    """Input function: one file per training behind a figure."""
    return lambda w: [
        f"{RESULTS}/{dataset}/{kind}/{encoder}/{method}{suffix}"
        for dataset, encoder, method in pairings(CONFIG, w.figure)
    ]


def figure_files(figure):
    return [f"{RESULTS}/figures/{figure}.{kind}" for kind in ("png", "pdf", "json")]


def layout_json(figure, dataset=None):
    return json.dumps(figure_layout(CONFIG, figure, dataset), sort_keys=True)


def shown_datasets(figure):
    return datasets_of(CONFIG, figure)


def drawn_figures():
    """The figures the report shows: those asked for that have any training behind them."""
    return [figure for figure in CONFIG.report.figures if pairings(CONFIG, figure)]


def companions(figure):
    """Pictures of single datasets that belong to a figure: every dataset's histograms, curves and costs, or its maps."""
    encoders = {
        dataset: chosen.table_encoder
        for dataset, chosen in TRAINED.items()
        if figure in ("fig4", "fig5")
    }
    if figure == "fig5":
        return [
            f"{RESULTS}/{d}/maps/{encoder}/maps.json" for d, encoder in encoders.items()
        ]
    return [
        f"{RESULTS}/{d}/figures/{encoder}/{picture}.json"
        for d, encoder in encoders.items()
        for picture in ("histograms", "curves", "resources")
    ]


rule draw_figure:
    # numbers only: alpha, spectral normalisation, steps, mean ranks
    input:
        of_figure("metrics", ".json"),
    output:
        multiext(f"{RESULTS}/figures/{{figure}}", ".png", ".pdf", ".json"),
    log:
        f"{RESULTS}/logs/draw_figure/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="fig6a|fig6b|fig7|cd",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        layout=lambda w: layout_json(w.figure),
        stage_version=FIGURES_VERSION,
    shell:
        "python -m smmil.figures --figure {wildcards.figure} --layout {params.layout:q} --metrics {input:q} "
        "--out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_score_figure:
    # scores of single instances: histograms
    input:
        metrics=of_figure("metrics", ".json"),
        index=of_figure("predictions", "/index.json"),
    output:
        multiext(f"{RESULTS}/figures/{{figure}}", ".png", ".pdf", ".json"),
    log:
        f"{RESULTS}/logs/draw_score_figure/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_score_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="fig4",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=60,
    params:
        layout=lambda w: layout_json(w.figure),
        stage_version=FIGURES_VERSION,
    shell:
        "python -m smmil.figures --figure {wildcards.figure} --layout {params.layout:q} --metrics {input.metrics:q} "
        "--index {input.index:q} --out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_map_figure:
    # scores and geometry: maps of one bag per dataset
    input:
        metrics=of_figure("metrics", ".json"),
        index=of_figure("predictions", "/index.json"),
        manifests=lambda w: [
            f"{RESULTS}/{dataset}/instances/shards/{shard}.json"
            for dataset in shown_datasets(w.figure)
            for shard in shards(dataset)
        ],
    output:
        multiext(f"{RESULTS}/figures/{{figure}}", ".png", ".pdf", ".json"),
    log:
        f"{RESULTS}/logs/draw_map_figure/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_map_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="fig5|fig12",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=60,
    params:
        layout=lambda w: layout_json(w.figure),
        instances=lambda w: [
            f"{dataset}={RESULTS}/{dataset}/instances"
            for dataset in shown_datasets(w.figure)
        ],
        stage_version=MAPS_VERSION,
    shell:
        "python -m smmil.figures --figure {wildcards.figure} --layout {params.layout:q} --metrics {input.metrics:q} "
        "--index {input.index:q} --instances {params.instances:q} --out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_picture:
    # companions, one dataset each: histograms, learning curves, time and memory
    input:
        runs=lambda w: of_methods("runs", w, "/runs.json"),
        index=lambda w: of_methods("predictions", w, "/index.json"),
        metrics=lambda w: of_methods("metrics", w, ".json"),
    output:
        multiext(
            f"{RESULTS}/{{dataset}}/figures/{{encoder}}/{{picture}}",
            ".png",
            ".pdf",
            ".json",
        ),
    log:
        f"{RESULTS}/logs/draw_picture/{{dataset}}/{{encoder}}/{{picture}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_picture/{{dataset}}/{{encoder}}/{{picture}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=60,
    params:
        layout=lambda w: layout_json("fig4", w.dataset),
        stage_version=FIGURES_VERSION,
    shell:
        "python -m smmil.figures --figure {wildcards.picture} --layout {params.layout:q} --metrics {input.metrics:q} "
        "--index {input.index:q} --runs {input.runs:q} --out {output[0]:q} "
        "2>&1 | tee {log:q}"


rule draw_maps:
    # attention maps beside the ground truth, several bags of one dataset
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
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=60,
    params:
        instances=f"{RESULTS}/{{dataset}}/instances",
        bags=CONFIG.report.map_bags,
        stage_version=MAPS_VERSION,
    shell:
        "python -m smmil.maps --dataset {wildcards.dataset} --instances {params.instances:q} --index {input.index:q} "
        "--metrics {input.metrics:q} --bags {params.bags} --out $(dirname {output:q}) 2>&1 | tee {log:q}"


# `snakemake fig6a`: one rule per figure, named like it
for name in FIGURES:

    rule:
        name:
            name
        input:
            figure_files(name),
            companions(name),


rule figures:
    input:
        [figure_files(figure) + companions(figure) for figure in drawn_figures()],
        companions("fig4"),


rule write_report:
    input:
        metrics=metrics_of(pairings(CONFIG, "table1")),
        tables=[
            f"{RESULTS}/tables/{table}.md" for table in CONFIG.report.tables if TRAINED
        ],
        status=[f"{RESULTS}/{dataset}/status/status.json" for dataset in USED],
        qc=expand(
            "{results}/{dataset}/qc/counts.json", results=RESULTS, dataset=[*USED]
        ),
        figures=[f"{RESULTS}/figures/{figure}.json" for figure in drawn_figures()]
        + companions("fig4"),
        maps=companions("fig5"),
        manifests=lambda w: [
            manifest
            for dataset, chosen in USED.items()
            for manifest in feature_manifests(dataset, chosen.table_encoder)
        ],
        runs=runs_of(pairings(CONFIG, "table1")),
    output:
        f"{RESULTS}/report/index.html",
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        layout=table_layout(),
        stage_version=REPORT_VERSION,
    shell:
        "python -m smmil.report --title smmil --layout {params.layout:q} --metrics {input.metrics:q} "
        "--tables {input.tables:q} --qc {input.qc:q} --figures {input.figures:q} --maps {input.maps:q} "
        "--manifests {input.manifests:q} --status {input.status:q} --runs {input.runs:q} --out {output:q} "
        "2>&1 | tee {log:q}"


rule report:
    input:
        rules.write_report.output,
