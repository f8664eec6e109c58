"""torchmil's npy tree, as its CAMELYON16, PANDA and RSNA datasets read it.

    slides: {root}/patches_{ps}/{features/features_{name},labels,patch_labels,coords}/{bag}.npy   {root}/splits.csv
    scans:  {root}/{features/features_{name},labels,slice_labels}/{bag}.npy                        {root}/splits.csv

| array | shape, dtype | meaning |
|---|---|---|
| features | (N,P) float32 | |
| labels | (1,) int64 | bag label |
| patch_labels, slice_labels | (N,) int64 | 1 = positive, -1 = unknown |
| coords | (N,2) int64 | level-0 top-left (x,y) |

torchmil divides coordinates by `ps` to get lattice cells, so `ps` is the lattice step at level 0: an export refuses
bags of different steps. It has no place for lesion shares (an export writes labels by a threshold, an import gets 0 and
1), resolution, groups, tile sizes, encoder and weights; `smmil.json` beside `splits.csv` carries what is not numbers
per instance. For scans an export adds the folder `coords` (mm along the slice normal). splits.csv: bag_name, split.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from preprocessing.bags.identity import image_identity
from preprocessing.bags.rows import BagRow
from preprocessing.common.files import json_hash, write_json
from preprocessing.exchange.files import existing, files_of, merged, one_folder, parse_carried, read_npy, write_npy
from preprocessing.exchange.geometry import as_coords
from preprocessing.exchange.model import Array, Bag, ExportOptions, Format, ImportOptions
from preprocessing.exchange.tables import Line, make_rows, read_lines, write_csv
from preprocessing.store.attrs import InstanceAttrs

log = logging.getLogger(__name__)

SIDE_FILE = "smmil.json"
_PATCHES = re.compile(r"patches_(\d+)")


class TorchmilSource:
    """One tree; slides where there is a folder `patches_{ps}`, scans otherwise."""

    def __init__(self, source: Path, options: ImportOptions) -> None:
        self.source, self.options = source, options
        inner = [path for path in sorted(source.glob("patches_*")) if _PATCHES.fullmatch(path.name)]
        is_patches = _PATCHES.fullmatch(source.name) is not None
        self.scans = not inner and not is_patches
        self.folder = source if self.scans or is_patches else one_folder(inner, "patches_{ps}", source)
        self.root = source.parent if is_patches else source
        match = _PATCHES.fullmatch(self.folder.name)
        self.patch_px = int(match[1]) if match else 0
        self.features = self.folder / "features" / f"features_{options.features_name or options.encoder}"
        self.side = _side_file(self.root / SIDE_FILE)

    def rows(self) -> list[BagRow]:
        """List one bag per feature file; labels and splits from the tree unless the options name tables."""
        files = files_of(self.features, ".npy")
        lines = read_lines(self.options.labels, self.options.splits or existing(self.root / "splits.csv"))
        # torchmil's own lists also name bags of other extractors, and its reader takes the files that exist.
        absent = sorted(set(lines) - set(files))
        if absent:
            log.warning("%s: %d bags of the tables have no features here, e.g. %s", self.source, len(absent), absent[0])
        lines = {name: line for name, line in lines.items() if name in files}
        for name in files:
            line = lines.get(name, Line())
            path = self.folder / "labels" / f"{name}.npy"
            if line.label is None and path.is_file():
                group = line.group or str(self.side.get(name, {}).get("group", ""))
                lines[name] = Line(_label(read_npy(path), path), line.split, group, line.mpp)
        relative = {name: path.relative_to(self.source).as_posix() for name, path in files.items()}
        return make_rows(relative, lines, "ct" if self.scans else "wsi", self.source)

    def identity(self, row: BagRow) -> list[object]:
        """Identify all files of the bag, and its entry in the side file."""
        path = Path(row.images[0])
        parts = [self.folder / part / path.name for part in ("labels", "patch_labels", "slice_labels", "coords")]
        names = [part.relative_to(self.source).as_posix() for part in parts if part.is_file()]
        return [*image_identity(self.source, [*row.images, *names]), json_hash(self.side.get(path.stem, {}))]

    def read(self, row: BagRow) -> Bag:
        """Read one bag."""
        path = self.source / row.images[0]
        features, name = read_npy(path), path.name
        labels = self.folder / ("slice_labels" if self.scans else "patch_labels") / name
        n = len(features) if features.ndim else 0
        coverage = _shares(read_npy(labels), n, labels) if labels.is_file() else None
        side_file, positions = self.root / SIDE_FILE, self.folder / "coords" / name
        carried = parse_carried(self.side.get(path.stem), f"{side_file}: bag {path.stem!r}")
        if self.scans:
            coords: Array = _positions(positions, n)
            attrs = InstanceAttrs(modality="ct")
        else:
            coords = as_coords(read_npy(positions), str(positions))
            step, options = self.options.step_px or self.patch_px, self.options
            attrs = InstanceAttrs(l0_footprint_px=options.footprint_px or step, l0_step_px=step)
            attrs = attrs if options.tile_px is None else attrs.updated(tile_px=options.tile_px)
        return Bag(row, coords, features, coverage, merged(attrs, carried.attrs, side_file), carried.facts)


def _side_file(path: Path) -> dict[str, dict[str, JsonValue]]:
    if not path.is_file():
        return {}
    try:
        bags = json.loads(path.read_text(encoding="utf-8"))["bags"]
        return {str(name): dict(entry) for name, entry in bags.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not the side file of an export ({error!r}); remove it to import without it"
        ) from None


def _label(array: Array, path: Path) -> int | None:
    value = array.reshape(-1)
    if len(value) != 1 or float(value[0]) not in (0.0, 1.0, -1.0):
        raise ValueError(f"{path}: label is {array.dtype}{array.shape} {value[:3].tolist()}, expected one 0 or 1")
    return None if value[0] == -1 else int(value[0])


def _shares(labels: Array, n: int, path: Path) -> npt.NDArray[np.float32]:
    """Convert labels of instances (N,) to lesion shares 0 and 1; -1 (unknown) becomes NaN."""
    flat = labels.reshape(-1)
    if len(flat) != n or not np.isin(flat, (-1, 0, 1)).all():
        raise ValueError(f"{path}: {labels.dtype}{labels.shape}, expected {n} labels 0, 1 or -1 (unknown)")
    return np.where(flat < 0, np.nan, flat).astype(np.float32)


def _positions(path: Path, n: int) -> npt.NDArray[np.float32]:
    """Read the positions of slices (N,1) in mm; without a file their numbers."""
    if not path.is_file():
        return np.arange(n, dtype=np.float32)[:, None]
    positions = read_npy(path)
    if positions.shape not in ((n, 1), (n,)) or not np.isfinite(positions).all():
        raise ValueError(f"{path}: {positions.dtype}{positions.shape}, expected ({n}, 1) positions of slices")
    return np.asarray(positions.reshape(n, 1), np.float32)


class TorchmilTarget:
    """A torchmil tree; slides and scans are laid out differently, so one export holds one of them."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out, self.options = out, options
        self.kind: tuple[str, int] | None = None
        self.side: dict[str, dict[str, JsonValue]] = {}

    def write(self, bag: Bag) -> None:
        """Write one bag."""
        assert bag.features is not None and bag.coverage is not None
        slides = bag.attrs.modality == "wsi"
        # Its reader takes the patch size of a tree from one argument, so a tree has one lattice step.
        kind = ("slides", bag.attrs.l0_step_px) if slides else ("scans", 0)
        self.kind = self.kind or kind
        if kind != self.kind:
            raise ValueError(
                f"{bag.row.bag_id}: lattice step {kind[1]} px ({kind[0]}), the bags before had {self.kind[1]} px "
                f"({self.kind[0]}); torchmil divides all coordinates by one patch size: export them apart (--bag-id)"
            )
        folder = self.out / f"patches_{kind[1]}" if slides else self.out
        name, unknown = f"{bag.row.bag_id}.npy", np.isnan(bag.coverage)
        positive = (bag.coverage > self.options.label_threshold).astype(np.int64)
        label = -1 if bag.row.label is None else bag.row.label
        write_npy(folder / "features" / f"features_{self.options.encoder}" / name, bag.features.astype(np.float32))
        write_npy(folder / "labels" / name, np.array([label], np.int64))
        write_npy(folder / ("patch_labels" if slides else "slice_labels") / name, np.where(unknown, -1, positive))
        write_npy(folder / "coords" / name, bag.coords.astype(np.int64) if slides else bag.coords)
        self.side[bag.row.bag_id] = {**bag.carried, "group": bag.row.group}

    def finish(self, rows: list[BagRow]) -> None:
        """Write splits.csv and the side file."""
        write_csv(self.out / "splits.csv", ("bag_name", "split"), [(row.bag_id, row.split) for row in rows])
        write_json(self.out / SIDE_FILE, {"bags": self.side})


FORMAT = Format("torchmil", TorchmilSource, TorchmilTarget)
