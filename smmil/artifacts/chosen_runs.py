"""Pair metrics with prediction files: the run that represents a split of a method in figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smmil.artifacts.results import Predictions, load_predictions, read_index, read_metrics
from smmil.config.methods import METHODS


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
    """Load, per method, the predictions of the chosen run of one split.

    Args:
        indexes: `index.json` of every method.
        metrics: metrics JSON of every method.
        dataset: of all metrics files, which must also share one encoder.
        seed: which split; None = the first of each metrics file.

    Returns:
        One entry per method, in the order of the tables.

    Raises:
        ValueError: another dataset, two encoders, a metrics file without its index, no such split.
    """
    files = {path.resolve(): path for index in indexes for path in read_index(index)}
    chosen, encoders = [], set()
    for source in metrics:
        content = read_metrics(source)
        method, encoder = content["method"], content["encoder"]
        encoders.add(encoder)
        if content["dataset"] != dataset or len(encoders) > 1:
            raise ValueError(f"{source}: of {content['dataset']} / {encoder}, expected one encoder of {dataset}")
        split = next((split for split in content["splits"] if seed in (None, split["seed"])), None)
        if split is None:
            raise ValueError(f"{source}: no split {seed}, found {[split['seed'] for split in content['splits']]}")
        run = split["run"]
        paths = [path for full, path in files.items() if (full.parent.name, full.stem) == (method, run)]
        chosen.append(
            ChosenRun(method, run, split, _find(paths, content, run, source), bool(content.get("random_weights")))
        )
    order = list(METHODS)
    return sorted(chosen, key=lambda run: order.index(run.method) if run.method in METHODS else len(order))


def _find(paths: Sequence[Path], metrics: dict[str, Any], run: str, source: Path | str) -> Predictions:
    for path in paths:
        predictions = load_predictions(path)
        if all(predictions.meta[key] == metrics[key] for key in ("dataset", "encoder", "method")):
            return predictions
    raise ValueError(f"{source}: run {run} of {metrics['method']} is in none of the --index files; give its index.json")
