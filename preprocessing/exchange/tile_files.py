"""What CLAM and TRIDENT share: features beside coordinates in one h5 file, the same coordinates in another.

features  features (N,P) and coords (N,2) with attributes; from our own exports also coverage (N,)
patches   coords (N,2) with the attributes of the patching, row by row those of the features
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from preprocessing.bags.identity import image_identity
from preprocessing.bags.rows import BagRow
from preprocessing.exchange.files import Attributes, files_of, merged, open_h5, parse_carried, read_dataset
from preprocessing.exchange.geometry import as_coords
from preprocessing.exchange.model import CARRIED_KEY, Array, Bag, ImportOptions
from preprocessing.exchange.tables import Line, make_rows
from preprocessing.store.attrs import InstanceAttrs


class TileSource(ABC):
    """A folder of feature files, one per slide, beside the files of the patching.

    Args:
        source: folder that the paths in `bags.csv` are relative to.
        options: what the files do not say.
    """

    features: Path
    patches_root: Path

    def __init__(self, source: Path, options: ImportOptions) -> None:
        self.source, self.options = source, options

    @abstractmethod
    def lines(self) -> dict[str, Line]:
        """Read labels and splits, from the options or from tables in the folder."""

    @abstractmethod
    def patches_of(self, row: BagRow) -> Path | None:
        """Return the file of the patching of a bag; None if there is none."""

    @abstractmethod
    def geometry(self, attributes: Attributes, path: Path) -> InstanceAttrs:
        """Convert the attributes of the patching, read from `path`."""

    def rows(self) -> list[BagRow]:
        """List one bag per feature file."""
        files = files_of(self.features, ".h5")
        relative = {name: path.relative_to(self.source).as_posix() for name, path in files.items()}
        return make_rows(relative, self.lines(), "wsi", self.source)

    def identity(self, row: BagRow) -> list[object]:
        """Identify both files."""
        patches = self.patches_of(row)
        identity = image_identity(self.source, row.images)
        if patches is not None:
            identity += image_identity(self.patches_root, [patches.relative_to(self.patches_root).as_posix()])
        return [*identity]

    def read(self, row: BagRow) -> Bag:
        """Read features, coordinates and geometry; where both files have coordinates they must agree."""
        path, patches = self.source / row.images[0], self.patches_of(row)
        with open_h5(path) as file:
            coords, attributes = _read_coords(file, path)
            features, facts = read_dataset(file, "features", path)
            coverage = read_dataset(file, "coverage", path)[0] if "coverage" in file else None
        if patches is not None:
            with open_h5(patches) as file:
                theirs, patching = _read_coords(file, patches)
            if not np.array_equal(coords, theirs):
                raise ValueError(
                    f"{path}: its {len(coords)} coordinates are not the {len(theirs)} of {patches}; the features "
                    "belong to another patching: extract them again, or for CLAM give its folder with --coords"
                )
            attributes = {**patching, **attributes}
        encoder = facts.get("encoder")
        if encoder is not None and encoder not in (self.options.encoder, self.options.features_name):
            raise ValueError(
                f"{path}: made with encoder {encoder!r}, expected {self.options.encoder!r}; give --encoder"
            )
        carried = parse_carried(attributes.get(CARRIED_KEY), f"{path}: attribute {CARRIED_KEY!r}")
        attrs = merged(self.geometry(attributes, patches or path), carried.attrs, path)
        return Bag(row, coords, features, coverage, attrs, carried.facts)


def _read_coords(file: object, path: Path) -> tuple[Array, Attributes]:
    coords, attributes = read_dataset(file, "coords", path)
    return as_coords(coords, str(path)), attributes


def slides_only(bag: Bag, tool: str) -> None:
    """Raise if the bag is a scan."""
    if bag.attrs.modality != "wsi":
        raise ValueError(f"{bag.row.bag_id}: a CT scan; {tool} holds slides only, export scans as torchmil")
