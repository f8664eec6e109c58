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
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=60,
    params:
        resamples=CONFIG.report.bootstrap,
        stage_version=stage_versions.METRICS,
    shell:
        "python -m smmil.evaluate --index {input:q} --out {output:q} --resamples {params.resamples} 2>&1 | tee {log:q}"


rule metrics:
    # every pairing of method and feature extractor
    input:
        files_of("metrics", all_pairings(CONFIG)),


rule make_table:
    input:
        lambda w: files_of("metrics", table_pairings(w.table)),
    output:
        csv=f"{RESULTS}/tables/{{table}}.csv",
        md=f"{RESULTS}/tables/{{table}}.md",
        tex=f"{RESULTS}/tables/{{table}}.tex",
        html=f"{RESULTS}/tables/{{table}}.html",
    log:
        f"{RESULTS}/logs/make_table/{{table}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_table/{{table}}.tsv"
    wildcard_constraints:
        table=r"table\d+",
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        layout=lambda w: table_layout(w.table),
        stage_version=stage_versions.TABLES,
    shell:
        "python -m smmil.tables --table {wildcards.table} --metrics {input:q} --layout {params.layout:q} "
        "--out-csv {output.csv:q} --out-md {output.md:q} --out-tex {output.tex:q} --out-html {output.html:q} "
        "2>&1 | tee {log:q}"


rule make_resources:
    # time and memory: from the runs' logs, which lie beside the inputs
    input:
        lambda w: files_of("runs", table_pairings("resources")),
    output:
        csv=f"{RESULTS}/tables/resources.csv",
        md=f"{RESULTS}/tables/resources.md",
        tex=f"{RESULTS}/tables/resources.tex",
        html=f"{RESULTS}/tables/resources.html",
    log:
        f"{RESULTS}/logs/make_resources.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_resources.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        layout=lambda w: table_layout("resources"),
        stage_version=stage_versions.TABLES,
    shell:
        "python -m smmil.tables --table resources --runs {input:q} "
        "--layout {params.layout:q} --out-csv {output.csv:q} --out-md {output.md:q} --out-tex {output.tex:q} "
        "--out-html {output.html:q} 2>&1 | tee {log:q}"


rule make_comparisons:
    # paired over the test bags: from predictions of both methods
    input:
        lambda w: files_of("predictions", table_pairings("comparisons")),
    output:
        csv=f"{RESULTS}/tables/comparisons.csv",
        md=f"{RESULTS}/tables/comparisons.md",
        tex=f"{RESULTS}/tables/comparisons.tex",
        html=f"{RESULTS}/tables/comparisons.html",
    log:
        f"{RESULTS}/logs/make_comparisons.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_comparisons.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=120,
    params:
        layout=lambda w: table_layout("comparisons"),
        resamples=CONFIG.report.bootstrap,
        stage_version=stage_versions.COMPARISONS,
    shell:
        "python -m smmil.comparison_table --index {input:q} --layout {params.layout:q} --resamples {params.resamples} "
        "--out-csv {output.csv:q} --out-md {output.md:q} --out-tex {output.tex:q} --out-html {output.html:q} "
        "2>&1 | tee {log:q}"


# `snakemake table3` and so on: one target per table
for table in TABLES:

    rule:
        name:
            table
        input:
            table_files(table),


rule tables:
    # the tables of report.tables
    input:
        [table_files(table) for table in shown_tables()],
