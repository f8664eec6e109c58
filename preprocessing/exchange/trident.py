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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.exchange.files import LARGEST_TILE, carried, files_of, merged, number, one_folder, write_h5
from preprocessing.exchange.model import CARRIED_KEY, Bag, ExportOptions, Format, ImportOptions
from preprocessing.exchange.tables import make_rows, read_lines, shown_label, write_csv
from preprocessing.exchange.tile_files import patches_facts, read_tiles, slides_only

_FOLDER = re.compile(r"[\d.]+x_\d+px_\d+px_overlap")
# um/px up to which a slide counts as so many times magnified (TRIDENT's own bins)
MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))


class TridentSource:
    """One folder `{mag}x_{ps}px_{ov}px_overlap` of TRIDENT's job folder."""

    def __init__(self, source: Path, options: ImportOptions) -> None:
        self.source, self.options = source, options
        name = options.features_name or options.encoder
        folder = source
        if not (source / f"features_{name}").is_dir() and source.is_dir():
            inner = [path for path in sorted(source.iterdir()) if path.is_dir() and _FOLDER.fullmatch(path.name)]
            folder = one_folder(inner, "{mag}x_{ps}px_{ov}px_overlap", source)
        self.folder, self.features = folder, folder / f"features_{name}"

    def rows(self) -> list[BagRow]:
        """One bag per feature file; labels from the options or from our `labels.csv` in the folder."""
        files = files_of(self.features, ".h5")
        own = next((p / "labels.csv" for p in (self.source, self.folder) if (p / "labels.csv").is_file()), None)
        lines = read_lines(self.options.labels or own, self.options.splits)
        relative = {path.stem: path.relative_to(self.source).as_posix() for path in files}
        return make_rows(relative, lines, "wsi", self.source)

    def identity(self, row: BagRow) -> list[Any]:
        """Both files."""
        from preprocessing.instances.stage import image_identity

        patches = self._patches_of(row)
        names = [*row.images, *([patches.relative_to(self.source).as_posix()] if patches else [])]
        return image_identity(self.source, names)

    def read(self, row: BagRow) -> Bag:
        """Features, coordinates and attributes; where both files have coordinates they must agree."""
        path = self.source / row.images[0]
        tiles, patches = read_tiles(path), self._patches_of(row)
        facts = tiles.facts
        if patches is not None:
            facts = {**patches_facts(patches, path, tiles.coords, "extract the features again"), **facts}
        ours = carried(facts, path)
        encoder = tiles.told.get("encoder")
        if encoder is not None and encoder not in (self.options.encoder, self.options.features_name):
            raise ValueError(
                f"{path}: made with encoder {encoder!r}, expected {self.options.encoder!r}; give --encoder"
            )
        attrs = merged(self._geometry(facts, patches or path), ours, path)
        return Bag(row, tiles.coords, tiles.features, tiles.coverage, attrs, ours.get("facts", {}))

    def _patches_of(self, row: BagRow) -> Path | None:
        path = self.folder / "patches" / f"{Path(row.images[0]).stem}_patches.h5"
        return path if path.is_file() else None

    def _geometry(self, facts: Mapping[str, Any], path: Path) -> dict[str, Any]:
        tile = number(facts, "patch_size", path, low=1, high=LARGEST_TILE)
        if "patch_size_level0" in facts:
            footprint = round(number(facts, "patch_size_level0", path, low=1, high=LARGEST_TILE))
        else:
            # older files: as TRIDENT computes it
            level0 = number(facts, "level0_magnification", path, low=1, high=1000)
            footprint = int(tile * level0 // number(facts, "target_magnification", path, low=0.1, high=1000))
        overlap = number(facts, "overlap", path, low=0, high=tile - 1) if "overlap" in facts else 0.0
        step = self.options.step_px or max(1, round((tile - overlap) * footprint / tile))
        told = {
            name: facts[name]
            for name in ("level0_magnification", "target_magnification")
            if isinstance(facts.get(name), int | float)
        }
        attrs = {"l0_footprint_px": footprint, "l0_step_px": step, "tile_px": int(tile), **told}
        size = [facts.get("level0_width"), facts.get("level0_height")]
        if all(isinstance(v, int) and v > 0 for v in size):
            attrs["dimensions"] = size
        return attrs


class TridentTarget:
    """A TRIDENT job folder: `{mag}x_{ps}px_{ov}px_overlap/{patches,features_E}` and `labels.csv`."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out, self.options = out, options

    def write(self, bag: Bag) -> None:
        """One slide."""
        slides_only(bag, "TRIDENT")
        assert bag.features is not None and bag.coverage is not None
        attrs = self._attributes(bag)
        name = f"{attrs['target_magnification']}x_{attrs['patch_size']}px_{attrs['overlap']}px_overlap"
        coords, folder = bag.coords.astype(np.int64), self.out / name
        write_h5(folder / "patches" / f"{bag.row.bag_id}_patches.h5", {"coords": coords}, {"coords": attrs})
        told = {
            "name": bag.row.bag_id,
            "savetodir": f"features_{self.options.encoder}",
            "encoder": self.options.encoder,
        }
        write_h5(
            folder / f"features_{self.options.encoder}" / f"{bag.row.bag_id}.h5",
            {"coords": coords, "coverage": bag.coverage, "features": bag.features.astype(np.float32)},
            {"coords": {**attrs, CARRIED_KEY: bag.facts["carried"]}, "features": told},
        )

    def finish(self, rows: list[BagRow]) -> None:
        """Labels and splits, which TRIDENT itself does not keep."""
        lines = [(row.bag_id, shown_label(row), row.split, row.group) for row in rows]
        write_csv(self.out / "labels.csv", ("wsi", "label", "split", "group"), lines)

    def _attributes(self, bag: Bag) -> dict[str, Any]:
        attrs = bag.attrs
        footprint, step = int(attrs["l0_footprint_px"]), int(attrs["l0_step_px"])
        tile = int(attrs.get("tile_px") or footprint)
        level0 = attrs.get("level0_magnification") or self.options.magnification or nominal(attrs.get("mpp"))
        if level0 is None:
            raise ValueError(
                f"{bag.row.bag_id}: resolution unknown, TRIDENT needs a magnification; give --magnification"
            )
        target = attrs.get("target_magnification") or nominal(_tile_mpp(attrs)) or level0 * tile / footprint
        width, height = attrs.get("dimensions") or (0, 0)
        return {
            **{"patch_size": tile, "patch_size_level0": footprint, "level0_magnification": round(level0)},
            **{"target_magnification": max(1, round(target)), "overlap": max(0, tile - round(step * tile / footprint))},
            **{"name": bag.row.bag_id, "savetodir": ".", "level0_width": width, "level0_height": height},
        }


def _tile_mpp(attrs: Mapping[str, Any]) -> float | None:
    mpp = attrs.get("mpp")
    return None if mpp is None else float(mpp) * attrs["l0_footprint_px"] / (attrs.get("tile_px") or 1)


def nominal(mpp: float | None) -> int | None:
    """The magnification that TRIDENT calls a resolution; None beyond its bins."""
    if mpp is None:
        return None
    return next((magnification for limit, magnification in MAGNIFICATIONS if mpp <= limit), None)


FORMAT = Format("trident", "TRIDENT: coordinates and features as h5", TridentSource, TridentTarget)
