"""The registry of datasets: one module each, registered here.

A module knows the folder layout, labels, split, exclusions and expected counts of its dataset, and turns a root folder
into rows of `bags.csv`. `custom` reads any slides and scans from a CSV manifest.
"""

from preprocessing.datasets import camelyon16, custom, panda, rsna
from preprocessing.datasets.base import BagTable, Dataset, MissingRaw

__all__ = ["DATASETS", "BagTable", "Dataset", "MissingRaw", "get_dataset"]

DATASETS: dict[str, Dataset] = {module.DATASET.kind: module.DATASET for module in (camelyon16, panda, rsna, custom)}


def get_dataset(kind: str) -> Dataset:
    """Return the entry of a kind of dataset; raise `ValueError` for an unknown kind, naming the known ones."""
    if kind not in DATASETS:
        raise ValueError(f"dataset kind: found {kind!r}, expected one of {', '.join(sorted(DATASETS))}")
    return DATASETS[kind]
