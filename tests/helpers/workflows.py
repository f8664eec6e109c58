"""Runs Snakemake on this checkout in a working directory of the test's own, and fakes raw folders by name only."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def snakemake(
    directory: Path, *arguments: str, check: bool = True, timeout: int = 900
) -> subprocess.CompletedProcess[str]:
    """Runs `snakemake` with the checkout's Snakefile in `directory`; stdout and stderr come back joined."""
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


def planned(directory: Path, *arguments: str) -> dict[str, int]:
    """Jobs per rule of a dry run."""
    text = snakemake(directory, *arguments, "--dry-run", "--quiet", "host").stdout
    table = re.search(r"^job +count\n-+ +-+\n(.*?)^total +\d+", text, re.M | re.S)
    if table is None:
        assert "Nothing to be done" in text, text[-3000:]
        return {}
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines() if line.strip()}


def write_config(directory: Path, values: dict[str, Any], name: str = "mine.yaml") -> str:
    """Writes an override file (JSON is YAML) and returns its path."""
    path = directory / name
    path.write_text(json.dumps(values))
    return str(path)


def touch(folder: Path, names: Sequence[str]) -> None:
    """Creates empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def fake_raw(directory: Path, *, panda: int, scans: int) -> None:
    """Raw folders that look like the three datasets by their names; nothing in them can be read."""
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
