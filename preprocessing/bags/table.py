"""The list of bags (`bags.csv`): one row per slide or scan, written by `preprocessing.bags`, read by every later stage.

The columns are the fields of `BagRow`; skip and overrides are present only if a bag has an override. The file is sorted
by bag_id and byte-deterministic. All paths in it are relative to the dataset's root and may not leave it.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from preprocessing.bags.checks import validate_bags
from preprocessing.bags.rows import BagRow, resolve
from preprocessing.common.files import write_text

__all__ = ["BagRow", "read_bags", "resolve", "shard_rows", "validate_bags", "write_bags"]

_WITH_OVERRIDES = [entry.name for entry in fields(BagRow)]
COLUMNS = _WITH_OVERRIDES[: _WITH_OVERRIDES.index("skip")]


def write_bags(path: Path | str, rows: Iterable[BagRow]) -> None:
    """Write `bags.csv` atomically, sorted by bag_id; equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = sorted(rows, key=lambda r: r.bag_id)
    columns = _WITH_OVERRIDES if any(row.skip or row.overrides for row in rows) else COLUMNS
    writer.writerow(columns)
    for row in rows:
        cells = vars(row) | {
            "images": "|".join(row.images),
            "label": "" if row.label is None else str(row.label),
            "annotation_complete": "true" if row.annotation_complete else "false",
            "mpp": "" if row.mpp is None else repr(row.mpp),
        }
        writer.writerow([cells[name] for name in columns])
    write_text(path, text.getvalue())


def read_bags(path: Path | str) -> list[BagRow]:
    """Read `bags.csv`; raise `ValueError` for no file, other columns, or a cell that cannot be parsed."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the bags.csv that `python -m preprocessing.bags` writes")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames not in (COLUMNS, _WITH_OVERRIDES):
            raise ValueError(f"{path}: found the columns {reader.fieldnames}, expected {COLUMNS}")
        return [_parse(cells, f"{path}, line {number}") for number, cells in enumerate(reader, start=2)]


def _parse(cells: dict[str, Any], where: str) -> BagRow:
    if None in cells or None in cells.values():
        raise ValueError(f"{where}: the number of cells differs from the number of columns; write the file again")
    label, complete, mpp = cells["label"], cells["annotation_complete"], cells["mpp"]
    if label not in ("", "0", "1") or complete not in ("true", "false"):
        raise ValueError(f"{where}: label {label!r}, annotation_complete {complete!r}; expected 0/1/empty, true/false")
    try:
        number = float(mpp) if mpp else None
    except ValueError:
        raise ValueError(f"{where}: mpp: found {mpp!r}, expected a number (um per px) or nothing") from None
    images = tuple(cells["images"].split("|")) if cells["images"] else ()
    parsed = {"images": images, "label": int(label) if label else None, "annotation_complete": complete == "true"}
    return BagRow(**cells | parsed | {"mpp": number})


def shard_rows(rows: Sequence[BagRow], shard: int, bags_per_shard: int) -> list[BagRow]:
    """Return the rows of one shard, in file order; a shard beyond the last bag is empty."""
    if shard < 0 or bags_per_shard < 1:
        raise ValueError(f"shard {shard} with {bags_per_shard} bags per shard: expected shard >= 0 and size >= 1")
    return list(rows[shard * bags_per_shard : (shard + 1) * bags_per_shard])
