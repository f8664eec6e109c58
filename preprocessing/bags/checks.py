"""Validate a list of bags before jobs are planned: all problems at once, each naming its bag; images in several bags.

Paths are relative to the dataset's root folder and may not leave it; all bags of a patient are in one split.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from preprocessing.bags.identity import Compare, image_identity
from preprocessing.bags.rows import MODALITIES, SLICES, SPLITS, BagRow, resolve
from preprocessing.common.cli import raise_all
from preprocessing.common.limits import MPP_MAX, MPP_MIN

# names of temporary files add a host, a process and a random part to it; file systems allow 255 bytes
MAX_ID = 150
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f|]")


def validate_bags(rows: Sequence[BagRow], root: Path | str, *, source: str, lines: Sequence[int] = ()) -> None:
    """Raise one `ValueError` with all problems of a list; `lines` are those of the file `source`, one a row, or ()."""
    names = [repr(row.bag_id) for row in rows]
    names = [f"line {line} ({name})" for line, name in zip(lines, names, strict=True)] if lines else names
    problems = [f"{name}: {text}" for name, row in zip(names, rows, strict=True) for text in _row_problems(row, root)]
    spellings: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        spellings.setdefault(row.bag_id.casefold(), []).append(i)
    for same in spellings.values():
        if len(same) > 1:
            ids = ", ".join(sorted({rows[i].bag_id for i in same}))
            where = f" (lines {', '.join(str(lines[i]) for i in same)})" if lines else ""
            problems.append(f"{rows[same[0]].bag_id!r}: bag_id occurs {len(same)} times ({ids}){where}")
    problems += _leaks(rows)
    raise_all(problems, source)


def _row_problems(row: BagRow, root: Path | str) -> list[str]:
    problems: list[str] = []
    if not _ID.fullmatch(row.bag_id) or len(row.bag_id) > MAX_ID:
        problems.append(
            f"bag_id: found {row.bag_id!r}, expected letters, digits, '.', '_' or '-', starting with a letter or "
            f"digit, at most {MAX_ID}"
        )
    if row.modality not in MODALITIES:
        problems.append(f"modality: found {row.modality!r}, expected one of {', '.join(MODALITIES)}")
    if row.split not in SPLITS:
        problems.append(f"split: found {row.split!r}, expected train, val, test or nothing")
    if row.label not in (0, 1, None):
        problems.append(f"label: found {row.label!r}, expected 0, 1 or nothing")
    if row.label is None and row.split in ("train", "val", "test"):
        problems.append(f"label: empty, but split is {row.split}; give 0 or 1, or leave the split empty to score only")
    if row.mpp is not None and not MPP_MIN <= row.mpp <= MPP_MAX:
        problems.append(f"mpp: found {row.mpp}, expected um per px at level 0, {MPP_MIN} to {MPP_MAX}, e.g. 0.25")
    if not row.images:
        problems.append("image: empty, expected a file inside the root")
    if row.modality == "wsi" and len(row.images) > 1:
        problems.append(f"image: found {len(row.images)} files, expected one file for a slide")
    if row.annotation.startswith(SLICES):
        problems += _slice_problems(row)
    files = [*row.images]
    if row.annotation and not row.annotation.startswith(SLICES) and not row.skip:
        files.append(row.annotation)
    # the files of a skipped bag may be missing, but their paths must not leave the root either
    return problems + [text for name in files for text in _path_problems(root, name, must_exist=not row.skip)]


def _slice_problems(row: BagRow) -> list[str]:
    states = row.annotation[len(SLICES) :]
    if row.modality != "ct" or len(states) != len(row.images) or set(states) - set("01x"):
        return [f"annotation: expected '{SLICES}' and one of 0, 1, x for each of {len(row.images)} CT slices"]
    if (row.label == 0 and "1" in states) or (row.label == 1 and set(states) == {"0"}):
        return [f"label: {row.label}, but {states.count('1')} of {len(states)} slices are labelled 1; correct one"]
    return []


def _path_problems(root: Path | str, name: str, *, must_exist: bool = True) -> list[str]:
    if _CONTROL.search(name):
        return [f"path {name!r}: '|' and control characters are not allowed; rename the file"]
    # a link that leads nowhere, or a folder in place of a file, is the fault of one bag: its stage records it
    if os.path.islink(Path(root) / name) and not os.path.exists(Path(root) / name):
        return []
    try:
        path = resolve(root, name)
    except ValueError as error:
        return [str(error)]
    return [f"missing file {name!r} (below {root})"] if must_exist and not os.path.lexists(path) else []


def _leaks(rows: Sequence[BagRow]) -> list[str]:
    splits: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.group and row.split:
            splits.setdefault(row.group, {}).setdefault(row.split, row.bag_id)
    # the message names bags, because the group of a custom manifest may identify a patient
    return [
        f"{', '.join(f'{bag!r} ({split})' for split, bag in sorted(by.items()))}: the same group (patient) in "
        "different splits; keep a patient on one side"
        for by in splits.values()
        if len(by) > 1
    ]


class SharedImages(NamedTuple):
    """One message per image in bags of several splits or labels, and one per image in bags that agree."""

    contradicting: list[str]
    repeated: list[str]


class _File(NamedTuple):
    name: str
    bag: int


def shared_images(rows: Sequence[BagRow], root: Path | str, lines: Sequence[int] = ()) -> SharedImages:
    """Find images that are in several bags: one file through links or several spellings, or copies.

    All files are compared by device and inode. Files of equal size are compared by content, but of a scan only the
    first and the last slice; a file is read whole only if its head and tail equal those of another one. Skipped bags
    and unreadable files are left out. `lines` are those of the file that lists the bags, one per row, or ().
    """
    bags_of: dict[object, set[int]] = {}
    by_size: dict[int, dict[object, _File]] = {}
    for bag, row in enumerate(rows):
        for position, name in enumerate(row.images if not row.skip else ()):
            path = Path(root) / name
            try:
                facts = path.stat()
            except (OSError, ValueError):
                continue
            if not stat.S_ISREG(facts.st_mode):
                continue
            inode = (facts.st_dev, facts.st_ino)
            bags_of.setdefault(inode, set()).add(bag)
            if facts.st_size and position in (0, len(row.images) - 1):
                by_size.setdefault(facts.st_size, {}).setdefault(inode, _File(name, bag))
    copies = [list(files.values()) for files in by_size.values()]
    # head and tail first, then all bytes
    comparisons: tuple[Compare, ...] = ("time", "content")
    for compare in comparisons:
        copies = [equal for files in copies if len(files) > 1 for equal in _group(files, root, compare)]
    bags_of |= {files[0]: {file.bag for file in files} for files in copies}
    shared = {frozenset(bags): None for bags in bags_of.values() if len(bags) > 1}
    contradicting, repeated = [], []
    for bags in shared:
        same = [rows[bag] for bag in sorted(bags)]
        where = [f"line {lines[bag]}, " if lines else "" for bag in sorted(bags)]
        parts = "; ".join(f"{row.bag_id!r} ({line}{_part(row)})" for row, line in zip(same[:8], where, strict=False))
        parts += "; ..." if len(same) > 8 else ""
        splits, labels = {row.split for row in same} - {""}, {row.label for row in same} - {None}
        if len(splits) > 1 or len(labels) > 1:
            contradicting.append(f"one image in several splits or with several labels: {parts}; keep one bag of it")
        else:
            repeated.append(f"one image in {len(same)} bags, each of which counts: {parts}")
    return SharedImages(contradicting, repeated)


def _part(row: BagRow) -> str:
    label = "no label" if row.label is None else f"label {row.label}"
    return f"{row.images[0]}, {row.split or 'no split'}, {label}"


def _group(files: Sequence[_File], root: Path | str, compare: Compare) -> list[list[_File]]:
    groups: dict[object, list[_File]] = {}
    for file in files:
        try:
            content = image_identity(root, [file.name], compare)[0][1:]
        except (OSError, ValueError):
            continue
        groups.setdefault(content, []).append(file)
    return [group for group in groups.values() if len(group) > 1]
