"""Start Snakemake with sensible defaults, in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from smmil.cli.pipeline import Setup, check_targets
from smmil.cli.status import dataset_status
from smmil.config.experiment import load_yaml
from smmil.installation import workflow_folder

PACKAGE = Path(__file__).resolve().parents[1]
PLUGINS = PACKAGE / "cli/plugins"
# options after `--` that replace a default
REPLACES = {"--cores": ("-c", "--jobs", "-j"), "--keep-going": ("-k",), "--rerun-incomplete": ("--ri",)}
# Snakemake then prints an answer instead of running jobs
QUERIES = frozenset(
    "-n --dry-run --dryrun --lint --list -l --list-target-rules --lt --rulegraph --dag --filegraph --summary -S "
    "--detailed-summary -D --unlock --report --version --help -h --d3dag".split()
)


def snakemake_command(
    setup: Setup, targets: Sequence[str], passed: Sequence[str], *, cores: str = "all", verbose: bool = False
) -> list[str]:
    """Return the command line of Snakemake.

    Args:
        setup: the configuration.
        targets: names or files; none = the default target.
        passed: further arguments for Snakemake; they replace defaults.
        cores: a number or "all".
        verbose: whether Snakemake shows its own output instead of the live view.
    """
    folder = workflow_folder()
    names = {argument.partition("=")[0] for argument in passed}
    defaults: dict[str, object] = {"--workflow-profile": "none"}
    if "--workflow-profile" not in names:
        # the options of the profile by name, because Snakemake prints a line about every profile that it reads
        defaults |= {f"--{key}": value for key, value in load_yaml(folder / "profiles/default/config.yaml").items()}
    if cores != "all" or "--workflow-profile" not in names:
        # a profile of the user has a number of its own, on a cluster that of the largest job
        defaults["--cores"] = cores
    if not verbose and not names & (QUERIES - {"-n", "--dry-run", "--dryrun"}):
        defaults["--logger"] = "smmil"
    # targets first, because `--configfile` takes every word that follows it
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(folder / "Snakefile")]
    for option, value in defaults.items():
        if not names & {option, *REPLACES.get(option, ())} and value is not False:
            command += [option] if value is True else [option, str(value)]
    if setup.files:
        command += ["--configfile", *map(str, setup.files)]
    return [*command, *passed]


def snakemake_environment(environment: Mapping[str, str], *, verbose: bool = False) -> dict[str, str]:
    """Return the environment of Snakemake: it finds this package, our plugin, and this Python for the jobs."""
    paths = [str(PLUGINS), str(PACKAGE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    programs = [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    changes = {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.pathsep.join(programs)}
    return {**environment, **changes, **({} if verbose else {"SMMIL_QUIET_JOBS": "1"})}


def run_workflow(
    setup: Setup, targets: Sequence[str], passed: Sequence[str], *, cores: str = "all", verbose: bool = False
) -> int:
    """Run the workflow with the arguments of `snakemake_command`, say where its results are, and return the exit code.

    Raises:
        ValueError: an unknown target.
    """
    check_targets(targets)
    command = snakemake_command(setup, targets, passed, cores=cores, verbose=verbose)
    print(f"configuration: {setup.title}; results: {setup.config.results}", file=sys.stderr)
    # the live view repeats the options in the commands that it recommends
    environment = {**snakemake_environment(os.environ, verbose=verbose), "SMMIL_OPTIONS": setup.options}
    code = _wait(subprocess.Popen(command, env=environment))
    if code == 0 and not QUERIES & {*passed}:
        _print_outcome(setup, targets)
    return code


def _print_outcome(setup: Setup, targets: Sequence[str]) -> None:
    """Print how many bags failed, which `allowed_failures` lets pass, and the pages to open."""
    for name in setup.config.used:
        status = dataset_status(setup.config, name)
        failed = {bag.bag_id for bag in status[1] if bag.state == "failed"} if status else set()
        if failed:
            text = f"{len(failed)} bag{'s' * (len(failed) > 1)} failed, which allowed_failures accepts"
            print(f"{name}: {text}; `smmil status{setup.options}` says why", file=sys.stderr)
    results = Path(setup.config.results)
    pages = [results / "report/index.html"] if not targets or {"all", "report"} & {*targets} else []
    pages += [results / name / "qc/index.html" for name in setup.config.used if "qc" in targets]
    pages += [results / "tables" / f"{target}.md" for target in targets]
    for page in pages:
        if page.is_file():
            print(f"open {page.resolve()}")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for Snakemake, which ends its jobs in order when a signal comes; a terminal sends Ctrl-C to it as well."""

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    interrupts: list[int] = []
    # the handlers stay: this process ends when Snakemake has
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    signal.signal(signal.SIGTERM, forward)
    code = process.wait()
    # by this code a shell knows that Ctrl-C ended the command, and stops its script, too
    if interrupts and code:
        return 128 + signal.SIGINT
    return code if code >= 0 else 128 - code
