"""QuPath: the tiles of a slide as GeoJSON objects with measurements, or its tissue to edit (`qupath_tissue`).

One `{bag}.geojson` per slide, a FeatureCollection of rectangles in level-0 px (x, y), one object per line, written as
it goes. `objectType` tile (default), detection or annotation; `measurements` name -> number (QuPath 0.4 and later read
and write this form); a fixed UUID per tile; a class where the lesion share exceeds the threshold. A number that is not
known (NaN) is left out, as JSON has none. QuPath counts from the scanned region's corner where the file has one
(MIRAX), so `bounds` is subtracted. Equal bags give equal bytes.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocessing.bags.rows import BagRow
from preprocessing.common.files import whole_file
from preprocessing.exchange.model import Array, Bag, ExportOptions, Format

OBJECT_TYPES = ("tile", "detection", "annotation")
TISSUE = "tissue"
POSITIVE = {"name": "Lesion", "color": [200, 64, 31]}
_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")


def features_of(bag: Bag, object_type: str, threshold: float) -> Iterator[dict[str, object]]:
    """Iterate over the GeoJSON features of the tiles, in the order of the bag."""
    side = bag.attrs.l0_footprint_px
    left, top = (bag.attrs.bounds or (0, 0))[:2]
    columns: dict[str, Array] = {} if bag.coverage is None else {"Lesion share": bag.coverage}
    columns |= bag.scores
    for i, (x, y) in enumerate(bag.coords.tolist()):
        x0, y0 = x - left, y - top
        ring = [[x0, y0], [x0 + side, y0], [x0 + side, y0 + side], [x0, y0 + side], [x0, y0]]
        # seven digits are what a float32 holds
        measured = {name: float(f"{column[i]:.7g}") for name, column in columns.items() if math.isfinite(column[i])}
        properties: dict[str, object] = {"objectType": object_type, "name": f"{bag.row.bag_id} {i}"}
        if measured.get("Lesion share", 0.0) > threshold:
            properties["classification"] = POSITIVE
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(_NAMESPACE, f"{bag.row.bag_id}/{i}")),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {**properties, "measurements": measured},
        }


def write_tiles(path: Path, bag: Bag, *, object_type: str = "tile", label_threshold: float = 0.5) -> None:
    """Write the tiles of one slide, whole or not at all.

    Args:
        path: the .geojson file.
        bag: a slide; `scores` are columns (N,) of measurements.
        object_type: one of `OBJECT_TYPES`.
        label_threshold: lesion share above which a tile gets the class `Lesion`.

    Raises:
        ValueError: a scan, an unknown object type, or a column of another length.
    """
    if object_type not in OBJECT_TYPES:
        raise ValueError(f"object type: found {object_type!r}, expected one of {', '.join(OBJECT_TYPES)}")
    if bag.attrs.modality != "wsi":
        raise ValueError(f"{bag.row.bag_id}: a CT scan; QuPath shows slides only")
    for name, column in bag.scores.items():
        if len(column) != len(bag):
            raise ValueError(f"{bag.row.bag_id}: {len(column)} values of {name!r} for {len(bag)} tiles; predict again")
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        for i, feature in enumerate(features_of(bag, object_type, label_threshold)):
            stream.write((",\n" if i else "\n") + json.dumps(feature, separators=(",", ":"), allow_nan=False))
        stream.write("\n]}\n")


class QupathTarget:
    """A folder of GeoJSON files."""

    def __init__(self, out: Path, options: ExportOptions) -> None:
        self.out, self.options = out, options

    def write(self, bag: Bag) -> None:
        """Write one slide."""
        options = self.options
        path = self.out / f"{bag.row.bag_id}.geojson"
        if options.object_type == TISSUE:
            from preprocessing.exchange.qupath_tissue import write_tissue

            if options.root is None or options.instances is None:
                raise ValueError("--root: tissue outlines come from the slides, give the dataset's root folder")
            write_tissue(path, bag, options.root, options.instances)
            return
        write_tiles(path, bag, object_type=options.object_type, label_threshold=options.label_threshold)

    def finish(self, rows: list[BagRow]) -> None:
        """Do nothing: GeoJSON needs no tables."""


def read_scores(path: Path) -> dict[str, dict[str, Array]]:
    """Read the instance scores (N,) of a predictions file: bag -> title of the measurement -> values."""
    if not path.is_file():
        raise ValueError(f"{path}: no such predictions file")
    needed = ("bag_id", "offsets", "instance_score")
    try:
        with np.load(path, allow_pickle=False) as archive:
            bags, offsets, scores = (archive[name] for name in needed)
            columns = {"Score": scores}
            if "signed_score" in archive.files:
                columns["Signed score"] = archive["signed_score"]
    except (KeyError, ValueError, OSError, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a predictions file ({error}); expected {', '.join(needed)}") from error
    if len(offsets) != len(bags) + 1 or {len(column) for column in columns.values()} != {int(offsets[-1])}:
        raise ValueError(f"{path}: lengths do not fit, expected offsets of {len(bags)} bags")
    return {
        str(bag): {title: column[offsets[i] : offsets[i + 1]] for title, column in columns.items()}
        for i, bag in enumerate(bags)
    }


FORMAT = Format("qupath", None, QupathTarget, needs_features=False)
