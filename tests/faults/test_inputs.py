"""Inputs that change between stages and clocks that jump: work is refused or repeated by content, never mixed."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smmil.artifacts.runs import read_log
from smmil.predictions import runs as predictions
from smmil.train import job
from tests.faults.conftest import Work
from tests.faults.damage import tree

YEAR = 365 * 86_400


def fail_a_bag(work: Work) -> None:
    """Mark a training bag as failed in the manifest of features."""
    path = work.folder / "features/tiny/shards/0000.json"
    manifest = json.loads(path.read_text())
    manifest["bags"][2]["state"] = "failed"
    path.write_text(json.dumps(manifest))


def move_a_bag(work: Work) -> None:
    """Move a training bag to the test split in bags.csv."""
    path = work.folder / "bags.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + [lines[3].replace("train", "test")] + lines[4:]))


EDITS = {"bags.csv": move_a_bag, "manifest": fail_a_bag}


@pytest.mark.parametrize("edit", EDITS)
def test_an_input_edited_between_training_and_prediction_is_refused_then_all_of_it_is_redone(
    work, finished, capsys, edit
):
    before = tree(work.predictions)
    EDITS[edit](work)
    assert work.predict() == 2
    assert "trained on other bags" in capsys.readouterr().err and tree(work.predictions) == before
    assert work.train() == 0 and work.predict() == 0
    after = tree(work.folder)
    for name in ("runs/runs.json", "runs/split1_lr0.01/done.json", "predictions/split1_lr0.01.npz"):
        assert after[name] != (finished.folder / name).read_bytes(), f"{name} is of the old input"
    assert [row.epoch for row in read_log(work.run / "log.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("edit", EDITS)
def test_an_input_edited_while_training_runs_is_not_what_its_runs_claim(work, monkeypatch, capsys, edit):
    (work.runs / "runs.json").unlink()
    (work.run / "done.json").unlink()
    claimed = json.loads((work.run / "config.json").read_text())["inputs"]
    original: Callable[..., int | None] = job._train_pending

    def edit_then_train(*arguments: object) -> int | None:
        EDITS[edit](work)
        return original(*arguments)

    monkeypatch.setattr(job, "_train_pending", edit_then_train)
    assert work.train() == 0
    assert json.loads((work.runs / "runs.json").read_text())["inputs"] == claimed, "the input it was started with"
    work.index.unlink()
    assert work.predict() == 2 and not work.index.exists()
    assert "trained on other bags" in capsys.readouterr().err


def set_clock(folder: Path, seconds: float) -> None:
    """Set the time of every file in a folder."""
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


@pytest.mark.parametrize("years", [-30, 70], ids=["past", "future"])
def test_finished_work_of_any_time_is_finished(work, monkeypatch, years):
    set_clock(work.folder, time.time() + years * YEAR)
    before = tree(work.folder)
    monkeypatch.setattr(job, "_train_pending", lambda *_: pytest.fail("nothing was left to train"))
    monkeypatch.setattr(predictions, "predict_bags", lambda *_: pytest.fail("nothing was left to predict"))
    assert work.train() == 0 and work.predict() == 0
    assert tree(work.folder) == before


@pytest.mark.parametrize("years", [-30, 70], ids=["past", "future"])
def test_half_done_work_of_any_time_is_not_finished(work, finished, years):
    """Outputs are newer or older than all inputs; a run lacks its last file, and predictions have another key."""
    (work.run / "done.json").unlink()
    (work.runs / "runs.json").unlink()
    listed = json.loads((finished.predictions / "index.json").read_text())["runs"]
    (work.predictions / listed[0]["file"]).write_bytes((finished.predictions / listed[1]["file"]).read_bytes())
    work.index.unlink()
    for folder in (work.runs, work.predictions):
        set_clock(folder, time.time() + years * YEAR)
    other = work.runs / "split2_lr0.01" / "best.safetensors"
    kept = other.stat().st_mtime_ns
    assert work.train() == 0 and work.predict() == 0
    assert tree(work.folder) == tree(finished.folder) and other.stat().st_mtime_ns == kept
