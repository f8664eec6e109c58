"""Validate a list of bags before jobs are planned: all problems at once, each naming its bag.

Paths are relative to the dataset's root folder and may not leave it; all bags of a patient are in one split.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from preprocessing.bags.rows import MODALITIES, SLICES, SPLITS, BagRow, resolve
from preprocessing.common.limits import MPP_MAX, MPP_MIN

MAX_LINES = 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f|]")


def validate_bags(rows: Sequence[BagRow], root: Path | str, *, source: str) -> None:
    """Check a whole list and report all problems at once.

    Args:
        rows: the list.
        root: the dataset's root folder.
        source: origin of the rows for messages, e.g. a file.

    Raises:
        ValueError: listing the problems, at most 20.
    """
    problems = [f"{row.bag_id!r}: {text}" for row in rows for text in _row_problems(row, root)]
    spellings: dict[str, list[str]] = {}
    for row in rows:
        spellings.setdefault(row.bag_id.casefold(), []).append(row.bag_id)
    for names in spellings.values():
        if len(names) > 1:
            problems.append(f"{names[0]!r}: bag_id occurs {len(names)} times ({', '.join(sorted(set(names)))})")
    problems += _leaks(rows)
    raise_all(problems, source)


def raise_all(problems: Sequence[str], source: str) -> None:
    """Raise one `ValueError` that lists the problems of one source, if there are any."""
    if not problems:
        return
    lines = list(problems[:MAX_LINES])
    if len(problems) > MAX_LINES:
        lines.append(f"... and {len(problems) - MAX_LINES} more")
    plural = "" if len(problems) == 1 else "s"
    raise ValueError(f"{source}: {len(problems)} problem{plural}:\n  " + "\n  ".join(lines))


def _row_problems(row: BagRow, root: Path | str) -> list[str]:
    problems: list[str] = []
    if not _ID.fullmatch(row.bag_id):
        problems.append("bag_id: expected letters, digits, '.', '_' or '-', starting with a letter or digit")
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
        states = row.annotation[len(SLICES) :]
        if row.modality != "ct" or len(states) != len(row.images) or set(states) - set("01x"):
            problems.append(
                f"annotation: expected '{SLICES}' and one of 0, 1, x for each of {len(row.images)} CT slices"
            )
    if row.skip:
        # the files of a skipped bag may be missing, but their paths must not leave the root either
        return problems + [text for name in row.images for text in _path_problems(root, name, must_exist=False)]
    files = [*row.images, *([row.annotation] if row.annotation and not row.annotation.startswith(SLICES) else [])]
    return problems + [text for name in files for text in _path_problems(root, name)]


def _path_problems(root: Path | str, name: str, *, must_exist: bool = True) -> list[str]:
    if _CONTROL.search(name):
        return [f"path {name!r}: '|' and control characters are not allowed; rename the file"]
    try:
        path = resolve(root, name)
    except ValueError as error:
        return [str(error)]
    return [] if not must_exist or path.is_file() else [f"missing file {name!r} (below {root})"]


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
