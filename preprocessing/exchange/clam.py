"""CLAM: `patches/{slide}.h5` (coordinates) and `h5_files/{slide}.h5`, `pt_files/{slide}.pt` (features).

    patches   coords (N,2) int, level-0 top-left (x,y); attributes patch_size (px of patch_level), patch_level,
              downsample (x,y), downsampled_level_dim, level_dim, name, save_path
    h5_files  features (N,P) float32 and coords (N,2) int, no attributes

Rows are in CLAM's order: contour by contour, within one x-major. Tables: `dataset.csv` (case_id, slide_id, label) and
`splits/splits_0.csv` (train, val, test). CLAM has no place for: resolution, lattice step, neighbours, lesion shares,
encoder and weights; an export adds the dataset `coverage` and the attribute `smmil` for them, which CLAM ignores. Only
slides. `.pt` files are pickles: written, never read. Source: CLAM's wsi_core and utils/file_utils.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.common.files import write_bytes
from preprocessing.exchange.files import LARGEST_TILE, Attributes, existing, number, write_h5
from preprocessing.exchange.model import CARRIED_KEY, Array, Bag, ExportOptions, Format, ImportOptions
from preprocessing.exchange.tables import Line, label_cell, read_lines, write_csv
from preprocessing.exchange.tile_files import TileSource, slides_only
from preprocessing.store.attrs import InstanceAttrs

CHUNK_ROWS = 32


class ClamSource(TileSource):
    """CLAM's feature folder, with the coordinate folder of its patching step."""

    def __init__(self, source: Path, options: ImportOptions) -> None:
        super().__init__(source, options)
        self.features = source / "h5_files" if (source / "h5_files").is_dir() else source
        candidates = [source, source.parent] if options.coords is None else [options.coords]
        folders = (folder / "patches" for folder in candidates)
        self.patches_root = next((folder for folder in folders if folder.is_dir()), options.coords or source)

    def lines(self) -> dict[str, Line]:
        """Read the tables of the options, or CLAM's own in the folder."""
        labels = self.options.labels or existing(self.source / "dataset.csv")
        return read_lines(labels, self.options.splits or existing(self.source / "splits" / "splits_0.csv"))

    def patches_of(self, row: BagRow) -> Path | None:
        """Return `patches/{slide}.h5`."""
        name = Path(row.images[0]).name
        return existing(self.patches_root / name) if self.patches_root != self.source else None

    def geometry(self, attributes: Attributes, path: Path) -> InstanceAttrs:
        """Convert the attributes of `coords`; without them the options give the size of a tile."""
        options = self.options
        if "patch_size" not in attributes:
            if options.footprint_px is None:
                raise ValueError(
                    f"{path}: no attribute patch_size, so the tiles' size is unknown; name the folder that holds "
                    "patches/ with --coords, or give --footprint-px (side of a tile at level 0)"
                )
            attrs = InstanceAttrs(
                l0_footprint_px=options.footprint_px, l0_step_px=options.step_px or options.footprint_px
            )
            return attrs if options.tile_px is None else attrs.updated(tile_px=options.tile_px)
        tile = number(attributes, "patch_size", path, low=1, high=LARGEST_TILE)
        level = number(attributes, "patch_level", path, low=0, high=64)
        downsample = _downsample(attributes, path)
        footprint = round(tile * downsample)
        if options.footprint_px not in (None, footprint):
            raise ValueError(
                f"{path}: tiles of {footprint} px at level 0, but --footprint-px says {options.footprint_px}"
            )
        attrs = InstanceAttrs(
            l0_footprint_px=footprint,
            l0_step_px=options.step_px or footprint,
            tile_px=int(tile),
            read_level=int(level),
            read_px=int(tile),
            read_downsample=round(downsample),
        )
        # level_dim is the size of the patch level, hence the slide's only for level 0.
        size = attributes.get("level_dim")
        return attrs.updated(dimensions=size) if level == 0 and isinstance(size, list) and len(size) == 2 else attrs


def _downsample(attributes: Attributes, path: Path) -> float:
    """Return the mean of CLAM's downsample of x and y."""
    value = attributes.get("downsample")
    both = [v for v in (value if isinstance(value, list) else [value, value]) if isinstance(v, int | float)]
    if len(both) != 2 or not all(1 <= v <= LARGEST_TILE for v in both):
        raise ValueError(f"{path}: attribute 'downsample' is {value!r}, expected two numbers of at least 1")
    if abs(both[0] / both[1] - 1) > 0.05:
        raise ValueError(f"{path}: attribute 'downsample' is {value!r}: x and y differ by more than 5 %")
    return float(both[0] + both[1]) / 2


class ClamTarget:
    """A folder that CLAM's training reads: patches/, h5_files/, pt_files/, dataset.csv, splits/splits_0.csv."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out = out

    def write(self, bag: Bag) -> None:
        """Write one slide, rows in CLAM's order."""
        slides_only(bag, "CLAM")
        assert bag.features is not None and bag.coverage is not None
        contour = np.array(bag.attrs.contour_of_tile or [0] * len(bag))
        order = np.lexsort((bag.coords[:, 1], bag.coords[:, 0], contour))
        coords, features = bag.coords[order], bag.features[order].astype(np.float32)
        name = f"{bag.row.bag_id}.h5"
        write_h5(self.out / "patches" / name, {"coords": coords}, {"coords": clam_attributes(bag)})
        arrays = {"coords": coords, "coverage": bag.coverage[order], "features": features}
        carried = {"coords": {CARRIED_KEY: bag.carried_text}}
        write_h5(self.out / "h5_files" / name, arrays, carried, rows=CHUNK_ROWS)
        write_pt(self.out / "pt_files" / f"{bag.row.bag_id}.pt", features)

    def finish(self, rows: list[BagRow]) -> None:
        """Write CLAM's tables."""
        write_csv(
            self.out / "dataset.csv",
            ("case_id", "slide_id", "label"),
            [(row.group or row.bag_id, row.bag_id, label_cell(row)) for row in rows],
        )
        columns = [[row.bag_id for row in rows if row.split == split] for split in ("train", "val", "test")]
        longest = max(map(len, columns))
        padded = [[*column, *[""] * (longest - len(column))] for column in columns]
        lines = [(i, *cells) for i, cells in enumerate(zip(*padded, strict=True))]
        write_csv(self.out / "splits" / "splits_0.csv", ("", "train", "val", "test"), lines)


def clam_attributes(bag: Bag) -> dict[str, object]:
    """Return the attributes of `coords` as CLAM writes them; `patch_size` counts px of the level that was read."""
    attrs = bag.attrs
    read_px = attrs.read_px or attrs.tile_px or attrs.l0_footprint_px
    downsample = attrs.l0_footprint_px / read_px
    width, height = attrs.dimensions or (0, 0)
    level = (round(width / downsample), round(height / downsample))
    return {
        **{"patch_size": read_px, "patch_level": attrs.read_level},
        **{"downsample": (downsample, downsample), "downsampled_level_dim": level, "level_dim": level},
        **{"name": bag.row.bag_id, "save_path": "patches"},
    }


def write_pt(path: Path, features: Array) -> None:
    """Write the features (N,P) as a torch tensor, as CLAM's training loads them."""
    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(features)), buffer)
    write_bytes(path, buffer.getbuffer())


FORMAT = Format("clam", ClamSource, ClamTarget)
