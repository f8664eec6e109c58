"""The datasets that can be read: one module each, one line here.

A module knows the folder layout, labels, split, exclusions and expected counts of its dataset, and turns a root folder
into rows of `bags.csv`. `own` reads any slides and scans from a CSV manifest.
"""

from preprocessing.datasets.base import BagTable, Dataset, MissingRaw
from preprocessing.datasets.camelyon16 import DATASET as CAMELYON16
from preprocessing.datasets.custom import DATASET as OWN
from preprocessing.datasets.panda import DATASET as PANDA
from preprocessing.datasets.rsna import DATASET as RSNA

__all__ = ["DATASETS", "BagTable", "Dataset", "MissingRaw", "get_dataset"]

DATASETS: dict[str, Dataset] = {dataset.kind: dataset for dataset in (CAMELYON16, PANDA, RSNA, OWN)}


def get_dataset(kind: str) -> Dataset:
    """Looks a kind of dataset up.

    Raises:
        ValueError: an unknown kind; the known ones are named.
    """
    if kind not in DATASETS:
        raise ValueError(f"dataset kind: found {kind!r}, expected one of {', '.join(sorted(DATASETS))}")
    return DATASETS[kind]
