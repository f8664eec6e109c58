"""The tutorials do what they say: their commands run in the order of the pages, on the slides that they make."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.workflows import ROOT

TUTORIALS = ROOT / "docs/tutorials"
ORDER = ("first-cohort", "new-slide", "qupath")
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)
# what each page promises
FILES = {
    "first-cohort": ("mine.yaml", "manifest.csv", "results/mine/qc/index.html", "results/report/index.html"),
    "new-slide": (
        "case/prediction.json",
        "case/heatmap.png",
        "case/top_tiles.png",
        "case/instances.csv",
        "case/tiles.geojson",
    ),
    "qupath": ("geojson",),
}


class Block(NamedTuple):
    """A fenced block: why it is not run (empty = it is), its language and its text."""

    reason: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a tutorial."""
    return [Block(*found) for found in BLOCK.findall((TUTORIALS / f"{page}.md").read_text(encoding="utf-8"))]


def test_every_tutorial_is_run_or_says_why_not():
    pages = {path.stem for path in TUTORIALS.glob("*.md")}
    assert set(ORDER) <= pages
    for page in pages - set(ORDER):
        assert all(block.reason for block in blocks(page) if block.language == "bash"), page


@pytest.mark.slow
def test_tutorials_run(tmp_path):
    program = tmp_path / "bin/smmil"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m smmil "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    work = tmp_path / "work"
    work.mkdir()
    for page in ORDER:
        for reason, language, text in blocks(page):
            name = re.match(r"# ([a-z]+\.(?:yaml|py))\n", text)
            if name:
                (work / name[1]).write_text(text)
            elif language == "bash" and not reason:
                command = ["bash", "-euo", "pipefail", "-c", text]
                run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
                assert run.returncode == 0, f"{page}: {text}{run.stdout[-3000:]}{run.stderr[-3000:]}"
        for file in FILES[page]:
            assert (work / file).exists(), f"{page} promises {file}"
    assert len(list((work / "geojson").glob("*.geojson"))) == 12
