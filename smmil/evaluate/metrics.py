"""Bag and instance metrics of saved predictions: numpy in, plain numbers out (paper section 5, Appendix B).

Shapes: bags `y` (B,) in {0, 1} or NaN (unlabelled), `logit` (B,); instances `y` (M,) in {0, 1, -1}, `score` (M,), bag b
owning the rows `offsets[b]:offsets[b + 1]`. A higher score always means "more positive".

Definitions (the texts under the tables: `smmil.config.definitions`):

- a bag is called positive when its logit is > 0; F1 is 0 where it is 0 / 0. BCE is unweighted, in nats.
- instance metrics: all instances of all bags, positive and negative bags alike, pooled into one vector; instances whose
  label is neither 0 nor 1 are left out.
- in-bag AUROC (`instance_auroc_within`): mean over bags with label 1 of the AUROC of their own labelled instances; bags
  that lack one of the classes are left out and counted. It does not compare scores of different bags, so no monotone
  transform per bag changes it.
- threshold: the distinct VALIDATION instance score with the largest TPR x (1 - FPR), the largest such score on a tie;
  there TPR and FPR count `score >= threshold` as positive (ROC convention), the prediction on test is
  `score > threshold`. It uses validation instance labels, so the instance F1 is not purely weakly supervised.
- FROC, Dice: `smmil.evaluate.froc`; calibration error: `smmil.evaluate.calibration`.
- signed_*, signed_sm_*: the same instance metrics of the sign-aware score (`smmil.predictions.signed`) and of its
  smoothed form, each with a validation threshold of its own.
- FPR at TPR .90: the smallest false positive rate among ROC points whose true positive rate is at least .90.

An undefined metric (one class only, no instance labels) is None, with its reason in `undefined`; NaN is never returned.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from smmil.artifacts.records import PartMetrics
from smmil.artifacts.results import SCORES, Arrays
from smmil.evaluate.calibration import calibration_error
from smmil.evaluate.froc import RATES, bag_dice, froc

Floats = npt.NDArray[np.float64]

GATED_SCORE = -5.0


def auroc(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the area under the ROC curve of y in {0, 1} and finite scores (M,), None with one class only."""
    from sklearn.metrics import auc

    tp, fp, _ = _cumulative_counts(y, score)
    if not tp[-1] * fp[-1]:
        return None
    # The area in counts is exact, so equal rankings give equal bits.
    return float(auc(fp, tp) / (tp[-1] * fp[-1]))


def average_precision(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the step-wise area under the precision-recall curve of y, score (M,), None without a positive."""
    tp, fp, _ = _cumulative_counts(y, score)
    if not tp[-1]:
        return None
    precision = tp[1:] / (tp[1:] + fp[1:])
    return float(np.sum(np.diff(tp) / tp[-1] * precision))


def fpr_at_tpr(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the smallest FPR of y, score (M,) with a TPR of at least 0.9, None with one class only."""
    tp, fp, _ = _cumulative_counts(y, score)
    # The tolerance is far below one count: .9 * 10 must not miss the point 9 / 10.
    return float(fp[np.argmax(tp >= 0.9 * tp[-1] - 1e-9)] / fp[-1]) if tp[-1] * fp[-1] else None


def best_threshold(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> float | None:
    """Return the largest score of y, score (M,) that maximises TPR x (1 - FPR), None with one class only."""
    tp, fp, threshold = _cumulative_counts(y, score)
    # Products of counts are exact, so that a tie is a tie; no threshold at all is no candidate.
    return float(threshold[np.argmax(tp[1:] * (fp[-1] - fp[1:]))]) if tp[-1] * fp[-1] else None


def _cumulative_counts(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats, Floats]:
    """Return true and false positives (1+K,) at `score >= t`, t infinite and then each distinct score, descending (K,).

    The third array (K,) holds these scores.
    """
    from sklearn.metrics import confusion_matrix_at_thresholds

    if not len(y):
        return np.zeros(1), np.zeros(1), np.zeros(0)
    _, fp, _, tp, thresholds = confusion_matrix_at_thresholds(y, np.asarray(score, np.float64), pos_label=1)
    return np.append(0.0, tp), np.append(0.0, fp), thresholds


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
    bag, positive = bag[keep], part["y_inst"][keep] == 1
    counts, hits = (np.bincount(rows, minlength=n_bags) for rows in (bag, bag[positive]))
    # Ranks within bags, ties averaged: sums of halves are exact.
    level = np.unique(np.asarray(score, np.float64)[keep], return_inverse=True)[1]
    rank = rankdata(bag * (len(bag) + 1) + level) - (np.cumsum(counts) - counts)[bag]
    won = np.bincount(bag[positive], rank[positive], n_bags) - hits * (hits + 1) / 2
    pairs = hits * (counts - hits)
    return np.asarray(np.divide(won, pairs, out=np.full(n_bags, np.nan), where=pairs > 0), np.float64)


def bag_metrics(y: npt.NDArray[Any], logit: npt.NDArray[Any]) -> PartMetrics:
    """Compute all bag metrics of finite logits (B,); bags whose label (B,) is NaN are left out and counted.

    Raises:
        ValueError: a logit that is not finite or a label that is not 0, 1 or NaN.
    """
    from sklearn.metrics import precision_recall_fscore_support

    known = ~np.isnan(np.asarray(y, np.float64))
    labels, logits = _checked(np.asarray(y)[known], np.asarray(logit)[known])
    n, positives, called = len(labels), int(np.sum(labels)), logits > 0
    values: dict[str, float | None] = {
        "bag_auroc": auroc(labels, logits),
        "bag_auprc": average_precision(labels, logits),
        **dict.fromkeys(("bag_f1", "bag_accuracy", "bag_precision", "bag_recall", "bag_bce")),
        "bag_ece": calibration_error(labels, logits),
    }
    if n:
        scores = precision_recall_fscore_support(labels, called, average="binary", zero_division=0)[:3]
        values |= zip(("bag_precision", "bag_recall", "bag_f1"), map(float, scores), strict=True)
        values["bag_accuracy"] = float(np.mean(called == labels))
        # max(z, 0) - z y + log(1 + exp(-|z|)) is finite for any finite logit z.
        entropies = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
        values["bag_bce"] = float(np.mean(entropies))
    counts = {"n_bags": n, "n_positive_bags": positives, "n_unlabelled_bags": int(np.sum(~known))}
    undefined = _reasons(values, "labelled bag", positives, n - positives)
    return PartMetrics.model_validate({**values, **counts, "undefined": undefined})


def instance_metrics(
    part: Arrays, score: npt.NDArray[Any], threshold: float | None, no_threshold: str = "no threshold"
) -> PartMetrics:
    """Compute all metrics of one instance score.

    Args:
        part: as in `run_metrics`.
        score: (M,) finite scores.
        threshold: from the validation instances (`best_threshold`), or None.
        no_threshold: why it is None.

    Raises:
        ValueError: a score that is not finite.
    """
    from sklearn.metrics import f1_score

    labels, scores = labelled(part["y_inst"], score)
    n, positives = len(labels), int(np.sum(labels))
    values: dict[str, float | None] = {
        "instance_auroc": (area := auroc(labels, scores)),
        "instance_auprc": average_precision(labels, scores),
        "instance_fpr_at_tpr90": fpr_at_tpr(labels, scores),
    }
    for name, limit in (("instance_f1", threshold), ("instance_f1_at_0", 0.0)):
        called = scores > (np.nan if limit is None else limit)
        values[name] = float(f1_score(labels, called, zero_division=0)) if n and limit is not None else None
    undefined = _reasons(values, "labelled instance", positives, n - positives)
    if threshold is None and n:
        undefined["instance_f1"] = no_threshold
    aurocs, positive_bags = in_bag_aurocs(part, score), int(np.sum(part["y"] == 1))
    ranked = int(np.isfinite(aurocs).sum())
    dices = np.zeros(0) if threshold is None else bag_dice(part, score, threshold)
    no_dice = "no bag with a positive instance" if threshold is not None else no_threshold
    no_area = f"no instances of both classes in any of {positive_bags} positive bags"
    for name, by_bag, reason in (("auroc_within", aurocs, no_area), ("dice", dices, no_dice)):
        by_bag = by_bag[~np.isnan(by_bag)]
        values[f"instance_{name}"] = float(by_bag.mean()) if len(by_bag) else None
        undefined |= {} if len(by_bag) else {f"instance_{name}": reason}
    content: dict[str, object] = {"inverted": area is not None and area < 0.5}
    if "grid" in part:
        curve = froc(part, score)
        values["instance_froc"] = curve.average
        content["froc_sensitivity"] = dict(zip((f"{rate:g}" for rate in RATES), curve.sensitivity, strict=False))
        undefined |= {"instance_froc": curve.reason} if curve.average is None else {}
    content |= {"n_instances": n, "n_positive_instances": positives}
    content |= {"n_in_bag": ranked, "n_not_in_bag": positive_bags - ranked}
    return PartMetrics.model_validate({**values, **content, "undefined": undefined})


def labelled(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return the rows of `y` (M,) and `score` (M,) whose label is 0 or 1; every score must be finite."""
    keep = np.isin(y, (0, 1))
    return np.asarray(y)[keep].astype(np.float64), _checked(keep, score)[1][keep]


def gate(score: npt.NDArray[Any], offsets: npt.NDArray[Any], logit: npt.NDArray[Any]) -> Floats:
    """Set every score (M,) of a bag called negative (logit (B,) <= 0) to -5.0, as the released code does."""
    negative = np.repeat(np.asarray(logit) <= 0, np.diff(offsets))
    return np.where(negative, GATED_SCORE, np.asarray(score, np.float64))


class RunMetrics(NamedTuple):
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
        For both parts `bag_metrics` and `instance_metrics`, with energies `dirichlet_raw` and `dirichlet_normalised`,
        and with sign-aware scores the instance metrics again as `signed_*` and `signed_sm_*`.
    """
    thresholds: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for prefix, array in SCORES.items():
        if array in test and array in val:
            y_val, score_val = labelled(val["y_inst"], val[array])
            thresholds[prefix] = best_threshold(y_val, score_val)
            problem = "hold one class only" if len(y_val) else "have no label"
            reasons[prefix] = f"no threshold: the validation instances {problem}"
    metrics = []
    for part in (test, val):
        content = bag_metrics(part["y"], part["bag_logit"]).as_json()
        for prefix, reason in reasons.items():
            record = instance_metrics(part, part[SCORES[prefix]], thresholds[prefix], reason).as_json()
            content["undefined"] |= {f"{prefix}{name}": text for name, text in record.pop("undefined").items()}
            # Counts do not depend on the score and get no prefix.
            content |= {name if name.startswith("n_") else f"{prefix}{name}": v for name, v in record.items()}
        if "energy" in part and len(part["energy"]):
            energies = np.asarray(part["energy"], np.float64).mean(0).tolist()
            content |= zip(("dirichlet_raw", "dirichlet_normalised"), energies, strict=True)
        metrics.append(PartMetrics.model_validate(content))
    return RunMetrics(thresholds, *metrics)


def _reasons(values: dict[str, float | None], what: str, positives: int, negatives: int) -> dict[str, str]:
    """Return why values are None, for metrics that need both classes."""
    counts = f"{positives} positive, {negatives} negative {what}s"
    reason = f"one class only ({counts})" if positives + negatives else f"no {what}"
    return {name: reason for name, value in values.items() if value is None}


def _checked(y: npt.NDArray[Any], score: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return labels (M,) and scores (M,) as float64.

    Raises:
        ValueError: a score that is not finite, or a label that is not 0 or 1.
    """
    labels, scores = np.asarray(y, np.float64), np.asarray(score, np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(scores)} scores are not finite, the first at row {bad[0]}: {scores[bad[0]]}"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"found labels {np.unique(labels)[:5].tolist()}, expected 0 and 1 only")
    return labels, scores
