"""Localisation by lesion: average FROC after CAMELYON16, and Dice per bag; numpy in, plain numbers out.

Shapes: bags `y` (B,) in {0, 1} or NaN, instances `y_inst` (M,) in {0, 1, -1}, `score` (M,) higher = more positive,
`grid` (M,2) lattice cells (row, col) within the bag, bag b owning the rows `offsets[b]:offsets[b + 1]`.

FROC (Ehteshami Bejnordi et al., JAMA 2017, task 1), adapted from points in a slide to tiles on a lattice:

- lesion: a connected component (8-neighbourhood of lattice cells) of positive tiles in a positive bag. In a scan the
  lattice is a line, so a lesion is a run of positive slices. The challenge leaves out isolated tumour cells by size;
  tiles carry no such mark, so every component counts.
- detection: a tile whose score no neighbouring tile exceeds (8-neighbourhood), its score being the confidence; of
  equal neighbours only the first in row-major order counts. Detections replace the points that contestants sent.
- true positive: a lesion is found at a threshold t when a detection with score >= t lies on one of its tiles; several
  on one lesion count once. Other detections in a positive bag are ignored, also on tiles of unknown label.
- false positives: detections with score >= t in NEGATIVE bags, whatever their tiles' labels, per negative bag (the
  publication's "metastasis-free slides only"; the challenge's script also counts those beside lesions, over all slides,
  which would penalise tiles just outside an outline, and lesions without an outline).
- average FROC: mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives per negative bag, linear between the
  points of the curve, and beyond its last point the sensitivity there (as the challenge's script does).

Dice of a bag with at least one positive tile: 2 |called and positive| / (|called| + |positive|) over its labelled
tiles; the mean over such bags. Over pooled tiles Dice would equal F1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Froc:
    """The curve and its summary.

    Attributes:
        average: mean of `sensitivity`, None without a lesion or without a negative bag.
        sensitivity: at each of `RATES`; empty where `average` is None.
        lesions: number of lesions.
        normal_bags: number of negative bags.
        reason: why `average` is None, else "".
    """

    average: float | None
    sensitivity: tuple[float, ...]
    lesions: int
    normal_bags: int
    reason: str = ""


def froc(
    y: npt.NDArray[Any],
    offsets: npt.NDArray[Any],
    y_inst: npt.NDArray[Any],
    score: npt.NDArray[Any],
    grid: npt.NDArray[Any],
) -> Froc:
    """Compute the average FROC of all bags; for the definition see the module docstring.

    Args:
        y: (B,) bag labels in {0, 1} or NaN.
        offsets: (B+1,) bounds of the bags.
        y_inst: (M,) instance labels in {0, 1, -1}.
        score: (M,), higher = more positive.
        grid: (M,2) lattice cells (row, col) within the bag.
    """
    hits, _, wrong, _ = _events(y, offsets, y_inst, score, grid)
    normal = int(np.sum(np.asarray(y) == 0))
    if not len(hits) or not normal:
        reason = "no lesion: no positive instance in a positive bag" if not len(hits) else "no negative bag"
        return Froc(None, (), len(hits), normal, reason)
    sensitivity = sensitivity_at(hits, wrong, normal)
    return Froc(float(np.mean(sensitivity)), tuple(map(float, sensitivity)), len(hits), normal)


def froc_resamples(
    y: npt.NDArray[Any],
    offsets: npt.NDArray[Any],
    y_inst: npt.NDArray[Any],
    score: npt.NDArray[Any],
    grid: npt.NDArray[Any],
    weights: Floats,
) -> Floats:
    """Compute the average FROC of every resample.

    Args:
        y: labels of the bags; this and the next four as in `froc`.
        offsets: first rows of the bags.
        y_inst: labels of the instances.
        score: scores of the instances.
        grid: cells of the instances.
        weights: (R,B) multiplicities of the bags.

    Returns:
        (R,), NaN where a resample has no lesion or no negative bag.
    """
    from scipy.sparse import csr_array

    hits, hit_bag, wrong, wrong_bag = _events(y, offsets, y_inst, score, grid)
    thresholds = _thresholds(hits, wrong)
    counts = []
    for values, bag in ((wrong, wrong_bag), (hits, hit_bag)):
        # the first threshold that a value reaches; -inf reaches none
        level, finite = np.searchsorted(-thresholds, -values), np.isfinite(values)
        cells = (level[finite] + 1, bag[finite])
        counts.append(csr_array((np.ones(finite.sum()), cells), shape=(len(thresholds) + 1, len(y))))
    lesions = weights @ np.bincount(hit_bag, minlength=len(y))
    normal = weights @ (np.asarray(y) == 0).astype(np.float64)
    result: Floats = np.full(len(weights), np.nan)
    for r in np.flatnonzero((lesions > 0) & (normal > 0)):
        fp, tp = (np.cumsum(count @ weights[r]) for count in counts)
        result[r] = _read(fp / normal[r], tp / lesions[r]).mean()
    return result


def _events(
    y: npt.NDArray[Any],
    offsets: npt.NDArray[Any],
    y_inst: npt.NDArray[Any],
    score: npt.NDArray[Any],
    grid: npt.NDArray[Any],
) -> tuple[Floats, Ints, Floats, Ints]:
    """Return the best confidence on every lesion (L,), its bag (L,), false detections' confidence (F,) and bag (F,)."""
    hits: list[Floats] = [np.zeros(0)] * len(y)
    wrong: list[Floats] = [np.zeros(0)] * len(y)
    for bag in range(len(y)):
        rows = slice(int(offsets[bag]), int(offsets[bag + 1]))
        if y[bag] == 1 and np.any(y_inst[rows] == 1):
            hits[bag] = lesion_confidence(y_inst[rows], score[rows], grid[rows])
        elif y[bag] == 0:
            wrong[bag] = np.asarray(score[rows], np.float64)[detections(score[rows], grid[rows])]
    hit_bag, wrong_bag = (np.repeat(np.arange(len(y)), [len(v) for v in values]) for values in (hits, wrong))
    return np.concatenate([[], *hits]), hit_bag, np.concatenate([[], *wrong]), wrong_bag


def sensitivity_at(hits: Floats, wrong: Floats, normal: int) -> Floats:
    """Read the sensitivity at rates of false positives per negative bag.

    Args:
        hits: (L,) best confidence on every lesion, -inf = never found.
        wrong: (F,) confidences of the detections in negative bags.
        normal: number of negative bags.
    """
    thresholds = _thresholds(hits, wrong)
    return _read(_above(wrong, thresholds) / normal, _above(hits, thresholds) / len(hits))


def _thresholds(hits: Floats, wrong: Floats) -> Floats:
    return np.unique(np.concatenate([hits[np.isfinite(hits)], wrong]))[::-1]


def _read(fp: Floats, tp: Floats) -> Floats:
    """Interpolate the curve through the points `fp`, `tp` (T+1,) of descending thresholds at the rates."""
    # of the thresholds with equally many false positives the lowest finds the most
    last = np.append(np.diff(fp) > 0, True)
    return np.asarray(np.interp(RATES, fp[last], tp[last]), np.float64)


def _above(values: Floats, thresholds: Floats) -> Ints:
    """Count the values at or above each of the descending thresholds: (T+1,), 0 first."""
    ordered = np.sort(values)
    return np.append(0, len(ordered) - np.searchsorted(ordered, thresholds)).astype(np.int64)


def lesion_confidence(y_inst: npt.NDArray[Any], score: npt.NDArray[Any], grid: npt.NDArray[Any]) -> Floats:
    """Return the best detection (L,) on each lesion of one bag, -inf where there is none."""
    from scipy import ndimage

    rows, cols, shape = _place(grid)
    positive = np.zeros(shape, bool)
    positive[rows[y_inst == 1], cols[y_inst == 1]] = True
    lesions, count = ndimage.label(positive, structure=np.ones((3, 3), int))
    best = np.full(count + 1, -np.inf)
    hit = detections(score, grid)
    np.maximum.at(best, lesions[rows[hit], cols[hit]], np.asarray(score, np.float64)[hit])
    return best[1:]


def detections(score: npt.NDArray[Any], grid: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mark (N,) the local maxima of one bag on its lattice; of equal neighbours the first in row order."""
    from scipy import ndimage

    if len(score) == 0:
        return np.zeros(0, bool)
    rows, cols, shape = _place(grid)
    # ordered by score, then by position, so that no two tiles are equal
    order = np.lexsort((-cols, -rows, np.asarray(score, np.float64)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    surface = np.zeros(shape, np.int64)
    # of two tiles in one cell (overlapping lattices) the better one counts
    np.maximum.at(surface, (rows, cols), rank)
    highest = ndimage.maximum_filter(surface, size=3, mode="constant", cval=0)
    return np.asarray(highest[rows, cols] == rank)


def _place(grid: npt.NDArray[Any]) -> tuple[Ints, Ints, tuple[int, int]]:
    cells = np.asarray(grid, np.int64)
    cells = cells - cells.min(0)
    rows, cols = cells[:, 0], cells[:, 1]
    return rows, cols, (int(rows.max()) + 1, int(cols.max()) + 1)


def bag_dice(y_inst: npt.NDArray[Any], score: npt.NDArray[Any], offsets: npt.NDArray[Any], threshold: float) -> Floats:
    """Compute Dice (B,) of `score > threshold` on the labelled tiles; NaN for a bag without a positive tile."""
    n_bags = len(offsets) - 1
    bag = np.repeat(np.arange(n_bags), np.diff(offsets))
    positive, known = np.asarray(y_inst) == 1, np.isin(y_inst, (0, 1))
    called = (np.asarray(score, np.float64) > threshold) & known
    both, calls, truth = (
        np.bincount(bag[mask], minlength=n_bags).astype(np.float64) for mask in (called & positive, called, positive)
    )
    dice: Floats = np.full(n_bags, np.nan)
    np.divide(2 * both, calls + truth, out=dice, where=truth > 0)
    return dice
