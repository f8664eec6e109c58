"""Images that are in several bags, whatever their files are called."""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from preprocessing.bags.identity import Compare, image_identity
from preprocessing.bags.rows import BagRow

COMPARISONS: tuple[Compare, ...] = ("time", "content")


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
    for compare in COMPARISONS:
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
