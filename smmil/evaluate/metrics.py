"""Bag and instance metrics of saved predictions: numpy in, plain numbers out (paper section 5, Appendix B).

Shapes: bags `y` (B,) in {0, 1} or NaN (unlabelled), `logit` (B,); instances `y` (M,) in {0, 1, -1}, `score` (M,), bag b
owning the rows `offsets[b]:offsets[b + 1]`. A higher score always means "more positive".

Definitions (the texts under the tables: `smmil.config.definitions`):

- bag AUROC: area under the ROC curve of the bag logits, Mann-Whitney form, ties count one half.
- bag F1, accuracy, precision, recall: a bag is called positive when its logit is > 0; F1 is 0 where it is 0 / 0.
- BCE: mean over bags of the unweighted binary cross-entropy of the logit, nats.
- AUPRC: average precision, the sum over distinct scores of (recall gained) x (precision there).
- instance metrics: all instances of all bags, positive and negative bags alike, pooled into one vector; instances whose
  label is neither 0 nor 1 are left out.
- in-bag AUROC (`instance_auroc_within`): mean over bags with label 1 of the AUROC of their own labelled instances; bags
  that lack one of the classes are left out and counted. It does not compare scores of different bags, so no monotone
  transform per bag changes it.
- threshold: the distinct VALIDATION instance score with the largest TPR x (1 - FPR), the largest such score on a tie;
  there TPR and FPR count `score >= threshold` as positive (ROC convention), the prediction on test is
  `score > threshold`. It uses validation instance labels, so the instance F1 is not purely weakly supervised.
- FROC, Dice: `smmil.evaluate.froc`; calibration error: `smmil.evaluate.calibration`; Dirichlet energy, stored per bag:
  mean over bags.
- signed_*, signed_sm_*: the same instance metrics of the sign-aware score (`smmil.predictions.signed`) and of its
  smoothed form, each with a validation threshold of its own.
- FPR at TPR .90: the smallest false positive rate among ROC points whose true positive rate is at least .90.

An undefined metric (one class only, no instance labels) is None, with its reason in `undefined`; NaN is never returned.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.artifacts.records import PartMetrics
from smmil.artifacts.results import SCORES, Arrays
from smmil.evaluate.calibration import calibration_error
from smmil.evaluate.froc import RATES, bag_dice, froc

Floats = npt.NDArray[np.float64]

GATED_SCORE = -5.0


def auroc(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the area under the ROC curve, None when only one class is present.

    Args:
        y: (M,) labels in {0, 1}.
        score: (M,) finite scores.

    Raises:
        ValueError: lengths differ, a label is not 0/1 or a score is not finite.
    """
    from sklearn.metrics import auc

    tp, fp, _ = _cumulative_counts(y, score)
    if not _has_both_classes(tp, fp):
        return None
    # the area in counts is exact, so equal rankings give equal bits
    return float(auc(np.append(0, fp), np.append(0, tp)) / (tp[-1] * fp[-1]))


def in_bag_aurocs(part: Arrays, score: npt.NDArray[Any]) -> Floats:
    """Compute the AUROC of the instances within every positive bag.

    Args:
        part: `y` (B,), `offsets` (B+1,) and `y_inst` (M,), as in `run_metrics`.
        score: (M,) finite scores.

    Returns:
        (B,) AUROCs; NaN for bags whose label is not 1 or whose labelled instances are of one class.
    """
    from scipy.stats import rankdata

    n_bags = len(part["y"])
    bag = np.repeat(np.arange(n_bags), np.diff(part["offsets"]))
    keep = np.isin(part["y_inst"], (0, 1)) & (part["y"] == 1)[bag]
    _, values = _checked(keep, score)
    bag, positive = bag[keep], part["y_inst"][keep] == 1
    counts, hits = (np.bincount(rows, minlength=n_bags) for rows in (bag, bag[positive]))
    # ranks within bags, ties averaged: sums of halves are exact
    level = np.unique(values[keep], return_inverse=True)[1]
    rank = rankdata(bag * (len(bag) + 1) + level) - (np.cumsum(counts) - counts)[bag]
    won = np.bincount(bag[positive], rank[positive], n_bags) - hits * (hits + 1) / 2
    pairs = hits * (counts - hits)
    areas: Floats = np.divide(won, pairs, out=np.full(n_bags, np.nan), where=pairs > 0)
    return areas


def auroc_over_chance(part: PartMetrics) -> float | None:
    """Return how many standard deviations the bag AUROC lies above 1/2, None where it is undefined.

    The deviation is that of the Mann-Whitney statistic without ties, sqrt((P + N + 1) / (12 P N)), if the logits of the
    P positive and N negative bags come from one distribution.
    """
    area, positives = part.values.get("bag_auroc"), part.n_positive_bags
    negatives = part.n_bags - positives
    if area is None or not positives or not negatives:
        return None
    return float((area - 0.5) / np.sqrt((part.n_bags + 1) / (12 * positives * negatives)))


def average_precision(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the step-wise area under the precision-recall curve of y, score (M,), None without a positive."""
    tp, fp, _ = _cumulative_counts(y, score)
    if len(tp) == 0 or tp[-1] == 0:
        return None
    return float(np.sum(np.diff(tp, prepend=0) / tp[-1] * (tp / (tp + fp))))


def fpr_at_tpr(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the smallest FPR of y, score (M,) with a TPR of at least 0.9, None when only one class is present."""
    tp, fp, _ = _cumulative_counts(y, score)
    if not _has_both_classes(tp, fp):
        return None
    # the tolerance is far below one count: .9 * 10 must not miss the point 9 / 10
    return float(fp[np.argmax(tp >= 0.9 * tp[-1] - 1e-9)] / fp[-1])


def best_threshold(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the largest score of y, score (M,) that maximises TPR x (1 - FPR), None with one class only."""
    tp, fp, threshold = _cumulative_counts(y, score)
    if not _has_both_classes(tp, fp):
        return None
    # products of counts are exact, so that a tie is a tie
    return float(threshold[np.argmax(tp * (fp[-1] - fp))])


def _cumulative_counts(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return true and false positives (K,) at `score >= threshold`, and the K distinct scores, descending."""
    from sklearn.metrics import confusion_matrix_at_thresholds

    labels, scores = _checked(y, score)
    if len(labels) == 0:
        return labels, labels, scores
    _, fp, _, tp, thresholds = confusion_matrix_at_thresholds(labels, scores, pos_label=1)
    return tp, fp, thresholds


def _has_both_classes(tp: Floats, fp: Floats) -> bool:
    return len(tp) > 0 and bool(tp[-1] > 0 and fp[-1] > 0)


def bag_metrics(y: npt.NDArray[Any], logit: npt.NDArray[Any]) -> PartMetrics:
    """Compute all bag metrics; bags whose label is NaN are left out and counted.

    Args:
        y: (B,) labels in {0, 1} or NaN.
        logit: (B,) finite logits.

    Returns:
        `bag_auroc`, `bag_f1`, `bag_bce`, `bag_accuracy`, `bag_precision`, `bag_recall`, `bag_auprc`, `bag_ece`, and
        the counts of bags.

    Raises:
        ValueError: a logit that is not finite or a label that is not 0, 1 or NaN.
    """
    from sklearn.metrics import precision_recall_fscore_support

    labels, logits = np.asarray(y, np.float64), np.asarray(logit, np.float64)
    known = ~np.isnan(labels)
    labels, logits = _checked(labels[known], logits[known])
    n, positives, called = len(labels), int(np.sum(labels)), logits > 0
    values: dict[str, float | None] = {
        "bag_auroc": auroc(labels, logits),
        "bag_auprc": average_precision(labels, logits),
        **dict.fromkeys(("bag_f1", "bag_accuracy", "bag_precision", "bag_recall", "bag_bce")),
        "bag_ece": calibration_error(labels, logits),
    }
    if n:
        precision, recall, f1, _ = precision_recall_fscore_support(labels, called, average="binary", zero_division=0)
        values |= {"bag_f1": float(f1), "bag_precision": float(precision), "bag_recall": float(recall)}
        values["bag_accuracy"] = float(np.mean(called == labels))
        values["bag_bce"] = float(np.mean(_cross_entropy(labels, logits)))
    counts = {"n_bags": n, "n_positive_bags": positives, "n_unlabelled_bags": int(np.sum(~known))}
    undefined = _reasons(values, "labelled bag", positives, n - positives)
    return PartMetrics.model_validate({**values, **counts, "undefined": undefined})


def instance_metrics(
    y: npt.NDArray[Any], score: npt.NDArray[Any], threshold: float | None, no_threshold: str = "no threshold"
) -> PartMetrics:
    """Compute all instance metrics of one pooled vector.

    Args:
        y: (M,) labels in {0, 1, -1}; anything but 0 and 1 is left out.
        score: (M,) raw scores.
        threshold: from the validation instances (`best_threshold`), or None.
        no_threshold: why it is None.

    Returns:
        `instance_auroc`, `instance_auprc`, `instance_f1`, `instance_f1_at_0`, `instance_fpr_at_tpr90`, `inverted` and
        the counts of instances.

    Raises:
        ValueError: a score that is not finite.
    """
    labels, scores = labelled(y, score)
    n, positives = len(labels), int(np.sum(labels))
    values: dict[str, float | None] = {
        "instance_auroc": auroc(labels, scores),
        "instance_auprc": average_precision(labels, scores),
        "instance_f1": _f1(labels, scores > threshold) if n and threshold is not None else None,
        "instance_f1_at_0": _f1(labels, scores > 0) if n else None,
        "instance_fpr_at_tpr90": fpr_at_tpr(labels, scores),
    }
    undefined = _reasons(values, "labelled instance", positives, n - positives)
    if threshold is None and n:
        undefined["instance_f1"] = no_threshold
    area = values["instance_auroc"]
    counts = {"n_instances": n, "n_positive_instances": positives, "inverted": area is not None and area < 0.5}
    return PartMetrics.model_validate({**values, **counts, "undefined": undefined})


def labelled(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the rows of `y` (M,) and `score` (M,) whose label is 0 or 1; every score must be finite."""
    labels, scores = np.asarray(y), np.asarray(score, np.float64)
    keep = (labels == 0) | (labels == 1)
    _checked(keep, scores)
    return labels[keep].astype(np.float64), scores[keep]


def gate(score: npt.NDArray[Any], offsets: npt.NDArray[Any], logit: npt.NDArray[Any]) -> Floats:
    """Set every score of a bag called negative (logit <= 0) to -5.0, as the released code does.

    Args:
        score: (M,) raw scores.
        offsets: (B+1,) first row of every bag.
        logit: (B,) bag logits.

    Returns:
        (M,) scores.
    """
    negative = np.repeat(np.asarray(logit) <= 0, np.diff(offsets))
    return np.where(negative, GATED_SCORE, np.asarray(score, np.float64))


@dataclass(frozen=True)
class RunMetrics:
    """Metrics of one run; `thresholds` holds the threshold of every score by its prefix in `SCORES`."""

    thresholds: dict[str, float | None]
    test: PartMetrics
    val: PartMetrics


def run_metrics(test: Arrays, val: Arrays) -> RunMetrics:
    """Compute every metric of one run; thresholds come from `val` alone.

    Args:
        test: `y` (B,), `bag_logit` (B,), `offsets` (B+1,), `instance_score` (M,), `y_inst` (M,) of the test bags; where
            known also `grid` (M,2), `signed_score` (M,), `signed_sm_score` (M,) and `energy` (B,2); prepared by
            `smmil.evaluate.runs.as_evaluated`.
        val: the same of the validation bags.

    Returns:
        For both parts `bag_metrics` and `instance_metrics`, `instance_auroc_within`, `instance_dice`, with a lattice
        `instance_froc` and `froc_sensitivity`, with energies `dirichlet_raw` and `dirichlet_normalised`, and with
        sign-aware scores the instance metrics again as `signed_*` and `signed_sm_*`.
    """
    parts = (test, val)
    collected = [[("", bag_metrics(part["y"], part["bag_logit"]))] for part in parts]
    thresholds: dict[str, float | None] = {}
    for prefix, array in SCORES.items():
        if array not in test or array not in val:
            continue
        y_val, score_val = labelled(val["y_inst"], val[array])
        threshold = best_threshold(y_val, score_val)
        problem = "hold one class only" if len(y_val) else "have no label"
        reason = f"no threshold: the validation instances {problem}"
        thresholds[prefix] = threshold
        for metrics, part in zip(collected, parts, strict=True):
            metrics.append((prefix, instance_metrics(part["y_inst"], part[array], threshold, reason)))
            metrics.append((prefix, _bagwise_metrics(part, part[array], threshold, reason)))
    for metrics, part in zip(collected, parts, strict=True):
        if "energy" in part and len(part["energy"]):
            raw, normalised = np.asarray(part["energy"], np.float64).mean(0)
            energy = {"dirichlet_raw": float(raw), "dirichlet_normalised": float(normalised)}
            metrics.append(("", PartMetrics.model_validate(energy)))
    return RunMetrics(thresholds, *(_merged(metrics) for metrics in collected))


def _merged(parts: Iterable[tuple[str, PartMetrics]]) -> PartMetrics:
    """Merge metrics, with a prefix before their names; counts do not depend on the score and get no prefix."""
    content: dict[str, object] = {}
    undefined: dict[str, str] = {}
    for prefix, part in parts:
        undefined |= {f"{prefix}{name}": reason for name, reason in part.undefined.items()}
        named = {name if name.startswith("n_") else f"{prefix}{name}": value for name, value in part.as_json().items()}
        content |= {name: value for name, value in named.items() if name != f"{prefix}undefined"}
    return PartMetrics.model_validate({**content, "undefined": undefined})


def _bagwise_metrics(part: Arrays, score: npt.NDArray[Any], threshold: float | None, no_threshold: str) -> PartMetrics:
    """Compute the in-bag AUROC, Dice, and FROC where the lattice is known."""
    undefined: dict[str, str] = {}
    areas, positives = in_bag_aurocs(part, score), int(np.sum(part["y"] == 1))
    areas = areas[~np.isnan(areas)]
    content: dict[str, object] = {
        "instance_auroc_within": float(areas.mean()) if len(areas) else None,
        "instance_dice": None,
        "n_in_bag": len(areas),
        "n_not_in_bag": positives - len(areas),
    }
    if not len(areas):
        undefined["instance_auroc_within"] = f"no instances of both classes in any of {positives} positive bags"
    if threshold is None:
        undefined["instance_dice"] = no_threshold
    else:
        dice = bag_dice(part["y_inst"], score, part["offsets"], threshold)
        dice = dice[~np.isnan(dice)]
        content["instance_dice"] = float(dice.mean()) if len(dice) else None
        if not len(dice):
            undefined["instance_dice"] = "no bag with a positive instance"
    if "grid" in part:
        curve = froc(part["y"], part["offsets"], part["y_inst"], score, part["grid"])
        content["instance_froc"] = curve.average
        content["froc_sensitivity"] = dict(zip((f"{rate:g}" for rate in RATES), curve.sensitivity, strict=False))
        if curve.average is None:
            undefined["instance_froc"] = curve.reason
    return PartMetrics.model_validate({**content, "undefined": undefined})


def _cross_entropy(y: Floats, logit: Floats) -> Floats:
    # max(z, 0) - z y + log(1 + exp(-|z|)): finite for any finite logit
    return np.asarray(np.maximum(logit, 0) - logit * y + np.log1p(np.exp(-np.abs(logit))), np.float64)


def _f1(y: Floats, called: npt.NDArray[np.bool_]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, called, zero_division=0))


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
