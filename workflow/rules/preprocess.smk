# Raw data -> bags.csv -> instances -> features -> contact sheets.
# A rule declares the manifest of a shard. The bags are stored next to it, and a job skips those that are finished.


rule list_bags:
    output:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        report=f"{RESULTS}/{{dataset}}/bags.report.json",
    log:
        f"{RESULTS}/logs/list_bags/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/list_bags/{{dataset}}.tsv"
    conda:
        "../../envs/preprocess.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=120,
        # not in params, whose changes redo jobs
        instance_bytes=lambda w: PLAN.instance_bytes(w.dataset),
        splits=lambda w: PLAN.listed_splits(w.dataset),
    params:
        kind=lambda w: dataset_of(w).kind,
        root=root_of,
        options=lambda w: json.dumps(dataset_of(w).source, sort_keys=True),
        capacity=lambda w: PLAN.capacity(w.dataset),
        # a changed parameter redoes the job, so changed raw files do
        raw=lambda w: PLAN.listing_stamp(w.dataset),
    shell:
        "python -m preprocessing.bags --dataset {wildcards.dataset} --kind {params.kind} --root {params.root:q} "
        "--options {params.options:q} --max-bags {params.capacity} --instance-bytes {resources.instance_bytes} --splits {resources.splits} --out {output.bags:q} 2>&1 | tee {log:q}"


rule cut_instances:
    input:
        bags=rules.list_bags.output.bags,
    output:
        f"{RESULTS}/{{dataset}}/instances/shards/{{shard}}.json",
    log:
        f"{RESULTS}/logs/cut_instances/{{dataset}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/cut_instances/{{dataset}}/{{shard}}.tsv"
    conda:
        "../../envs/preprocess.yaml"
    resources:
        mem_mb=memory(4000),
        runtime=240,
    params:
        root=root_of,
        options=instances_json,
        size=lambda w: dataset_of(w).bags_per_shard,
        allowed=lambda w: dataset_of(w).allowed_failures,
        compare=lambda w: dataset_of(w).compare_files,
        raw=lambda w: PLAN.raw_stamp(w.dataset, w.shard),
        stage_version=preprocessing_versions.INSTANCES,
        folder=f"{RESULTS}/{{dataset}}/instances",
    shell:
        "python -m preprocessing.instances --dataset {wildcards.dataset} --bags {input.bags:q} --root {params.root:q} "
        "--shard {wildcards.shard} --bags-per-shard {params.size} --options {params.options:q} "
        "--compare-files {params.compare} --allowed-failures {params.allowed} --out {params.folder:q} --manifest {output:q} 2>&1 | tee {log:q}"


rule extract_features:
    input:
        bags=rules.list_bags.output.bags,
        instances=rules.cut_instances.output[0],
        before=lambda w: PLAN.earlier_encoder(w.dataset, w.encoder, w.shard),
        weights=lambda w: PLAN.weights([w.encoder]),
    output:
        f"{RESULTS}/{{dataset}}/features/{{encoder}}/shards/{{shard}}.json",
    log:
        f"{RESULTS}/logs/extract_features/{{dataset}}/{{encoder}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/extract_features/{{dataset}}/{{encoder}}/{{shard}}.tsv"
    conda:
        "../../envs/preprocess.yaml"
    threads: CONFIG.features.workers
    resources:
        gpu=1,
        mem_mb=memory(8000),
        runtime=480,
        # not in params, whose changes redo jobs: these must leave finished shards alone
        encoders=lambda w: ",".join(dataset_of(w).encoders),
        batch_size=CONFIG.features.batch_size,
        device=CONFIG.features.device,
    params:
        root=root_of,
        options=instances_json,
        size=lambda w: dataset_of(w).bags_per_shard,
        allowed=lambda w: dataset_of(w).allowed_failures,
        compare=lambda w: dataset_of(w).compare_files,
        raw=lambda w: PLAN.raw_stamp(w.dataset, w.shard),
        stage_version=preprocessing_versions.FEATURES,
        folder=results_of,
        weights=f"--weights {shlex.quote(WEIGHTS)} --weights-mode {CONFIG.weights.mode}",
        policy=f"--resize-policy {CONFIG.features.resize_policy} --dtype {CONFIG.features.dtype} "
        f"--precision {CONFIG.features.precision}",
    shell:
        "python -m preprocessing.features --dataset {wildcards.dataset} --bags {input.bags:q} --root {params.root:q} "
        "--shard {wildcards.shard} --bags-per-shard {params.size} --options {params.options:q} "
        "--instances {params.folder:q}/instances --instances-manifest {input.instances:q} "
        "--encoder {wildcards.encoder:q} --also {resources.encoders:q} "
        "{params.weights} {params.policy} --batch-size {resources.batch_size} --device {resources.device} "
        "--workers {threads} --compare-files {params.compare} --allowed-failures {params.allowed} "
        "--out {params.folder:q}/features --manifest {output:q} 2>&1 | tee {log:q}"


rule features:
    # everything that training reads
    input:
        lambda w: [file for dataset in CONFIG.used for file in PLAN.features(dataset)],


rule qc:
    # contact sheets: look at the masks before extracting features
    input:
        expand(f"{RESULTS}/{{dataset}}/qc/index.html", dataset=CONFIG.used),


rule draw_contact_sheet:
    input:
        bags=rules.list_bags.output.bags,
        report=rules.list_bags.output.report,
        manifests=instances_of,
    output:
        html=f"{RESULTS}/{{dataset}}/qc/index.html",
        sheet=report(
            f"{RESULTS}/{{dataset}}/qc/contact-sheet.jpg",
            caption="../report/contact_sheet.rst",
            category="Data",
            labels={"dataset": "{dataset}", "shows": "contact sheet"},
        ),
        counts=f"{RESULTS}/{{dataset}}/qc/counts.json",
    log:
        f"{RESULTS}/logs/draw_contact_sheet/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_contact_sheet/{{dataset}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=60,
    params:
        instances=f"{RESULTS}/{{dataset}}/instances",
        folder=f"{RESULTS}/{{dataset}}/qc",
        most=CONFIG.report.qc_bags,
        stage_version=preprocessing_versions.QC,
    shell:
        "python -m preprocessing.qc --dataset {wildcards.dataset} --bags {input.bags:q} --report {input.report:q} "
        "--instances {params.instances:q} --manifests {input.manifests:q} --max-bags {params.most} "
        "--out {params.folder:q} 2>&1 | tee {log:q}"


rule tabulate_status:
    # every bag of every stage: state, reason, seconds, tiles per second
    input:
        bags=rules.list_bags.output.bags,
        report=rules.list_bags.output.report,
        instances=instances_of,
        features=lambda w: PLAN.features(w.dataset),
    output:
        json=f"{RESULTS}/{{dataset}}/status/status.json",
        csv=f"{RESULTS}/{{dataset}}/status/status.csv",
        md=report(
            f"{RESULTS}/{{dataset}}/status/status.md",
            caption="../report/status.rst",
            category="Data",
            labels={"dataset": "{dataset}", "shows": "status"},
        ),
    log:
        f"{RESULTS}/logs/tabulate_status/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_status/{{dataset}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        folder=results_of,
        encoders=lambda w: ",".join(dataset_of(w).encoders),
        stage_version=preprocessing_versions.STATUS,
    shell:
        "python -m preprocessing.status {params.folder:q} --dataset {wildcards.dataset} "
        "--encoders {params.encoders:q} 2>&1 | tee {log:q}"


rule status:
    input:
        expand(f"{RESULTS}/{{dataset}}/status/status.json", dataset=CONFIG.used),
