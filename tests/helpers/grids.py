"""A tiny grid from bag store to Table 1, through the command lines' main functions, as the workflow's jobs run it.

Below one folder: `runs/M`, `predictions/M/index.json`, `metrics/M.json` and `table1.csv`, M the methods.

Run alone, it prints the numbers that `tests/workflow/test_grid.py` holds:
    python -m tests.helpers.grids
"""

import csv
import json
import pprint
import tempfile
from pathlib import Path
from typing import Any

from smmil.artifacts.runs import read_log
from smmil.evaluate.__main__ import main as evaluate_main
from smmil.predictions.__main__ import main as predict_main
from smmil.tables import __main__ as tables
from smmil.train import __main__ as train
from tests.helpers.train_helpers import make_dataset, source_arguments, train_arguments

METHODS = ("abmil", "smap_early", "smtap")
# two epochs of warm-up, six steps an epoch of which the last is short, a class weight above 1
TRAINING: dict[str, Any] = {
    **{"epochs": 8, "batch_size": 5, "splits": [1, 2], "learning_rates": [0.002, 0.0002]},
    # states of 50 MB, only when a job is stopped
    "checkpoint_seconds": 60,
}
TEST_METRICS = ("bag_auroc", "bag_f1", "bag_bce", "bag_ece", "instance_auroc", "instance_f1", "dirichlet_raw")


def make_grid_dataset(folder: Path) -> Path:
    """39 bags to learn from, 18 of them positive, and 24 to test on; hard enough that no method separates them."""
    states = {f"bag{i:02d}": "empty" for i in (1, 5, 9)}
    return make_dataset(folder, n_train=42, n_test=24, states=states, shift=1.15)


def train_command(data: Path, out: Path, method: str) -> list[str]:
    """Arguments of the training job of one method."""
    return train_arguments(data, out / "runs" / method, method, class_weight=True, **TRAINING)


def train_grid(data: Path, out: Path) -> None:
    """Trains every method; what is finished is left alone."""
    for method in METHODS:
        assert train.main(train_command(data, out, method)) == 0


def finish_grid(data: Path, out: Path) -> None:
    """Predictions, metrics and Table 1 of trained runs."""
    for method in METHODS:
        predict_method(data, out / "runs" / method, out / "predictions" / method)
        command = ["--index", str(out / "predictions" / method / "index.json"), "--resamples", "100"]
        assert evaluate_main([*command, "--out", str(out / "metrics" / f"{method}.json")]) == 0
    layout = {"datasets": [{"name": "tiny", "encoder": "tiny"}], "methods": METHODS}
    files = [str(out / "metrics" / f"{method}.json") for method in METHODS]
    command = ["--table", "table1", "--metrics", *files, "--layout", json.dumps(layout)]
    assert tables.main([*command, "--out-csv", str(out / "table1.csv")]) == 0


def predict_method(data: Path, runs: Path, out: Path) -> None:
    """Predictions of the runs of one method."""
    command = ["--runs", str(runs / "runs.json"), "--out", str(out), "--index", str(out / "index.json")]
    assert predict_main([*command, *source_arguments(data), "--device", "cpu", "--threads", "1"]) == 0


def run_numbers(out: Path) -> dict[str, tuple[Any, ...]]:
    """Run -> best epoch, whether validation chose its learning rate, selection score, training loss at the end."""
    numbers = {}
    for method in METHODS:
        for run in json.loads((out / "runs" / method / "runs.json").read_text())["runs"]:
            loss = read_log(out / "runs" / method / run["run"] / "log.jsonl")[-1].loss
            scores = (round(run["selection_score"], 4), round(loss, 4))
            numbers[f"{method} {run['run']}"] = (run["best_epoch"], run["chosen"], *scores)
    return numbers


def metric_numbers(out: Path) -> dict[str, tuple[float, ...]]:
    """Method and split -> chosen learning rate, thresholds of both scores, and the test metrics of `TEST_METRICS`."""
    numbers = {}
    for method in METHODS:
        for split in json.loads((out / "metrics" / f"{method}.json").read_text())["splits"]:
            values = (split["threshold"], split["signed_threshold"], *(split["test"][name] for name in TEST_METRICS))
            numbers[f"{method} {split['seed']}"] = (split["lr"], *(round(value, 4) for value in values))
    return numbers


def table_numbers(out: Path) -> dict[str, tuple[float, ...]]:
    """Means, deviations, intervals and ranks of Table 1's CSV -> the number of every row, in the order of the rows."""
    rows = list(csv.DictReader((out / "table1.csv").read_text().splitlines()))
    names = [name for name in rows[0] if name.endswith(("mean", "std", "ci95_low", "ci95_high", "rank"))]
    return {
        name.removeprefix("tiny.tiny."): tuple(round(float(row[name]), 4) for row in rows)
        for name in names
        if rows[0][name]
    }


def main() -> None:
    """Prints the numbers of a grid trained now."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = make_grid_dataset(Path(folder) / "data"), Path(folder) / "grid"
        train_grid(data, out)
        finish_grid(data, out)
        for name, numbers in (("RUNS", run_numbers), ("METRICS", metric_numbers), ("TABLE", table_numbers)):
            print(f"{name} = {pprint.pformat(numbers(out), sort_dicts=False, width=118)}")


if __name__ == "__main__":
    main()
