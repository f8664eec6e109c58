"""Run Snakemake on this checkout in a temporary directory, inspect its rules, and fake raw folders by name only."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

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


def snakemake(
    directory: Path, *arguments: str, check: bool = True, timeout: int = 900
) -> subprocess.CompletedProcess[str]:
    """Run `snakemake` with this checkout's Snakefile in a directory; stdout and stderr come back joined."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = subprocess.run(
        [*command, "--directory", str(directory), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=directory,
    )
    assert not check or run.returncode == 0, run.stdout[-6000:]
    return run


def start_snakemake(directory: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Snakemake in a process group of its own; its output goes to `log`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *arguments]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with log.open("wb") as out:
        return subprocess.Popen(
            command, cwd=directory, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def planned(directory: Path, *arguments: str) -> dict[str, int]:
    """Return the number of jobs per rule of a dry run."""
    text = snakemake(directory, *arguments, "--dry-run", "--quiet", "host").stdout
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
    config["report"]["tables"] += ["resources", "table6", "table7", "table8", "table9", "table10"]
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
    touch(directory / "raw/rsna/stage_2_train", [f"ID_{i:09x}.dcm" for i in range(scans * 30)])
    (directory / "raw/rsna/stage_2_train.csv").write_text("ID,Label\n")
    (directory / "raw/rsna/testing_example.csv").write_text("instance_name,bag_name\nID_000000000.dcm,scan\n")
