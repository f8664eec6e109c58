"""Files of other tools, read with suspicion: HDF5 datasets and npy arrays of bounded size, no pickles, no links out.

A file may come from anywhere. Refused with one message: another format, missing datasets, object types, shapes that do
not fit or whose bytes are not in the file, virtual or external data. Writing is whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.common.files import whole_file
from preprocessing.exchange.model import CARRIED, CARRIED_KEY, Array

MAX_BYTES = 1 << 36
# no numeric data shrinks further; a file that claims more is a bomb or damaged
MAX_COMPRESSION = 1000
CHUNK_BYTES = 1 << 20
LARGEST_TILE = 1 << 20


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """An HDF5 file for reading.

    Raises:
        ValueError: no such file, or not an HDF5 file.
    """
    import h5py

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({_short(error)}); copy or write it again") from error
    with file:
        yield file


def dataset(file: Any, name: str, path: Path) -> Any:
    """A dataset of an open file that holds its own numbers.

    Raises:
        ValueError: it is missing, not numeric, linked from elsewhere, or its bytes are not in the file.
    """
    import h5py

    link = file.get(name, getlink=True)
    found = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{path}: no dataset {name!r}, found {sorted(map(str, file))[:8]}")
    where = f"{path}: dataset {name!r} is {found.dtype}{found.shape}"
    if found.dtype.kind not in "fiu" or found.shape is None:
        raise ValueError(f"{where}, expected numbers")
    if found.is_virtual or found.external:
        raise ValueError(f"{where} and lies in other files, expected the numbers themselves")
    stored, declared = found.id.get_storage_size(), found.size * found.dtype.itemsize
    ratio = MAX_COMPRESSION if found.id.get_create_plist().get_nfilters() else 1
    if declared > MAX_BYTES or declared > stored * ratio:
        raise ValueError(f"{where}, but the file holds {stored} bytes of it; was it written to the end?")
    return found


def values(found: Any, path: Path) -> Array:
    """All numbers of a dataset.

    Raises:
        ValueError: a damaged or unknown compression.
    """
    try:
        return np.asarray(found[()])
    except OSError as error:
        raise ValueError(f"{path}: dataset {found.name!r} cannot be read ({_short(error)})") from error


def attributes(found: Any) -> dict[str, Any]:
    """Attributes of a dataset as plain Python values; TRIDENT writes None as the text "None"."""
    out: dict[str, Any] = {}
    for name in found.attrs:
        try:
            value = found.attrs[name]
        except (OSError, TypeError):
            continue
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if not (isinstance(value, str) and value == "None"):
            out[str(name)] = value
    return out


def carried(attrs: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What an export of ours left in the attribute `smmil`: {"attrs": {...}, "facts": {...}}, empty if nothing.

    Raises:
        ValueError: the text is damaged.
    """
    text = attrs.get(CARRIED_KEY)
    if text is None:
        return {}
    try:
        found = json.loads(str(text))
        if not isinstance(found["attrs"], dict) or not isinstance(found["facts"], dict):
            raise TypeError("attrs and facts are no objects")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: attribute {CARRIED_KEY!r} is damaged ({_short(error)}); export again") from error
    return dict(found)


def merged(own: Mapping[str, Any], ours: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The tool's geometry, completed by what an export of ours carried.

    Raises:
        ValueError: carried values that cannot be, or another tile size than the tool's own attributes say.
    """
    kept = {name: value for name, value in ours.get("attrs", {}).items() if name in CARRIED}
    where = f"{path}: carried attribute"
    if kept.get("modality", "wsi") not in ("wsi", "ct"):
        raise ValueError(f"{where} modality is {kept['modality']!r}, expected wsi or ct")
    for name in ("l0_footprint_px", "l0_step_px", "tile_px"):
        value = kept.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_TILE:
            raise ValueError(f"{where} {name} is {value!r}, expected a whole number from 1 to {LARGEST_TILE}")
    for name, length in (("grid_origin_l0", 2), ("dimensions", 2), ("bounds", 4)):
        value = kept.get(name, [0] * length)
        if not isinstance(value, list) or len(value) != length or not all(isinstance(v, int) for v in value):
            raise ValueError(f"{where} {name} is {value!r}, expected {length} whole numbers")
    theirs, carried_px = own.get("l0_footprint_px"), kept.get("l0_footprint_px")
    if path.suffix == ".h5" and None not in (theirs, carried_px) and theirs != carried_px:
        raise ValueError(f"{where} says tiles of {carried_px} px at level 0, the tool's own attributes {theirs} px")
    return {**own, **kept}


def number(attrs: Mapping[str, Any], name: str, path: Path, *, low: float, high: float) -> float:
    """One number of the attributes.

    Raises:
        ValueError: absent, not a number, or outside [low, high].
    """
    value = attrs.get(name)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{path}: attribute {name!r} is {value!r}, expected a number in {low:g}..{high:g}")
    return float(value)


def read_npy(path: Path) -> Array:
    """A numeric npy array; pickled objects are never loaded.

    Raises:
        ValueError: no such file, another format, objects or structures, or a length that is not the header's.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"version {version}")
            shape, fortran, dtype = readers[version](stream)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{path}: not a plain npy file ({_short(error)})") from error
        if dtype.kind not in "fiub":
            raise ValueError(f"{path}: holds {dtype}, expected numbers (pickled objects are not loaded)")
        declared = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
        left = os.fstat(stream.fileno()).st_size - stream.tell()
        if declared != left or declared > MAX_BYTES:
            raise ValueError(f"{path}: the header says {dtype}{shape}, {declared} bytes, but {left} follow")
        flat = np.fromfile(stream, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def write_h5(
    path: Path, arrays: Mapping[str, Array], attrs: Mapping[str, Mapping[str, Any]], *, rows: int | None = None
) -> None:
    """Writes datasets (resizable along N, as the tools make them) with attributes; equal content, equal bytes.

    Args:
        path: the file.
        arrays: name -> (N, ...) array.
        attrs: name -> attributes of that dataset.
        rows: rows per chunk; None = about 1 MiB.
    """
    import h5py

    with whole_file(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            per_row = max(1, array[:1].nbytes)
            chunk = max(1, min(len(array), rows or CHUNK_BYTES // per_row))
            made = file.create_dataset(
                name, data=array, chunks=(chunk, *array.shape[1:]), maxshape=(None, *array.shape[1:])
            )
            for key, value in attrs.get(name, {}).items():
                made.attrs[key] = value


def write_npy(path: Path, array: Array) -> None:
    """Writes one npy array, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def files_of(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with a suffix, sorted; hidden ones left out.

    Raises:
        ValueError: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: no {suffix} file in it")
    return found


def one_folder(found: Sequence[Path], what: str, source: Path) -> Path:
    """The only one of several candidates.

    Raises:
        ValueError: none, or more than one; they are named.
    """
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{source}: expected one folder {what}, found {names}; name the one to read")
    return found[0]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
