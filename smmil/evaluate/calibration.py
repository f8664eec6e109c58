"""Expected calibration error of bag probabilities, with bins of equally many bags.

Shapes: `y` (B,) in {0, 1}, `logit` (B,); p = sigmoid(logit).

ECE = sum over bins of (bags in it / B) x |mean y - mean p|. Bags are sorted by p and cut into K bins of equal mass,
K = B / 10 rounded down, between 1 and 15. Bins of equal width would be empty or hold single bags: test sets have tens
to a few hundred bags, and trained logits lie near the ends. Bags with equal p share a bin. With few bags ECE is above 0
even for a calibrated model (a bin of 10 is off by about 0.1 by chance), so compare methods on the same bags only.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BAGS_PER_BIN = 10
MOST_BINS = 15


class Bins(NamedTuple):
    """Mean probability, share of positives and number of bags (K,) of the bins with bags, by ascending probability."""

    probability: Floats
    share: Floats
    bags: npt.NDArray[np.int64]


def sigmoid(logit: npt.NDArray[Any]) -> Floats:
    """Compute 1 / (1 + exp(-logit)) without overflow, for any shape."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(logit, np.float64))), np.float64)


def n_bins(n_bags: int) -> int:
    """Return K for a number of bags, by the rule at the top of this file."""
    return min(MOST_BINS, max(1, n_bags // BAGS_PER_BIN))


def _bin_of(p: Floats, k: int) -> npt.NDArray[np.int64]:
    """Return the bin (B,) of every probability p (B,)."""
    _, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    # the middle of the ranks that equal probabilities share
    middle = np.cumsum(counts) - counts / 2
    return np.minimum((middle * k / len(p)).astype(np.int64), k - 1)[group]


def bin_bags(y: npt.NDArray[Any], logit: npt.NDArray[Any], *, bins: int | None = None) -> Bins:
    """Sort bags, y and finite logits (B,) with B > 0, into K bins of equally many; `bins` states another K."""
    p, k = sigmoid(logit), bins or n_bins(len(y))
    bin_of = _bin_of(p, k)
    size = np.bincount(bin_of, minlength=k)
    filled = size > 0
    probability, share = (np.bincount(bin_of, v, k)[filled] / size[filled] for v in (p, np.asarray(y, np.float64)))
    return Bins(probability, share, size[filled])


def calibration_error(y: npt.NDArray[Any], logit: npt.NDArray[Any], *, bins: int | None = None) -> float | None:
    """Compute the expected calibration error, in [0, 1], of y and logit (B,) as in `bin_bags`; None without a bag."""
    if not len(y):
        return None
    p, k = sigmoid(logit), bins or n_bins(len(y))
    gap = np.bincount(_bin_of(p, k), np.asarray(y, np.float64) - p, minlength=k)
    return float(np.abs(gap).sum() / len(y))
