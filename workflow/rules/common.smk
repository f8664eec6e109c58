# The configuration, the names of things, and which files a target needs. Rules hold no Python of their own.
import functools
import json
import shlex
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from preprocessing.datasets import DATASETS
from preprocessing.datasets.base import MissingRaw, source_files
from preprocessing.common import stage_versions as preprocessing_versions
from smmil.config import stage_versions
from smmil.config.experiment import parse_config, training_options
from smmil.config.outputs import TABLES, all_pairings, pairings
from smmil.config.outputs import table_layout as layout_of
from smmil.config.variants import base_method
from snakemake.exceptions import WorkflowError

# under --use-conda Snakemake drops PYTHONPATH; the prefix runs inside the environment
# (a prefix of one's own replaces Snakemake's, so the strict mode is said again: a failure must not hide behind a pipe)
# a signal of SLURM reaches every process of a job: bash and tee outlive it, so that what Python saves is waited for
OUTLIVE_SIGNALS = "trap : TERM USR1; tee() (trap '' TERM USR1; exec tee \"$@\"); "
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={shlex.quote(workflow.basedir)}; {OUTLIVE_SIGNALS}"
)
# Training allocates new tensors in every step and sees hundreds of bag sizes. glibc keeps up to 256 MiB of freed memory,
# and oneDNN keeps the kernels of 32,768 shapes instead of 1,024. Neither changes a number.
TRAINING_CACHES = (
    "MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432 "
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY=32768"
)


def read_config():
    try:
        return parse_config(config, "config")
    except ValueError as error:
        raise WorkflowError(str(error)) from None


CONFIG = read_config()
USED = CONFIG.used
TRAINED = CONFIG.trained
SCORED = {name: dataset for name, dataset in USED.items() if dataset.score_with}
RESULTS = CONFIG.results.rstrip("/")


wildcard_constraints:
    dataset="[A-Za-z0-9_]+",
    encoder="[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?",
    method="[a-z0-9_]+",
    shard=r"\d{4}",


def given_configuration():
    """The arguments by which Snakemake was given this configuration, as one would type them again."""
    settings, here = workflow.config_settings, Path.cwd()
    files = [
        str(path.relative_to(here) if path.is_relative_to(here) else path)
        for path in settings.configfiles
    ]
    given = ["--configfile", *files] if files else []
    given += ["--config", *settings.config_args] if settings.config_args else []
    return shlex.join(given)


@functools.cache
def shards(dataset):
    """Names of the shards of a dataset, from a cheap count of the raw folder."""
    chosen = CONFIG.datasets[dataset]
    try:
        count = DATASETS[chosen.kind].count(Path(chosen.root), chosen.source)
    except ValueError as error:
        raise WorkflowError(f"datasets.{dataset}: {error}") from None
    return [f"{i:04d}" for i in range(max(1, -(-count // chosen.bags_per_shard)))]


def capacity(dataset):
    return len(shards(dataset)) * CONFIG.datasets[dataset].bags_per_shard


def check_raw():
    """Stops with one message when no raw folder is there; targets that need none (weights, raw) are not stopped."""
    # the targets are not known to Snakemake yet while it reads this file
    if {"weights", "raw"} & {*sys.argv}:
        return
    problems = []
    for dataset in USED:
        try:
            shards(dataset)
        except WorkflowError as error:
            problems.append(str(error))
    if problems:
        raise WorkflowError("\n\n".join(problems))


def source_json(wildcards):
    return json.dumps(CONFIG.datasets[wildcards.dataset].source, sort_keys=True)


def root_of(wildcards):
    return CONFIG.datasets[wildcards.dataset].root


def manifest_file(wildcards):
    """The files a dataset's source options name (manifest, overrides, ...), so that an edit of one is seen."""
    chosen = CONFIG.datasets[wildcards.dataset]
    return source_files(chosen.root, chosen.source)


def instances_json(wildcards):
    return CONFIG.datasets[wildcards.dataset].instances.model_dump_json()


def instance_manifests(wildcards):
    return [
        f"{RESULTS}/{wildcards.dataset}/instances/shards/{s}.json"
        for s in shards(wildcards.dataset)
    ]


def feature_manifests(dataset, encoder):
    return [
        f"{RESULTS}/{dataset}/features/{encoder}/shards/{s}.json"
        for s in shards(dataset)
    ]


def encoder_before(wildcards):
    """The manifest of the encoder listed before this one: its job decodes the shard once for itself and all later ones."""
    encoders = CONFIG.datasets[wildcards.dataset].encoders
    position = encoders.index(wildcards.encoder) if wildcards.encoder in encoders else 0
    if position == 0:
        return []
    return f"{RESULTS}/{wildcards.dataset}/features/{encoders[position - 1]}/shards/{wildcards.shard}.json"


# In the environment, not in `params`: a new encoder in the list must not redo finished shards.
for name, dataset in USED.items():
    os.environ[f"SMMIL_ENCODERS_{name}"] = ",".join(dataset.encoders)


def weights_of(wildcards):
    if CONFIG.weights.mode == "random":
        return []
    return f"{CONFIG.weights.folder}/{wildcards.encoder}.pth"


def training_json(wildcards):
    return training_options(CONFIG, wildcards.dataset, wildcards.method).text


def parts_of(wildcards):
    """The parts of a training that is cut into one job per split; none where it is one job."""
    if not CONFIG.training.is_split(wildcards.method):
        return []
    folder = (
        f"{RESULTS}/{wildcards.dataset}/runs/{wildcards.encoder}/{wildcards.method}"
    )
    return [f"{folder}/parts/split{seed}.json" for seed in CONFIG.training.splits]


def method_json(wildcards):
    """Arguments of a method; a variant of a sweep adds the one it varies."""
    options = {**CONFIG.method_options.get(base_method(wildcards.method), {})}
    variant = CONFIG.variants_on(wildcards.dataset).get(wildcards.method)
    if variant is not None:
        options[variant.argument] = variant.value
    return json.dumps(options, sort_keys=True)


def table_layout(table="table1"):
    """Rows and columns of a table, for its command line."""
    return layout_of(CONFIG, table).to_json()


def table_files(table):
    return [f"{RESULTS}/tables/{table}.{kind}" for kind in ("csv", "md", "tex", "html")]


def table_pairings(table):
    """The trainings behind a table; a configuration that has none is told so."""
    found = pairings(CONFIG, table)
    if not found and TRAINED:
        raise WorkflowError(
            f"{table}: no method with Sm is trained beside its base (methods, report.tables), so there is nothing to "
            "compare"
        )
    if not found:
        raise WorkflowError(
            f"{table}: no dataset in use is trained (datasets.*.train), so there is nothing to show"
        )
    return found


def shown_tables():
    """The tables of report.tables that have any training behind them."""
    return [table for table in CONFIG.report.tables if pairings(CONFIG, table)]


def report_pairings():
    """The trainings behind the tables of the report, each once."""
    return dict.fromkeys(one for t in shown_tables() for one in pairings(CONFIG, t))


def table_layouts():
    """The layouts of the tables of the report, for the list of runs behind each."""
    layouts = {
        table: layout_of(CONFIG, table).model_dump(exclude_unset=True)
        for table in shown_tables()
    }
    return json.dumps(layouts, sort_keys=True)


def files_of(kind, wanted):
    """One file per pairing (dataset, encoder, method): its "metrics", or runs.json of its "runs", or index.json of its
    "predictions". Under report.partial, of those alone whose training has ended."""
    suffix = {"metrics": ".json", "runs": "/runs.json", "predictions": "/index.json"}
    return [
        f"{RESULTS}/{dataset}/{kind}/{encoder}/{method}{suffix[kind]}"
        for dataset, encoder, method in wanted
        if not CONFIG.report.partial or is_trained(dataset, encoder, method)
    ]


def is_trained(dataset, encoder, method):
    return Path(f"{RESULTS}/{dataset}/runs/{encoder}/{method}/runs.json").exists()


def of_dataset(kind, figure, wildcards):
    """The files of the methods behind a figure, on one dataset and encoder."""
    own = [one for one in pairings(CONFIG, figure) if one[0] == wildcards.dataset]
    return files_of(kind, [(one[0], wildcards.encoder, one[2]) for one in own])


check_raw()
