"""Expected calibration error of bag probabilities, with bins of equally many bags.

Shapes: `y` (B,) in {0, 1}, `logit` (B,); p = sigmoid(logit).

ECE = sum over bins of (bags in it / B) x |mean y - mean p|. Bags are sorted by p and cut into K bins of equal mass,
K = B / 10 rounded down, between 1 and 15. Bins of equal width would be empty or hold single bags: test sets have tens
to a few hundred bags, and trained logits lie near the ends. Bags with equal p share a bin. With few bags ECE is above 0
even for a calibrated model (a bin of 10 is off by about 0.1 by chance), so compare methods on the same bags only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

BAGS_PER_BIN = 10
MOST_BINS = 15


def calibration_error(y: npt.NDArray[Any], logit: npt.NDArray[Any], *, bins: int | None = None) -> float | None:
    """Compute the expected calibration error.

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
    # the middle of the ranks that equal probabilities share
    middle = np.cumsum(counts) - counts / 2
    bin_of = np.minimum((middle * k / n).astype(np.int64), k - 1)[group]
    gap = np.bincount(bin_of, labels - p, minlength=k)
    return float(np.abs(gap).sum() / n)
