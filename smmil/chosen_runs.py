"""Pairs metrics with prediction files: which run of a method stands for a split in figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smmil.methods_table import METHODS
from smmil.results import Predictions, load_predictions, read_index, read_metrics


@dataclass(frozen=True)
class ChosenRun:
    """The run that validation chose for one split of one method.

    Attributes:
        method: its key.
        run: name of the run.
        split: the split's entry of the metrics file (test metrics, threshold, ...).
        predictions: its saved predictions.
        random_weights: whether its features come from an untrained encoder.
    """

    method: str
    run: str
    split: dict[str, Any]
    predictions: Predictions
    random_weights: bool


def load_chosen(
    indexes: Sequence[Path | str], metrics: Sequence[Path | str], *, dataset: str, seed: int | None = None
) -> list[ChosenRun]:
    """Loads, per method, the predictions of the chosen run of one split.

    Args:
        indexes: `index.json` of every method.
        metrics: metrics JSON of every method.
        dataset: all must be of this one, and of one encoder.
        seed: which split; None = the first of each metrics file.

    Returns:
        One entry per method, in the order of the tables.

    Raises:
        ValueError: another dataset, two encoders, a metrics file without its index, no such split.
    """
    files = {path.resolve().parent.joinpath(path.stem): path for index in indexes for path in read_index(index)}
    by_name: dict[tuple[str, str], list[Path]] = {}
    for path in files.values():
        by_name.setdefault((path.resolve().parent.name, path.stem), []).append(path)
    chosen, encoders = [], set()
    for source in metrics:
        one = read_metrics(source)
        encoders.add(one["encoder"])
        if one["dataset"] != dataset or len(encoders) > 1:
            raise ValueError(f"{source}: of {one['dataset']} / {one['encoder']}, expected one encoder of {dataset}")
        splits = [split for split in one["splits"] if seed in (None, split["seed"])]
        if not splits:
            raise ValueError(f"{source}: no split {seed}, found {[split['seed'] for split in one['splits']]}")
        split = splits[0]
        predictions = _find(by_name.get((one["method"], split["run"]), []), one, split["run"], source)
        chosen.append(ChosenRun(one["method"], split["run"], split, predictions, bool(one.get("random_weights"))))
    order = list(METHODS)
    return sorted(chosen, key=lambda run: order.index(run.method) if run.method in METHODS else len(order))


def _find(paths: Sequence[Path], metrics: dict[str, Any], run: str, source: Path | str) -> Predictions:
    for path in paths:
        found = load_predictions(path)
        if all(found.meta[key] == metrics[key] for key in ("dataset", "encoder", "method")):
            return found
    raise ValueError(f"{source}: run {run} of {metrics['method']} is in none of the --index files; give its index.json")
