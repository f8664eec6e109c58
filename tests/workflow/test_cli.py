"""Commands on a full disk: one line that names the file and what to do, and no partial files."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preprocessing.common.cli import Abort, guard
from preprocessing.common.files import whole_file, write_bytes, write_text
from smmil.evaluate.__main__ import main as evaluate_main
from smmil.predictions.__main__ import main as predict_main
from smmil.train import __main__ as train
from tests.helpers.predictions import metrics_object
from tests.helpers.train_helpers import make_dataset, source_arguments, train_arguments
from tests.helpers.workflows import ROOT

# in a process of its own: the kernel's limit on file sizes stops a write like a full disk
PROGRAM = """
import contextlib, importlib, io, json, resource, sys
sys.path.insert(0, sys.argv[1])
outcomes = {}
for name, (module, argv, limit) in json.load(sys.stdin).items():
    text, main = io.StringIO(), importlib.import_module(module)
    if not hasattr(main, "main"):
        main = importlib.import_module(f"{module}.__main__")
    guard = importlib.import_module("preprocessing.common.cli").guard
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with contextlib.redirect_stderr(text):
            code = guard(main.main)(argv)
    except Exception as error:
        code = f"Traceback: {error!r}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcomes[name] = [code, [line for line in text.getvalue().splitlines() if "error:" in line]]
print(json.dumps(outcomes))
"""


def figure_arguments(folder: Path) -> list[str]:
    path = folder.parent / "abmil.json"
    metrics = metrics_object("toy", "abmil", {"instance_auroc": [0.7]})
    path.write_text(json.dumps(metrics))
    dataset = {"name": "toy", "title": "Toy", "encoder": metrics["encoder"], "methods": ["abmil"]}
    layout = {"figure": "cd", "protocol": "as_written", "splits": [1], "datasets": [dataset]}
    return ["--figure", "cd", "--layout", json.dumps(layout), "--metrics", str(path), "--out", str(folder / "cd.png")]


def report_arguments(folder: Path) -> list[str]:
    return ["--layout", json.dumps({"datasets": [], "methods": []}), "--out", str(folder / "index.html")]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return module, arguments and limit in bytes by case. Everything is written into the folder `new`."""
    data = make_dataset(tmp_path_factory.mktemp("data"))
    old, new = data / "old", data / "new"
    new.mkdir()
    assert train.main(train_arguments(data, old / "runs", "abmil", epochs=1)) == 0
    store = [*source_arguments(data), "--device", "cpu"]
    listed = ["--runs", str(old / "runs/runs.json"), *store]
    predictions = old / "predictions"
    assert predict_main([*listed, "--out", str(predictions), "--index", str(predictions / "index.json")]) == 0
    index = ["--index", str(old / "predictions/index.json"), "--resamples", "5"]
    assert evaluate_main([*index, "--out", str(old / "metrics.json")]) == 0
    # training, predictions and tables without room: tests/faults/test_disk.py
    return {
        "evaluate": ["smmil.evaluate", [*index, "--out", str(new / "metrics.json")], 2000],
        "score": ["smmil.score", [*listed, "--out", str(new / "scores")], 2000],
        "analysis": ["smmil.analysis", ["predictions", *index[:2], "--out", str(new / "predictions.csv")], 300],
        "figures": ["smmil.figures", figure_arguments(new), 2000],
        "report": ["smmil.report", report_arguments(new), 2000],
    }


def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_no_half_file(jobs: dict[str, list[Any]]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ROOT)],
        **{"input": json.dumps(jobs), "capture_output": True, "text": True, "timeout": 600, "cwd": ROOT},
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    outcomes = json.loads(run.stdout)
    assert set(outcomes) == set(jobs)
    new = Path(jobs["report"][1][-1]).parent
    for name, (code, lines) in outcomes.items():
        assert code == 1 and len(lines) == 1, (name, code, lines)
        assert "File too large" in lines[0] and "make room" in lines[0] and str(new) in lines[0], lines[0]
        assert ".tmp" not in lines[0]
    assert not list(new.rglob("*.*"))


def failing(error: BaseException) -> Any:
    def main(argv: Any = None) -> int:
        raise error

    return guard(main)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_errors_of_the_disk_give_no_traceback(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(OSError(number, os.strerror(number), "out/table1.md"))(None) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: cannot ") and "out/table1.md" in line and os.strerror(number) in line
    assert line.count("\n") == 1 and "run the same command again" in line


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "x"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        OSError("no number"),
        PermissionError(errno.EPERM, "not of a file"),
        Abort("device lost"),
        RuntimeError("bug"),
    ],
)
def test_any_other_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)(None)


def test_a_failing_write_names_the_file_and_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "before\n")
    with pytest.raises(OSError, match=r"file\.txt'$") as raised, whole_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(path) and path.read_text() == "before\n"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]
    write_bytes(path, b"after\n")
    assert path.read_text() == "after\n" and path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
