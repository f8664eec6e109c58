# Raw data and encoder weights: the only rules that use the network, and only when asked for.
from preprocessing.raw import registry


rule raw:
    # check every raw folder, download what is open and the published splits, say what to fetch by hand
    input:
        [
            f"{RESULTS}/{name}/raw.checked"
            for name, dataset in CONFIG.used.items()
            if dataset.kind in registry()
        ],


rule fetch_raw:
    output:
        touch(f"{RESULTS}/{{dataset}}/raw.checked"),
    log:
        f"{RESULTS}/logs/fetch_raw/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_raw/{{dataset}}.tsv"
    localrule: True
    conda:
        "../../envs/preprocess.yaml"
    params:
        kind=lambda w: dataset_of(w).kind,
        root=root_of,
        split=lambda w: registry()[dataset_of(w).kind].split_sha256,
    shell:
        "python -m preprocessing.raw {params.kind} --out {params.root:q} 2>&1 | tee {log:q}"


rule weights:
    # encoder weights for compute nodes without internet
    input:
        expand(
            "{folder}/{encoder}.pth",
            folder=WEIGHTS,
            encoder=sorted({e for d in CONFIG.used.values() for e in d.encoders}),
        ),


rule fetch_weights:
    output:
        protected(f"{WEIGHTS}/{{encoder}}.pth"),
    log:
        f"{RESULTS}/logs/fetch_weights/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_weights/{{encoder}}.tsv"
    localrule: True
    conda:
        "../../envs/preprocess.yaml"
    params:
        folder=lambda w: WEIGHTS,
    shell:
        "python -m preprocessing.weights --encoder {wildcards.encoder:q} --out {params.folder:q} 2>&1 | tee {log:q}"
