"""Definitions of metrics and names of protocols, as printed under tables and figures.

A quirk of the released code that changes a metric changes its definition, and a protocol is named with the quirks that
differ from its preset.
"""

from collections.abc import Collection, Iterable
from typing import Protocol

from smmil.config.quirks import active_quirks

# quirk of evaluation (`smmil.evaluate.runs`)
GATE = "eval_gate_by_bag"
PRESETS = {"as_written": "the paper's text", "as_released": "the released code"}

# what `GATE` changes in the texts below: field -> (as written, as released)
_FIELDS = {
    "scores": (
        "raw, ungated instance scores",
        f"gated instance scores ({GATE}: every score of a bag called negative is −5)",
    ),
    "gated": ("", f", one half for a bag called negative ({GATE})"),
}
_TEXTS: dict[str, str] = {
    "instance_auroc": "Instance AUROC: {scores} pooled over all instances with a 0/1 label of all test bags, positive "
    "and negative.",
    "instance_auroc_within": "In-bag AUROC: instance AUROC within each positive test bag, mean over the bags with "
    "instances of both classes{gated}; it asks where in a bag the lesion is, and scores of different bags are not "
    "compared.",
    "instance_f1": "Instance F1: {scores}, pooled as for the AUROC; positive means score > threshold, the threshold "
    "being the validation instance score with the largest TPR x (1 - FPR). It uses validation instance labels.",
    "instance_auprc": "Instance AUPRC: average precision of the same instances.",
    "instance_froc": "Average FROC: mean sensitivity for lesions at 1/4, 1/2, 1, 2, 4 and 8 false positives per "
    "negative bag. After CAMELYON16, on tiles: a lesion is a connected component (8 neighbours) of positive tiles, a "
    "detection a local maximum of the score on the lattice, a lesion is found by a detection on it.",
    "instance_dice": "Dice: 2 |called and positive| / (|called| + |positive|) per bag with a positive instance, mean "
    "over those bags; called means score > the validation threshold.",
    "bag_auroc": "Bag AUROC: bag logits of all labelled test bags; ties count one half.",
    "bag_auprc": "Bag AUPRC: average precision of the bag logits.",
    "bag_f1": "Bag F1: positive means logit > 0; 0 where nothing is called positive.",
    "bag_ece": "Bag calibration error: expected calibration error of sigmoid(logit), |share of positive bags - mean "
    "probability| averaged over bins of equally many bags (15 at most, of 10 bags or more), weighted by their bags.",
    "dirichlet_raw": "Energy: Dirichlet energy f^T L f of the raw instance scores f over the bag's graph (normalised "
    "Laplacian, weights 1), mean over test bags; lower is smoother, and it grows with the square of the scores' scale.",
    "dirichlet_normalised": "Normalised energy: f^T L f / f^T f, mean over test bags, in [0, 2]; lower is smoother, "
    "whatever the scale.",
    "signed_instance_auroc": "Sign-aware instance AUROC: as instance AUROC, of the sign-aware score: to first order, "
    "how far the bag's logit would rise if the whole bag moved from the average validation instance to this one. "
    "Chosen without instance labels; not the paper's.",
    "signed_instance_f1": "Sign-aware instance F1: as instance F1, of the sign-aware score with its own validation "
    "threshold. Not the paper's.",
    "signed_sm_instance_auroc": "Smoothed sign-aware AUROC: as instance AUROC, of the sign-aware score after ten steps "
    "of Sm with α = 0.5 over the bag's graph (weights 1), whatever the method. Not the paper's.",
    "signed_sm_instance_f1": "Smoothed sign-aware F1: as instance F1, of the same score with its own validation "
    "threshold. Not the paper's.",
}


def definitions(quirks: Collection[str] = ()) -> dict[str, str]:
    """Return {metric: definition} under the active quirks."""
    fields = {name: texts[GATE in quirks] for name, texts in _FIELDS.items()}
    return {metric: text.format(**fields) for metric, text in _TEXTS.items()}


# how validation chooses among the learning rates (`training.learning_rate_choice`)
_RATE_CHOICES = {
    "split": "Learning rate chosen per split on validation, never on test.",
    "method": "One learning rate per method for all its splits: the best mean score on validation, never on test.",
}


def rate_choice_text(choices: Iterable[str]) -> str:
    """Say how the learning rates of the rows of a table were chosen; "" without a row, ValueError for rows of both."""
    names = sorted(set(choices))
    if len(names) > 1:
        raise ValueError(f"learning_rate_choice: found {names}, expected one per table; make one table each")
    return _RATE_CHOICES[names[0]] if names else ""


class Provenance(Protocol):
    """What names the protocol of a metrics record; quirks that are None are those of the protocol's preset."""

    @property
    def protocol(self) -> str:
        """`as_written` or `as_released`."""

    @property
    def quirks(self) -> Collection[str] | None:
        """Active quirks."""


def preset_quirks(protocol: str) -> frozenset[str]:
    """Return the quirks that a protocol switches on; none for an unknown protocol."""
    return active_quirks(protocol, {}) if protocol in PRESETS else frozenset()


def protocol_text(protocol: str, quirks: Collection[str]) -> str:
    """Name a protocol and the quirks that differ from its preset, sorted: `as_written with softmax`."""
    preset = preset_quirks(protocol)
    parts = [("with", set(quirks) - preset), ("without", preset - set(quirks))]
    return " ".join([protocol, *(f"{sign} {', '.join(sorted(names))}" for sign, names in parts if names)])


def shared_quirks(metrics: Iterable[Provenance], what: str) -> tuple[str, frozenset[str]]:
    """Return the protocol and the active quirks that all rows share, or raise ValueError; "" and none without a row."""
    protocols = {
        (row.protocol, preset_quirks(row.protocol) if row.quirks is None else frozenset(row.quirks)) for row in metrics
    }
    if len(protocols) > 1:
        names = sorted(protocol_text(*protocol) for protocol in protocols)
        raise ValueError(f"--metrics: found the protocols {names}, expected one per {what}; make one {what} each")
    return protocols.pop() if protocols else ("", frozenset())
