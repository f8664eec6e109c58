"""TRIDENT: `{mag}x_{ps}px_{ov}px_overlap/patches/{slide}_patches.h5` and `features_{encoder}/{slide}.h5`.

    patches   coords (N,2) int64, level-0 top-left (x,y); attributes patch_size (px at the target magnification),
              patch_size_level0, level0_magnification, target_magnification, overlap (px at the target magnification),
              name, savetodir, level0_width, level0_height
    features  features (N,P) float32 with name, savetodir, encoder; coords with the attributes above

TRIDENT has no place for: resolution in um/px, neighbours, lesion shares, labels, splits and weights; an export adds the
dataset `coverage`, the attribute `smmil` and `labels.csv` (wsi, label, split, group), which TRIDENT ignores. Only
slides. Source: TRIDENT's WSI and IO modules.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.exchange.files import LARGEST_TILE, Attributes, existing, number, one_folder, write_h5
from preprocessing.exchange.model import CARRIED_KEY, Bag, ExportOptions, Format, ImportOptions
from preprocessing.exchange.tables import Line, label_cell, read_lines, write_csv
from preprocessing.exchange.tile_files import TileSource, slides_only
from preprocessing.store.attrs import InstanceAttrs

_FOLDER = re.compile(r"[\d.]+x_\d+px_\d+px_overlap")
# um/px up to which a slide counts as so many times magnified (TRIDENT's own bins)
MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))


class TridentSource(TileSource):
    """One folder `{mag}x_{ps}px_{ov}px_overlap` of TRIDENT's job folder."""

    def __init__(self, source: Path, options: ImportOptions) -> None:
        super().__init__(source, options)
        name = options.features_name or options.encoder
        self.folder = source
        if not (source / f"features_{name}").is_dir() and source.is_dir():
            inner = [path for path in sorted(source.iterdir()) if path.is_dir() and _FOLDER.fullmatch(path.name)]
            self.folder = one_folder(inner, "{mag}x_{ps}px_{ov}px_overlap", source)
        self.features, self.patches_root = self.folder / f"features_{name}", source

    def lines(self) -> dict[str, Line]:
        """Read the tables of the options, or our own `labels.csv` in the folder."""
        labels = self.options.labels or existing(self.source / "labels.csv", self.folder / "labels.csv")
        return read_lines(labels, self.options.splits)

    def patches_of(self, row: BagRow) -> Path | None:
        """Return `patches/{slide}_patches.h5`."""
        return existing(self.folder / "patches" / f"{Path(row.images[0]).stem}_patches.h5")

    def geometry(self, attributes: Attributes, path: Path) -> InstanceAttrs:
        """Convert the attributes of `coords`."""
        tile = number(attributes, "patch_size", path, low=1, high=LARGEST_TILE)
        if "patch_size_level0" in attributes:
            footprint = round(number(attributes, "patch_size_level0", path, low=1, high=LARGEST_TILE))
        else:
            # older files: as TRIDENT computes it
            level0 = number(attributes, "level0_magnification", path, low=1, high=1000)
            footprint = int(tile * level0 // number(attributes, "target_magnification", path, low=0.1, high=1000))
        overlap = number(attributes, "overlap", path, low=0, high=tile - 1) if "overlap" in attributes else 0.0
        step = self.options.step_px or max(1, round((tile - overlap) * footprint / tile))
        known: dict[str, object] = {
            name: attributes[name]
            for name in ("level0_magnification", "target_magnification")
            if isinstance(attributes.get(name), int | float)
        }
        size = [attributes.get("level0_width"), attributes.get("level0_height")]
        if all(isinstance(side, int) and side > 0 for side in size):
            known["dimensions"] = size
        return InstanceAttrs(l0_footprint_px=footprint, l0_step_px=step, tile_px=int(tile)).updated(**known)


class TridentTarget:
    """A TRIDENT job folder: `{mag}x_{ps}px_{ov}px_overlap/{patches,features_E}` and `labels.csv`."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out, self.options = out, options

    def write(self, bag: Bag) -> None:
        """Write one slide."""
        slides_only(bag, "TRIDENT")
        assert bag.features is not None and bag.coverage is not None
        attrs = self._attributes(bag)
        name = f"{attrs['target_magnification']}x_{attrs['patch_size']}px_{attrs['overlap']}px_overlap"
        coords, folder = bag.coords.astype(np.int64), self.out / name
        write_h5(folder / "patches" / f"{bag.row.bag_id}_patches.h5", {"coords": coords}, {"coords": attrs})
        encoder = self.options.encoder
        write_h5(
            folder / f"features_{encoder}" / f"{bag.row.bag_id}.h5",
            {"coords": coords, "coverage": bag.coverage, "features": bag.features.astype(np.float32)},
            {
                "coords": {**attrs, CARRIED_KEY: bag.carried_text},
                "features": {"name": bag.row.bag_id, "savetodir": f"features_{encoder}", "encoder": encoder},
            },
        )

    def finish(self, rows: list[BagRow]) -> None:
        """Write labels and splits, which TRIDENT itself does not keep."""
        lines = [(row.bag_id, label_cell(row), row.split, row.group) for row in rows]
        write_csv(self.out / "labels.csv", ("wsi", "label", "split", "group"), lines)

    def _attributes(self, bag: Bag) -> dict[str, object]:
        attrs = bag.attrs
        footprint = attrs.l0_footprint_px
        tile = attrs.tile_px or footprint
        level0 = attrs.level0_magnification or self.options.magnification or nominal(attrs.mpp)
        if level0 is None:
            raise ValueError(
                f"{bag.row.bag_id}: resolution unknown, TRIDENT needs a magnification; give --magnification"
            )
        tile_mpp = None if attrs.mpp is None else attrs.mpp * footprint / (attrs.tile_px or 1)
        target = attrs.target_magnification or nominal(tile_mpp) or level0 * tile / footprint
        overlap = tile - round(attrs.l0_step_px * tile / footprint)
        width, height = attrs.dimensions or (0, 0)
        return {
            **{"patch_size": tile, "patch_size_level0": footprint, "level0_magnification": round(level0)},
            **{"target_magnification": max(1, round(target)), "overlap": max(0, overlap)},
            **{"name": bag.row.bag_id, "savetodir": ".", "level0_width": width, "level0_height": height},
        }


def nominal(mpp: float | None) -> int | None:
    """Return the magnification that TRIDENT calls a resolution (um/px); None beyond its bins."""
    return next((magnification for limit, magnification in MAGNIFICATIONS if mpp is not None and mpp <= limit), None)


FORMAT = Format("trident", TridentSource, TridentTarget)
