"""Percentile bootstrap over test bags of the metrics in tables, vectorised.

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

from smmil.calibration import calibration_error
from smmil.froc import bag_dice, froc_resamples
from smmil.metrics import labelled

Floats = npt.NDArray[np.float64]

METRICS = ("instance_auroc", "instance_f1", "bag_auroc", "bag_f1")
# where the predictions hold what they need
EXTRA = (
    *("signed_instance_auroc", "signed_instance_f1", "instance_dice", "signed_instance_dice"),
    *("instance_auprc", "signed_instance_auprc", "bag_auprc", "bag_ece"),
    *("instance_froc", "signed_instance_froc"),
    *("dirichlet_raw", "dirichlet_normalised"),
)
LEVEL = 0.95
# beyond, the (B,B) pair counts take more memory than everything else together: bags are weighed in sorted order instead
MOST_PAIRED_BAGS = 4096
SORTED_ELEMENTS = 4_000_000


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


def sorted_auroc_resamples(
    y: npt.NDArray[Any], score: npt.NDArray[Any], bag: npt.NDArray[Any], weights: Floats
) -> Floats:
    """The same (R,) without pair counts: memory grows with M, not with B^2.

    Args:
        y: (M,) labels in {0, 1}.
        score: (M,) finite scores.
        bag: (M,) bag of every row.
        weights: (R,B) multiplicities of the bags.
    """
    order = np.argsort(score, kind="stable")
    bag, positive = np.asarray(bag)[order], np.asarray(y)[order] == 1
    ranked = np.asarray(score)[order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    result: Floats = np.full(len(weights), np.nan)
    block = max(1, SORTED_ELEMENTS // max(1, len(bag)))
    for start in range(0, len(weights), block):
        drawn = weights[start : start + block, bag]
        above, below = (np.add.reduceat(drawn * mask, ties, axis=1) for mask in (positive, ~positive))
        won = np.sum(above * (np.cumsum(below, axis=1) - below / 2), axis=1)
        total = above.sum(1) * below.sum(1)
        np.divide(won, total, out=result[start : start + block], where=total > 0)
    return result


def average_precision_resamples(
    y: npt.NDArray[Any], score: npt.NDArray[Any], bag: npt.NDArray[Any], weights: Floats
) -> Floats:
    """(R,) average precision of every resample, NaN where no positive is drawn. Arguments of `sorted_auroc_resamples`.

    Precision matters only at the scores of positives, and between two of them only how many rows of which bag lie
    there: a sparse count (scores of positives, B) times the multiplicities, whatever M is.
    """
    from scipy.sparse import csr_array

    positive = np.asarray(y) == 1
    levels = -np.unique(-np.asarray(score)[positive])
    # the first of the descending levels that a row reaches; rows below all of them are in no precision
    level = np.searchsorted(-levels, -np.asarray(score))
    counts = []
    for mask in (positive, level < len(levels)):
        places = (level[mask], np.asarray(bag)[mask])
        counts.append(csr_array((np.ones(len(places[0])), places), shape=(len(levels), weights.shape[1])))
    result: Floats = np.full(len(weights), np.nan)
    block = max(1, SORTED_ELEMENTS // max(1, len(levels)))
    for start in range(0, len(weights), block):
        gained, called = (count @ weights[start : start + block].T for count in counts)
        tp = np.cumsum(gained, axis=0)
        precision = tp / np.maximum(np.cumsum(called, axis=0), 1)
        np.divide(np.sum(gained * precision, axis=0), tp[-1], out=result[start : start + block], where=tp[-1] > 0)
    return result


def calibration_resamples(y: Floats, logit: Floats, bag: npt.NDArray[Any], weights: Floats) -> Floats:
    """(R,) calibration error of every resample, NaN where no labelled bag is drawn.

    Args:
        y: (L,) labels of the labelled bags.
        logit: (L,) their logits.
        bag: (L,) their places among all bags.
        weights: (R,B) multiplicities of all bags.
    """
    # bins hold equally many of the drawn bags, so every resample has its own
    rows = (np.repeat(np.arange(len(y)), drawn[bag].astype(np.int64)) for drawn in weights)
    errors = (calibration_error(y[row], logit[row]) for row in rows)
    return np.array([np.nan if error is None else error for error in errors], np.float64)


def f1_resamples(weights: Floats, tp: Floats, fp: Floats, fn: Floats) -> Floats:
    """(R,) F1 of every resample from per-bag counts (B,); 0 for 0 / 0."""
    hits, errors = 2 * (weights @ tp), weights @ (fp + fn)
    total = hits + errors
    result: Floats = np.zeros(len(weights))
    np.divide(hits, total, out=result, where=total > 0)
    return result


def run_resamples(
    part: Mapping[str, Any], threshold: float | None, weights: Floats, signed_threshold: float | None = None
) -> dict[str, Floats]:
    """Resampled metrics of one run.

    Args:
        part: the arrays `smmil.metrics.run_metrics` takes for the test bags.
        threshold: of the instance scores, from validation; None leaves the instance F1 and Dice out.
        weights: (R,B) multiplicities of the bags, from `draw_weights`.
        signed_threshold: the same of `signed_score`.

    Returns:
        {metric: (R,)} of `METRICS` and `EXTRA`; one that is undefined, or whose arrays are missing, is left out.
    """
    y, logit = np.asarray(part["y"], np.float64), np.asarray(part["bag_logit"], np.float64)
    known = ~np.isnan(y)
    found = _level("bag", y[known], logit[known], np.flatnonzero(known), 0.0, weights)
    if known.any():
        found["bag_ece"] = calibration_resamples(y[known], logit[known], np.flatnonzero(known), weights)
    for prefix, name, limit in (("", "instance_score", threshold), ("signed_", "signed_score", signed_threshold)):
        if name not in part:
            continue
        owner = np.repeat(np.arange(weights.shape[1]), np.diff(part["offsets"]))
        keep = np.isin(part["y_inst"], (0, 1))
        found |= _level(f"{prefix}instance", *labelled(part["y_inst"], part[name]), owner[keep], limit, weights)
        if limit is not None:
            dice = bag_dice(part["y_inst"], part[name], part["offsets"], limit)
            if not np.isnan(dice).all():
                found[f"{prefix}instance_dice"] = mean_resamples(weights, dice)
        if "grid" in part:
            areas = froc_resamples(part["y"], part["offsets"], part["y_inst"], part[name], part["grid"], weights)
            if not np.isnan(areas).all():
                found[f"{prefix}instance_froc"] = areas
    if "energy" in part:
        for column, name in enumerate(("dirichlet_raw", "dirichlet_normalised")):
            found[name] = mean_resamples(weights, np.asarray(part["energy"], np.float64)[:, column])
    return found


def mean_resamples(weights: Floats, value: Floats) -> Floats:
    """(R,) mean over the drawn bags of a value per bag (B,), NaN = the bag has none; NaN where no drawn bag has one."""
    known = ~np.isnan(value)
    total = weights[:, known].sum(1)
    result: Floats = np.full(len(weights), np.nan)
    np.divide(weights[:, known] @ value[known], total, out=result, where=total > 0)
    return result


def _level(
    name: str, y: Floats, score: Floats, bag: npt.NDArray[Any], limit: float | None, weights: Floats
) -> dict[str, Floats]:
    """AUROC, AUPRC and F1 of bags or of instances (M,), `bag` (M,) saying whose they are."""
    n_bags = weights.shape[1]
    found: dict[str, Floats] = {}
    if np.any(np.asarray(y) == 1) and np.any(np.asarray(y) != 1):
        if n_bags > MOST_PAIRED_BAGS:
            found[f"{name}_auroc"] = sorted_auroc_resamples(y, score, bag, weights)
        else:
            found[f"{name}_auroc"] = auroc_resamples(weights, *concordant_pairs(y, score, bag, n_bags))
    if np.any(np.asarray(y) == 1):
        found[f"{name}_auprc"] = average_precision_resamples(y, score, bag, weights)
    if limit is not None and len(y):
        called = score > limit
        counts = [
            np.bincount(bag[mask], minlength=n_bags).astype(np.float64)
            for mask in ((y == 1) & called, (y == 0) & called, (y == 1) & ~called)
        ]
        found[f"{name}_f1"] = f1_resamples(weights, *counts)
    return found


def intervals(
    runs: Sequence[tuple[Mapping[str, Any], float | None, float | None]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, list[float] | None]:
    """95 % percentile intervals of the mean over runs.

    Args:
        runs: per split the test arrays (the same bags in the same order), the threshold of the instance score and that
            of the signed score.
        resamples: R.
        seed: of the draws.

    Returns:
        {metric: [low, high]} of `METRICS`, and of `EXTRA` where every run has it; None where a run lacks one of
        `METRICS`, or more than half of the resamples are undefined.
    """
    if not runs or len(runs[0][0]["y"]) == 0:
        return dict.fromkeys(METRICS)
    weights = draw_weights(len(runs[0][0]["y"]), resamples, seed)
    drawn = [run_resamples(part, threshold, weights, signed) for part, threshold, signed in runs]
    result: dict[str, list[float] | None] = {}
    for metric in (*METRICS, *(name for name in EXTRA if all(name in one for one in drawn))):
        if any(metric not in one for one in drawn):
            result[metric] = None
            continue
        means = np.mean([one[metric] for one in drawn], axis=0)
        means = means[~np.isnan(means)]
        tail = (1 - LEVEL) / 2
        enough = 2 * len(means) > resamples
        result[metric] = [float(v) for v in np.quantile(means, (tail, 1 - tail))] if enough else None
    return result
