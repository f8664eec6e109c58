"""The files behind one scan of a custom manifest: which series, in what order, with which slice labels.

`find_series` tells a wrong manifest (`ValueError`: no such series, no DICOM file) from files that do not make a scan
(`FaultyScan`: a foreign, colour or unreadable image among them, mixed sizes, several series).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.bags.rows import SLICES, resolve
from preprocessing.datasets.base import read_table

if TYPE_CHECKING:
    from preprocessing.scans.dicom import Header


DICOM_SUFFIXES = (".dcm", ".dicom")


class FaultyScan(ValueError):
    """The files of a scan do not make one; `files` are all of them, below the root."""

    def __init__(self, reason: str, files: tuple[str, ...]) -> None:
        super().__init__(reason)
        self.files = files


class _NoSuchSeries(ValueError):
    """The manifest names a series that is not there."""


def relative(root: Path, path: Path) -> str:
    """A path below the root, as `bags.csv` has it."""
    return path.relative_to(root.resolve()).as_posix()


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def find_series(root: Path, path: Path, number: int | None) -> tuple[list[str], str]:
    """Files of one series in anatomical order, relative to the root, and the PatientID."""
    from preprocessing.scans.dicom import check_series, read_header, read_identity, slice_order

    # a file that only its name calls DICOM is a damaged slice: left out in silence, the scan would have a gap
    names = (p for p in path.rglob("*") if p.is_file() and (is_dicom(p) or p.suffix.lower() in DICOM_SUFFIXES))
    files = [path] if path.is_file() else sorted(names)
    if not files:
        raise ValueError(f"image: no DICOM file in the folder {relative(root, path)!r}")
    # rglob may walk through a link that leads out of the root
    inside = tuple(relative(root, resolve(root, str(p))) for p in files)
    try:
        headers = [read_header(p, name) for p, name in zip(files, inside, strict=True)]
        chosen = _pick(headers, number, relative(root, path))
        check_series(chosen)
        order, _ = slice_order(chosen)
        ordered = [chosen[i].name for i in order]
        return ordered, read_identity(resolve(root, ordered[0]), ordered[0])[2]
    except _NoSuchSeries:
        raise
    except ValueError as error:
        raise FaultyScan(str(error), inside) from error


def _pick(headers: Sequence["Header"], number: int | None, folder: str) -> list["Header"]:
    series: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        series.setdefault((header.study, header.series), []).append(header)
    groups = [series[key] for key in sorted(series)]
    own = [g[0].series_number for g in groups]
    usable = None not in own and len(set(own)) == len(own)
    # without distinct SeriesNumbers the series count as 1, 2, ... in the order of their UIDs
    numbers = [n or 0 for n in own] if usable else list(range(1, len(groups) + 1))
    listing = ", ".join(
        f"#{n} ({len(g)} files, {g[0].modality or 'no modality'})" for n, g in sorted(zip(numbers, groups, strict=True))
    )
    if number is not None:
        if number not in numbers:
            raise _NoSuchSeries(f"image {folder!r}: no series #{number}, found {listing}")
        return groups[numbers.index(number)]
    if len(groups) > 1:
        raise ValueError(
            f"image {folder!r}: {len(groups)} series, {listing}; one bag is one series, write e.g. "
            f"'{folder}#{sorted(numbers)[0]}'"
        )
    return groups[0]


def slice_states(root: Path, annotation: str, files: Sequence[str]) -> str:
    """A CT annotation as "slices:..."; accepts that form, or a CSV with the columns file and label."""
    if not annotation or annotation.startswith(SLICES):
        return annotation
    table = resolve(root, annotation)
    if table.suffix.lower() != ".csv" or not table.is_file():
        raise ValueError(
            f"annotation: found {annotation!r}; for CT expected a CSV file with the columns file and label, or "
            f"'{SLICES}' and one of 0, 1, x per slice in anatomical order"
        )
    states = {name: "x" for name in files}
    short = {Path(name).name: name for name in files}
    for row in read_table(table, ("file", "label")):
        name = row["file"] if row["file"] in states else short.get(row["file"], "")
        if name not in states or row["label"] not in ("0", "1", "x", ""):
            raise ValueError(
                f"annotation {annotation!r}: found file {row['file']!r}, label {row['label']!r}; expected a file of "
                "the series and 0, 1 or x"
            )
        states[name] = row["label"] or "x"
    return SLICES + "".join(states.values())
