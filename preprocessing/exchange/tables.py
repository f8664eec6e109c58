"""Labels and splits beside the bags: CSV tables of other tools in, the same tables out, and names of bags.

Labels: a column of names (`bag_id`, `slide_id`, `wsi`, `bag_name` or `name`) and `label` (0, 1 or empty); optional
`split`, `group` (or `case_id`) and `mpp`. Splits: `bag_name,split` as torchmil writes, or CLAM's columns `train, val,
test` with a name per cell. A bag without a line is kept and only scored. Groups become a running index: what stands
in such tables may be a patient's number.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.bags.checks import validate_bags
from preprocessing.bags.rows import BagRow
from preprocessing.common.cli import raise_all
from preprocessing.common.csv_files import read_csv
from preprocessing.common.files import write_text

NAME_COLUMNS = ("bag_id", "slide_id", "wsi", "bag_name", "name")
GROUP_COLUMNS = ("group", "case_id")
CLAM_SPLITS = ("train", "val", "test")
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._-]")
_SUFFIX = re.compile(r"\.(h5|npy|svs|tiff?|ndpi|mrxs)$", re.IGNORECASE)
_INDEX = re.compile(r"g\d+")


@dataclass(frozen=True)
class Line:
    """What a table says about one bag."""

    label: int | None = None
    split: str = ""
    group: str = ""
    mpp: float | None = None


def bag_id_of(name: str) -> str:
    """Turn a file's stem into a bag's name: characters that are unsafe in paths or tables become "_"."""
    cleaned = _NOT_IN_ID.sub("_", name)
    return cleaned if cleaned[:1].isalnum() else f"x{cleaned}"


def read_lines(labels: Path | None, splits: Path | None) -> dict[str, Line]:
    """Read the tables, by the bag's name in them without a suffix such as `.svs`.

    Raises:
        ValueError: no such table, other columns, labels that are not 0, 1 or empty, or a bag twice.
    """
    lines = _labels(labels) if labels is not None else {}
    for name, split in (_splits(splits) if splits is not None else {}).items():
        lines[name] = replace(lines.get(name, Line()), split=split)
    return lines


def _labels(path: Path) -> dict[str, Line]:
    table = read_csv(path, ("label",))
    column = next((name for name in NAME_COLUMNS if table and name in table[0].cells), None)
    if column is None:
        raise ValueError(f"{path}: no line, or none of the columns {', '.join(NAME_COLUMNS)} with the bags' names")
    lines: dict[str, Line] = {}
    problems: list[str] = []
    for row in table:
        name = _stem(row.cells[column])
        try:
            line = _line(row.cells, name)
        except ValueError as error:
            problems.append(f"line {row.number}: {error}")
            continue
        if name in lines:
            problems.append(f"line {row.number}: {name!r} occurs twice")
        lines[name] = line
    raise_all(problems, str(path))
    return lines


def _line(row: Mapping[str, str], name: str) -> Line:
    label, split, mpp = row["label"], row.get("split", ""), row.get("mpp", "")
    if label not in ("", "0", "1", "0.0", "1.0"):
        raise ValueError(f"label: found {label!r}, expected 0, 1 or nothing; write the classes of CLAM as 0 and 1")
    group = next((row[column] for column in GROUP_COLUMNS if row.get(column)), "")
    try:
        number = float(mpp) if mpp else None
    except ValueError:
        raise ValueError(f"mpp: found {mpp!r}, expected um per px at level 0 or nothing") from None
    return Line(int(float(label)) if label else None, split, "" if group == name else group, number)


def _splits(path: Path) -> dict[str, str]:
    cells = [line.cells for line in read_csv(path)]
    splits: dict[str, str] = {}
    columns = set(cells[0]) if cells else set()
    column = next((name for name in NAME_COLUMNS if name in columns), None)
    if column is not None and "split" in columns:
        pairs = [(row[column], row["split"]) for row in cells]
    elif {"train", "test"} <= columns:
        pairs = [(row[split], split) for row in cells for split in CLAM_SPLITS if row.get(split)]
    else:
        raise ValueError(f"{path}: found the columns {sorted(columns)}, expected bag_name,split or train,val,test")
    for name, split in pairs:
        # torchmil's lists repeat lines; two different splits are a mistake
        if splits.get(_stem(name), split) != split:
            raise ValueError(f"{path}: {name!r} is in two splits, expected each bag in one")
        splits[_stem(name)] = split
    return splits


def _stem(name: str) -> str:
    return _SUFFIX.sub("", name)


def make_rows(files: Mapping[str, str], lines: Mapping[str, Line], modality: str, root: Path) -> list[BagRow]:
    """Make the rows of `bags.csv` for imported files.

    Args:
        files: name of the bag in the tool's files -> its file relative to the root.
        lines: contents of the tables, by the same names.
        modality: of all bags.
        root: folder the files lie in.

    Raises:
        ValueError: every problem at once: two names that become one, bags in the tables that have no file, labels
            missing where there is a split.
    """
    groups = sorted({line.group for line in lines.values()} - {""})
    keep = all(_INDEX.fullmatch(group) for group in groups)
    index = {group: group if keep else f"g{i:05d}" for i, group in enumerate(groups)}
    rows = []
    for name, file in sorted(files.items()):
        line, bag_id = lines.get(_stem(name), Line()), bag_id_of(name)
        rows.append(
            BagRow(
                bag_id=bag_id,
                modality=modality,
                images=(file,),
                label=line.label,
                split=line.split,
                group=index.get(line.group, ""),
                mpp=line.mpp,
                note="" if bag_id == name else f"named {name!r} there",
            )
        )
    absent = sorted(set(lines) - {_stem(name) for name in files})
    if absent:
        raise ValueError(f"{root}: the tables name {len(absent)} bags without a file, e.g. {', '.join(absent[:3])}")
    validate_bags(rows, root, source=str(root))
    return rows


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a table; equal rows give equal bytes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    write_text(path, stream.getvalue())


def label_cell(row: BagRow) -> str:
    """Return the label of a bag as a cell, empty if it has none."""
    return "" if row.label is None else str(row.label)
