# Stored predictions -> metrics -> tables. CPU, minutes.


rule measure_runs:
    input:
        rules.predict_runs.output,
    output:
        f"{RESULTS}/{{dataset}}/metrics/{{encoder}}/{{method}}.json",
    log:
        f"{RESULTS}/logs/measure_runs/{{dataset}}/{{encoder}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_runs/{{dataset}}/{{encoder}}/{{method}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        resamples=CONFIG.report.bootstrap,
        stage_version=stage_versions.METRICS,
    shell:
        "python -m smmil.evaluate --index {input:q} --out {output:q} --resamples {params.resamples} 2>&1 | tee {log:q}"


rule metrics:
    # every combination of method and feature extractor
    input:
        PLAN.files("metrics", all_pairings(CONFIG)),


TABLE_FILES = {
    suffix: f"{RESULTS}/tables/{{table}}.{suffix}" for suffix in ("csv", "md", "tex")
}
TABLE_FILES["html"] = report(
    f"{RESULTS}/tables/{{table}}.html",
    caption="../report/table.rst",
    category="Tables",
    labels={"table": "{table}"},
)


rule make_table:
    input:
        lambda w: PLAN.of_table("metrics", w.table),
    output:
        **TABLE_FILES,
    log:
        f"{RESULTS}/logs/make_table/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_table/{{table}}.tsv"
    wildcard_constraints:
        table=r"table\d+",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        command="smmil.tables --table {table} --metrics",
        layout=lambda w: table_layout(CONFIG, w.table).to_json(),
        stage_version=stage_versions.TABLES,
    shell:
        "python -m {params.command} {input:q} --layout {params.layout:q} --out-csv {output.csv:q} "
        "--out-md {output.md:q} --out-tex {output.tex:q} --out-html {output.html:q} 2>&1 | tee {log:q}"


use rule make_table as make_resources with:
    # time and memory, from the logs of the runs
    input:
        lambda w: PLAN.of_table("runs", w.table),
    log:
        f"{RESULTS}/logs/make_{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_{{table}}.tsv"
    wildcard_constraints:
        table="resources",
    params:
        command="smmil.tables --table {table} --runs",


use rule make_table as make_comparisons with:
    # paired over the test bags, from the predictions of both methods
    input:
        lambda w: PLAN.of_table("predictions", w.table),
    output:
        **TABLE_FILES,
        json=f"{RESULTS}/tables/{{table}}.json",
    log:
        f"{RESULTS}/logs/make_{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_{{table}}.tsv"
    wildcard_constraints:
        table="comparisons",
    resources:
        mem_mb=memory(4000),
        runtime=120,
    params:
        command=f"smmil.comparison_table --out-json {shlex.quote(f'{RESULTS}/tables/comparisons.json')} "
        f"--resamples {CONFIG.report.bootstrap} --index",
        stage_version=stage_versions.COMPARISONS,


# one target per table: `snakemake table3`
for table in TABLES:

    rule:
        name:
            table
        input:
            PLAN.table_files(table),


rule write_predictions:
    # in long form: a row per test bag, split and method
    input:
        index=PLAN.of_report("predictions"),
        bags=[f"{RESULTS}/{dataset}/bags.csv" for dataset in CONFIG.trained],
    output:
        f"{RESULTS}/tables/predictions.csv",
    log:
        f"{RESULTS}/logs/write_predictions.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_predictions.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        bags=[f"{dataset}={RESULTS}/{dataset}/bags.csv" for dataset in CONFIG.trained],
        stage_version=stage_versions.ANALYSIS,
    shell:
        "python -m smmil.analysis predictions --index {input.index:q} --bags {params.bags:q} "
        "--out {output:q} 2>&1 | tee {log:q}"


rule write_metrics:
    # in long form: a row per metric, split and method
    input:
        PLAN.of_report("metrics"),
    output:
        f"{RESULTS}/tables/metrics.csv",
    log:
        f"{RESULTS}/logs/write_metrics.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_metrics.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        stage_version=stage_versions.ANALYSIS,
    shell:
        "python -m smmil.analysis metrics --metrics {input:q} --out {output:q} 2>&1 | tee {log:q}"


rule numbers:
    # everything that the report shows, as two tables in long form
    input:
        rules.write_predictions.output,
        rules.write_metrics.output,


rule tables:
    # the tables of report.tables
    input:
        [PLAN.table_files(table) for table in PLAN.tables],
        rules.numbers.input,
