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

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smmil.artifacts.results import Arrays

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class Froc(NamedTuple):
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


def froc(part: Arrays, score: npt.NDArray[Any]) -> Froc:
    """Compute the average FROC of a score (M,) over bags: `y` (B,), `offsets` (B+1,), `y_inst` (M,), `grid` (M,2)."""
    wrong, hits, lesions = _counts(part, score)
    total, normal = int(lesions.sum()), int(np.sum(part["y"] == 0))
    if not total or not normal:
        reason = "no negative bag" if total else "no lesion: no positive instance in a positive bag"
        return Froc(None, (), total, normal, reason)
    sensitivity = _sensitivity(wrong.sum(1), hits.sum(1), normal, total)
    return Froc(float(np.mean(sensitivity)), tuple(sensitivity.tolist()), total, normal)


def froc_resamples(part: Arrays, score: npt.NDArray[Any], weights: Floats) -> Floats:
    """Compute the average FROC (R,) of resamples; NaN where one has no lesion or no negative bag.

    Args:
        part: as in `froc`.
        score: (M,) scores of the instances.
        weights: (R,B) multiplicities of the bags.
    """
    wrong, hits, lesions = _counts(part, score)
    total, normal = weights @ lesions, weights @ (part["y"] == 0).astype(np.float64)
    result: Floats = np.full(len(weights), np.nan)
    for r in np.flatnonzero((total > 0) & (normal > 0)):
        result[r] = _sensitivity(wrong @ weights[r], hits @ weights[r], normal[r], total[r]).mean()
    return result


def _sensitivity(wrong: Floats, hits: Floats, normal: float, lesions: float) -> Floats:
    """Read the sensitivity at `RATES` from false and true positives (1+T,) that each lower threshold adds."""
    fp, tp = np.cumsum(wrong) / normal, np.cumsum(hits) / lesions
    # Of the thresholds with equally many false positives the lowest finds the most.
    last = np.append(np.diff(fp) > 0, True)
    return np.asarray(np.interp(RATES, fp[last], tp[last]), np.float64)


def _counts(part: Arrays, score: npt.NDArray[Any]) -> tuple["csr_array", "csr_array", Ints]:
    """Count false positives and lesions by descending threshold and bag (1+T,B), row 0 empty, and lesions by bag (B,).

    `part` is that of `froc`, `score` (M,).
    """
    from scipy.sparse import csr_array

    y, y_inst, grid = part["y"], part["y_inst"], part["grid"]
    wrong, hits = ([np.zeros(0)] * len(y) for _ in range(2))
    for bag, label in enumerate(y):
        rows = slice(*part["offsets"][bag : bag + 2])
        if label == 1 and np.any(y_inst[rows] == 1):
            hits[bag] = lesion_confidence(y_inst[rows], score[rows], grid[rows])
        elif label == 0:
            wrong[bag] = np.asarray(score[rows], np.float64)[detections(score[rows], grid[rows])]
    events = [
        (np.concatenate([[], *values]), np.repeat(np.arange(len(y)), [len(v) for v in values]))
        for values in (wrong, hits)
    ]
    every = np.concatenate([values for values, _ in events])
    thresholds = np.unique(every[np.isfinite(every)])[::-1]
    counts = []
    for values, bag_of in events:
        # A lesion without a detection, of confidence -inf, reaches no threshold.
        finite = np.isfinite(values)
        level = np.searchsorted(-thresholds, -values[finite])
        shape = (len(thresholds) + 1, len(y))
        counts.append(csr_array((np.ones(len(level)), (level + 1, bag_of[finite])), shape=shape))
    return counts[0], counts[1], np.bincount(events[1][1], minlength=len(y))


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


def bag_dice(part: Arrays, score: npt.NDArray[Any], threshold: float) -> Floats:
    """Compute Dice (B,) of `score > threshold` (M,) on the labelled tiles; NaN for a bag without a positive tile."""
    n_bags = len(part["offsets"]) - 1
    bag = np.repeat(np.arange(n_bags), np.diff(part["offsets"]))
    positive, known = part["y_inst"] == 1, np.isin(part["y_inst"], (0, 1))
    called = (np.asarray(score, np.float64) > threshold) & known
    both, calls, truth = (
        np.bincount(bag[mask], minlength=n_bags).astype(np.float64) for mask in (called & positive, called, positive)
    )
    dice: Floats = np.full(n_bags, np.nan)
    np.divide(2 * both, calls + truth, out=dice, where=truth > 0)
    return dice
