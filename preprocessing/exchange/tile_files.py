"""What the files of CLAM and TRIDENT share: features beside coordinates in one h5, coordinates once more in another.

features  features (N,P) and coords (N,2) with attributes; from our own exports also coverage (N,)
patches   coords (N,2) with the attributes of the patching, row by row those of the features
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.exchange.files import attributes, dataset, open_h5, values
from preprocessing.exchange.geometry import as_coords
from preprocessing.exchange.model import Array, Bag


@dataclass(frozen=True)
class TileFile:
    """One slide's feature file.

    Attributes:
        coords: (N,2) level-0 px.
        facts: attributes of `coords`.
        features: (N,P).
        told: attributes of `features`.
        coverage: (N,), None where the file has none.
    """

    coords: Array
    facts: dict[str, Any]
    features: Array
    told: dict[str, Any]
    coverage: Array | None


def read_tiles(path: Path) -> TileFile:
    """Reads a feature file.

    Raises:
        ValueError: a missing or damaged dataset.
    """
    with open_h5(path) as file:
        found = dataset(file, "coords", path)
        facts, coords = attributes(found), as_coords(values(found, path), str(path))
        dense = dataset(file, "features", path)
        told, features = attributes(dense), values(dense, path)
        coverage = values(dataset(file, "coverage", path), path) if "coverage" in file else None
    return TileFile(coords, facts, features, told, coverage)


def patches_facts(patches: Path, path: Path, coords: Array, advice: str) -> dict[str, Any]:
    """Attributes of the coordinates in the file of the patching.

    Args:
        patches: that file.
        path: of the features, for the message.
        coords: (N,2) of the features.
        advice: what to do if they differ.

    Raises:
        ValueError: other coordinates than the features'.
    """
    with open_h5(patches) as file:
        found = dataset(file, "coords", patches)
        facts, theirs = attributes(found), as_coords(values(found, patches), str(patches))
    if not np.array_equal(coords, theirs):
        raise ValueError(f"{path}: its {len(coords)} coordinates are not the {len(theirs)} of {patches}; {advice}")
    return facts


def slides_only(bag: Bag, tool: str) -> None:
    """Refuses to export a scan to a tool for slides."""
    if bag.attrs.get("modality") != "wsi":
        raise ValueError(f"{bag.row.bag_id}: a CT scan; {tool} holds slides only, export scans as torchmil")
