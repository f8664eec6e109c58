"""Percentile bootstrap over test bags of the four table metrics, vectorised.

A resample draws B test bags with replacement, the same draw for every split (the splits share one test set), and takes
the mean over splits of the metric; the interval is its percentile range. Whole bags are drawn, so instances of one bag
stay together. AUROC is a ratio of pair counts, hence with `pairs[a, b]` = concordant (positive in bag a, negative in
bag b) pairs and `w` (R,B) = how often each bag was drawn:  AUROC_r = w_r pairs w_r' / ((w_r . positives) (w_r .
negatives)): no resorting.

It measures the uncertainty that comes from the choice of test bags, not from training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.metrics import labelled

Floats = npt.NDArray[np.float64]

METRICS = ("instance_auroc", "instance_f1", "bag_auroc", "bag_f1")
LEVEL = 0.95


def draw_weights(n_bags: int, resamples: int, seed: int) -> Floats:
    """(R, B) multiplicities of every bag in every resample; rows sum to B."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, n_bags, size=(resamples, n_bags))
    flat = draws + n_bags * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=resamples * n_bags).reshape(resamples, n_bags)
    return counts.astype(np.float64)


def concordant_pairs(
    y: npt.NDArray[Any], score: npt.NDArray[Any], bag: npt.NDArray[Any], n_bags: int, *, chunk: int | None = None
) -> tuple[Floats, Floats, Floats]:
    """Pair counts between bags.

    Args:
        y: (M,) labels in {0, 1}.
        score: (M,) finite scores.
        bag: (M,) bag of every row.
        n_bags: B.
        chunk: rows compared among themselves at a time; changes the time only.

    Returns:
        `pairs` (B,B): positives of bag a ranked above negatives of bag b, a tie counting one half; `positives` (B,) and
        `negatives` (B,) counts.
    """
    positive = np.asarray(y) == 1
    positives = np.bincount(bag[positive], minlength=n_bags).astype(np.float64)
    negatives = np.bincount(bag[~positive], minlength=n_bags).astype(np.float64)
    if not (positive.any() and (~positive).any()):
        return np.zeros((n_bags, n_bags)), positives, negatives
    pairs = np.zeros((n_bags, n_bags))
    # balances the matrix product (B^2 / chunk per row) against the pairs inside a chunk
    chunk = chunk or min(256, max(64, n_bags // 8))
    # a tie counts one half: once the negative goes below the positive of the same score, once above it
    for ties in (positive, ~positive):
        order = np.lexsort((ties, score))
        pairs += _ordered_pairs(positive[order], np.asarray(bag)[order], n_bags, chunk) / 2
    return pairs, positives, negatives


def _ordered_pairs(positive: npt.NDArray[np.bool_], bag: npt.NDArray[Any], n_bags: int, chunk: int) -> Floats:
    """(B,B) counts of (positive of bag a, negative of bag b standing before it) in a sequence (M,).

    Chunks against earlier chunks by one matrix product, pairs inside a chunk by their distance: the cost grows with
    M x (chunk + B^2 / chunk) simple steps, without a sort per resample.
    """
    chunks = -(-len(bag) // chunk)
    cells = np.arange(len(bag)) // chunk * n_bags + bag
    found = [np.bincount(cells[mask], minlength=chunks * n_bags) for mask in (positive, ~positive)]
    above, below = (counts.reshape(chunks, n_bags).astype(np.float64) for counts in found)
    pairs: Floats = above.T @ (np.cumsum(below, axis=0) - below)
    start = np.arange(len(bag)) % chunk
    flat: list[npt.NDArray[np.int64]] = []
    for distance in range(1, min(chunk, len(bag))):
        hit = np.flatnonzero(positive[distance:] & ~positive[:-distance] & (start[distance:] >= distance))
        flat.append(bag[hit + distance] * np.int64(n_bags) + bag[hit])
    inside = np.bincount(np.concatenate(flat), minlength=n_bags * n_bags) if flat else np.zeros(n_bags * n_bags)
    return pairs + inside.reshape(n_bags, n_bags)


def auroc_resamples(weights: Floats, pairs: Floats, positives: Floats, negatives: Floats) -> Floats:
    """(R,) AUROC of every resample, NaN where a resample holds one class only."""
    total = (weights @ positives) * (weights @ negatives)
    won = np.sum((weights @ pairs) * weights, axis=1)
    result: Floats = np.full(len(weights), np.nan)
    np.divide(won, total, out=result, where=total > 0)
    return result


def f1_resamples(weights: Floats, tp: Floats, fp: Floats, fn: Floats) -> Floats:
    """(R,) F1 of every resample from per-bag counts (B,); 0 for 0 / 0."""
    hits, errors = 2 * (weights @ tp), weights @ (fp + fn)
    total = hits + errors
    result: Floats = np.zeros(len(weights))
    np.divide(hits, total, out=result, where=total > 0)
    return result


def run_resamples(part: Mapping[str, Any], threshold: float | None, weights: Floats) -> dict[str, Floats]:
    """Resampled metrics of one run.

    Args:
        part: the arrays `smmil.metrics.run_metrics` takes for the test bags.
        threshold: of the instance scores, from validation; None leaves the instance F1 out.
        weights: (R,B) from `draw_weights`.

    Returns:
        {metric: (R,)}; a metric without both classes is left out.
    """
    n_bags = weights.shape[1]
    y, logit = np.asarray(part["y"], np.float64), np.asarray(part["bag_logit"], np.float64)
    known = ~np.isnan(y)
    levels: list[tuple[str, Floats, Floats, npt.NDArray[Any], float | None]] = [
        ("bag", y[known], logit[known], np.flatnonzero(known), 0.0)
    ]
    owner = np.repeat(np.arange(n_bags), np.diff(part["offsets"]))
    keep = np.isin(part["y_inst"], (0, 1))
    levels.append(("instance", *labelled(part["y_inst"], part["instance_score"]), owner[keep], threshold))
    found: dict[str, Floats] = {}
    for name, labels, scores, bag, limit in levels:
        pairs, positives, negatives = concordant_pairs(labels, scores, bag, n_bags)
        if positives.any() and negatives.any():
            found[f"{name}_auroc"] = auroc_resamples(weights, pairs, positives, negatives)
        if limit is not None and len(labels):
            called = scores > limit
            counts = [
                np.bincount(bag[mask], minlength=n_bags).astype(np.float64)
                for mask in ((labels == 1) & called, (labels == 0) & called, (labels == 1) & ~called)
            ]
            found[f"{name}_f1"] = f1_resamples(weights, *counts)
    return found


def intervals(
    runs: Sequence[tuple[Mapping[str, Any], float | None]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, list[float] | None]:
    """95 % percentile intervals of the mean over runs.

    Args:
        runs: per split the test arrays (the same bags in the same order) and the threshold.
        resamples: R.
        seed: of the draws.

    Returns:
        {metric: [low, high]}, None where a run lacks the metric or more than half of the resamples are undefined.
    """
    if not runs or len(runs[0][0]["y"]) == 0:
        return dict.fromkeys(METRICS)
    weights = draw_weights(len(runs[0][0]["y"]), resamples, seed)
    drawn = [run_resamples(part, threshold, weights) for part, threshold in runs]
    result: dict[str, list[float] | None] = {}
    for metric in METRICS:
        if any(metric not in one for one in drawn):
            result[metric] = None
            continue
        means = np.mean([one[metric] for one in drawn], axis=0)
        means = means[~np.isnan(means)]
        tail = (1 - LEVEL) / 2
        enough = 2 * len(means) > resamples
        result[metric] = [float(v) for v in np.quantile(means, (tail, 1 - tail))] if enough else None
    return result
