"""Run Snakemake on this checkout in a temporary directory, inspect its rules, and fake raw folders by name only."""

import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from snakemake import cli as snakemake_cli

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ShellRule:
    """A rule that runs a command, what it inherits included.

    Attributes:
        module: what follows `python -m`.
        environment: stem of the file in `envs/`.
        resources: numbers and functions by name.
        declared: everything that the rule declares, as Snakemake's `RuleInfo`.
    """

    module: str
    environment: str
    resources: Mapping[str, Any]
    declared: Any


@functools.cache
def shell_rules() -> dict[str, ShellRule]:
    """Return the rules of this checkout by name."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import OutputSettings, ResourceSettings

    # the target `weights` needs no raw data
    with mock.patch.object(sys, "argv", ["snakemake", "weights"]), SnakemakeApi(OutputSettings()) as api:
        rules = api.workflow(ResourceSettings(), snakefile=ROOT / "Snakefile")._workflow.rules
    result = {}
    for rule in rules:
        if rule.shellcmd:
            command = re.sub(r"{params\.(command|module)}", lambda m, rule=rule: rule.params[m[1]], rule.shellcmd)
            module = re.search(r"python -m ([\w.]+)", command)[1]
            resources = rule.ruleinfo.resources[1] if rule.ruleinfo.resources else {}
            result[rule.name] = ShellRule(module, Path(str(rule.conda_env)).stem, resources, rule.ruleinfo)
    return result


def _run_snakemake(directory: Path, arguments: Sequence[str], environment: dict[str, str], output: Path) -> None:
    """Be `snakemake`, in a process of its own."""
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    # the Snakefile looks at its arguments, too
    sys.argv = ["snakemake", *arguments]
    snakemake_cli.main()


def _command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return Snakemake's arguments for this checkout, and the environment of its jobs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return ["--snakefile", str(ROOT / "Snakefile"), *arguments], {**os.environ, "PATH": path}


def snakemake(
    directory: Path, *arguments: str, check: bool = True, timeout: int = 1800
) -> subprocess.CompletedProcess[str]:
    """Run `snakemake` with this checkout's Snakefile in a directory; stdout and stderr come back joined."""
    # Importing Snakemake takes a second. The server of these processes does it once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "smmil.planning"])
    words, environment = _command("--cores", "2", "--directory", str(directory), *arguments)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        output.touch()
        process = context.Process(target=_run_snakemake, args=(directory, words, environment, output))
        process.start()
        process.join(timeout)
        text = output.read_text()
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"snakemake {' '.join(arguments)}: more than {timeout} s\n{text[-6000:]}")
    assert not check or process.exitcode == 0, text[-6000:]
    return subprocess.CompletedProcess(words, process.exitcode, text)


def start_snakemake(directory: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Snakemake in a process group of its own; its output goes to `log`."""
    words, environment = _command(*arguments)
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *words],
            **{"cwd": directory, "env": environment, "stdout": out, "stderr": subprocess.STDOUT},
            start_new_session=True,
        )


def planned(directory: Path, *arguments: str) -> dict[str, int]:
    """Return the number of jobs per rule of a dry run."""
    return job_counts(snakemake(directory, *arguments, "--dry-run", "--quiet", "host").stdout)


def job_counts(text: str) -> dict[str, int]:
    """Return the number of jobs per rule from what a dry run prints."""
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total +\d+", text, re.M | re.S)
    if table is None:
        assert "Nothing to be done" in text, text[-3000:]
        return {}
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines() if line.strip()}


def write_config(directory: Path, values: dict[str, Any], name: str = "mine.yaml") -> str:
    """Write an override file (JSON is YAML) and return its path."""
    path = directory / name
    path.write_text(json.dumps(values))
    return str(path)


def demo_config() -> dict[str, Any]:
    """Return the overrides of the demo, for raw data in `raw`, results in `results` and random weights."""
    text = (ROOT / "workflow/demo.yaml").read_text().replace("demo/", "").replace("efficientnet_lite0", "resnet18")
    config: dict[str, Any] = yaml.safe_load(text)
    config["weights"] = {"mode": "random"}
    config["training"] |= {"splits": [1, 2]}
    config["report"]["figures"] += ["cd", "curves"]
    config["report"]["tables"] += ["resources"]
    return config


def make_cohorts(
    directory: Path, size: str = "tiny", datasets: Sequence[str] = ("camelyon16", "panda", "rsna")
) -> None:
    """Make miniature raw cohorts in `raw`."""
    command = [sys.executable, "-m", "preprocessing.synthetic", "--out", str(directory / "raw"), "--size", size]
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, "--datasets", ",".join(datasets)], check=True, cwd=ROOT, capture_output=True, env=plain)


def make_custom_slides(directory: Path) -> None:
    """Make the manifest of the dataset `mine`: two slides without labels, and a text file."""
    slides = sorted((directory / "raw/camelyon16/images").glob("test_*.tif"))[:2]
    (directory / "raw/notes.tif").write_text("this is no slide\n")
    rows = [f"own_{i},{slide.relative_to(directory / 'raw')},,," for i, slide in enumerate(slides)]
    text = "\n".join(["bag_id,image,label,split,mpp", *rows, "broken,notes.tif,,,"]) + "\n"
    (directory / "raw/own.csv").write_text(text)


def add_custom_dataset(config: dict[str, Any], method: str) -> None:
    """Add the dataset `mine` to a configuration; runs of CAMELYON16 score it."""
    config["datasets"]["mine"] = {
        **{"kind": "custom", "root": "raw", "source": {"manifest": "raw/own.csv"}, "encoders": ["resnet18"]},
        **{"instances": config["datasets"]["camelyon16"]["instances"], "train": False, "allowed_failures": 1},
        **{"score_with": {"dataset": "camelyon16", "encoder": "resnet18", "method": method}},
    }


def touch(folder: Path, names: Sequence[str]) -> None:
    """Create empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def fake_raw(directory: Path, *, panda: int, scans: int) -> None:
    """Make raw folders that look like the three datasets by their names; their files are empty."""
    normal = [f"normal_{i:03d}.tif" for i in range(1, 161) if i != 86]
    tumor = [f"tumor_{i:03d}.tif" for i in range(1, 112)]
    test = [f"test_{i:03d}.tif" for i in range(1, 131) if i != 49]
    camelyon = directory / "raw/camelyon16"
    touch(camelyon / "images", normal + tumor + test)
    touch(camelyon / "annotations", [])
    (camelyon / "evaluation").mkdir()
    (camelyon / "evaluation/reference.csv").write_text("".join(f"{n},Normal,None,None\n" for n in test))
    names = [f"{i:032x}" for i in range(panda)]
    touch(directory / "raw/panda/train_images", [f"{n}.tiff" for n in names])
    touch(directory / "raw/panda/train_label_masks", [])
    (directory / "raw/panda/train.csv").write_text(
        "image_id,data_provider,isup_grade,gleason_score\n" + "".join(f"{n},radboud,0,negative\n" for n in names)
    )
    (directory / "raw/panda/partition_PANDA.csv").write_text(
        "slide_name,Partition\n" + "".join(f"{n},train\n" for n in names)
    )
    # more files than are counted exactly, so that the configured number of scans is what is planned
    touch(directory / "raw/rsna/stage_2_train", [f"ID_{i:09x}.dcm" for i in range(min(30 * scans, 1_001))])
    (directory / "raw/rsna/stage_2_train.csv").write_text("ID,Label\n")
    (directory / "raw/rsna/testing_example.csv").write_text("instance_name,bag_name\nID_000000000.dcm,scan\n")
