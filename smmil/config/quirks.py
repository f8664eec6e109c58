"""Differences between the paper's text and its authors' released code, one switch each.

`protocol: as_written | as_released` sets every row of `QUIRKS`, `quirks: {name: true | false}` sets single ones on top.
All of them act on stored bags (loading, model, training, evaluation), none on preprocessing. `python -m smmil.protocol`
prints the table of `docs/reference/protocol.md`. What a quirk changes on one kind of dataset is in the entry of that
dataset (`preprocessing.datasets.base.Dataset.released`). Nothing heavy is imported here.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from smmil.config.methods import get_method

Setting = bool | float | str | list[float]
SettingsByQuirk = Mapping[str, Mapping[str, Setting]]

PROTOCOLS = ("as_written", "as_released")
RELEASE = "github.com/by-lin/SmMIL, commit 4e2d1e0, folder code/ (a fork; all of its commits are the authors')"
# quirks of the graph that act on methods with Sm only
_OF_SM = frozenset({"graph_edge_weight", "graph_rsna_self_loop"})


@dataclass(frozen=True)
class Quirk:
    """One difference between text and release; its number is its place in `QUIRKS`.

    Attributes:
        acts: stage it acts in: loading, model, training or evaluation; a run is trained again for the first three.
        written: what `as_written` does.
        released: what `as_released` does.
        why: what it changes, and where.
        source: files and lines of `RELEASE` that do so.
        preset: whether `as_released` switches it on; the others act only if `quirks` names them.
    """

    acts: str
    written: str
    released: str
    why: str
    source: str
    preset: bool = True


QUIRKS: dict[str, Quirk] = {
    "sm_alpha_rule": Quirk(
        "model",
        "a fixed α is used as in Equation 8",
        "a fixed α runs as 1 − α in the T steps, and as α in the exact solution; α = 0 switches Sm off",
        "figures 6a and 12 may run backwards in α; a trainable α is not touched",
        "models/modules/Sm.py:11,33,48; experiments/arguments.py:21; models/modules/MILAttentionPool.py:28",
    ),
    "sm_alpha_param": Quirk(
        "model",
        "α = sigmoid(a), a = 0 at the start",
        "α = 1 / (1 + c), c = 1 at the start, unbounded",
        "c < 0 leaves [0, 1): between −1 and 0 the steps diverge, below −1 α is negative; other gradient steps in α",
        "models/modules/Sm.py:13,33",
    ),
    "sm_spectral_norm": Quirk(
        "model",
        "spectral normalisation of the layers right after Sm",
        "off: the option is passed under a name that the code never reads",
        "figure 6b; mostly instance metrics",
        "experiments/model_builder.py:48; models/modules/MILAttentionPool.py:13",
    ),
    "train_class_weight": Quirk(
        "training",
        "RSNA: positive bags weighted by n_neg / n_pos in the training and validation loss",
        "no weight: it is computed after the model has built its loss",
        "RSNA's bag threshold and epoch selection",
        "experiments/train_test.py:98,104",
    ),
    "eval_gate_by_bag": Quirk(
        "evaluation",
        "instance scores as the model gives them",
        "every score of a bag predicted negative becomes −5 before pooling, on validation and test",
        "ties instance metrics to bag errors, and −5 is not below every score",
        "experiments/predict.py:15-19,83",
    ),
    "graph_edge_weight": Quirk(
        "loading",
        "edges of weight 1 (or the dataset's `edge_weight`)",
        "exp(−‖x_i − x_j‖ / P) on raw features, for every method with Sm",
        "small: with P = 512 the weights lie near 1",
        "datasets/CamelyonDataset.py:145; datasets/PandaDataset.py:141; datasets/RSNADataset.py:86",
    ),
    "graph_rsna_self_loop": Quirk(
        "loading",
        "a slice's neighbours are i − 1 and i + 1",
        "i − 1, i and i + 1, for every method with Sm",
        "weaker smoothing of CT: a third of each step stays where it is",
        "datasets/RSNADataset.py:82",
    ),
    "train_batch_size": Quirk(
        "training",
        "CAMELYON16: 4 bags per step, 1 with a transformer",
        "CAMELYON16: 1 bag per step",
        "four times the steps for methods without a transformer",
        "bash_scripts/run_camelyon.sh:36,55,78,97,116,139",
    ),
    "model_smt_ap_pool": Quirk(
        "model",
        "SmT+AP pools without Sm",
        "SmT+AP pools with Sm: its script does not set the option of the pool, whose default is Sm",
        "the row SmT+AP of Table 3 is SmTAP trained once more",
        "bash_scripts/run_rsna.sh:105; experiments/arguments.py:59",
    ),
    "train_lr": Quirk(
        "training",
        "candidate learning rates, the better one by validation",
        "0.0001 only",
        "one run per split; methods that prefer another rate lose",
        "bash_scripts/run_camelyon.sh:37; bash_scripts/run_panda.sh:36; bash_scripts/run_rsna.sh:36",
    ),
    "sm_exact": Quirk(
        "model",
        "T = exact solves the linear system",
        "T = exact crashes there; here it is refused, and sweeps leave it out",
        "T = ∞ of figure 7 cannot come from the released code",
        "models/modules/MILAttentionPool.py:31",
    ),
    "softmax": Quirk(
        "model",
        "softmax with the maximum subtracted",
        "exp(f) / Σ exp(f) in the attention pool",
        "the same up to rounding, until f passes about 88: then NaN, and training stops",
        "models/modules/MILAttentionPool.py:85-87",
    ),
    "graph_isolated": Quirk(
        "model",
        "a node without neighbours keeps its value (self loop)",
        "only in a bag of one instance; any other isolated node is multiplied by 1 − α",
        "isolated tiles look less attentive than they are",
        "datasets/MILDataset.py:80-81,180",
    ),
    "select_val_loss": Quirk(
        "training",
        "epochs are selected with the mean loss over validation bags",
        "with the mean of batch means: the bags of a short last batch count more",
        "another epoch may be selected",
        "experiments/Trainer.py:105,222,242",
    ),
    "panda_label_order": Quirk(
        "loading",
        "a patch's label follows the patch",
        "patches, named slide_i_j, are sorted by name as text (1_10 before 1_2); labels keep the order of the CSV file",
        "off unless named, also under as_released, because the order of that unpublished file decides: sorted as text, "
        "it changes nothing. The switch assumes numerical order, i = row, j = column. Labels then belong to other "
        "patches where a slide has more than 10 rows or columns; affects instance metrics, not training",
        "datasets/PandaDataset.py:98,114,117",
        preset=False,
    ),
    "panda_discard": Quirk(
        "loading",
        "the dataset's `drop_inconsistent` (config.yaml: the released rule)",
        "PANDA slides whose patches contradict the slide's label, or have none, are left out",
        "the paper is silent; fewer slides",
        "datasets/PandaDataset.py:73,82",
    ),
    "c16_patch_label": Quirk(
        "loading",
        "the dataset's `label_rule` and `label_threshold` (config.yaml: the released rule)",
        "CAMELYON16: lesion share > 0.5, halved for a tumour slide until it has a positive patch",
        "the paper is silent; decides which patches of small lesions count",
        "experiments/extract_patch_labels.py:20,42,52-55",
    ),
    "eval_histogram": Quirk(
        "evaluation",
        "figure 4 shows all test bags",
        "only bags predicted positive; each class has its own 20 bins, from its minimum to its maximum",
        "hides the scores of bags predicted negative, and heights of the classes do not compare",
        "experiments/train_test.py:217; experiments/utils/plot_utils.py:13,27-28,31-32",
    ),
    "splits": Quirk(
        "training",
        "validation bags drawn per class, all bags of a patient on one side",
        "scikit-learn's train_test_split over single bags, stratified by label, random_state = seed; patients are not "
        "kept together",
        "other bags validate. The order of the bags decides: here by name, as theirs for PANDA; their lists for "
        "CAMELYON16 and RSNA are not published",
        "experiments/dataset_loader.py:85,89",
    ),
}


def active_quirks(protocol: str, quirks: Mapping[str, bool]) -> frozenset[str]:
    """Return the active quirks: the presets under `as_released`, none under `as_written`, single ones set on top.

    An unknown protocol or quirk is a ValueError.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: found {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    unknown = sorted(set(quirks) - set(QUIRKS))
    if unknown:
        raise ValueError(f"quirks: found unknown {unknown}, expected some of {', '.join(QUIRKS)}")
    released = protocol == "as_released"
    return frozenset(name for name, quirk in QUIRKS.items() if quirks.get(name, released and quirk.preset))


def training_changes(active: Collection[str], method: str, released: SettingsByQuirk) -> dict[str, Setting]:
    """Return the settings of `TrainingOptions` that the active quirks change for a method, not a variant.

    `released` are the settings by quirk of the kind of dataset (`Dataset.released`); {} = unknown kind.
    """
    settings: SettingsByQuirk = {
        "train_class_weight": {"class_weight": False},
        "train_lr": {"learning_rates": [1e-4]},
        "graph_edge_weight": {"edge_weight": "feature_distance"},
        **released,
    }
    ignored = frozenset() if get_method(method).carries_sm else _OF_SM
    acting = [changes for quirk, changes in settings.items() if quirk in active and quirk not in ignored]
    return {name: value for changes in acting for name, value in changes.items()}


def method_changes(active: Collection[str], method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method under the active quirks.

    A quirk that cannot act (a swapped α where α is trained) changes nothing, so that it does not change the run's key.

    Args:
        active: active quirks.
        method: not a variant.
        options: its arguments as configured.

    Returns:
        All arguments of `smmil.models.build_model`; quirks without an argument of their own are listed as `quirks`.

    Raises:
        ValueError: T = exact although `sm_exact` is active.
    """
    changed = dict(options)
    exact = options.get("T") == "exact"
    if exact and "sm_exact" in active:
        raise ValueError(
            f"{method}: found T = 'exact', which the released code cannot run; give a number of steps, or set"
            " quirks: {sm_exact: false}"
        )
    traits = get_method(method)
    if "sm_spectral_norm" in active and traits.carries_sm:
        changed["spectral_norm"] = False
    if "model_smt_ap_pool" in active and method == "smt_ap":
        changed["sm_pool"] = True
    alpha = changed.get("alpha", "trainable")
    fixed = alpha != "trainable"
    acting = {
        "sm_alpha_rule": traits.carries_sm and fixed and alpha != 0 and not exact,
        "sm_alpha_param": traits.carries_sm and not fixed,
        "softmax": traits.released,
        "graph_isolated": traits.carries_sm,
    }
    names = {name for name, acts in acting.items() if acts and name in active} | set(options.get("quirks", ()))
    return {**changed, "quirks": sorted(names)} if names else changed
