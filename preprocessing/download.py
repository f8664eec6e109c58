"""One verified download: to a temporary name, resumed where it stopped, renamed only when its MD5 sum is right."""

import hashlib
import http.client
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

RECORD = ".verified.tsv"
TRANSIENT = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
_BLOCK = 1 << 20
_ATTEMPTS = 3


def open_url(url: str, start: int = 0) -> Any:
    """Opens a URL, from byte `start` on where the server can."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    return urllib.request.urlopen(request, timeout=60)


def join(base: str, path: str) -> str:
    """URL of a path below a folder's URL, quoted."""
    return base + urllib.parse.quote(path)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Record:
    """Which files were verified, with size and time, so that a later run does not read 700 GB again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, str, str]] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                cells = line.split("\t")
                if len(cells) == 4:
                    self._known[cells[3]] = (cells[0], cells[1], cells[2])

    @staticmethod
    def _state(path: Path, md5: str) -> tuple[str, str, str]:
        info = path.stat()
        return md5, str(info.st_size), str(info.st_mtime_ns)

    def has(self, name: str, path: Path, md5: str) -> bool:
        """Whether the file on disk is the one that was verified against this sum."""
        return path.is_file() and self._known.get(name) == self._state(path, md5)

    def add(self, name: str, path: Path, md5: str) -> None:
        """Notes a verified file."""
        state = self._state(path, md5)
        with self._lock, self.path.open("a", encoding="utf-8") as stream:
            stream.write("\t".join((*state, name)) + "\n")
            self._known[name] = state


def _receive(url: str, part: Path) -> None:
    """Downloads into a temporary file, going on behind what it already holds."""
    start = part.stat().st_size if part.is_file() else 0
    try:
        response = open_url(url, start)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing behind `start`: the whole file is here, its sum decides
            error.close()
            return
        raise
    with response, part.open("ab" if start and getattr(response, "status", None) == 206 else "wb") as stream:
        expected = response.headers.get("Content-Length")
        received = 0
        while block := response.read(_BLOCK):
            received += stream.write(block)
        if expected is not None and received != int(expected):
            raise ConnectionError(f"connection closed after {received} of {expected} bytes")
        stream.flush()
        os.fsync(stream.fileno())


def fetch(base: str, name: str, md5: str, folder: Path, record: Record) -> str:
    """Makes sure that one file is there and right.

    Args:
        base: URL of the folder.
        name: path below it.
        md5: expected sum.
        folder: where it goes.
        record: the files verified before.

    Returns:
        "" or why it failed.
    """
    path = folder / name
    if record.has(name, path, md5):
        return ""
    if path.is_file() and _md5(path) == md5:
        record.add(name, path, md5)
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(2**attempt / 4)
        try:
            _receive(join(base, name), part)
        except TRANSIENT as error:
            reason = f"{type(error).__name__}: {error}"
            continue
        found = _md5(part)
        if found == md5:
            os.replace(part, path)
            record.add(name, path, md5)
            return ""
        part.unlink()
        reason = f"MD5 {found}, expected {md5}"
    return reason
