"""Pair metrics with prediction files: the run that represents a split of a method in figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smmil.artifacts.records import Metrics, SplitMetrics
from smmil.artifacts.results import Predictions, load_predictions, read_index
from smmil.config.methods import METHODS


@dataclass(frozen=True)
class ChosenRun:
    """The run that validation chose for one split of one method.

    Attributes:
        method: key of the method.
        run: name of the run.
        split: metrics of the run.
        predictions: saved predictions of the run.
        random_weights: whether its features come from an untrained encoder.
    """

    method: str
    run: str
    split: SplitMetrics
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
        content = Metrics.read(source)
        encoders.add(content.encoder)
        if content.dataset != dataset or len(encoders) > 1:
            raise ValueError(f"{source}: of {content.dataset} / {content.encoder}, expected one encoder of {dataset}")
        split = next((split for split in content.splits if seed in (None, split.seed)), None)
        if split is None:
            raise ValueError(f"{source}: no split {seed}, found {[split.seed for split in content.splits]}")
        paths = [path for full, path in files.items() if (full.parent.name, full.stem) == (content.method, split.run)]
        predictions = _find(paths, content, split.run, source)
        chosen.append(ChosenRun(content.method, split.run, split, predictions, content.random_weights))
    order = list(METHODS)
    return sorted(chosen, key=lambda run: order.index(run.method) if run.method in METHODS else len(order))


def _find(paths: Sequence[Path], metrics: Metrics, run: str, source: Path | str) -> Predictions:
    for path in paths:
        predictions = load_predictions(path)
        meta = predictions.meta
        if (meta.dataset, meta.encoder, meta.method) == (metrics.dataset, metrics.encoder, metrics.method):
            return predictions
    raise ValueError(f"{source}: run {run} of {metrics.method} is in none of the --index files; give its index.json")
