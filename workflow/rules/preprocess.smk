# Raw data -> bags.csv -> instances -> features -> contact sheets.
# A rule declares the shard's manifest; the bags lie beside it, found finished again after a crash or a failure.


rule list_bags:
    input:
        manifest_file,
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
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=120,
    params:
        kind=lambda w: CONFIG.datasets[w.dataset].kind,
        root=root_of,
        options=source_json,
        capacity=lambda w: capacity(w.dataset),
    shell:
        "python -m preprocessing.bags --dataset {wildcards.dataset} --kind {params.kind} --root {params.root:q} "
        "--options {params.options:q} --max-bags {params.capacity} --out {output.bags:q} 2>&1 | tee {log:q}"


rule cut_instances:
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
    output:
        f"{RESULTS}/{{dataset}}/instances/shards/{{shard}}.json",
    log:
        f"{RESULTS}/logs/cut_instances/{{dataset}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/cut_instances/{{dataset}}/{{shard}}.tsv"
    conda:
        "../../envs/preprocess.yaml"
    resources:
        mem_mb=lambda w, attempt: 4000 * attempt,
        runtime=240,
    params:
        root=root_of,
        options=instances_json,
        size=lambda w: CONFIG.datasets[w.dataset].bags_per_shard,
        allowed=lambda w: CONFIG.datasets[w.dataset].allowed_failures,
        stage_version=preprocessing_versions.INSTANCES,
        folder=f"{RESULTS}/{{dataset}}/instances",
    shell:
        "python -m preprocessing.instances --dataset {wildcards.dataset} --bags {input.bags:q} --root {params.root:q} "
        "--shard {wildcards.shard} --bags-per-shard {params.size} --options {params.options:q} "
        "--allowed-failures {params.allowed} --out {params.folder:q} --manifest {output:q} 2>&1 | tee {log:q}"


rule extract_features:
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        instances=f"{RESULTS}/{{dataset}}/instances/shards/{{shard}}.json",
        before=encoder_before,
        weights=weights_of,
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
        mem_mb=lambda w, attempt: 8000 * attempt,
        runtime=480,
    params:
        root=root_of,
        options=instances_json,
        size=lambda w: CONFIG.datasets[w.dataset].bags_per_shard,
        allowed=lambda w: CONFIG.datasets[w.dataset].allowed_failures,
        stage_version=preprocessing_versions.FEATURES,
        folder=f"{RESULTS}/{{dataset}}",
        weights=f"--weights {CONFIG.weights.folder} --weights-mode {CONFIG.weights.mode}",
        policy=f"--resize-policy {CONFIG.features.resize_policy} --dtype {CONFIG.features.dtype} "
        f"--precision {CONFIG.features.precision}",
    shell:
        "python -m preprocessing.features --dataset {wildcards.dataset} --bags {input.bags:q} --root {params.root:q} "
        "--shard {wildcards.shard} --bags-per-shard {params.size} --options {params.options:q} "
        "--instances {params.folder:q}/instances --instances-manifest {input.instances:q} "
        '--encoder {wildcards.encoder:q} --also "$SMMIL_ENCODERS_{wildcards.dataset}" '
        "{params.weights} {params.policy} --batch-size {CONFIG.features.batch_size} --device {CONFIG.features.device} "
        "--workers {threads} --allowed-failures {params.allowed} "
        "--out {params.folder:q}/features --manifest {output:q} 2>&1 | tee {log:q}"


rule features:
    # everything the network has to see, and nothing trained yet
    input:
        lambda w: [
            manifest
            for dataset, chosen in USED.items()
            for encoder in chosen.encoders
            for manifest in feature_manifests(dataset, encoder)
        ],


rule qc:
    # look at the masks before paying for features
    input:
        expand("{results}/{dataset}/qc/index.html", results=RESULTS, dataset=[*USED]),


rule draw_contact_sheet:
    input:
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        report=f"{RESULTS}/{{dataset}}/bags.report.json",
        manifests=instance_manifests,
    output:
        html=f"{RESULTS}/{{dataset}}/qc/index.html",
        sheet=f"{RESULTS}/{{dataset}}/qc/contact-sheet.jpg",
        counts=f"{RESULTS}/{{dataset}}/qc/counts.json",
    log:
        f"{RESULTS}/logs/draw_contact_sheet/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_contact_sheet/{{dataset}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
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
        bags=f"{RESULTS}/{{dataset}}/bags.csv",
        report=f"{RESULTS}/{{dataset}}/bags.report.json",
        instances=instance_manifests,
        features=lambda w: [
            manifest
            for encoder in CONFIG.datasets[w.dataset].encoders
            for manifest in feature_manifests(w.dataset, encoder)
        ],
    output:
        json=f"{RESULTS}/{{dataset}}/status/status.json",
        csv=f"{RESULTS}/{{dataset}}/status/status.csv",
        md=f"{RESULTS}/{{dataset}}/status/status.md",
    log:
        f"{RESULTS}/logs/tabulate_status/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_status/{{dataset}}.tsv"
    conda:
        "../../envs/report.yaml"
    resources:
        mem_mb=lambda w, attempt: 2000 * attempt,
        runtime=30,
    params:
        folder=f"{RESULTS}/{{dataset}}",
        encoders=lambda w: ",".join(CONFIG.datasets[w.dataset].encoders),
        stage_version=preprocessing_versions.STATUS,
    shell:
        "python -m preprocessing.status {params.folder:q} --dataset {wildcards.dataset} "
        "--encoders {params.encoders:q} 2>&1 | tee {log:q}"


rule status:
    input:
        expand(
            "{results}/{dataset}/status/status.json", results=RESULTS, dataset=[*USED]
        ),
