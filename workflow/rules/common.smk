# The configuration, the plan of files (smmil/planning.py), and how shell commands start.
import json
import shlex
from pathlib import Path

# the code of this Snakefile: beside it in a checkout, around it in an installed package
BASE = Path(workflow.basedir)
sys.path.insert(0, str(BASE.parents[1] if BASE.name == "_pipeline" else BASE))

from preprocessing.common import stage_versions as preprocessing_versions
from smmil.config import stage_versions
from smmil.config.experiment import parse_config, read_settings, training_options
from smmil.config.outputs import FIGURES, TABLES, all_pairings, datasets, table_layout
from smmil.figures.job import figure_layout
from smmil.installation import import_folder
from smmil.planning import Plan
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

# --use-conda drops PYTHONPATH, so the prefix sets it. It replaces Snakemake's own prefix and repeats its strict mode:
# without pipefail a failure would hide behind `tee`. SLURM signals every process of a job; bash and tee ignore the
# signal, so that they outlive Python while it saves its state.
# Under `smmil run` the output of jobs goes to their logs alone, so that it does not break the live view.
TEE = 'cat > "$1"' if os.environ.get("SMMIL_QUIET_JOBS") else 'tee "$@"'
OUTLIVE_SIGNALS = f"trap : TERM USR1; tee() (trap '' TERM USR1; exec {TEE}); "
IMPORTS = import_folder(BASE, Path(".snakemake/smmil"))
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(IMPORTS))}; {OUTLIVE_SIGNALS}"
)

try:
    # Snakemake's own `config` lets the last of two equal keys count, and knows no presets
    settings = workflow.config_settings
    if not workflow.modifier.skip_configfile:
        config = read_settings(settings.configfiles, settings.config)
    PLAN = Plan(parse_config(config, "config"))
except ValueError as error:
    raise WorkflowError(str(error)) from None
CONFIG = PLAN.config
RESULTS, WEIGHTS = PLAN.results, PLAN.weights_folder


if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    # without an image Snakemake would run the jobs outside of any
    if CONFIG.container is None:
        raise WorkflowError(
            "container: found null, expected an image for --sdm apptainer, e.g. smmil.sif (docs/howto/conda.md)"
        )
    if "://" not in CONFIG.container and not Path(CONFIG.container).exists():
        raise WorkflowError(
            f"container: found no file {CONFIG.container}; build it with `apptainer build` (docs/howto/conda.md)"
        )


if CONFIG.container:

    container: CONFIG.container


wildcard_constraints:
    dataset="[A-Za-z0-9_]+",
    encoder="[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?",
    method="[a-z0-9_]+",
    shard=r"\d{4}",


# Snakemake does not know its targets yet while it reads this file
FETCHING = bool({"weights", "raw"} & {*sys.argv})
MISSING_RAW = []
if workflow.is_main_process and not FETCHING:
    try:
        MISSING_RAW = PLAN.missing_raw()
        for remark in PLAN.remarks():
            logger.warning(remark)
    except ValueError as error:
        raise WorkflowError(str(error)) from None


# not while this file is read: plans, lists and environments need no raw data
onstart:
    if MISSING_RAW:
        raise WorkflowError("\n\n".join(MISSING_RAW))


dataset_of = lambda w: CONFIG.datasets[w.dataset]
root_of = lambda w: dataset_of(w).root
results_of = lambda w: f"{RESULTS}/{w.dataset}"
instances_json = lambda w: dataset_of(w).instances.model_dump_json()
instances_of = lambda w: PLAN.instances(w.dataset)
features_of = lambda w: PLAN.features(w.dataset, w.encoder)


def memory(mb):
    """Ask for more memory in every attempt."""
    return lambda wildcards, attempt: mb * attempt


def configuration_arguments():
    """Return the arguments that gave Snakemake this configuration; the report shows them."""
    settings, here = workflow.config_settings, Path.cwd()
    files = [
        str(path.relative_to(here) if path.is_relative_to(here) else path)
        for path in settings.configfiles
    ]
    arguments = ["--configfile", *files] if files else []
    arguments += ["--config", *settings.config_args] if settings.config_args else []
    return shlex.join(arguments)


def of_figure(kind):
    """Make an input function: one file per training of a figure."""
    return lambda w: PLAN.of_target(kind, w.figure)


def of_dataset(kind, figure):
    """Make an input function: one file per method of a figure, on one dataset."""
    return lambda w: PLAN.of_dataset(kind, figure, w.dataset, w.encoder)


def input_options(wildcards, input):
    """Return `--metrics FILES --index FILES`: an option for each input of a rule but the manifests."""
    arguments = []
    for name, files in input.items():
        if name != "manifests":
            arguments.append(f"--{name.replace('_', '-')}")
            arguments += [files] if isinstance(files, str) else files
    return arguments
