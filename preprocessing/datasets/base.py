"""Shared parts of the dataset modules: the entry `Dataset`, its result, and the message for missing raw data."""

import csv
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.bags.rows import BagRow


class MissingRaw(ValueError):
    """The raw data is not where it was expected; the message says what belongs there and where it comes from."""


@dataclass(frozen=True)
class BagTable:
    """A dataset as found on disk.

    Attributes:
        rows: the bags.
        report: JSON-able; `expected` (known counts), `missing` and `excluded` (lists of {"name", "reason"}), `notes`
            (texts).
    """

    rows: list[BagRow]
    report: dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """One kind of dataset.

    Attributes:
        kind: its key in the config.
        modality: "wsi", "ct", or "any" (custom manifests).
        title: name in tables, figures and messages.
        source: where the data comes from, and its licence.
        layout: what belongs in the folder, several lines.
        count: `(root, options) -> bags`, a cheap upper bound for planning jobs; raises `MissingRaw`.
        list_bags: `(root, options) -> BagTable`.
        expected: known counts.
        released: quirk of `smmil.config.quirks.QUIRKS` -> the settings of training that it changes on this dataset.
    """

    kind: str
    modality: str
    title: str
    source: str
    layout: str
    count: Callable[[Path, dict[str, Any]], int]
    list_bags: Callable[[Path, dict[str, Any]], BagTable]
    expected: dict[str, int] = field(default_factory=dict)
    released: Mapping[str, Mapping[str, bool | float | str]] = field(default_factory=dict)


class Report:
    """Collects what a dataset module has to tell about the data it found."""

    def __init__(self, expected: Mapping[str, int]) -> None:
        self.expected = dict(expected)
        self.missing: dict[str, str] = {}
        self.excluded: dict[str, str] = {}
        self.notes: list[str] = []

    def as_dict(self) -> dict[str, Any]:
        """The report, sorted by name."""
        return {
            "expected": self.expected,
            "missing": [{"name": name, "reason": self.missing[name]} for name in sorted(self.missing)],
            "excluded": [{"name": name, "reason": self.excluded[name]} for name in sorted(self.excluded)],
            "notes": list(self.notes),
        }


def missing_raw(root: Path, what: str, *, title: str, source: str, layout: str) -> MissingRaw:
    """Builds the error for raw data that is not there.

    Args:
        root: the folder that was searched.
        what: what was not found.
        title: the dataset's name.
        source: where the data comes from, and its licence.
        layout: what belongs in the folder.
    """
    lines = "\n".join(f"    {line}" for line in layout.strip().splitlines())
    return MissingRaw(
        f"{title}: {what}\n"
        f"  expected folder: {root}\n"
        f"  what belongs there:\n{lines}\n"
        f"  where it comes from: {source}\n"
        "  to try everything without data: make demo"
    )


COMMON_OPTIONS = ("overrides",)


def source_files(root: Path | str, options: Mapping[str, Any]) -> list[str]:
    """The files that options of a dataset name, where they are: a workflow lists the bags again when one changes.

    Args:
        root: the dataset's root folder.
        options: of the dataset; `manifest` and `overrides` are looked at.

    Returns:
        Paths of those that exist, as given or inside the root; an absent one is an error of `preprocessing.bags.table`.
    """
    named = [str(options[key]) for key in ("manifest", *COMMON_OPTIONS) if options.get(key)]
    found = (next((p for p in (Path(name), Path(root) / name) if p.is_file()), None) for name in named)
    return [str(path) for path in found if path is not None]


def check_options(kind: str, options: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Refuses unknown option keys; `overrides` is known to every kind.

    Raises:
        ValueError: naming them and the allowed ones.
    """
    unknown = sorted(set(options) - {*allowed, *COMMON_OPTIONS})
    if unknown:
        known = sorted({*allowed, *COMMON_OPTIONS})
        raise ValueError(f"dataset options of {kind!r}: unknown {unknown}, expected keys of {known}")


def option_int(kind: str, options: Mapping[str, Any], key: str, default: int, minimum: int) -> int:
    """Reads an integer option.

    Raises:
        ValueError: not an integer, or below the minimum.
    """
    value = options.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"dataset options of {kind!r}: {key}: found {value!r}, expected an integer >= {minimum}")
    return value


def option_file(kind: str, options: Mapping[str, Any], key: str, root: Path) -> Path | None:
    """Finds the file an option names: as given (relative to the working directory), else inside the root.

    Returns:
        The path, or None if the option is absent, null or empty.

    Raises:
        ValueError: the option names a file that is at neither place.
    """
    value = options.get(key)
    if value is None or value == "":
        return None
    for candidate in (Path(str(value)), root / str(value)):
        if candidate.is_file():
            return candidate
    raise ValueError(f"dataset options of {kind!r}: {key}: no file {str(value)!r}, neither as given nor inside {root}")


def list_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Names of the files of one folder with one of the suffixes (case-insensitive), sorted; [] without the folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(tuple(suffixes)) and not e.name.startswith("._")]
    return sorted(names)


def find_child(folder: Path, name: str) -> Path | None:
    """A child of a folder by name, whatever its case; None if there is none."""
    exact = folder / name
    if exact.exists():
        return exact
    if not folder.is_dir():
        return None
    hits = sorted(child for child in folder.iterdir() if child.name.casefold() == name.casefold())
    return hits[0] if hits else None


def find_below(root: Path, *parts: str) -> Path | None:
    """Follows names below a root whatever their case; None as soon as one is absent."""
    found: Path | None = root
    for part in parts:
        found = find_child(found, part) if found is not None else None
    return found


def read_table(path: Path, required: Iterable[str]) -> list[dict[str, str]]:
    """Reads a CSV file with a header (UTF-8, with or without a byte-order mark).

    Raises:
        ValueError: a required column is absent, or the file is not such a text.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            absent = [name for name in required if name not in (reader.fieldnames or ())]
            if absent:
                raise ValueError(f"{path}: found the columns {reader.fieldnames}, expected also {absent}")
            return [{k: (v or "").strip() for k, v in row.items() if k is not None} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a UTF-8 CSV file ({error}); save it again as CSV, comma separated") from None
