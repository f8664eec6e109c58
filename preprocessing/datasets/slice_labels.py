"""Labels of single CT slices: a CSV file of the user -> one state per slice in anatomical order."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from preprocessing.bags.rows import SLICES, resolve
from preprocessing.common.cli import raise_all
from preprocessing.common.csv_files import read_csv


def slice_states(root: Path, annotation: str, files: Sequence[str]) -> str:
    """Return a CT annotation as "slices:...", from that form or from a CSV with the columns file and label.

    A line names a slice by the end of its path, as many folders as make it unique. Slices without a line are unknown.
    `files` are the slices in anatomical order, relative to the root.

    Raises:
        ValueError: no such table, or lines that fit no slice, several slices, or contradict one another; all of them.
    """
    if not annotation or annotation.startswith(SLICES):
        return annotation
    table = resolve(root, annotation)
    if table.suffix.lower() != ".csv" or not table.is_file():
        raise ValueError(
            f"annotation: found {annotation!r}; for CT expected a CSV file with the columns file and label, or "
            f"'{SLICES}' and one of 0, 1, x per slice in anatomical order"
        )
    by_ending: dict[str, list[str]] = {}
    for name in files:
        parts = _key(name).split("/")
        for start in range(len(parts)):
            by_ending.setdefault("/".join(parts[start:]), []).append(name)
    states: dict[str, tuple[str, int]] = {}
    problems: list[str] = []
    for line in read_csv(table, ("file", "label")):
        name, label = line.cells["file"], line.cells["label"] or "x"
        fitting = by_ending.get(_key(name), [])
        if label not in ("0", "1", "x"):
            problems.append(f"line {line.number}: label of {name!r}: found {label!r}, expected 0, 1, x or nothing")
        elif not fitting:
            problems.append(f"line {line.number}: file {name!r} is no file of the series, e.g. {files[0]!r}")
        elif len(fitting) > 1:
            problems.append(
                f"line {line.number}: file {name!r} fits {len(fitting)} slices, {fitting[0]!r} and {fitting[1]!r}; "
                "write the folder, too"
            )
        elif states.setdefault(fitting[0], (label, line.number))[0] != label:
            before, number = states[fitting[0]]
            problems.append(
                f"lines {number} and {line.number}: {fitting[0]!r} is labelled {before} and {label}; keep one line"
            )
    raise_all(problems, f"annotation {annotation!r}")
    return SLICES + "".join(states.get(name, ("x", 0))[0] for name in files)


def _key(name: str) -> str:
    # file systems and spreadsheets disagree about the form of accented letters
    return unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
