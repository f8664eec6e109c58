"""The built wheel, installed away from this checkout, runs the workflow and predicts."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hatch_build import FILES
from smmil.installation import import_folder, workflow_folder
from tests.helpers.workflows import ROOT

RUNS = "results/camelyon16/runs/resnet18/abmil"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built offline."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


def names(*patterns: str) -> set[str]:
    """Files of this checkout that git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return {name for name in listed if name and (ROOT / name).is_file()}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_package_and_workflow(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    static = {str(path.relative_to(ROOT)) for path in (ROOT / "smmil/view/static").rglob("*") if path.is_file()}
    workflow = {f"smmil/_pipeline/{name}" for name in names(*FILES)}
    assert packed == names("smmil", "preprocessing") | static | workflow


def test_an_editable_installation_is_a_path_to_this_checkout(tmp_path):
    code = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    (path,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(path)
    (name,) = (name for name in archive.namelist() if ".dist-info/" not in name)
    assert name.endswith(".pth") and archive.read(name).decode() == str(ROOT)


@pytest.mark.slow
def test_an_installed_package_runs_the_workflow_and_predicts_anywhere(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", *install, "--target", str(site), str(wheel)], check=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def python(*arguments: str) -> str:
        run = subprocess.run([sys.executable, *arguments], cwd=work, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
        return run.stdout + run.stderr

    assert Path(python("-c", "import smmil; print(smmil.__file__)").strip()) == site / "smmil/__init__.py"
    where = "from smmil.installation import workflow_folder; print(workflow_folder())"
    pipeline = Path(python("-c", where).strip())
    assert pipeline == site / "smmil/_pipeline"

    slides = ["--datasets", "camelyon16", "--size", "tiny", "--slides", "8", "--side", "512"]
    python("-m", "preprocessing.synthetic", "--out", "raw", *slides)
    cut = {"preset": "paper", "tile_px": 96, "step_px": 80, "tissue": {"a_t": 0.0625, "a_h": 0.0625}}
    dataset = {"root": "raw/camelyon16", "encoders": ["resnet18"], "main_encoder": "resnet18"}
    config = {
        "use": ["camelyon16"],
        "datasets": {"camelyon16": {**dataset, "instances": {"wsi": cut}, "val_share": 0.4}},
        "weights": {"mode": "random"},
        "features": {"resize_policy": "resize32", "workers": 1, "device": "cpu"},
        "training": {"epochs": 1, "warmup_epochs": 0, "splits": [1], "learning_rates": [0.001], "device": "cpu"},
    }
    (work / "mine.yaml").write_text(json.dumps(config))
    python("-m", "smmil.config", "mine.yaml")
    command = ["-m", "snakemake", "--snakefile", str(pipeline / "Snakefile"), "--configfile", "mine.yaml"]
    text = python(*command, "--dry-run", "--workflow-profile", str(pipeline / "workflow/profiles/demo"), "--cores", "1")
    assert "write_report" in text
    assert (site / "bin/smmil").is_file() and "doctor" in python("-m", "smmil", "--help")
    python("-m", "smmil", "run", f"{RUNS}/runs.json")
    assert json.loads((work / RUNS / "runs.json").read_text())["method"] == "abmil"
    slide = next((work / "raw/camelyon16/images").glob("test_*.tif"))
    model = f"{RUNS}/split1_lr0.001"
    python("-m", "smmil", "predict", str(slide), "--model", model, "--out", "one", "--device", "cpu", "--threads", "1")
    assert 0 < json.loads((work / "one/prediction.json").read_text())["probability"] < 1


def test_jobs_import_this_project_and_nothing_that_lies_beside_it(tmp_path):
    site = tmp_path / "site"
    for package in ("smmil/_pipeline", "preprocessing", "numpy"):
        (site / package).mkdir(parents=True)
    for _ in range(2):
        folder = import_folder(site / "smmil/_pipeline", tmp_path / "links")
        assert {path.name for path in folder.iterdir()} == {"smmil", "preprocessing"}
        assert (folder / "preprocessing").samefile(site / "preprocessing")
    # another installation takes over
    (site / "smmil/_pipeline").rename(tmp_path / "_pipeline")
    moved = tmp_path / "other/smmil"
    moved.mkdir(parents=True)
    (moved.parent / "preprocessing").mkdir()
    (tmp_path / "_pipeline").rename(moved / "_pipeline")
    folder = import_folder(moved / "_pipeline", tmp_path / "links")
    assert (folder / "smmil").samefile(moved) and len(list(folder.iterdir())) == 2


def test_a_checkout_is_its_own_folder_of_imports(tmp_path):
    assert workflow_folder() == ROOT
    assert import_folder(ROOT, tmp_path / "links") == ROOT
    assert not (tmp_path / "links").exists()
