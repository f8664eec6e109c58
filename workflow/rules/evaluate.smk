# Stored predictions -> metrics -> tables. CPU, minutes.


rule measure_runs:
    input:
        f"{RESULTS}/{{dataset}}/predictions/{{encoder}}/{{method}}/index.json",
    output:
        f"{RESULTS}/{{dataset}}/metrics/{{encoder}}/{{method}}.json",
    log:
        f"{RESULTS}/logs/measure_runs/{{dataset}}/{{encoder}}/{{method}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_runs/{{dataset}}/{{encoder}}/{{method}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        resamples=CONFIG.report.bootstrap,
        stage_version=METRICS_VERSION,
    shell:
        "python -m smmil.evaluate --index {input:q} --out {output:q} --resamples {params.resamples} 2>&1 | tee {log:q}"


rule metrics:
    # every pairing of method and feature extractor
    input:
        all_metrics(),


rule make_table:
    input:
        main_metrics(),
    output:
        csv=f"{RESULTS}/tables/{{table}}.csv",
        md=f"{RESULTS}/tables/{{table}}.md",
    log:
        f"{RESULTS}/logs/make_table/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_table/{{table}}.tsv"
    wildcard_constraints:
        table=r"table[12]",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        layout=table_layout(),
        stage_version=METRICS_VERSION,
    shell:
        "python -m smmil.tables --table {wildcards.table} --metrics {input:q} --layout {params.layout:q} "
        "--out-csv {output.csv:q} --out-md {output.md:q} 2>&1 | tee {log:q}"


rule tables:
    input:
        [
            f"{RESULTS}/tables/{table}.{kind}"
            for table in ("table1", "table2")
            for kind in ("csv", "md")
            if TRAINED
        ],
