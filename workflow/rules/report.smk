# Stored predictions, logs and thumbnails -> figures, attention maps -> the HTML report.


rule draw_figure:
    # from metrics: alpha, spectral normalisation, steps, mean ranks
    input:
        metrics=of_figure("metrics"),
    output:
        png=report(
            f"{RESULTS}/figures/{{figure}}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}", "dataset": "all"},
        ),
        pdf=f"{RESULTS}/figures/{{figure}}.pdf",
        json=f"{RESULTS}/figures/{{figure}}.json",
    log:
        f"{RESULTS}/logs/draw_figure/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="fig6a|fig6b|fig7|cd",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        figure="{figure}",
        layout=lambda w: figure_layout(CONFIG, w.figure).to_json(),
        inputs=input_options,
        instances=[],
        stage_version=stage_versions.FIGURES,
    shell:
        "python -m smmil.figures --figure {params.figure} --layout {params.layout:q} {params.inputs:q} "
        "{params.instances:q} --out {output.png:q} 2>&1 | tee {log:q}"


use rule draw_figure as draw_score_figure with:
    # from scores of single instances: histograms
    input:
        metrics=of_figure("metrics"),
        index=of_figure("predictions"),
    log:
        f"{RESULTS}/logs/draw_score_figure/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_score_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="fig4",
    resources:
        mem_mb=memory(4000),
        runtime=60,


use rule draw_score_figure as draw_map_figure with:
    # from scores and coordinates: maps of one bag per dataset
    input:
        metrics=of_figure("metrics"),
        index=of_figure("predictions"),
        manifests=lambda w: PLAN.instances(*datasets(CONFIG, w.figure)),
    log:
        f"{RESULTS}/logs/draw_map_figure/{{figure}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_map_figure/{{figure}}.tsv"
    wildcard_constraints:
        figure="fig5|fig12",
    params:
        instances=lambda w: [
            "--instances",
            *(f"{d}={RESULTS}/{d}/instances" for d in datasets(CONFIG, w.figure)),
        ],
        stage_version=stage_versions.MAPS,


use rule draw_score_figure as draw_picture with:
    # of one dataset: histograms, time and memory
    input:
        metrics=of_dataset("metrics", "fig4"),
        index=of_dataset("predictions", "fig4"),
        runs=of_dataset("runs", "fig4"),
    output:
        png=report(
            f"{RESULTS}/{{dataset}}/figures/{{encoder}}/{{picture}}.png",
            caption="../report/picture.rst",
            category="Figures",
            labels={"figure": "{picture}", "dataset": "{dataset}"},
        ),
        pdf=f"{RESULTS}/{{dataset}}/figures/{{encoder}}/{{picture}}.pdf",
        json=f"{RESULTS}/{{dataset}}/figures/{{encoder}}/{{picture}}.json",
    log:
        f"{RESULTS}/logs/draw_picture/{{dataset}}/{{encoder}}/{{picture}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_picture/{{dataset}}/{{encoder}}/{{picture}}.tsv"
    wildcard_constraints:
        picture="histograms|resources",
    params:
        figure="{picture}",
        layout=lambda w: figure_layout(CONFIG, "fig4", w.dataset, w.encoder).to_json(),


use rule draw_picture as draw_curves with:
    # learning curves of one dataset, from the logs of the runs
    input:
        metrics=of_dataset("metrics", "curves"),
        runs=of_dataset("runs", "curves"),
    log:
        f"{RESULTS}/logs/draw_{{picture}}/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_{{picture}}/{{dataset}}/{{encoder}}.tsv"
    wildcard_constraints:
        picture="curves",
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        layout=lambda w: figure_layout(CONFIG, "curves", w.dataset, w.encoder).to_json(),


rule draw_maps:
    # attention maps and the ground truth of several bags of one dataset
    input:
        manifests=instances_of,
        index=of_dataset("predictions", "fig5"),
        metrics=of_dataset("metrics", "fig5"),
        bag_list=rules.list_bags.output.bags,
    output:
        f"{RESULTS}/{{dataset}}/maps/{{encoder}}/maps.json",
    log:
        f"{RESULTS}/logs/draw_maps/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_maps/{{dataset}}/{{encoder}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        instances=f"{RESULTS}/{{dataset}}/instances",
        layout=lambda w: figure_layout(CONFIG, "fig5", w.dataset, w.encoder).to_json(),
        inputs=input_options,
        bags=CONFIG.report.map_bags,
        root=root_of,
        stage_version=stage_versions.MAPS,
    shell:
        "python -m smmil.maps --layout {params.layout:q} --instances {params.instances:q} {params.inputs:q} --root {params.root:q} "
        '--bags {params.bags} --out "$(dirname {output:q})" 2>&1 | tee {log:q}'


rule analyse:
    # curves, calibration, confusion and wrong bags of one dataset
    input:
        manifests=instances_of,
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        index=lambda w: PLAN.of_analysis(w.dataset, w.encoder),
    output:
        f"{RESULTS}/{{dataset}}/analysis/{{encoder}}/analysis.json",
    log:
        f"{RESULTS}/logs/analyse/{{dataset}}/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/analyse/{{dataset}}/{{encoder}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        instances=f"{RESULTS}/{{dataset}}/instances",
        stage_version=stage_versions.ANALYSIS,
    shell:
        "python -m smmil.analysis dataset --index {input.index:q} --bags {wildcards.dataset}={input.bags:q} "
        "--instances {params.instances:q} --out {output:q} 2>&1 | tee {log:q}"


rule analysis:
    input:
        PLAN.analyses(),


# one target per figure: `snakemake fig6a`
for name in FIGURES:

    rule:
        name:
            name
        input:
            PLAN.figure_files(name),


rule figures:
    input:
        [PLAN.figure_files(figure) for figure in PLAN.figures],
        PLAN.companions("fig4"),


rule write_report:
    input:
        metrics=PLAN.of_report("metrics"),
        tables=[f"{RESULTS}/tables/{table}.html" for table in PLAN.tables],
        status=rules.status.input,
        qc=expand(f"{RESULTS}/{{dataset}}/qc/counts.json", dataset=CONFIG.used),
        figures=PLAN.report_figures(),
        analysis=PLAN.analyses(),
        numbers=rules.numbers.input,
        maps=PLAN.companions("fig5"),
        runs=PLAN.of_report("runs"),
        comparisons=(
            [f"{RESULTS}/tables/comparisons.json"]
            if "comparisons" in PLAN.tables
            else []
        ),
    output:
        report(
            f"{RESULTS}/report/index.html",
            caption="../report/report.rst",
            category="Report",
            labels={"shows": "tables, figures and maps on one page"},
        ),
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
        # not in params: the name of a configfile changes no number
        configuration=configuration_arguments(),
    params:
        layout=table_layout(CONFIG, "table1").to_json(),
        layouts=PLAN.table_layouts(),
        quirks=sorted(CONFIG.active_quirks),
        stage_version=stage_versions.REPORT,
    shell:
        "python -m smmil.report --title smmil --layout {params.layout:q} --metrics {input.metrics:q} "
        "--tables {input.tables:q} --qc {input.qc:q} --figures {input.figures:q} --maps {input.maps:q} "
        "--analysis {input.analysis:q} --status {input.status:q} --runs {input.runs:q} --comparisons {input.comparisons:q} --layouts {params.layouts:q} "
        "--quirks {params.quirks:q} --configuration={resources.configuration:q} --out {output:q} 2>&1 | tee {log:q}"


rule report:
    input:
        rules.write_report.output,
