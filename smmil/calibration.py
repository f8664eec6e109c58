"""How far a bag's probability can be believed: expected calibration error with bins of equally many bags.

Shapes: `y` (B,) in {0, 1}, `logit` (B,); p = sigmoid(logit).

ECE = sum over bins of (bags in it / B) x |mean y - mean p|. Bags are put in order of p and cut into K bins of equal
mass, K = B / 10 rounded down, at least 1 and at most 15: bins of equal width would be empty or hold single bags, since
test sets have tens to a few hundred bags and trained logits lie near the ends. Bags of one p stay in one bin, whatever
their order. With few bags ECE is above 0 even for a calibrated model (a bin of 10 is off by about 0.1 by chance alone),
so compare methods on the same bags, not numbers between data sets.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

BAGS_PER_BIN = 10
MOST_BINS = 15


def calibration_error(y: npt.NDArray[Any], logit: npt.NDArray[Any], *, bins: int | None = None) -> float | None:
    """Expected calibration error.

    Args:
        y: (B,) labels in {0, 1}.
        logit: (B,) finite logits.
        bins: K; None = the rule at the top of this file.

    Returns:
        In [0, 1]; None without a bag.
    """
    n = len(y)
    if n == 0:
        return None
    labels, z = np.asarray(y, np.float64), np.asarray(logit, np.float64)
    p = np.exp(-np.logaddexp(0.0, -z))
    k = bins or min(MOST_BINS, max(1, n // BAGS_PER_BIN))
    _, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    # the middle of the places that equal probabilities share
    middle = np.cumsum(counts) - counts / 2
    bin_of = np.minimum((middle * k / n).astype(np.int64), k - 1)[group]
    gap = np.bincount(bin_of, labels - p, minlength=k)
    return float(np.abs(gap).sum() / n)
