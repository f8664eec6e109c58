"""`bags.report.json`, the report of a listing: counts, what is missing or left out, and notes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from preprocessing.bags.rows import SPLITS, BagRow, printable
from preprocessing.common.cli import read_record
from preprocessing.common.files import write_json


@dataclass(frozen=True)
class Omitted:
    """A file or bag that the list of bags lacks, with the reason."""

    name: str
    reason: str


def omitted(reasons: dict[str, str]) -> list[Omitted]:
    """Return the omissions of a mapping name -> reason, sorted by name, as printable text."""
    return [Omitted(printable(name), reasons[name]) for name in sorted(reasons)]


class Expected(NamedTuple):
    """A count of the published dataset and that of the list, None where it cannot be counted here."""

    name: str
    published: int
    counted: int | None


@dataclass(frozen=True)
class Summary:
    """Counts of a list of bags.

    Attributes:
        by_split: train, val, test or score_only -> negative, positive or unlabelled -> bags.
        images: slide files and CT slices.
        annotation_incomplete: bags whose annotation does not cover everything positive.
        skipped: bags left out by an override.
        overridden: bags with settings of their own.
    """

    bags: int = 0
    by_split: dict[str, dict[str, int]] = field(default_factory=dict)
    images: int = 0
    annotated: int = 0
    annotation_incomplete: int = 0
    skipped: int = 0
    overridden: int = 0


@dataclass(frozen=True)
class ListReport:
    """Content of `bags.report.json`.

    Attributes:
        dataset: name of the dataset in the configuration.
        kind: dataset module or import format that listed the bags.
        found: counts of the list.
        expected: published counts by name.
        missing: belongs to the dataset, but is not on disk.
        excluded: on disk, but left out.
        skipped: bags left out by an override.
        root: folder of the raw data as it was given, relative to the folder of the workflow if it is relative.
    """

    dataset: str = ""
    kind: str = ""
    found: Summary = field(default_factory=Summary)
    expected: dict[str, int] = field(default_factory=dict)
    missing: list[Omitted] = field(default_factory=list)
    excluded: list[Omitted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[Omitted] = field(default_factory=list)
    root: str = ""

    @classmethod
    def read(cls, path: Path) -> "ListReport":
        """Read a report, absent keys of which have their defaults; raise `ValueError` for any other file."""
        return read_record(cls, path)

    def write(self, path: Path) -> None:
        """Write the report; root, counts and lists of overridden bags only where there are any."""
        content = asdict(self)
        for where in (content, content["found"]):
            for key in where.keys() & {"skipped", "overridden", "root"}:
                if not where[key]:
                    del where[key]
        write_json(path, content)


def summarise(rows: Sequence[BagRow]) -> Summary:
    """Count the bags of a list."""
    label = {None: "unlabelled", 0: "negative", 1: "positive"}
    return Summary(
        bags=len(rows),
        by_split={
            split or "score_only": dict(Counter(label[r.label] for r in rows if r.split == split))
            for split in SPLITS
            if any(r.split == split for r in rows)
        },
        images=sum(len(r.images) for r in rows),
        annotated=sum(bool(r.annotation) for r in rows),
        annotation_incomplete=sum(not r.annotation_complete for r in rows),
        skipped=sum(bool(r.skip) for r in rows),
        overridden=sum(bool(r.overrides) for r in rows),
    )
