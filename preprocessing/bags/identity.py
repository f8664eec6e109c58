"""Identity of the files of a bag, for the keys that tell whether a bag must be made again."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from preprocessing.bags.rows import SLICES, resolve

PROBE_BYTES = 1 << 16
WHOLE_FILE_BYTES = 1 << 24
Images = list[tuple[str, int, str]]


def image_identity(root: Path | str, names: Sequence[str]) -> Images:
    """Identify the images of a bag without reading them whole: (name, bytes, SHA-256 of head and tail) each.

    An edit in the middle of a file that keeps its length is not detected.

    Raises:
        ValueError: a file is missing or outside the root.
    """
    return [(name, *_probe(_existing(root, name))) for name in names]


def annotation_identity(root: Path | str, annotation: str) -> str:
    """Return the SHA-256 of an annotation file (of head and tail beyond 16 MiB), or an inline annotation itself."""
    if not annotation or annotation.startswith(SLICES):
        return annotation
    path = _existing(root, annotation)
    if path.stat().st_size > WHOLE_FILE_BYTES:
        return _probe(path)[1]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _existing(root: Path | str, name: str) -> Path:
    path = resolve(root, name)
    if not path.is_file():
        raise ValueError(f"{name}: no such file below {root}; restore it, or make the list of bags again")
    return path


def _probe(path: Path) -> tuple[int, str]:
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(stream.read(PROBE_BYTES))
        if size > PROBE_BYTES:
            stream.seek(max(PROBE_BYTES, size - PROBE_BYTES))
            digest.update(stream.read())
    return size, digest.hexdigest()
