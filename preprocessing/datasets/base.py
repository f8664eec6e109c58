"""Records and helpers of the dataset modules: description, options, result, and the message for absent raw data."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from preprocessing.bags.cohort import Cohort
from preprocessing.bags.report import ListReport, omitted
from preprocessing.bags.rows import BagRow
from preprocessing.common.cli import nearest


class MissingRaw(ValueError):
    """The raw data is not where it was expected; the message says what belongs there and where it comes from."""


@dataclass(frozen=True)
class BagTable:
    """A dataset as listed from its folder: the bags, and what was expected, missing or left out."""

    rows: list[BagRow]
    report: ListReport


@dataclass(frozen=True)
class Dataset:
    """One kind of dataset.

    Attributes:
        kind: its key in the config.
        modality: "wsi", "ct", or "any" (custom manifests).
        title: name in tables, figures and messages.
        source: where the data comes from, and its licence.
        layout: what belongs in the folder, several lines.
        count: `(root, options) -> bags`, a cheap upper bound for planning jobs; raises `MissingRaw` without raw data,
            and `ValueError` for invalid options or tables.
        list_bags: `(root, options) -> BagTable`; raises likewise.
        reads: `(root, options) -> paths`, further tables and folders that the list of bags is made from.
        expected: published counts by name.
        options: the record of its options.
        cohort: `(root, options) -> Cohort` without opening an image; None = known when the bags are listed.
        released: quirk of `smmil.config.quirks.QUIRKS` -> the settings of training that it changes on this dataset.
        split_note: `(root, options)` -> how bags were sampled, printed under tables; "" where the split is given.
    """

    kind: str
    modality: str
    title: str
    source: str
    layout: str
    count: Callable[[Path, Mapping[str, object]], int]
    list_bags: Callable[[Path, Mapping[str, object]], BagTable]
    reads: Callable[[Path, Mapping[str, object]], Iterable[Path]] = lambda root, options: ()
    expected: dict[str, int] = field(default_factory=dict)
    options: "type[Options]" = field(default_factory=lambda: Options)
    cohort: Callable[[Path, Mapping[str, object]], Cohort] | None = None
    released: Mapping[str, Mapping[str, bool | float | str]] = field(default_factory=dict)
    split_note: Callable[[Path, Mapping[str, object]], str] = lambda root, options: ""


class Options(BaseModel):
    """Options that every dataset has: `source:` of the configuration, `--options` of `preprocessing.bags`.

    The description of a field completes the error message "found ..., expected ...".
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    overrides: str | None = Field(None, description="the path of a CSV file with settings of single bags")


OptionsT = TypeVar("OptionsT", bound=Options)


def parse_options(kind: str, record: type[OptionsT], values: Mapping[str, object]) -> OptionsT:
    """Parse the options of a kind of dataset, JSON values by key, into its record, or raise `ValueError`."""
    unknown = sorted(set(values) - set(record.model_fields))
    if unknown:
        hint = "".join(nearest(name, record.model_fields) for name in unknown)
        raise ValueError(
            f"dataset options of {kind!r}: unknown {unknown}{hint}, expected keys of {sorted(record.model_fields)}"
        )
    try:
        return record.model_validate(values)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        expected = record.model_fields[key].description
        raise ValueError(f"dataset options of {kind!r}: {key}: found {values[key]!r}, expected {expected}") from None


def _locate(root: Path, name: str) -> Path | None:
    """Return the file of this name, relative to the working directory or else to the root; None without one."""
    return next((path for path in (Path(name), root / name) if path.is_file()), None)


def option_file(kind: str, key: str, value: object, root: Path, advice: str = "") -> Path | None:
    """Return the file that an option names; None if it is null or empty.

    Raises:
        ValueError: no such file, neither in the working directory nor in the root; `advice` says what to do.
    """
    if value is None or value == "":
        return None
    if path := _locate(root, str(value)):
        return path
    raise ValueError(
        f"dataset options of {kind!r}: {key}: no file {str(value)!r}, neither as given nor inside {root}"
        + (f"; {advice}" if advice else "")
    )


def source_files(root: Path, options: Mapping[str, object]) -> list[Path]:
    """Return the existing files that options of a dataset name."""
    return [path for value in options.values() if isinstance(value, str) and (path := _locate(root, value))]


@dataclass
class Findings:
    """What a dataset module notes while it lists: published counts, name -> reason of what is absent, remarks."""

    expected: Mapping[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self, rows: list[BagRow]) -> BagTable:
        """Return the bags with the report of these findings."""
        missing, excluded = omitted(self.missing), omitted(self.excluded)
        report = ListReport(expected=dict(self.expected), missing=missing, excluded=excluded, notes=list(self.notes))
        return BagTable(rows, report)


def missing_raw(root: Path, what: str, *, title: str, source: str, layout: str) -> MissingRaw:
    """Return the error for raw data that is absent; `what` was not found, the others describe the dataset."""
    lines = "\n".join(f"    {line}" for line in layout.strip().splitlines())
    return MissingRaw(
        f"{title}: {what}\n"
        f"  expected folder: {root}\n"
        f"  what belongs there:\n{lines}\n"
        f"  where it comes from: {source}\n"
        "  to try everything without data: make demo"
    )


def list_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Return the sorted names of a folder's files with one of the suffixes (any case); [] without the folder."""
    if not folder.is_dir():
        return []
    names = (name for name in os.listdir(folder) if not name.startswith("._"))
    return sorted(name for name in names if name.lower().endswith(tuple(suffixes)))


def find_below(root: Path, name: str) -> Path:
    """Return a path below the root, with the spelling on disk if only the case of a part differs."""
    for part in name.split("/"):
        path = root / part
        if not path.exists() and root.is_dir():
            path = min((p for p in root.iterdir() if p.name.casefold() == part.casefold()), default=path)
        root = path
    return root
