"""Dockerfile, Apptainer definition, and jobs in a container.

Nothing is built here. `apptainer` is a stand-in that notes its arguments and runs the command on this machine.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hatch_build import FILES
from tests.helpers.cohorts import write_slide
from tests.helpers.workflows import ROOT, snakemake, write_config

STAND_IN = """#!/bin/bash
if [ "$1" = --version ]; then echo "apptainer version 1.3.0"; exit; fi
echo "$*" >> "$APPTAINER_LOG"
while [ "$1" != bash ]; do shift; done
exec "$@"
"""
IGNORED = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}


def copied(definition: str) -> set[str]:
    """Files and folders that the Apptainer definition copies from this checkout."""
    section = re.search(r"^%files\n((?:    .*\n)+)", definition, re.M)[1]
    return {line.split()[0] for line in section.splitlines()}


def test_images_hold_what_the_wheel_is_built_from():
    needed = {*FILES, "smmil", "preprocessing"}
    needed |= {"pyproject.toml", "hatch_build.py", "requirements.lock", "README.md", "LICENSE"}
    assert needed <= copied((ROOT / "apptainer.def").read_text()) and needed <= IGNORED
    for name in copied((ROOT / "apptainer.def").read_text()) | IGNORED:
        assert (ROOT / name).exists(), name


def test_the_dockerfile_copies_what_exists_and_does_not_run_as_root():
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    stages = [line.split()[-1] if " AS " in line else "" for line in lines if line.startswith("FROM")]
    for line in lines:
        if line.startswith("COPY"):
            assert all(source in IGNORED | {"."} for source in line.split()[1:-1]), line
        if line.startswith("FROM"):
            assert line.split()[1] in stages or re.search(r":3\.1[1-9]-slim", line), line
        assert not re.search(r"from=(?!build)", line)
    assert re.search(r"^USER [1-9]", "\n".join(lines[lines.index("FROM base") :]), re.M)
    assert lines[-2] == 'ENTRYPOINT ["smmil"]'


@pytest.mark.skipif(not shutil.which("hadolint", path=Path(sys.executable).parent), reason="hadolint is not installed")
def test_the_dockerfile_passes_its_linter():
    hadolint = str(Path(sys.executable).parent / "hadolint")
    run = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.fixture
def apptainer(tmp_path, monkeypatch) -> Path:
    """The stand-in on PATH; returns the file that its arguments go to."""
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("APPTAINER_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.mark.parametrize(("image", "complaint"), [(None, "found null, expected an image"), ("a.sif", "no file a.sif")])
def test_a_container_that_is_missing_is_refused_before_the_first_job(tmp_path, apptainer, image, complaint):
    config = write_config(tmp_path, {"container": image})
    run = snakemake(tmp_path, "--sdm", "apptainer", "--configfile", config, "--dry-run", check=False)
    assert run.returncode != 0 and complaint in run.stdout and not apptainer.exists()


@pytest.mark.slow
def test_jobs_run_in_the_image(tmp_path, apptainer):
    write_slide(tmp_path / "slides/a.tif")
    (tmp_path / "slides/m.csv").write_text("bag_id,image,label\na,a.tif,\n")
    (tmp_path / "smmil.sif").touch()
    mine = {"kind": "custom", "root": "slides", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"]}
    datasets = {"mine": {**mine, "train": False}}
    config = write_config(tmp_path, {"use": ["mine"], "datasets": datasets, "container": "smmil.sif"})
    target = "results/mine/bags.csv"
    snakemake(tmp_path, "--configfile", config, "--", target)
    # an image set in the configuration changes nothing without --sdm
    assert not apptainer.exists()
    (tmp_path / target).unlink()
    snakemake(tmp_path, "--sdm", "apptainer", "--configfile", config, "--", target)
    (line,) = re.findall(r"^exec .*", apptainer.read_text(), re.M)
    assert "smmil.sif bash -c" in line and (tmp_path / target).exists()
