"""Hashes of files and JSON values, the version of the code, and the versions of its packages."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from smmil import __version__

log = logging.getLogger(__name__)


def hash_json(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path | str) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Iterable[Path | str]) -> str:
    """Return one hash of several files, independent of their order and names."""
    return hash_json(sorted(hash_file(path) for path in paths))


def zip_damage(path: Path | str) -> str:
    """Return what is wrong with a zip file (a state, an npz) by its checksums; empty if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    # Damaged headers raise all of these.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError) as error:
        return str(error) or type(error).__name__
    return f"{member} fails its checksum" if member else ""


@functools.cache
def code_version() -> str:
    """Return `git describe` of this checkout, or the package version without a checkout or git.

    Cached, because the code of the process was loaded when it started.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    described = result.stdout.strip()
    return f"{__version__}+{described}" if result.returncode == 0 and described else __version__


def versions() -> dict[str, str]:
    """Return the versions of everything that decides the numbers."""
    import torch

    return {
        "smmil": code_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def json_argument(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object given on the command line, as text or as the path of a file.

    Raises:
        ValueError: neither; the message names the argument.
    """
    is_text = text.lstrip().startswith(("{", "["))
    try:
        value = json.loads(text if is_text else Path(text).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{name}: {text}: no such file") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON ({error}); found {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: found {text[:80]!r}, expected a JSON object")
    return value
