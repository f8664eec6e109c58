"""A full disk: training, predictions and tables exit non-zero, keep finished work, and continue later."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from smmil.artifacts.runs import load_state, read_log
from tests.faults.conftest import Work
from tests.faults.damage import tree
from tests.helpers.workflows import ROOT

PROGRAM = """
import errno, json, os, pathlib, resource, runpy, sys
module = sys.argv.pop(1)
{setup}
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def job(module: str, arguments: Sequence[str], setup: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own after some setup code."""
    program = PROGRAM.format(setup=textwrap.dedent(setup))
    command = [sys.executable, "-c", program, module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def limit(size: int) -> str:
    """Return code that limits the size of files: the kernel then stops a write in the middle, like a full disk."""
    return f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


NO_ROOM = """
replace, seen = pathlib.Path.replace, []
def refuse(self, target):
    if pathlib.Path(target).name == {name!r}:
        seen.append(target)
        if len(seen) == {at}:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
    return replace(self, target)
pathlib.Path.replace = refuse
"""


def leftovers(folder: Path) -> list[Path]:
    """Return partial files."""
    return [path for path in folder.rglob("*.tmp") if path.is_file()]


def unfinish(work: Work) -> None:
    """Remove the training of split 1 and all predictions."""
    for path in (work.runs / "runs.json", work.index, work.npz, *work.run.iterdir()):
        path.unlink()


def test_a_state_that_finds_no_room_leaves_the_one_before_and_training_goes_on_from_there(
    work: Work, finished: Work
) -> None:
    unfinish(work)
    ended = job("smmil.train", work.train_arguments(), NO_ROOM.format(name="state.pt", at=2))
    assert ended.returncode not in (0, 2) and "No space left on device" in ended.stderr
    assert (load_state(work.run / "state.pt") or {})["cursor"]["epoch"] == 2
    assert not (work.run / "done.json").exists() and not (work.runs / "runs.json").exists()
    assert not leftovers(work.folder)
    first = read_log(work.run / "log.jsonl")[0]
    assert work.train() == 0 and work.predict() == 0
    rows = read_log(work.run / "log.jsonl")
    assert [row.epoch for row in rows] == [1, 2, 3] and rows[0] == first, "the first epoch was done again"
    assert tree(work.folder) == tree(finished.folder)


@pytest.mark.parametrize("size", [100, 2000])
def test_training_beyond_a_limit_of_the_kernel_leaves_nothing_that_counts_as_finished(
    work: Work, finished: Work, size: int
) -> None:
    """100 bytes stop the description of the run, 2,000 its first state."""
    unfinish(work)
    ended = job("smmil.train", work.train_arguments(), limit(size))
    assert ended.returncode not in (0, 2), ended.stderr
    assert not (work.run / "done.json").exists() and not (work.runs / "runs.json").exists()
    assert not (work.run / "state.pt").exists() and not leftovers(work.folder)
    assert work.train() == 0 and work.predict() == 0
    assert tree(work.folder) == tree(finished.folder)


@pytest.mark.parametrize("setup", [limit(3000), NO_ROOM.format(name="split1_lr0.01.npz", at=1)], ids=["kernel", "full"])
def test_predictions_without_room_leave_no_file_and_no_index(work: Work, finished: Work, setup: str) -> None:
    work.index.unlink()
    work.npz.unlink()
    before = tree(work.folder)
    ended = job("smmil.predictions", work.predict_arguments(), setup)
    assert ended.returncode == 1 and "error: cannot write" in ended.stderr and "Traceback" not in ended.stderr
    assert tree(work.folder) == before, "a partial file is left"
    assert work.predict() == 0
    assert tree(work.folder) == tree(finished.folder)


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """Return arguments of a table without metrics: all its rows with empty cells."""
    layout = {"datasets": [{"name": "rsna", "title": "RSNA", "encoder": "resnet18"}], "methods": ["abmil", "smtap"]}
    outputs = [f"--out-{kind}={tmp_path / 'tables' / f'table2.{kind}'}" for kind in ("csv", "md", "tex")]
    return ["--table", "table2", "--layout", json.dumps(layout), *outputs]


def test_a_table_without_room_is_whole_or_absent(table: list[str], tmp_path: Path) -> None:
    ended = job("smmil.tables", table, limit(300))
    assert ended.returncode not in (0, 2) and "File too large" in ended.stderr
    assert all(path.stat().st_size < 300 for path in (tmp_path / "tables").iterdir()), "over the limit"
    halves = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    assert job("smmil.tables", table, limit(10**9)).returncode == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    assert len(whole) == 3 and all(whole[name] == content for name, content in halves.items())


@pytest.fixture(params=["a file in the way", "immutable"])
def closed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a folder in which not even root can write."""
    if request.param == "a file in the way":
        (tmp_path / "closed").write_text("not a folder\n")
        yield tmp_path / "closed"
        return
    folder = tmp_path / "closed"
    folder.mkdir()
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("chattr +i is not possible here")
    yield folder
    subprocess.run(["chattr", "-i", str(folder)], check=True)


def test_a_folder_that_takes_nothing_is_named_and_nothing_else_is_touched(
    work: Work, table: list[str], closed: Path
) -> None:
    before = tree(work.folder)
    out, done = str(closed / "runs"), str(closed / "runs" / "runs.json")
    jobs = {
        "smmil.train": [*work.train_arguments()[:-4], "--out", out, "--done", done],
        "smmil.predictions": [*work.predict_arguments(), "--out", out, "--index", done],
        "smmil.tables": [word.replace("/tables/", "/closed/tables/") for word in table],
    }
    for module, arguments in jobs.items():
        ended = job(module, arguments, limit(10**9))
        assert ended.returncode not in (0, 2) and str(closed) in ended.stderr.splitlines()[-1], ended.stderr
    assert tree(work.folder) == before and (closed.is_file() or not os.listdir(closed))
