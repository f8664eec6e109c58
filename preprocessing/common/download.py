"""Verified downloads: to a temporary name, resumed after an interruption, renamed only when the checksum is right."""

import hashlib
import http.client
import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

RECORD = ".verified.tsv"
TRANSIENT = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
_BLOCK = 1 << 20
_ATTEMPTS = 3
_LABELS = {"md5": "MD5", "sha256": "SHA-256"}


def open_url(url: str, start: int = 0) -> Any:
    """Open a URL, from byte `start` on if the server supports ranges."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(request, timeout=60)


def join(base: str, path: str) -> str:
    """Return the quoted URL of a path below a folder's URL."""
    return base + urllib.parse.quote(path)


def file_hash(path: Path, algorithm: str) -> str:
    """Return the hexadecimal checksum of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.new, algorithm, usedforsecurity=False)).hexdigest()


class Record:
    """Table of verified files with size and modification time, so that a later run need not read 700 GB again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._lock = threading.Lock()
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self._known = {cells[-1]: cells[:-1] for cells in (line.split("\t") for line in lines)}

    @staticmethod
    def _state(path: Path, md5: str) -> list[str]:
        info = path.stat()
        return [md5, str(info.st_size), str(info.st_mtime_ns)]

    def has(self, name: str, path: Path, md5: str) -> bool:
        """Return whether the file on disk is the one that was verified against this checksum."""
        return path.is_file() and self._known.get(name) == self._state(path, md5)

    def add(self, name: str, path: Path, md5: str) -> None:
        """Record a verified file."""
        state = self._state(path, md5)
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write("\t".join((*state, name)) + "\n")
            self._known[name] = state


def _receive(url: str, part: Path, progress: bool) -> None:
    """Download into a temporary file, continuing after the bytes it already holds."""
    from tqdm import tqdm

    start = part.stat().st_size if part.is_file() else 0
    try:
        response = open_url(url, start)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no bytes after `start`: the file is complete, its checksum decides
            error.close()
            return
        raise
    with response, part.open("ab" if start and getattr(response, "status", None) == 206 else "wb") as stream:
        length = response.headers.get("Content-Length")
        expected = None if length is None else int(length)
        hidden = not (progress and sys.stderr.isatty())
        received = 0
        with tqdm(total=expected, desc=part.stem, unit="B", unit_scale=True, disable=hidden) as bar:
            while block := response.read(_BLOCK):
                received += stream.write(block)
                bar.update(len(block))
        if expected is not None and received != expected:
            raise ConnectionError(f"connection closed after {received} of {expected} bytes")
        # a part is resumed after a crash, so its length has to be that of its content
        stream.flush()
        os.fsync(stream.fileno())


def download(url: str, path: Path, expected: str, algorithm: str, *, progress: bool = False) -> str:
    """Download one file, with three attempts, and return its hexadecimal checksum.

    Args:
        url: source.
        path: target; until it is verified the file is called `NAME.part`, which a later call resumes.
        expected: checksum or its first digits; "" accepts any content.
        algorithm: of the checksum, as `hashlib` calls it.
        progress: show a progress bar on a terminal.

    Raises:
        ValueError: no attempt succeeded; the message says why the last one failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if not expected:
        # without a checksum nothing would reveal that two versions of the file were joined
        part.unlink(missing_ok=True)
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2**attempt / 4)
        try:
            _receive(url, part, progress)
        except TRANSIENT as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        checksum = file_hash(part, algorithm)
        if checksum.startswith(expected):
            os.replace(part, path)
            return checksum
        part.unlink()
        reason = f"{_LABELS[algorithm]} {checksum}, expected {expected}"
    raise ValueError(reason)


def fetch(base: str, name: str, md5: str, folder: Path, record: Record) -> str:
    """Download the file `name` below the URL `base` into a folder unless it is there and verified.

    Returns:
        "" or why it failed.
    """
    path = folder / name
    if record.has(name, path, md5):
        return ""
    if not path.is_file() or file_hash(path, "md5") != md5:
        try:
            download(join(base, name), path, md5, "md5")
        except ValueError as error:
            return str(error)
    record.add(name, path, md5)
    return ""
