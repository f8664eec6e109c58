"""Files that are written whole or not at all, errors that name their file, and hashes of JSON values."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def json_hash(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_jpeg(path: Path, picture: Any) -> None:
    """Write an (h, w, 3) uint8 picture as JPEG, atomically."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=85)
    write_bytes(path, data.getbuffer())


def software(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


# Disk full, over the quota, over the file size limit, read-only: every later write would fail too.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def brace_free(path: str) -> str:
    """Return a path, or a link to it in `.snakemake/folders` if Snakemake would take a part of it for a wildcard.

    Snakemake has no escape for a name such as `{2020}`. A folder that does not exist yet is made.
    """
    if not re.search(r"[{}]", path):
        return path
    target = Path(path).absolute()
    link = Path(".snakemake/folders") / hashlib.sha256(str(target).encode()).hexdigest()[:12]
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.mkdir(parents=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(target)
    return str(link)


@contextmanager
def name_in_errors(path: Path | str) -> Iterator[None]:
    """Put the path into disk errors: a failing write does not know it, or knows only the temporary name."""
    try:
        yield
    except OSError as error:
        if error.errno in (*DISK_ERRORS, *_FORBIDDEN):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, then fsync it and rename it to `path`.

    A crash leaves at most a hidden `.tmp` file, which nothing reads.

    Raises:
        OSError: a full, read-only or forbidden disk, naming `path`.
    """
    path = Path(path)
    with name_in_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # `tempfile` would make a private file, but results get the usual permissions
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    """Write a file atomically."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically with sorted keys, so that equal content gives equal bytes; NaN is a `ValueError`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
