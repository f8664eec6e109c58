"""Raw folders of empty files and hand-made tables, and how a dataset module lists them."""

import csv
from pathlib import Path
from typing import Any

from preprocessing.bags.report import ListReport, Omitted
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import validate_bags
from preprocessing.datasets import DATASETS, BagTable


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def table(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def listed(kind: str, root: Path, options: dict[str, object] | None = None) -> tuple[dict[str, BagRow], ListReport]:
    result: BagTable = DATASETS[kind].list_bags(root, options or {})
    validate_bags(result.rows, root, source=kind)
    assert len(result.rows) <= DATASETS[kind].count(root, options or {})
    return {row.bag_id: row for row in result.rows}, result.report


def names(omissions: list[Omitted]) -> set[str]:
    return {omission.name for omission in omissions}


def read_table(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
