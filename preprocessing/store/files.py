"""Files of the bag store: synced writes, temporary directories, renames that survive a crash, and array chunks.

An array (any shape, any dtype) is a directory with Zarr v3 metadata and one chunk file of its bytes.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.store.schema import Array, payload

TEMPORARY = ".tmp"
# Writing a bag takes seconds. A leftover of a dead process is removed after the first span (containers with one host
# name can share process numbers), any leftover after the second.
_STALE_OWN_S = 600.0
_STALE_ANY_S = 86_400.0
_INSTALL_ATTEMPTS = 100


class CorruptBag(ValueError):
    """A stored bag does not hold what its metadata says; the message names the file."""


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk, where the file system supports it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary_directory(store: Path, bag_id: str) -> Iterator[Path]:
    """Yield a new directory on the store's file system, removed at the end unless it was renamed."""
    path = store / TEMPORARY / _temporary_name(bag_id)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def install(built: Path, target: Path) -> None:
    """Rename a finished directory to its final name, replacing one that exists.

    Several processes may do so at once: the last one wins, and readers only see whole directories.
    """
    aside = built.parent / _temporary_name(target.name)
    for _ in range(_INSTALL_ATTEMPTS):
        try:
            os.rename(built, target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, aside)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        raise OSError(errno.EBUSY, "other processes keep replacing this bag", str(target))
    sync_directory(target.parent)


def clean_temporary(store: Path | str) -> int:
    """Remove what killed writers left, but nothing that may be in use; return the number of leftovers."""
    removed = 0
    folder = Path(store) / TEMPORARY
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if _is_stale(path):
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
    return removed


def _temporary_name(bag_id: str) -> str:
    return f"{bag_id}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}"


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "host"


def _is_stale(path: Path) -> bool:
    # Another machine may share the store, so a process number means something only beside this host's name.
    age = time.time() - path.stat().st_mtime
    parts = path.name.rsplit(".", 3)
    if len(parts) == 4 and parts[1] == _host() and parts[2].isdigit() and age > _STALE_OWN_S:
        try:
            os.kill(int(parts[2]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    return age > _STALE_ANY_S


def write_array(directory: Path, array: Array) -> None:
    """Write an array of any shape as a new directory: metadata and, unless it is empty, its one chunk."""
    directory.mkdir()
    floating = np.issubdtype(array.dtype, np.floating)
    meta = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in array.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        # a value that no whole array holds, so that a plain Zarr reader notices a lost chunk
        "fill_value": "NaN" if floating else int(np.iinfo(array.dtype).min),
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "storage_transformers": [],
        "attributes": {},
    }
    write_synced(directory / "zarr.json", json.dumps(meta, indent=1, sort_keys=True).encode())
    if array.size:
        write_synced(chunk_path(directory, array.ndim), payload(array))
    sync_directory(directory)


def chunk_path(directory: Path, rank: int) -> Path:
    """Return the chunk file of an array of this rank."""
    return directory / ".".join(["c"] + ["0"] * rank)


def read_meta(path: Path) -> dict[str, Any]:
    """Parse a `zarr.json`; raise `CorruptBag` if it is not a JSON object."""
    try:
        meta = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptBag(f"{path}: not JSON ({error})") from error
    if not isinstance(meta, dict):
        raise CorruptBag(f"{path}: holds {type(meta).__name__}, expected an object")
    return meta


def check_chunk(directory: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape of an array; raise `CorruptBag` unless its chunk file has the matching length."""
    path = directory / "zarr.json"
    try:
        meta = read_meta(path)
        shape = tuple(int(n) for n in meta["shape"])
        dtype = np.dtype(str(meta["data_type"])).newbyteorder("<")
        chunks = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = [codec["name"] for codec in meta["codecs"]]
    except CorruptBag:
        raise
    except (KeyError, TypeError, ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise CorruptBag(f"{path}: missing or not the metadata of an array ({error!r})") from error
    if chunks != tuple(max(1, n) for n in shape) or codecs != ["bytes"]:
        raise CorruptBag(f"{path}: chunks {chunks}, codecs {codecs}; expected one uncompressed chunk of {shape}")
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    chunk = chunk_path(directory, len(shape))
    try:
        size = os.stat(chunk).st_size
    except (FileNotFoundError, NotADirectoryError):
        size = 0
    if size != expected:
        raise CorruptBag(f"{chunk}: {size} bytes, expected {expected}")
    return dtype, shape


def read_chunk(directory: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Read the chunk of an array that `check_chunk` has passed, as `shape`."""
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.fromfile(chunk_path(directory, len(shape)), dtype).reshape(shape)
