"""The rules of instance labels (docs/reference/protocol.md, rows 15 to 17).

- Instance labels are a threshold on the stored coverage:
  `strict` = coverage > threshold; `halving` = for a positive bag without a positive instance the threshold is
  halved until there is one (as released for CAMELYON16). NaN coverage gives -1 (unknown).
- `label_order: by_name` assigns labels in stored order to instances sorted by name as text (as released for PANDA);
  the names end in the lattice cell, `_{row}_{column}` without leading zeros.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.config.training_options import DataOptions


def instance_labels(
    coverage: npt.NDArray[np.floating[Any]], label: float, options: DataOptions
) -> tuple[npt.NDArray[np.int64], float]:
    """Compute the instance labels of a bag with the label 0, 1 or NaN from the coverage (N,), NaN = not annotated.

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


def labels_by_name(labels: npt.NDArray[np.int64], grid: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Assign the k-th label (N,) to the k-th cell of the grid (N,2) in the text order of `_{row}_{column}`: -> (N,)."""
    names = [f"_{row}_{column}" for row, column in grid.tolist()]
    moved = np.empty_like(labels)
    moved[sorted(range(len(labels)), key=names.__getitem__)] = labels
    return moved


def is_consistent(coverage: npt.NDArray[np.floating[Any]], label: float, options: DataOptions) -> bool:
    """Return whether the largest known label of coverage (N,) is the bag label; always True for unlabelled bags."""
    return bool(np.isnan(label)) or float(instance_labels(coverage, label, options)[0].max(initial=-1)) == label
