"""ROC and precision-recall curves averaged over splits.

The logits of different runs have no common scale, so bags of several runs are never ranked together: each split has its
own curve, and the mean is taken of the true positive rate at a false positive rate (of the precision at a recall). The
area under the mean curve is then the mean AUROC (average precision) of the tables. The band is the smallest and largest
split; with two to five splits, quantiles would say no more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.analysis.records import Curve

Floats = npt.NDArray[np.float64]


def mean_roc(y: npt.NDArray[Any], logits: Sequence[npt.NDArray[Any]]) -> Curve | None:
    """Average ROC curves of labels (B,) and logits (B,) per split: true against false positive rate.

    Return a polygon in which steps are two points of equal x; None with one class only, or without a split.
    """
    from sklearn.metrics import roc_curve

    if len(np.unique(y)) < 2 or not logits:
        return None
    curves = [roc_curve(y, logit)[:2] for logit in logits]
    x = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    # the lower and the upper end of every step, straight lines (ties) between
    lower = [np.interp(-x, -fpr[::-1], tpr[::-1]) for fpr, tpr in curves]
    upper = [np.interp(x, fpr, tpr) for fpr, tpr in curves]
    return _curve(np.repeat(x, 2), np.stack([lower, upper], axis=2).reshape(len(curves), -1))


def mean_precision_recall(y: npt.NDArray[Any], logits: Sequence[npt.NDArray[Any]]) -> Curve | None:
    """Average precision-recall curves of labels (B,) and logits (B,) per split: precision against recall.

    Return steps, the precision up to each recall, beginning at 0; None with one class only, or without a split.
    """
    from sklearn.metrics import precision_recall_curve

    if len(np.unique(y)) < 2 or not logits:
        return None
    # from the highest threshold to the lowest, the first point that reaches a recall counts, as in average precision
    curves = [
        (recall[::-1], precision[::-1]) for precision, recall, _ in (precision_recall_curve(y, z) for z in logits)
    ]
    x = np.unique(np.concatenate([recall for recall, _ in curves]))
    x = x[x > 0]
    at = [precision[np.searchsorted(recall, x)] for recall, precision in curves]
    starts = np.append(0.0, x[:-1])
    return _curve(np.stack([starts, x], axis=1).ravel(), np.repeat(np.array(at), 2, axis=1))


def _curve(x: Floats, values: Floats) -> Curve:
    """Return mean, smallest and largest of values (S, P) at x (P,), rounded to 6 digits."""
    parts = (x, values.mean(0), values.min(0), values.max(0))
    places, y, low, high = (tuple(np.round(part, 6).tolist()) for part in parts)
    return Curve(x=places, y=y, low=low, high=high)
