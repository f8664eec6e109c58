"""The run that represents a split of a method: its learning rate, its metrics and its predictions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from smmil.artifacts.records import Metrics, PredictionIndex, PredictionMeta, RunEntry, SplitMetrics
from smmil.artifacts.results import Predictions, load_predictions, read_index
from smmil.config.methods import METHODS
from smmil.config.training_options import RateChoice


def chosen_rates(runs: Iterable[RunEntry | PredictionMeta], choice: RateChoice) -> dict[int, float]:
    """Return the learning rate that validation chose for every split, by seed; on a tie the larger one.

    Args:
        runs: all runs of a method, one per split and learning rate.
        choice: the best score of each split, or the best mean score over the splits of the method.

    Raises:
        ValueError: a learning rate twice in a split, or, for one rate per method, not the same rates in all splits.
    """
    scores: dict[int, dict[float, float]] = {}
    for run in runs:
        rates = scores.setdefault(run.seed, {})
        if run.lr in rates:
            raise ValueError(f"split {run.seed}: found the learning rate {run.lr:g} twice, expected each once")
        rates[run.lr] = run.selection_score
    if choice == "method":
        rates_by_split = {seed: sorted(rates) for seed, rates in scores.items()}
        if len({*map(tuple, rates_by_split.values())}) > 1:
            raise ValueError(
                f"learning_rate_choice: method: found the rates by split {rates_by_split}, expected the same in all"
            )
        means = {rate: fmean(rates[rate] for rates in scores.values()) for rate in next(iter(scores.values()), {})}
        scores = dict.fromkeys(scores, means)
    # The rate breaks ties, so the larger one wins in any order of the runs.
    return {seed: max((score, rate) for rate, score in rates.items())[1] for seed, rates in sorted(scores.items())}


def chosen_predictions(index: Path | str) -> dict[int, Predictions]:
    """Load, by seed of the split, the predictions of the run that validation chose among those of an `index.json`."""
    runs = [load_predictions(path) for path in read_index(index)]
    rates = chosen_rates((run.meta for run in runs), PredictionIndex.read(index).learning_rate_choice)
    chosen = {run.meta.seed: run for run in runs if run.meta.lr == rates[run.meta.seed]}
    return dict(sorted(chosen.items()))


@dataclass(frozen=True)
class ChosenRun:
    """The run that validation chose for one split of one method.

    `random_weights` says whether its features come from an untrained encoder.
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
        method, encoder = content.method, content.encoder
        encoders.add(encoder)
        if content.dataset != dataset or len(encoders) > 1:
            raise ValueError(f"{source}: of {content.dataset} / {encoder}, expected one encoder of {dataset}")
        split = next((split for split in content.splits if seed in (None, split.seed)), None)
        if split is None:
            raise ValueError(f"{source}: no split {seed}, found {[split.seed for split in content.splits]}")
        named = (path for full, path in files.items() if (full.parent.name, full.stem) == (method, split.run))
        for predictions in map(load_predictions, named):
            meta = predictions.meta
            if (meta.dataset, meta.encoder, meta.method) == (dataset, encoder, method):
                chosen.append(ChosenRun(method, split.run, split, predictions, content.random_weights))
                break
        else:
            raise ValueError(f"{source}: run {split.run} of {method} is in no --index file; give its index.json")
    order = list(METHODS)
    return sorted(chosen, key=lambda run: order.index(run.method) if run.method in METHODS else len(order))
