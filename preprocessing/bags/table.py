"""The list of bags (`bags.csv`): one row per slide or scan, written by a dataset module, read by every later stage.

The columns are the fields of `BagRow`; skip and overrides are present only if a bag has an override. The file is sorted
by bag_id and byte-deterministic. All paths in it are relative to the dataset's root and may not leave it.
`python -m preprocessing.bags` writes it together with a report. The option `overrides` names a CSV file with
settings of single bags (`preprocessing.bags.overrides`).
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from preprocessing.bags.checks import validate_bags
from preprocessing.bags.rows import COLUMNS, OVERRIDE_COLUMNS, BagRow, resolve
from preprocessing.common.files import write_text

__all__ = ["BagRow", "read_bags", "resolve", "shard_rows", "validate_bags", "write_bags"]

log = logging.getLogger("preprocessing.bags")


def write_bags(path: Path | str, rows: Iterable[BagRow]) -> None:
    """Write `bags.csv` atomically, sorted by bag_id; equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = sorted(rows, key=lambda r: r.bag_id)
    columns = COLUMNS + (OVERRIDE_COLUMNS if any(row.skip or row.overrides for row in rows) else ())
    writer.writerow(columns)
    for row in rows:
        cells: Mapping[str, str] = {
            **{name: getattr(row, name) for name in columns},
            "images": "|".join(row.images),
            "label": "" if row.label is None else str(row.label),
            "annotation_complete": "true" if row.annotation_complete else "false",
            "mpp": "" if row.mpp is None else repr(row.mpp),
        }
        writer.writerow([cells[name] for name in columns])
    write_text(path, text.getvalue())


def read_bags(path: Path | str) -> list[BagRow]:
    """Read `bags.csv`.

    Raises:
        ValueError: no such file, other columns, or a cell that cannot be parsed; file and line are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the bags.csv that `python -m preprocessing.bags` writes")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) not in (COLUMNS, COLUMNS + OVERRIDE_COLUMNS):
            raise ValueError(f"{path}: found the columns {reader.fieldnames}, expected {list(COLUMNS)}")
        return [_parse(cells, f"{path}, line {number}") for number, cells in enumerate(reader, start=2)]


def _parse(cells: Mapping[str, str], where: str) -> BagRow:
    if None in cells or None in cells.values():
        raise ValueError(f"{where}: the number of cells differs from the number of columns; write the file again")
    label, complete, mpp = cells["label"], cells["annotation_complete"], cells["mpp"]
    if label not in ("", "0", "1") or complete not in ("true", "false"):
        raise ValueError(f"{where}: label {label!r}, annotation_complete {complete!r}; expected 0/1/empty, true/false")
    try:
        number = float(mpp) if mpp else None
    except ValueError:
        raise ValueError(f"{where}: mpp: found {mpp!r}, expected a number (um per px) or nothing") from None
    return BagRow(
        bag_id=cells["bag_id"],
        modality=cells["modality"],
        images=tuple(cells["images"].split("|")) if cells["images"] else (),
        label=int(label) if label else None,
        split=cells["split"],
        group=cells["group"],
        annotation=cells["annotation"],
        annotation_complete=complete == "true",
        provider=cells["provider"],
        mpp=number,
        note=cells["note"],
        skip=cells.get("skip", ""),
        overrides=cells.get("overrides", ""),
    )


def shard_rows(rows: Sequence[BagRow], shard: int, bags_per_shard: int) -> list[BagRow]:
    """Return the rows of one shard, in file order; a shard beyond the last bag is empty.

    Raises:
        ValueError: a negative shard or a shard size below 1.
    """
    if shard < 0 or bags_per_shard < 1:
        raise ValueError(f"shard {shard} with {bags_per_shard} bags per shard: expected shard >= 0 and size >= 1")
    return list(rows[shard * bags_per_shard : (shard + 1) * bags_per_shard])
