"""`BagRow`, one row of bags.csv, and the paths it holds."""

import functools
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

MODALITIES = ("wsi", "ct")
SPLITS = ("train", "val", "test", "")
# marks an annotation that lists the state of every slice of a scan
SLICES = "slices:"
# begins the note of a bag whose files were faulty when the bags were listed
FAULTY = "no readable image"
# in `bags.csv` a character that text files, tables or terminals cannot hold is written \\xNN, its byte in hexadecimal
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069|]")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class BagRow:
    """One bag before any pixel is read.

    Attributes:
        bag_id: letters, digits, `.`, `_`, `-`, starting with a letter or digit; unique whatever the case.
        modality: "wsi" or "ct".
        images: paths relative to the dataset's root. WSI: one file; CT: the files of one series.
        label: 0, 1, or None (the bag is only scored).
        split: "train", "val", "test", or "" (the bag is only scored).
        group: patient or study, a running index (never a real identifier); "" = a separate group.
        annotation: "" or a path relative to the root, or for CT "slices:" and one character (0, 1, x = unknown) per
            entry of `images`.
        annotation_complete: whether everything outside the annotation is known to be negative; also True for a
            negative bag without an annotation.
        provider: PANDA's radboud or karolinska, otherwise "".
        mpp: um per px at level 0, replaces the file's metadata.
        note: a remark for readers, e.g. "partly annotated".
        skip: reason why the bag is skipped; "" = it is not.
        overrides: settings of this bag alone, one JSON object with sorted keys (`preprocessing.bags.overrides`), or "".
    """

    bag_id: str
    modality: str
    images: tuple[str, ...]
    label: int | None = None
    split: str = ""
    group: str = ""
    annotation: str = ""
    annotation_complete: bool = True
    provider: str = ""
    mpp: float | None = None
    note: str = ""
    skip: str = ""
    overrides: str = ""


def resolve(root: Path | str, relative: str) -> Path:
    """Resolve a path of `bags.csv`, relative to the root or absolute inside it, as given or as `printable`.

    The root itself may be a link; links or `..` inside it that lead out of it are rejected.

    Raises:
        ValueError: the path leaves the root.
    """
    base = Path(root).resolve()
    given = base / relative
    # only a name with an escape may have been made printable
    if "\\x" in relative and not given.exists():
        escaped = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), os.fsencode(relative))
        given = base / os.fsdecode(escaped).replace("\0", "")
    target = given.resolve()
    # both are resolved, because an absolute path may contain the link to the root
    if not target.is_relative_to(base):
        raise ValueError(
            f"{relative!r}: leaves the dataset's root {root}; only files inside it are read. "
            "Move the file in, or link the whole root folder instead of single files"
        )
    return target


def spelling(name: str) -> str:
    """Return what equal names share however they are typed: no blanks or invisible characters, one case and form."""
    text = unicodedata.normalize("NFC", name).casefold()
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) != "Cf")


def similar_path(root: Path | str, relative: str) -> str | None:
    """Return the path below the root that exists and is spelled alike (`spelling`); None without one."""
    path = Path(root)
    for part in Path(relative).parts:
        if not os.path.lexists(path / part):
            try:
                part = _by_spelling(path, path.stat().st_mtime_ns)[spelling(part)]
            except (OSError, KeyError):
                return None
        path /= part
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


@functools.lru_cache(maxsize=64)
def _by_spelling(folder: Path, mtime_ns: int) -> dict[str, str]:
    """Return the names in a folder by their spelling; the time of the folder ends the validity of a stored answer."""
    # in reverse, so that of names spelled alike the first one counts on every file system
    return {spelling(name): name for name in sorted(os.listdir(folder), reverse=True)}


def relative(root: Path | str, path: Path) -> str:
    """Return a path below the root in the form of `bags.csv`."""
    return printable(path.relative_to(Path(root).resolve()).as_posix())


def printable(name: str) -> str:
    """Return a file name, whatever its bytes, as text that every file and terminal can hold; `resolve` reads it."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), text)
