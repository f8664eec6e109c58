"""Identity of the files of a bag, for the keys that tell whether a bag must be made again.

Files count by size and time (`compare: time`), so a file that is replaced or edited in place is seen without being
read; a copied raw folder is a new one unless the copy keeps the times (`cp -p`, `rsync -t`). `compare: content` reads
every byte instead.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from preprocessing.bags.overrides import overrides_of
from preprocessing.bags.rows import SLICES, BagRow, resolve
from preprocessing.common.files import json_hash

PROBE_BYTES = 1 << 16
WHOLE_FILE_BYTES = 1 << 24
Compare = Literal["time", "content"]
Images = list[tuple[str, int, str]]


def image_identity(root: Path | str, names: Sequence[str], compare: Compare = "time") -> Images:
    """Identify the images of a bag wherever they lie: (name, bytes, SHA-256) each.

    The checksum is that of head and tail, or of the whole file under `content`. Under `time` an edit in the middle
    shows in `image_times` only.

    Raises:
        ValueError: a file is missing or outside the root.
    """
    return [(name, *_probe(_existing(root, name), whole=compare == "content")) for name in names]


def image_times(root: Path | str, names: Sequence[str], compare: Compare = "time") -> list[int]:
    """Return the modification time of every image in ns; [] where the content counts instead."""
    return [_existing(root, name).stat().st_mtime_ns for name in names if compare == "time"]


def annotation_identity(root: Path | str, annotation: str, compare: Compare = "time") -> str:
    """Return the SHA-256 of an annotation or mask file, or an inline annotation itself.

    Of a file above 16 MiB, head, tail and modification time count unless `compare` is `content`.
    """
    if not annotation or annotation.startswith(SLICES):
        return annotation
    path = _existing(root, annotation)
    if compare == "time" and path.stat().st_size > WHOLE_FILE_BYTES:
        return f"{_probe(path)[1]} {path.stat().st_mtime_ns}"
    return _probe(path, whole=True)[1]


def _raw_files(row: BagRow) -> list[str]:
    """Return the paths of a bag's images, annotation and mask, relative to the root."""
    annotation = "" if row.annotation.startswith(SLICES) else row.annotation
    return [*row.images, *filter(None, (annotation, overrides_of(row).mask if row.overrides else ""))]


def raw_stamp(root: Path | str, rows: Iterable[BagRow]) -> str:
    """Return a hash of size and modification time of the raw files of some bags; no file is opened.

    A missing or unreadable file counts as such, so the stamp changes when it comes back.
    """
    folder = f"{root}/"
    names = [name for row in rows if not row.skip for name in _raw_files(row)]
    # `resolve` takes its time, and only a name made printable needs it
    return json_hash([_facts(str(resolve(root, name)) if "\\x" in name else folder + name) for name in names])


def listing_stamp(paths: Iterable[Path]) -> str:
    """Return a hash of what a list of bags is made from.

    Tables count by content (by size and time above 16 MiB), folders by the names in them that are not hidden.
    """
    return json_hash([_listed(path) for path in paths])


def _listed(path: Path) -> object:
    if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
        names = "/".join(sorted(name for name in os.listdir(path) if name[0] != "."))
        return hashlib.sha256(os.fsencode(names)).hexdigest()
    if os.path.isfile(path) and path.stat().st_size <= WHOLE_FILE_BYTES and os.access(path, os.R_OK):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _facts(str(path))


def _facts(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_size, state.st_mtime_ns) if os.access(path, os.R_OK) else None


def _existing(root: Path | str, name: str) -> Path:
    link = Path(root) / name
    if link.is_symlink() and not link.exists():
        raise ValueError(f"{name}: a link to {os.readlink(link)}, which does not exist; restore the file")
    path = resolve(root, name)
    if path.is_dir():
        raise ValueError(
            f"{name}: a folder, expected a file; the note of the bag in bags.csv says why it could not be listed"
        )
    if not path.is_file():
        raise ValueError(f"{name}: no such file below {root}; restore it, or make the list of bags again")
    return path


def _probe(path: Path, *, whole: bool = False) -> tuple[int, str]:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if whole:
            return size, hashlib.file_digest(stream, "sha256").hexdigest()
        # head and tail tell slides apart; to read gigabytes for a key would take longer than to cut the slide
        digest = hashlib.sha256(stream.read(PROBE_BYTES))
        if size > PROBE_BYTES:
            stream.seek(max(PROBE_BYTES, size - PROBE_BYTES))
            digest.update(stream.read())
    return size, digest.hexdigest()
