"""Loading options and the rules of instance labels (methods.md section 5, rows 15 to 17).

- Instance labels are a threshold on the stored coverage:
  `strict` = coverage > threshold; `halving` = for a positive bag without a positive instance the threshold is
  halved until there is one (as released for CAMELYON16). NaN coverage gives -1 (unknown).
- `label_order: by_name` assigns labels in stored order to instances sorted by name as text (as released for PANDA);
  names are running numbers without leading zeros.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LABEL_RULES = ("strict", "halving")
EDGE_WEIGHTS = ("none", "feature_distance")
LABEL_ORDERS = ("stored", "by_name")


@dataclass(frozen=True)
class DataOptions:
    """Options that turn stored arrays into labels and graphs.

    Attributes:
        label_rule: `strict` or `halving`.
        label_threshold: coverage above which an instance is positive.
        edge_weight: `none` or `feature_distance`.
        drop_inconsistent: exclude bags whose largest known instance label differs from the bag label, or which have no
            known instance label (as released for PANDA).
        self_loop: every instance is its own neighbour.
        label_order: `stored` or `by_name`.
    """

    label_rule: str = "strict"
    label_threshold: float = 0.5
    edge_weight: str = "none"
    drop_inconsistent: bool = False
    self_loop: bool = False
    label_order: str = "stored"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("label_rule", self.label_rule, LABEL_RULES),
            ("edge_weight", self.edge_weight, EDGE_WEIGHTS),
            ("label_order", self.label_order, LABEL_ORDERS),
        ):
            if value not in known:
                raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(known)}")
        if not 0 <= self.label_threshold < 1:
            raise ValueError(f"label_threshold: found {self.label_threshold}, expected 0 <= threshold < 1")

    @property
    def record(self) -> dict[str, Any]:
        """The options as JSON values."""
        return dataclasses.asdict(self)


def instance_labels(
    coverage: npt.NDArray[np.floating[Any]], label: float, options: DataOptions
) -> tuple[npt.NDArray[np.int64], float]:
    """Compute the instance labels of a bag from the covered fraction.

    Args:
        coverage: (N,), NaN = not annotated.
        label: bag label, 0, 1 or NaN.
        options: rule and threshold.

    Returns:
        (N,) in {0, 1, -1} and the threshold used (lower than `label_threshold` only with `halving`). A positive bag
        with coverage 0 everywhere keeps the threshold, as no lower one yields a positive instance.
    """
    threshold = options.label_threshold
    top = float(np.nanmax(coverage, initial=0.0)) if len(coverage) else 0.0
    if options.label_rule == "halving" and label == 1 and top > 0:
        while top <= threshold:
            threshold /= 2
    labels = np.where(np.isnan(coverage), -1, coverage > threshold).astype(np.int64)
    return labels, threshold


def labels_by_name(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Assign the k-th label to the k-th instance in the order 0, 1, 10, 11, 2, ... of their names: (N,) -> (N,)."""
    moved = np.empty_like(labels)
    moved[sorted(range(len(labels)), key=str)] = labels
    return moved


def is_consistent(coverage: npt.NDArray[np.floating[Any]], label: float, options: DataOptions) -> bool:
    """Return whether the largest known instance label is the bag label; always True for unlabelled bags."""
    return bool(np.isnan(label)) or float(instance_labels(coverage, label, options)[0].max(initial=-1)) == label
