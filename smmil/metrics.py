"""Bag and instance metrics of saved predictions: numpy in, plain numbers out (paper section 5, Appendix B).

Shapes: bags `y` (B,) in {0, 1} or NaN (unlabelled), `logit` (B,); instances `y` (M,) in {0, 1, -1}, `score` (M,), bag b
owning the rows `offsets[b]:offsets[b + 1]`. A higher score always means "more positive".

Definitions (the words under the tables: `smmil.definitions`):

- bag AUROC: area under the ROC curve of the bag logits, Mann-Whitney form, ties count one half.
- bag F1, accuracy, precision, recall: a bag is called positive when its logit is > 0; F1 of nothing is 0.
- BCE: mean over bags of the unweighted binary cross-entropy of the logit, nats.
- AUPRC: average precision, the sum over distinct scores of (recall gained) x (precision there).
- instance metrics: all instances of all bags, positive and negative bags alike, pooled into one vector; instances whose
  label is neither 0 nor 1 are left out.
- threshold: the distinct VALIDATION instance score with the largest TPR x (1 - FPR), the largest such score on a tie;
  there TPR and FPR count `score >= threshold` as positive (ROC convention), the prediction on test is
  `score > threshold`. It uses validation instance labels, so the instance F1 is not purely weakly supervised.
- FROC, Dice: `smmil.froc`; calibration error: `smmil.calibration`; Dirichlet energy, stored per bag: mean over bags.
- signed_*: the same instance metrics of the sign-aware score (`smmil.signed`), with a validation threshold of its own.
- FPR at TPR .90: the smallest false positive rate among ROC points whose true positive rate is at least .90.

A metric that is undefined (one class only, no instance labels) is None and the reason stands in `undefined`; NaN never
leaves this module.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.calibration import calibration_error
from smmil.froc import RATES, bag_dice, froc

__all__ = ["GATED_SCORE", "auroc", "average_precision", "bag_metrics", "best_threshold", "confusion"]
__all__ += ["f1_score", "fpr_at_tpr", "gate", "instance_metrics", "labelled", "roc_points", "run_metrics"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GATED_SCORE = -5.0


def roc_points(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Ints, Ints, Floats]:
    """Counts above every distinct score, from the largest down.

    Args:
        y: (M,) labels in {0, 1}.
        score: (M,) finite scores.

    Returns:
        `tp` (K,), `fp` (K,) with `score >= threshold` counted as positive, and `threshold` (K,) descending.

    Raises:
        ValueError: lengths differ, a label is not 0/1 or a score is not finite.
    """
    labels, scores = _checked(y, score)
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    # the last row of every run of equal scores: ties enter together, whatever their order
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if len(scores) else np.zeros(0, np.int64)
    tp = np.cumsum(labels)[last]
    return tp.astype(np.int64), (last + 1 - tp).astype(np.int64), scores[last]


def auroc(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Area under the ROC curve; None when only one class is present. Arguments as in `roc_points`."""
    tp, fp, _ = roc_points(y, score)
    if len(tp) == 0 or tp[-1] == 0 or fp[-1] == 0:
        return None
    steps, before = np.diff(np.append(0, fp)), np.append(0, tp[:-1])
    return float(np.sum(steps * (tp + before)) / (2.0 * tp[-1] * fp[-1]))


def average_precision(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Step-wise area under the precision-recall curve; None without a positive."""
    tp, fp, _ = roc_points(y, score)
    if len(tp) == 0 or tp[-1] == 0:
        return None
    return float(np.sum(np.diff(np.append(0, tp)) / tp[-1] * (tp / (tp + fp))))


def fpr_at_tpr(y: npt.NDArray[Any], score: npt.NDArray[Any], tpr: float = 0.90) -> float | None:
    """Smallest FPR of a ROC point with TPR at least `tpr`; None when only one class is present."""
    tp, fp, _ = roc_points(y, score)
    if len(tp) == 0 or tp[-1] == 0 or fp[-1] == 0:
        return None
    # an epsilon far below one count: .9 * 10 must not miss the point 9 / 10
    reached = tp >= tpr * tp[-1] - 1e-9
    return float(fp[np.argmax(reached)] / fp[-1])


def best_threshold(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """The score with the largest TPR x (1 - FPR), the largest score on a tie; None when only one class is present."""
    tp, fp, threshold = roc_points(y, score)
    if len(tp) == 0 or tp[-1] == 0 or fp[-1] == 0:
        return None
    # in whole counts: exact, so that a tie is a tie
    return float(threshold[np.argmax(tp * (fp[-1] - fp))])


def confusion(y: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(tp, fp, fn, tn) of a boolean prediction (M,) against labels (M,) in {0, 1}."""
    truth = np.asarray(y) == 1
    tp, fp = int(np.sum(truth & positive)), int(np.sum(~truth & positive))
    return tp, fp, int(np.sum(truth)) - tp, int(np.sum(~truth)) - fp


def f1_score(y: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> float:
    """2 tp / (2 tp + fp + fn), 0 when that is 0 / 0."""
    tp, fp, fn, _ = confusion(y, positive)
    return _ratio(2 * tp, 2 * tp + fp + fn)


def bag_metrics(y: npt.NDArray[Any], logit: npt.NDArray[Any]) -> dict[str, Any]:
    """All bag metrics; bags whose label is NaN are left out and counted.

    Args:
        y: (B,) labels in {0, 1} or NaN.
        logit: (B,) finite logits.

    Returns:
        `bag_auroc`, `bag_f1`, `bag_bce`, `bag_accuracy`, `bag_precision`, `bag_recall`, `bag_auprc`, `bag_ece` (float
        or None), `n_bags`, `n_positive_bags`, `n_unlabelled_bags` and `undefined` {metric: reason}.

    Raises:
        ValueError: a logit that is not finite or a label that is not 0, 1 or NaN.
    """
    labels, logits = np.asarray(y, np.float64), np.asarray(logit, np.float64)
    known = ~np.isnan(labels)
    labels, logits = _checked(labels[known], logits[known])
    tp, fp, fn, tn = confusion(labels, logits > 0)
    n = len(labels)
    values: dict[str, float | None] = {
        "bag_auroc": auroc(labels, logits),
        "bag_auprc": average_precision(labels, logits),
        "bag_f1": _ratio(2 * tp, 2 * tp + fp + fn) if n else None,
        "bag_accuracy": (tp + tn) / n if n else None,
        "bag_precision": _ratio(tp, tp + fp) if n else None,
        "bag_recall": _ratio(tp, tp + fn) if n else None,
        "bag_bce": float(np.mean(_cross_entropy(labels, logits))) if n else None,
        "bag_ece": calibration_error(labels, logits),
    }
    counts = {"n_bags": n, "n_positive_bags": tp + fn, "n_unlabelled_bags": int(np.sum(~known))}
    return {**values, **counts, "undefined": _reasons(values, "labelled bag", tp + fn, fp + tn)}


def instance_metrics(
    y: npt.NDArray[Any], score: npt.NDArray[Any], threshold: float | None, no_threshold: str = "no threshold"
) -> dict[str, Any]:
    """All instance metrics of one pooled vector.

    Args:
        y: (M,) labels in {0, 1, -1}; anything but 0 and 1 is left out.
        score: (M,) raw scores.
        threshold: from the validation instances (`best_threshold`), or None.
        no_threshold: why it is None.

    Returns:
        `instance_auroc`, `instance_auprc`, `instance_f1`, `instance_f1_at_0`, `instance_fpr_at_tpr90` (float or None),
        `inverted` (instance AUROC < 0.5), `n_instances`, `n_positive_instances` and `undefined` {metric: reason}.

    Raises:
        ValueError: a score that is not finite.
    """
    labels, scores = labelled(y, score)
    n, positives = len(labels), int(np.sum(labels))
    values: dict[str, float | None] = {
        "instance_auroc": auroc(labels, scores),
        "instance_auprc": average_precision(labels, scores),
        "instance_f1": f1_score(labels, scores > threshold) if n and threshold is not None else None,
        "instance_f1_at_0": f1_score(labels, scores > 0) if n else None,
        "instance_fpr_at_tpr90": fpr_at_tpr(labels, scores),
    }
    undefined = _reasons(values, "labelled instance", positives, n - positives)
    if threshold is None and n:
        undefined["instance_f1"] = no_threshold
    area = values["instance_auroc"]
    counts = {"n_instances": n, "n_positive_instances": positives, "inverted": area is not None and area < 0.5}
    return {**values, **counts, "undefined": undefined}


def labelled(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """The rows of `y` (M,) and `score` (M,) whose label is 0 or 1; every score must be finite."""
    labels, scores = np.asarray(y), np.asarray(score, np.float64)
    keep = (labels == 0) | (labels == 1)
    _checked(keep, scores)
    return labels[keep].astype(np.float64), scores[keep]


def gate(score: npt.NDArray[Any], offsets: npt.NDArray[Any], logit: npt.NDArray[Any]) -> Floats:
    """The released code's variant: every score of a bag called negative (logit <= 0) becomes -5.0.

    Args:
        score: (M,) raw scores.
        offsets: (B+1,) first row of every bag.
        logit: (B,) bag logits.

    Returns:
        (M,) scores.
    """
    negative = np.repeat(np.asarray(logit) <= 0, np.diff(offsets))
    return np.where(negative, GATED_SCORE, np.asarray(score, np.float64))


def run_metrics(test: Mapping[str, Any], val: Mapping[str, Any]) -> dict[str, Any]:
    """Every metric of one run; nothing of `test` reaches a threshold.

    Args:
        test: `y` (B,), `bag_logit` (B,), `offsets` (B+1,), `instance_score` (M,), `y_inst` (M,) of the test bags; where
            they are known also `grid` (M,2), `signed_score` (M,) and `energy` (B,2); as they are to be evaluated
            (`smmil.evaluate.as_evaluated`).
        val: the same of the validation bags.

    Returns:
        `{"threshold": float | None, "test": {...}, "val": {...}}`, the inner dictionaries of `bag_metrics` and
        `instance_metrics` together, with `instance_dice`, with `instance_froc` and `froc_sensitivity` (at 1/4 to 8
        false positives) where the lattice is known, with `dirichlet_raw` and `dirichlet_normalised` where the energies
        are, and with `signed_*` where the sign-aware score is (then also `signed_threshold` beside `threshold`).
    """
    parts = (("test", test), ("val", val))
    result: dict[str, Any] = {name: bag_metrics(part["y"], part["bag_logit"]) for name, part in parts}
    for prefix, array in (("", "instance_score"), ("signed_", "signed_score")):
        if array not in test or array not in val:
            continue
        y_val, score_val = labelled(val["y_inst"], val[array])
        threshold = best_threshold(y_val, score_val)
        found_in = "hold one class only" if len(y_val) else "have no label"
        why = f"no threshold: the validation instances {found_in}"
        result[f"{prefix}threshold"] = threshold
        for name, part in parts:
            found = instance_metrics(part["y_inst"], part[array], threshold, why)
            _add_lesions(found, part, part[array], threshold, why)
            result[name]["undefined"] |= {f"{prefix}{key}": reason for key, reason in found.pop("undefined").items()}
            counted = {key: value for key, value in found.items() if not (prefix and key.startswith("n_"))}
            result[name] |= {f"{prefix}{key}": value for key, value in counted.items()}
    for name, part in parts:
        if "energy" in part and len(part["energy"]):
            raw, normalised = np.asarray(part["energy"], np.float64).mean(0)
            result[name] |= {"dirichlet_raw": float(raw), "dirichlet_normalised": float(normalised)}
    return result


def _add_lesions(
    found: dict[str, Any], part: Mapping[str, Any], score: npt.NDArray[Any], threshold: float | None, no_threshold: str
) -> None:
    """Dice, and FROC where the lattice is known."""
    found["instance_dice"] = None
    if threshold is None:
        found["undefined"]["instance_dice"] = no_threshold
    else:
        dice = bag_dice(part["y_inst"], score, part["offsets"], threshold)
        dice = dice[~np.isnan(dice)]
        found["instance_dice"] = float(dice.mean()) if len(dice) else None
        if not len(dice):
            found["undefined"]["instance_dice"] = "no bag with a positive instance"
    if "grid" in part:
        curve = froc(part["y"], part["offsets"], part["y_inst"], score, part["grid"])
        found["instance_froc"] = curve.average
        found["froc_sensitivity"] = dict(zip((f"{rate:g}" for rate in RATES), curve.sensitivity, strict=False))
        if curve.average is None:
            found["undefined"]["instance_froc"] = curve.reason


def _cross_entropy(y: Floats, logit: Floats) -> Floats:
    # max(z, 0) - z y + log(1 + exp(-|z|)): finite for any finite logit
    return np.asarray(np.maximum(logit, 0) - logit * y + np.log1p(np.exp(-np.abs(logit))), np.float64)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _reasons(values: Mapping[str, float | None], what: str, positives: int, negatives: int) -> dict[str, str]:
    if positives + negatives == 0:
        reason = f"no {what}"
    else:
        reason = f"one class only ({positives} positive, {negatives} negative {what}s)"
    return {name: reason for name, value in values.items() if value is None}


def _checked(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    labels, scores = np.asarray(y, np.float64), np.asarray(score, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"found {labels.shape} labels and {scores.shape} scores, expected two vectors of one length")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(scores)} scores are not finite, the first at row {bad[0]}: {scores[bad[0]]}"
        )
    if not np.all((labels == 0) | (labels == 1)):
        raise ValueError(f"found labels {np.unique(labels)[:5].tolist()}, expected 0 and 1 only")
    return labels, scores
