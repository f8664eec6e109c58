"""A full disk: training, predictions and tables exit with code 1, keep finished work, and continue later."""

import errno
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smmil.artifacts.runs import load_state, read_log
from smmil.predictions.__main__ import main as predict_main
from smmil.tables.__main__ import main as tables_main
from smmil.train.__main__ import main as train_main
from tests.faults.conftest import Work
from tests.faults.damage import tree


@contextmanager
def limit(size: int) -> Iterator[None]:
    """Limit the size of files: the kernel then stops a write in the middle, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_room(name: str, at: int) -> Iterator[None]:
    """Refuse the `at`-th file of a name when it is renamed into place."""
    replace, seen = Path.replace, []

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            seen.append(target)
            if len(seen) == at:
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        yield


def leftovers(folder: Path) -> list[Path]:
    """Return partial files."""
    return [path for path in folder.rglob("*.tmp") if path.is_file()]


def unfinish(work: Work) -> None:
    """Remove the training of split 1 and all predictions."""
    for path in (work.runs / "runs.json", work.index, work.npz, *work.run.iterdir()):
        path.unlink()


def test_a_state_that_finds_no_room_leaves_the_one_before_and_training_goes_on_from_there(work, finished, capsys):
    unfinish(work)
    with no_room("state.pt", at=2):
        assert work.train() == 1
    assert "No space left on device" in capsys.readouterr().err and not leftovers(work.folder)
    assert (load_state(work.run / "state.pt") or {})["cursor"]["epoch"] == 2
    assert not (work.run / "done.json").exists() and not (work.runs / "runs.json").exists()
    first = read_log(work.run / "log.jsonl")[0]
    assert work.train() == 0 and work.predict() == 0
    rows = read_log(work.run / "log.jsonl")
    assert [row.epoch for row in rows] == [1, 2, 3] and rows[0] == first, "the first epoch was done again"
    assert tree(work.folder) == tree(finished.folder)


@pytest.mark.parametrize("size", [100, 2000])
def test_training_beyond_a_limit_of_the_kernel_leaves_nothing_that_counts_as_finished(work, finished, capsys, size):
    """100 bytes stop the description of the run, 2,000 its first state."""
    unfinish(work)
    with limit(size):
        assert work.train() == 1
    assert not (work.run / "done.json").exists() and not (work.runs / "runs.json").exists()
    assert not (work.run / "state.pt").exists() and not leftovers(work.folder)
    assert work.train() == 0 and work.predict() == 0
    assert tree(work.folder) == tree(finished.folder)


@pytest.mark.parametrize("full", [lambda: limit(3000), lambda: no_room("split1_lr0.01.npz", 1)], ids=["kernel", "full"])
def test_predictions_without_room_leave_no_file_and_no_index(work, finished, capsys, full):
    work.index.unlink()
    work.npz.unlink()
    before = tree(work.folder)
    with full():
        assert work.predict() == 1
    assert "error: cannot write" in capsys.readouterr().err
    assert tree(work.folder) == before, "a partial file is left"
    assert work.predict() == 0
    assert tree(work.folder) == tree(finished.folder)


@pytest.fixture
def table(tmp_path) -> list[str]:
    """Return arguments of a table without metrics: all its rows with empty cells."""
    layout = {"datasets": [{"name": "rsna", "title": "RSNA", "encoder": "resnet18"}], "methods": ["abmil", "smtap"]}
    outputs = [f"--out-{kind}={tmp_path / 'tables' / f'table2.{kind}'}" for kind in ("csv", "md", "tex")]
    return ["--table", "table2", "--layout", json.dumps(layout), *outputs]


def test_a_table_without_room_is_whole_or_absent(table, tmp_path, capsys):
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}

    with limit(300):
        assert tables_main(table) == 1
    assert "File too large" in capsys.readouterr().err
    halves = files()
    assert all(len(content) < 300 for content in halves.values()), "over the limit"
    assert tables_main(table) == 0
    assert len(files()) == 3 and all(files()[name] == content for name, content in halves.items())


@pytest.fixture(params=["a file in the way", "immutable"])
def closed(request, tmp_path) -> Iterator[Path]:
    """Return a folder in which not even root can write."""
    folder = tmp_path / "closed"
    if request.param == "a file in the way":
        folder.write_text("not a folder\n")
        yield folder
        return
    folder.mkdir()
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("chattr +i is not possible here")
    yield folder
    subprocess.run(["chattr", "-i", str(folder)], check=True)


def test_a_folder_that_takes_nothing_is_named_and_nothing_else_is_touched(work, table, closed, capsys):
    before = tree(work.folder)
    out, done = str(closed / "runs"), str(closed / "runs" / "runs.json")
    for main, arguments in (
        (train_main, [*work.train_arguments()[:-4], "--out", out, "--done", done]),
        (predict_main, [*work.predict_arguments(), "--out", out, "--index", done]),
        (tables_main, [word.replace("/tables/", "/closed/tables/") for word in table]),
    ):
        try:
            message = f"{main(arguments)} {capsys.readouterr().err}"
            assert message.startswith("1 ")
        except OSError as error:  # a file in the way of a folder
            message = str(error)
        assert str(closed) in message.splitlines()[-1], message
    assert tree(work.folder) == before and (closed.is_file() or not os.listdir(closed))
