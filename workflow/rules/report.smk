# Stored predictions, logs and thumbnails -> figures, attention maps -> one page.
from smmil.figures.job import figure_layout
from smmil.config.outputs import FIGURES, datasets as datasets_of


wildcard_constraints:
    figure="|".join(FIGURES),
    picture="histograms|resources",


def of_figure(kind):
    """Input function: one file per training behind a figure."""
    return lambda w: files_of(kind, pairings(CONFIG, w.figure))


def figure_files(figure):
    """The pictures of a figure; learning curves have no picture of all datasets."""
    kinds = [] if figure == "curves" else ["png", "pdf", "json"]
    return [f"{RESULTS}/figures/{figure}.{kind}" for kind in kinds]


def layout_json(figure, wildcards=None):
    """Rows and columns of a figure, for its command line; of one dataset and encoder for its companions."""
    only = (wildcards.dataset, wildcards.encoder) if wildcards else ()
    return figure_layout(CONFIG, figure, *only).to_json()


def shown_datasets(figure):
    return datasets_of(CONFIG, figure)


def drawn_figures():
    """The figures the report shows: those asked for that have any training behind them."""
    return [figure for figure in CONFIG.report.figures if pairings(CONFIG, figure)]


def companions(figure):
    """Pictures of single datasets that belong to a figure: histograms and costs, maps, or learning curves."""
    names = {
        "fig4": ["figures/{}/histograms.json", "figures/{}/resources.json"],
        "fig5": ["maps/{}/maps.json"],
        "curves": ["figures/{}/curves.json"],
    }
    return [
        f"{RESULTS}/{dataset}/{name.format(chosen.table_encoder)}"
        for dataset, chosen in TRAINED.items()
        for name in names.get(figure, [])
    ]


def figure_jsons():
    """The JSON files of all figures of the report and their companions; histograms and costs are always there."""
    wanted = [*drawn_figures(), "fig4"]
    drawn = [file for figure in wanted for file in companions(figure)]
    drawn += [file for figure in drawn_figures() for file in figure_files(figure)]
    jsons = [file for file in dict.fromkeys(drawn) if file.endswith(".json")]
    return [file for file in jsons if not file.endswith("maps.json")]


# the page shows it; not in `params`, since the name of a configfile changes no number
CONFIGURATION = given_configuration()


rule draw_figure:
    # numbers only: alpha, spectral normalisation, steps, mean ranks
    input:
        of_figure("metrics"),
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
        stage_version=stage_versions.FIGURES,
    shell:
        "python -m smmil.figures --figure {wildcards.figure} --layout {params.layout:q} --metrics {input:q} "
        "--out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_score_figure:
    # scores of single instances: histograms
    input:
        metrics=of_figure("metrics"),
        index=of_figure("predictions"),
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
        stage_version=stage_versions.FIGURES,
    shell:
        "python -m smmil.figures --figure {wildcards.figure} --layout {params.layout:q} --metrics {input.metrics:q} "
        "--index {input.index:q} --out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_map_figure:
    # scores and geometry: maps of one bag per dataset
    input:
        metrics=of_figure("metrics"),
        index=of_figure("predictions"),
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
        stage_version=stage_versions.MAPS,
    shell:
        "python -m smmil.figures --figure {wildcards.figure} --layout {params.layout:q} --metrics {input.metrics:q} "
        "--index {input.index:q} --instances {params.instances:q} --out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_picture:
    # companions, one dataset each: histograms, time and memory
    input:
        runs=lambda w: of_dataset("runs", "fig4", w),
        index=lambda w: of_dataset("predictions", "fig4", w),
        metrics=lambda w: of_dataset("metrics", "fig4", w),
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
        layout=lambda w: layout_json("fig4", w),
        stage_version=stage_versions.FIGURES,
    shell:
        "python -m smmil.figures --figure {wildcards.picture} --layout {params.layout:q} --metrics {input.metrics:q} "
        "--index {input.index:q} --runs {input.runs:q} --out {output[0]:q} "
        "2>&1 | tee {log:q}"


rule draw_curves:
    # learning curves of one dataset: from the runs' logs, which lie beside the inputs
    input:
        runs=lambda w: of_dataset("runs", "curves", w),
        metrics=lambda w: of_dataset("metrics", "curves", w),
    output:
        multiext(
            f"{RESULTS}/{{dataset}}/figures/{{encoder}}/curves",
            ".png",
            ".pdf",
            ".json",
        ),
    log:
        f"{RESULTS}/logs/draw_curves/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_curves/{{dataset}}/{{encoder}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        layout=lambda w: layout_json("curves", w),
        stage_version=stage_versions.FIGURES,
    shell:
        "python -m smmil.figures --figure curves --layout {params.layout:q} --metrics {input.metrics:q} "
        "--runs {input.runs:q} --out {output[0]:q} 2>&1 | tee {log:q}"


rule draw_maps:
    # attention maps beside the ground truth, several bags of one dataset
    input:
        manifests=instance_manifests,
        index=lambda w: of_dataset("predictions", "fig5", w),
        metrics=lambda w: of_dataset("metrics", "fig5", w),
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
        layout=lambda w: layout_json("fig5", w),
        bags=CONFIG.report.map_bags,
        stage_version=stage_versions.MAPS,
    shell:
        "python -m smmil.maps --layout {params.layout:q} --instances {params.instances:q} --index {input.index:q} "
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
        metrics=files_of("metrics", report_pairings()),
        tables=[f"{RESULTS}/tables/{table}.html" for table in shown_tables()],
        status=[f"{RESULTS}/{dataset}/status/status.json" for dataset in USED],
        qc=expand(
            "{results}/{dataset}/qc/counts.json", results=RESULTS, dataset=[*USED]
        ),
        figures=figure_jsons(),
        maps=companions("fig5"),
        runs=files_of("runs", report_pairings()),
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
        layouts=table_layouts(),
        quirks=sorted(CONFIG.active_quirks),
        stage_version=stage_versions.REPORT,
    shell:
        "python -m smmil.report --title smmil --layout {params.layout:q} --metrics {input.metrics:q} "
        "--tables {input.tables:q} --qc {input.qc:q} --figures {input.figures:q} --maps {input.maps:q} "
        "--status {input.status:q} --runs {input.runs:q} --layouts {params.layouts:q} "
        "--quirks {params.quirks:q} --configuration={CONFIGURATION:q} --out {output:q} 2>&1 | tee {log:q}"


rule report:
    input:
        rules.write_report.output,
