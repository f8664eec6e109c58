"""Percentile bootstrap of the table metrics over test bags, vectorised.

A resample draws B test bags with replacement, the same draw for every split (the splits share one test set), and takes
the mean over splits of the metric; the interval is its percentile range. Whole bags are drawn, so instances of one bag
stay together. A resample is a vector of multiplicities `w` (B,): every metric is computed from counts per bag times
`w`, and both ranking curves need such counts at the scores of positives only, so nothing is sorted per resample.

The interval measures the uncertainty from the choice of test bags, not from training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.artifacts.results import SCORES, Arrays
from smmil.evaluate.calibration import calibration_error
from smmil.evaluate.froc import bag_dice, froc_resamples
from smmil.evaluate.metrics import in_bag_aurocs, labelled

Floats = npt.NDArray[np.float64]
# by prefix of `SCORES`, from validation; None or missing where undefined
Thresholds = Mapping[str, float | None]
# test arrays, thresholds
Run = tuple[Arrays, Thresholds]

METRICS = ("instance_auroc", "instance_f1", "bag_auroc", "bag_f1")
# metrics of predictions that have the arrays they need
EXTRA = (
    *("instance_auroc_within", "instance_auprc", "instance_froc", "instance_dice"),
    *(
        f"{prefix}instance_{name}"
        for prefix in list(SCORES)[1:]
        for name in ("auroc", "f1", "auroc_within", "auprc", "froc", "dice")
    ),
    *("bag_auprc", "bag_ece", "dirichlet_raw", "dirichlet_normalised"),
)
LEVEL = 0.95
# elements of one temporary (thresholds, resamples), which bounds the memory
BLOCK_ELEMENTS = 4_000_000


def draw_weights(n_bags: int, resamples: int, seed: int) -> Floats:
    """Draw the multiplicities (R,B) of every bag in every resample; rows sum to B."""
    draws = np.random.default_rng(seed).integers(0, n_bags, size=(resamples, n_bags))
    # The rows are numbered apart, so that one count serves all resamples.
    flat = draws + n_bags * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * n_bags).reshape(resamples, n_bags)
    return counts.astype(np.float64)


def curve_resamples(
    y: npt.NDArray[Any], score: npt.NDArray[Any], bag: npt.NDArray[Any], weights: Floats
) -> tuple[Floats, Floats]:
    """Compute AUROC and average precision of every resample.

    Args:
        y: (M,) labels in {0, 1}, not all 0.
        score: (M,) finite scores.
        bag: (M,) bag of every row.
        weights: (R,B) multiplicities of the bags.

    Returns:
        AUROC (R,), NaN where a resample holds one class only, and average precision (R,), NaN without a positive.
    """
    from scipy.sparse import csr_array

    positive = y == 1
    thresholds = -np.unique(-score[positive])
    # the first threshold that a row reaches; rows below all of them change neither curve
    level = np.searchsorted(-thresholds, -score)
    reached = level < len(thresholds)
    tied = reached & ~positive
    tied[reached] &= thresholds[level[reached]] == score[reached]
    counts = [
        csr_array((np.ones(mask.sum()), (level[mask], bag[mask])), shape=(len(thresholds), weights.shape[1]))
        for mask in (positive, reached, tied)
    ]
    negatives = weights @ np.bincount(bag[~positive], minlength=weights.shape[1])
    auroc, precision = np.full((2, len(weights)), np.nan)
    block = max(1, BLOCK_ELEMENTS // len(thresholds))
    for rows in (slice(start, start + block) for start in range(0, len(weights), block)):
        gained, called, ties = (count @ weights[rows].T for count in counts)
        tp, above = np.cumsum(gained, axis=0), np.cumsum(called, axis=0)
        # a tie counts one half; sums of halves are exact
        won = np.sum(gained * (negatives[rows] - (above - tp) + ties / 2), axis=0)
        total = tp[-1] * negatives[rows]
        np.divide(won, total, out=auroc[rows], where=total > 0)
        hits = np.sum(gained * (tp / np.maximum(above, 1)), axis=0)
        np.divide(hits, tp[-1], out=precision[rows], where=tp[-1] > 0)
    return auroc, precision


def run_resamples(part: Arrays, thresholds: Thresholds, weights: Floats) -> dict[str, Floats]:
    """Resample the metrics of one run.

    Args:
        part: the arrays `smmil.evaluate.metrics.run_metrics` takes for the test bags.
        thresholds: of the scores; without one, F1 and Dice of a score are omitted.
        weights: (R,B) multiplicities of the bags, from `draw_weights`.

    Returns:
        {metric: (R,)} of `METRICS` and `EXTRA`, without undefined metrics and those whose arrays are missing.
    """
    y, logit = np.asarray(part["y"], np.float64), np.asarray(part["bag_logit"], np.float64)
    known = np.flatnonzero(~np.isnan(y))
    result = _level("bag", y[known], logit[known], known, 0.0, weights)
    if len(known):
        # Bins hold equally many of the drawn bags, so every resample has its own.
        drawn = (np.repeat(known, counts[known].astype(np.int64)) for counts in weights)
        errors = [calibration_error(y[rows], logit[rows]) for rows in drawn]
        result["bag_ece"] = np.array([np.nan if error is None else error for error in errors], np.float64)
    owner = np.repeat(np.arange(len(y)), np.diff(part["offsets"]))
    keep = np.isin(part["y_inst"], (0, 1))
    optional: dict[str, Floats] = {}
    for prefix, name in SCORES.items():
        if name not in part:
            continue
        score, limit = part[name], thresholds.get(prefix)
        result |= _level(f"{prefix}instance", *labelled(part["y_inst"], score), owner[keep], limit, weights)
        optional[f"{prefix}instance_auroc_within"] = _mean(weights, in_bag_aurocs(part, score))
        if limit is not None:
            optional[f"{prefix}instance_dice"] = _mean(weights, bag_dice(part, score, limit))
        if "grid" in part:
            optional[f"{prefix}instance_froc"] = froc_resamples(part, score, weights)
    result |= {name: values for name, values in optional.items() if not np.isnan(values).all()}
    if "energy" in part:
        raw, normalised = np.asarray(part["energy"], np.float64).T
        result |= {"dirichlet_raw": _mean(weights, raw), "dirichlet_normalised": _mean(weights, normalised)}
    return result


def _mean(weights: Floats, value: Floats) -> Floats:
    """Average a value per bag (B,), NaN where missing, over the drawn bags: (R,), NaN where all drawn bags miss it."""
    known = ~np.isnan(value)
    total = weights[:, known].sum(1)
    return _divide(weights[:, known] @ value[known], total, np.nan)


def _divide(numerator: Floats, denominator: Floats, undefined: float) -> Floats:
    """Divide two vectors (R,), with a value where the denominator is 0."""
    result: Floats = np.full(len(numerator), undefined)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _level(
    name: str, y: Floats, score: Floats, bag: npt.NDArray[Any], limit: float | None, weights: Floats
) -> dict[str, Floats]:
    """Resample AUROC, AUPRC and F1 of bags or of instances (M,); `bag` (M,) is the bag of every row."""
    result: dict[str, Floats] = {}
    if np.any(y == 1):
        auroc, result[f"{name}_auprc"] = curve_resamples(y, score, bag, weights)
        if np.any(y != 1):
            result[f"{name}_auroc"] = auroc
    if limit is not None and len(y):
        called = score > limit
        tp, fp, fn = (
            np.bincount(bag[mask], minlength=weights.shape[1]).astype(np.float64)
            for mask in ((y == 1) & called, (y == 0) & called, (y == 1) & ~called)
        )
        hits = 2 * (weights @ tp)
        result[f"{name}_f1"] = _divide(hits, hits + weights @ (fp + fn), 0.0)
    return result


def intervals(runs: Sequence[Run], *, resamples: int = 1000, seed: int = 0) -> dict[str, list[float] | None]:
    """Compute 95 % percentile intervals of the mean over runs.

    Args:
        runs: per split the test arrays (the same bags in the same order) and the thresholds of the scores.
        resamples: R.
        seed: of the draws.

    Returns:
        {metric: [low, high]} of `METRICS`, and of `EXTRA` where every run has it; None where a run lacks one of
        `METRICS`, or more than half of the resamples are undefined.
    """
    result: dict[str, list[float] | None] = dict.fromkeys(METRICS)
    n_bags = len(runs[0][0]["y"])
    if not n_bags:
        return result
    weights = draw_weights(n_bags, resamples, seed)
    resampled = [run_resamples(part, thresholds, weights) for part, thresholds in runs]
    shared = set.intersection(*map(set, resampled))
    for metric in (name for name in (*METRICS, *EXTRA) if name in shared):
        means = np.mean([run[metric] for run in resampled], axis=0)
        means = means[~np.isnan(means)]
        # An interval over the few resamples that happen to be defined would look surer than it is.
        tail = (1 - LEVEL) / 2
        result[metric] = np.quantile(means, (tail, 1 - tail)).tolist() if 2 * len(means) > resamples else None
    return result
