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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.common.files import write_bytes
from preprocessing.exchange.files import LARGEST_TILE, carried, files_of, merged, number, write_h5
from preprocessing.exchange.model import CARRIED_KEY, Array, Bag, ExportOptions, Format, ImportOptions
from preprocessing.exchange.tables import Line, make_rows, read_lines, shown_label, write_csv
from preprocessing.exchange.tile_files import patches_facts, read_tiles, slides_only

CHUNK_ROWS = 32


class ClamSource:
    """CLAM's feature folder, with the coordinate folder of its patching step."""

    def __init__(self, source: Path, options: ImportOptions) -> None:
        self.source, self.options = source, options
        self.features = source / "h5_files" if (source / "h5_files").is_dir() else source
        self.patches = _patches_folder(source, options.coords)

    def rows(self) -> list[BagRow]:
        """One bag per feature file; labels and splits from the options or from CLAM's own tables in the folder."""
        files = files_of(self.features, ".h5")
        labels = self.options.labels or _if_there(self.source / "dataset.csv")
        splits = self.options.splits or _if_there(self.source / "splits" / "splits_0.csv")
        lines: dict[str, Line] = read_lines(labels, splits)
        relative = {path.stem: path.relative_to(self.source).as_posix() for path in files}
        return make_rows(relative, lines, "wsi", self.source)

    def identity(self, row: BagRow) -> list[Any]:
        """Both files."""
        from preprocessing.instances.stage import image_identity

        found = image_identity(self.source, row.images)
        patches = self._patches_of(row)
        return [*found, *(image_identity(patches.parent, [patches.name]) if patches else [])]

    def read(self, row: BagRow) -> Bag:
        """Features, coordinates and the geometry that `patches` records."""
        path = self.source / row.images[0]
        tiles, patches = read_tiles(path), self._patches_of(row)
        facts = tiles.facts
        if patches is not None:
            advice = "the features belong to another patching: extract them again or give its folder with --coords"
            own = {CARRIED_KEY: facts[CARRIED_KEY]} if CARRIED_KEY in facts else {}
            facts = {**patches_facts(patches, path, tiles.coords, advice), **own}
        ours = carried(facts, path)
        attrs = merged(self._geometry(facts, patches or path), ours, path)
        return Bag(row, tiles.coords, tiles.features, tiles.coverage, attrs, ours.get("facts", {}))

    def _patches_of(self, row: BagRow) -> Path | None:
        name = Path(row.images[0]).name
        path = self.patches / name if self.patches is not None else None
        return path if path is not None and path.is_file() else None

    def _geometry(self, facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
        options = self.options
        if "patch_size" not in facts:
            if options.footprint_px is None:
                raise ValueError(
                    f"{path}: no attribute patch_size, so the tiles' size is unknown; name the folder that holds "
                    "patches/ with --coords, or give --footprint-px (side of a tile at level 0)"
                )
            footprint = options.footprint_px
            return {
                "l0_footprint_px": footprint,
                "l0_step_px": options.step_px or footprint,
                "tile_px": options.tile_px,
            }
        tile = number(facts, "patch_size", path, low=1, high=LARGEST_TILE)
        level = number(facts, "patch_level", path, low=0, high=64)
        downsample = _downsample(facts, path)
        footprint = round(tile * downsample)
        if options.footprint_px not in (None, footprint):
            raise ValueError(
                f"{path}: tiles of {footprint} px at level 0, but --footprint-px says {options.footprint_px}"
            )
        return {
            **{"l0_footprint_px": footprint, "l0_step_px": options.step_px or footprint, "tile_px": int(tile)},
            **{"read_level": int(level), "read_px": int(tile), "read_downsample": round(downsample)},
            **({"dimensions": list(map(int, facts["level_dim"]))} if _is_size(facts.get("level_dim"), level) else {}),
        }


def _is_size(value: Any, level: float) -> bool:
    # level_dim is that of the patch level: the slide's only for level 0
    return level == 0 and isinstance(value, list) and len(value) == 2


def _downsample(facts: Mapping[str, Any], path: Path) -> float:
    value = facts.get("downsample")
    both = [v for v in (value if isinstance(value, list) else [value, value]) if isinstance(v, int | float)]
    if len(both) != 2 or not all(1 <= v <= LARGEST_TILE for v in both):
        raise ValueError(f"{path}: attribute 'downsample' is {value!r}, expected two numbers of at least 1")
    if abs(both[0] / both[1] - 1) > 0.05:
        raise ValueError(f"{path}: attribute 'downsample' is {value!r}: x and y differ by more than 5 %")
    return float(both[0] + both[1]) / 2


def _patches_folder(source: Path, given: Path | None) -> Path | None:
    """Where the coordinate files lie: the folder given, or `patches` in or beside the source."""
    for folder in [source, source.parent] if given is None else [given]:
        if (folder / "patches").is_dir():
            return folder / "patches"
    return given


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


class ClamTarget:
    """A folder that CLAM's training reads: patches/, h5_files/, pt_files/, dataset.csv, splits/splits_0.csv."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out = out

    def write(self, bag: Bag) -> None:
        """One slide, rows in CLAM's order."""
        slides_only(bag, "CLAM")
        assert bag.features is not None and bag.coverage is not None
        order = clam_order(bag)
        coords, features = bag.coords[order], bag.features[order].astype(np.float32)
        name = f"{bag.row.bag_id}.h5"
        text = {CARRIED_KEY: bag.facts["carried"]}
        attrs = clam_attributes(bag, self.out)
        write_h5(self.out / "patches" / name, {"coords": coords}, {"coords": attrs})
        arrays = {"coords": coords, "coverage": bag.coverage[order], "features": features}
        write_h5(self.out / "h5_files" / name, arrays, {"coords": text}, rows=CHUNK_ROWS)
        write_pt(self.out / "pt_files" / f"{bag.row.bag_id}.pt", features)

    def finish(self, rows: list[BagRow]) -> None:
        """CLAM's tables."""
        write_csv(
            self.out / "dataset.csv",
            ("case_id", "slide_id", "label"),
            [(row.group or row.bag_id, row.bag_id, shown_label(row)) for row in rows],
        )
        columns = [[row.bag_id for row in rows if row.split == split] for split in ("train", "val", "test")]
        longest = max(map(len, columns))
        padded = [[*column, *[""] * (longest - len(column))] for column in columns]
        lines = [(i, *cells) for i, cells in enumerate(zip(*padded, strict=True))]
        write_csv(self.out / "splits" / "splits_0.csv", ("", "train", "val", "test"), lines)


def clam_order(bag: Bag) -> Array:
    """Contour by contour, all y of the first x, then the next x."""
    contour = np.zeros(len(bag), np.int64) if bag.contour is None else bag.contour
    return np.lexsort((bag.coords[:, 1], bag.coords[:, 0], contour))


def clam_attributes(bag: Bag, out: Path) -> dict[str, Any]:
    """Attributes of `coords` as CLAM writes them; `patch_size` counts px of the level that was read."""
    attrs = bag.attrs
    footprint = float(attrs["l0_footprint_px"])
    read_px = int(attrs.get("read_px") or attrs.get("tile_px") or footprint)
    downsample = footprint / read_px
    width, height = attrs.get("dimensions") or (0, 0)
    level = (round(width / downsample), round(height / downsample))
    return {
        **{"patch_size": read_px, "patch_level": int(attrs.get("read_level") or 0)},
        **{"downsample": (downsample, downsample), "downsampled_level_dim": level, "level_dim": level},
        **{"name": bag.row.bag_id, "save_path": "patches"},
    }


def write_pt(path: Path, features: Array) -> None:
    """The features as a torch tensor, as CLAM's training loads them."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(np.ascontiguousarray(features)), buffer)
    write_bytes(path, buffer.getbuffer())


FORMAT = Format("clam", "CLAM: coordinates and features as h5, features as pt", ClamSource, ClamTarget)
