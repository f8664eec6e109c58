"""Files of other tools, read with suspicion: HDF5 datasets and npy arrays of bounded size, no pickles, no links out.

A file may come from anywhere. Refused with one message: another format, missing datasets, object types, shapes that do
not fit or whose bytes are not in the file, virtual or external data. Files are written whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from pydantic import JsonValue, ValidationError

from preprocessing.common.files import whole_file
from preprocessing.exchange.model import CARRIED, NOTHING_CARRIED, Array, Carried
from preprocessing.store.attrs import InstanceAttrs

MAX_BYTES = 1 << 36
# No numeric data shrinks further; a file that claims more is a bomb or damaged.
MAX_COMPRESSION = 1000
CHUNK_BYTES = 1 << 20
LARGEST_TILE = 1 << 20
Attributes = dict[str, JsonValue]


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[Any]:
    """Open an HDF5 file for reading; raise `ValueError` if it is missing or of another format."""
    import h5py

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file ({_short(error)}); copy or write it again") from error
    with file:
        yield file


def read_dataset(file: Any, name: str, path: Path) -> tuple[Array, Attributes]:
    """Read a dataset of any shape from an open file, and its attributes.

    Args:
        file: open h5py file.
        name: of the dataset.
        path: of the file, for messages.

    Raises:
        ValueError: it is missing, not numeric, linked from elsewhere, damaged, or its bytes are not in the file.
    """
    import h5py

    link = file.get(name, getlink=True)
    dataset = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: no dataset {name!r}, found {sorted(map(str, file))[:8]}")
    where = f"{path}: dataset {name!r} is {dataset.dtype}{dataset.shape}"
    if dataset.dtype.kind not in "fiu" or dataset.shape is None:
        raise ValueError(f"{where}, expected numbers")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{where} and lies in other files, expected the numbers themselves")
    stored, declared = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    ratio = MAX_COMPRESSION if dataset.id.get_create_plist().get_nfilters() else 1
    if declared > MAX_BYTES or declared > stored * ratio:
        raise ValueError(f"{where}, but the file holds {stored} bytes of it; was it written to the end?")
    try:
        return np.asarray(dataset[()]), _attributes(dataset)
    except OSError as error:
        raise ValueError(f"{path}: dataset {dataset.name!r} cannot be read ({_short(error)})") from error


def _attributes(dataset: Any) -> Attributes:
    """Return the attributes of a dataset as plain Python values; TRIDENT writes None as the text "None"."""
    out: Attributes = {}
    for name in dataset.attrs:
        try:
            # Types that h5py cannot represent are none that a tool writes; the others are needed nevertheless.
            value = dataset.attrs[name]
        except (OSError, TypeError):
            continue
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if not (isinstance(value, str) and value == "None"):
            out[str(name)] = value
    return out


def parse_carried(value: JsonValue, where: str) -> Carried:
    """Validate what an export of ours has left in a file; empty if `value` is None.

    Args:
        value: `{"attrs": {...}, "facts": {...}}`, or its JSON text; unknown attributes are dropped.
        where: file and attribute, for messages.

    Raises:
        ValueError: damaged, or a value out of range.
    """
    if value is None:
        return NOTHING_CARRIED
    try:
        content: Any = json.loads(value) if isinstance(value, str) else value
        kept = {name: entry for name, entry in content["attrs"].items() if name in CARRIED}
        text = json.dumps({**content, "attrs": kept})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is damaged ({_short(error)}); export again") from error
    try:
        carried = Carried.model_validate_json(text, strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(str(part) for part in wrong["loc"][1:]) or str(wrong["loc"][0])
        message = wrong["msg"].replace("Input should be", "expected")
        raise ValueError(f"{where}: {name} is {wrong['input']!r}, {message}; export again") from error
    for name in ("l0_footprint_px", "l0_step_px", "tile_px"):
        side = getattr(carried.attrs, name)
        if name in kept and not 1 <= side <= LARGEST_TILE:
            raise ValueError(f"{where}: {name} is {side!r}, expected a whole number from 1 to {LARGEST_TILE}")
    return carried


def merged(geometry: InstanceAttrs, carried: InstanceAttrs, path: Path) -> InstanceAttrs:
    """Complete the geometry of a tool's file by what an export of ours carried.

    Raises:
        ValueError: the two tile sizes differ.
    """
    ours, theirs = carried.l0_footprint_px, geometry.l0_footprint_px
    if path.suffix == ".h5" and ours and theirs and ours != theirs:
        raise ValueError(
            f"{path}: carried attribute says tiles of {ours} px at level 0, the tool's own attributes {theirs} px"
        )
    return geometry.updated(**{name: getattr(carried, name) for name in carried.model_fields_set})


def number(attrs: Mapping[str, JsonValue], name: str, path: Path, *, low: float, high: float) -> float:
    """Return one number of the attributes; raise `ValueError` if it is absent, no number, or outside [low, high]."""
    value = attrs.get(name)
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{path}: attribute {name!r} is {value!r}, expected a number in {low:g}..{high:g}")
    return float(value)


def read_npy(path: Path) -> Array:
    """Read a numeric npy array of any shape; pickled objects are never loaded.

    Raises:
        ValueError: no such file, another format, objects, or a length that is not the header's.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        # a map, because it is refused before memory is allocated if the file is too short
        mapped = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, SyntaxError, OSError, OverflowError, TypeError, TokenError) as error:
        raise ValueError(
            f"{path}: not a plain npy file of numbers ({_short(error)}); pickled objects are not loaded"
        ) from error
    if mapped.dtype.kind not in "fiub":
        raise ValueError(f"{path}: holds {mapped.dtype}, expected numbers")
    if (surplus := path.stat().st_size - mapped.offset - mapped.nbytes) > 0:
        raise ValueError(f"{path}: {surplus} bytes more than the header says; copy it again")
    return np.array(mapped)


def write_h5(
    path: Path, arrays: Mapping[str, Array], attrs: Mapping[str, Mapping[str, object]], *, rows: int | None = None
) -> None:
    """Write datasets (resizable along N, as the tools make them) with attributes; equal content, equal bytes.

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
            shape = array.shape[1:]
            dataset = file.create_dataset(name, data=array, chunks=(chunk, *shape), maxshape=(None, *shape))
            for key, value in attrs.get(name, {}).items():
                dataset.attrs[key] = value


def write_npy(path: Path, array: Array) -> None:
    """Write one npy array of any shape, whole or not at all."""
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)


def files_of(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files of a folder with a suffix by stem, sorted, without hidden ones; `ValueError` without any."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    files = sorted(path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith("."))
    if not files:
        raise ValueError(f"{folder}: no {suffix} file in it")
    return {path.stem: path for path in files}


def one_folder(folders: Sequence[Path], what: str, source: Path) -> Path:
    """Return the only candidate; raise `ValueError`, naming them, if there is none or more than one."""
    if len(folders) != 1:
        names = ", ".join(path.name for path in folders) or "none"
        raise ValueError(f"{source}: expected one folder {what}, found {names}; name the one to read")
    return folders[0]


def existing(*paths: Path) -> Path | None:
    """Return the first of the paths that is a file, or None."""
    return next((path for path in paths if path.is_file()), None)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
