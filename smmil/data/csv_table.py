"""Bags from a CSV table, one instance per row, for data with given features.

Without a header (MUSK1 and similar): bag label (0/1), bag id, then P features; every bag is a training bag.
With a header: the columns `bag_id` and `label` (0, 1 or empty), optionally `split`, `group` and `y_inst` (0, 1 or
empty); every other column is a feature. The rows of a bag need not be adjacent; their order in the file is kept.

The graph is an argument: `none`, or `chain` (neighbours i-1, i+1 in file order). Grid cells are (i, 0). Instance labels
are unknown (-1) unless given.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from preprocessing.common.csv_files import csv_rows
from smmil.data.batch import Bag

FIXED = ("bag_id", "label", "split", "group", "y_inst")
SPLITS = ("train", "val", "test", "")
Row = tuple[int, dict[str, str]]  # number of the line, cells by column


def load_table(path: Path | str, *, graph: str = "none") -> list[Bag]:
    """Read a table of instances, with the graph `none` or `chain`: bags sorted by id (numeric ids by value).

    Raises:
        ValueError: invalid content; the message names file and line.
    """
    lines = [*csv_rows(Path(path))]
    if not lines:
        raise ValueError(f"{path}: empty, expected one instance per row")
    header = [cell.strip() for cell in lines[0][1]]
    if "bag_id" in header:
        lines = lines[1:]
    else:
        header = ["label", "bag_id", *(f"f{i}" for i in range(len(header) - 2))]
    twice = sorted({name for name in header if header.count(name) > 1})
    if "label" not in header or twice or len(header) <= len(set(header) & set(FIXED)):
        raise ValueError(
            f"{path}: found the columns {', '.join(header[:8])}{' ...' if len(header) > 8 else ''}, expected bag_id,"
            f" label, optionally split, group, y_inst, and at least one feature, each once (twice: {twice})"
        )
    rows: dict[str, list[Row]] = {}
    for number, cells in lines:
        if len(cells) != len(header):
            raise ValueError(f"{path}, line {number}: found {len(cells)} cells, expected {len(header)}")
        row = dict(zip(header, map(str.strip, cells), strict=True))
        rows.setdefault(row["bag_id"], []).append((number, row))
    ordered = sorted(rows, key=lambda name: (0, int(name), name) if name.isdigit() else (1, 0, name))
    return [_bag(path, name, rows[name], graph) for name in ordered]


def _bag(path: Path | str, name: str, rows: list[Row], graph: str) -> Bag:
    facts = {}
    for key, default in (("label", ""), ("split", "train"), ("group", "")):
        values = {row.get(key, default) for _, row in rows}
        if len(values) > 1:
            raise ValueError(f"{path}: bag {name} has several values of {key} {sorted(values)}, expected one per bag")
        facts[key] = values.pop()
    label, split = facts["label"], facts["split"]
    if split not in SPLITS or label not in ("0", "1", ""):
        raise ValueError(
            f"{path}, line {rows[0][0]}: bag {name} has label {label!r} and split {split!r}, expected 0, 1 or empty,"
            " and train, val, test or empty"
        )
    if not label and split in ("train", "val"):
        raise ValueError(f"{path}, line {rows[0][0]}: bag {name} of split {split!r} has no label; leave split empty")
    for line, row in rows:
        if row.get("y_inst", "") not in ("0", "1", "", "-1"):
            raise ValueError(f"{path}, line {line}: y_inst: found {row['y_inst']!r}, expected 0, 1 or empty")
    y_inst = np.array([int(row.get("y_inst") or -1) for _, row in rows])
    n = len(rows)
    order = np.arange(n)
    # Padding with -1 comes last: the first row has no i-1, the last no i+1.
    chain = np.stack([np.where(order > 0, order - 1, order + 1), np.where(order > 0, order + 1, n)], 1)
    chain[chain >= n] = -1
    return Bag(
        bag_id=name,
        x=torch.from_numpy(_features(path, rows)),
        neighbors=torch.from_numpy(chain if graph == "chain" else np.empty((n, 0), np.int64)),
        grid=torch.from_numpy(np.stack([order, np.zeros_like(order)], 1)),
        coords=torch.from_numpy(order[:, None].astype(np.float32)),
        y=float(label or "nan"),
        y_inst=torch.from_numpy(y_inst),
        coverage=torch.from_numpy(np.where(y_inst < 0, np.nan, y_inst).astype(np.float32)),
        split=split,
        group=facts["group"],
    )


def _features(path: Path | str, rows: list[Row]) -> npt.NDArray[np.float32]:
    columns = [column for column in rows[0][1] if column not in FIXED]
    out = np.empty((len(rows), len(columns)), np.float32)
    for i, (line, row) in enumerate(rows):
        try:
            out[i] = [float(row[column]) for column in columns]
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}; features must be numbers") from error
        if not np.isfinite(out[i]).all():
            raise ValueError(f"{path}, line {line}: a feature is NaN, infinite or too large for float32")
    return out
