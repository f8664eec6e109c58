"""Compare two methods on the same test bags by a paired bootstrap of saved predictions.

For every split the runs that validation chose for both methods are compared on the shared test bags; a resample draws
the bags with replacement, the SAME draw for both methods and for every split, and takes the mean over splits of
metric(first) - metric(second) (`smmil.evaluate.bootstrap`). Pairing cancels the variation due to easy and hard bags.

- difference: of the means over splits, on the test bags as they are; `splits` holds it per split.
- interval: 95 % percentile range of the resampled differences.
- p: two-sided, 2 min(#(d <= 0) + 1, #(d >= 0) + 1) / (R + 1), at most 1: never 0, and 1 for equal predictions.

The interval holds for this test set and these trained runs; resampling bags does not see the variation between
trainings, so the spread over splits is reported beside it. Friedman's test over many columns: `smmil.evaluate.ranks`.
All pairs of a configuration in one table: `smmil.tables.comparisons`.

Run alone:
    python -m smmil.comparisons --index P/smap_early/index.json P/abmil/index.json \
        --metric instance_auroc bag_auroc [--out comparison.json] [--resamples 2000] [--seed 0]
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smmil.artifacts.chosen_runs import chosen_predictions
from smmil.artifacts.records import Bootstrap, ComparedMethod, Comparison, Difference, PredictionIndex
from smmil.artifacts.results import SCORES, Predictions
from smmil.evaluate.bootstrap import EXTRA, LEVEL, METRICS, Floats, Run, draw_weights, run_resamples
from smmil.evaluate.metrics import best_threshold, labelled
from smmil.evaluate.runs import as_evaluated

DEFINED = ("first", "second", "difference", "splits", "first_splits", "second_splits", "interval", "p")


def paired_bootstrap(
    first: Sequence[Run], second: Sequence[Run], metrics: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Difference]:
    """Estimate the differences first - second of metrics over paired runs.

    Args:
        first: per split the test arrays and thresholds of one method.
        second: the same of the other method and the same splits.
        metrics: names of `smmil.evaluate.bootstrap.METRICS` or `EXTRA`.
        resamples: R.
        seed: of the draws.

    Returns:
        By metric; `resamples` counts the draws in which it was defined. Without any draw (R = 0) interval and p are
        None.

    Raises:
        ValueError: other test bags in another order, or none.
    """
    reference = first[0][0]["bag_id"].tolist()
    for part, _ in (*first, *second):
        if part["bag_id"].tolist() != reference:
            differing = sorted(set(reference) ^ set(part["bag_id"].tolist()))[:5]
            raise ValueError(f"the runs were tested on other bags (e.g. {differing}): only the same bags can be paired")
    if not reference:
        raise ValueError("found no test bag, expected at least one")
    # row 0 draws every bag once: the observed value goes through the same code as the resampled ones
    weights = np.concatenate([np.ones((1, len(reference))), draw_weights(len(reference), resamples, seed)])
    resampled = [[run_resamples(*run, weights) for run in runs] for runs in (first, second)]
    return {metric: _difference([[run.get(metric) for run in runs] for runs in resampled]) for metric in metrics}


def _difference(methods: Sequence[Sequence[Floats | None]]) -> Difference:
    """Compare the resampled metric (1+R,) of the runs of both methods; element 0 is the observed value."""
    if any(values is None for runs in methods for values in runs):
        return _undefined(0, "a run lacks the metric (one class only)")
    values = np.array(methods, np.float64)
    splits = values[0] - values[1]
    differences = splits[:, 1:].mean(0)
    differences = differences[~np.isnan(differences)]
    n, resamples = len(differences), splits.shape[1] - 1
    if np.isnan(splits[:, 0]).any() or (resamples and 2 * n <= resamples):
        return _undefined(n, "undefined in most resamples")
    first, second = values[:, :, 0]
    # The observed difference counts as a draw on either side, so that p is never 0.
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return Difference(
        first=float(first.mean()),
        second=float(second.mean()),
        difference=float(splits[:, 0].mean()),
        splits=tuple(splits[:, 0].tolist()),
        first_splits=tuple(first.tolist()),
        second_splits=tuple(second.tolist()),
        interval=np.quantile(differences, (0.025, 0.975)).tolist() if resamples else None,
        p=min(1.0, 2 * (tail + 1) / (n + 1)) if resamples else None,
        resamples=n,
    )


def _undefined(resamples: int, reason: str) -> Difference:
    """Return a difference with every value written as null."""
    return Difference.model_validate(dict.fromkeys(DEFINED) | {"resamples": resamples, "reason": reason})


def compare(
    first: Path | str, second: Path | str, metrics: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare two methods from their prediction indexes.

    Args:
        first: `index.json` of one method.
        second: `index.json` of the other; same dataset, with the same test bags in the splits that both have.
        metrics: names of `smmil.evaluate.bootstrap.METRICS` or `EXTRA`.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ValueError: an unknown metric, other datasets or no split in common.
    """
    unknown = sorted(set(metrics) - {*METRICS, *EXTRA})
    if unknown:
        raise ValueError(f"--metric: found {unknown}, expected some of {', '.join((*METRICS, *EXTRA))}")
    sides = [chosen_predictions(index) for index in (first, second)]
    datasets = {run.meta.dataset for side in sides for run in side.values()}
    if len(datasets) > 1:
        raise ValueError(f"{first} and {second}: of the datasets {sorted(datasets)}, expected one")
    seeds = sorted(set(sides[0]) & set(sides[1]))
    if not seeds:
        raise ValueError(f"{first} has the splits {sorted(sides[0])}, {second} {sorted(sides[1])}: none in common")
    runs = [[_run(side[split]) for split in seeds] for side in sides]
    return Comparison(
        dataset=datasets.pop(),
        first=_describe(first, sides[0], seeds),
        second=_describe(second, sides[1], seeds),
        seeds=tuple(seeds),
        metrics=paired_bootstrap(runs[0], runs[1], metrics, resamples=resamples, seed=seed),
        random_weights=any(run.meta.random_weights for side in sides for run in side.values()),
        bootstrap=Bootstrap(resamples=resamples, seed=seed, level=LEVEL, over="test bags, paired"),
    )


def _run(predictions: Predictions) -> Run:
    test, val = (as_evaluated(predictions.meta.quirks, predictions.part(name)) for name in ("test", "val"))
    scores = {prefix: val[name] for prefix, name in SCORES.items() if name in val}
    return test, {prefix: best_threshold(*labelled(val["y_inst"], score)) for prefix, score in scores.items()}


def _describe(index: Path | str, side: dict[int, Predictions], seeds: Sequence[int]) -> ComparedMethod:
    meta = side[seeds[0]].meta
    return ComparedMethod(
        encoder=meta.encoder,
        method=meta.method,
        protocol=meta.protocol,
        quirks=meta.quirks,
        learning_rate_choice=PredictionIndex.read(index).learning_rate_choice,
        runs=tuple(side[seed].meta.run for seed in seeds),
    )
