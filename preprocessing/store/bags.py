"""Bag store: one Zarr v3 group per bag, one uncompressed chunk per array, written whole or not at all.

    {store}/{bag_id}/zarr.json            group: attributes, among them the checksums of the arrays
    {store}/{bag_id}/{array}/zarr.json    array: shape and dtype
    {store}/{bag_id}/{array}/c.0.0        the only chunk: the array's bytes, little endian, C order
    {store}/.tmp/                         bags being written

| schema | array | shape, dtype | meaning |
|---|---|---|---|
| instances | `coords` | (N,2) int32 or (N,1) float32 | level-0 px (x, y), top left; CT: mm along the normal |
| | `grid` | (N,2) int32 | lattice cell (row, col); CT: (slice index, 0) |
| | `neighbors` | (N,K) int32 | neighbour table, see `preprocessing.instances.graph` |
| | `coverage` | (N,) float32 | fraction of the tile inside the lesion, NaN = not annotated |
| features | `features` | (N,P) float16 or float32 | encoder output; finite, values beyond float16 are refused |

Metadata is written here, byte for byte what the format asks for, so that every file can be synced before the rename;
plain Zarr opens the result. Reading by path is one read per array. A bag is complete from the moment its name exists:
it is built under `.tmp`, synced, and renamed; a replaced bag is moved out of the way first, so a crash leaves
the old bag, no bag, or the new bag. N = 0 is valid (an empty bag has no chunk files).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from preprocessing.store.files import (
    CorruptBag,
    check_chunk,
    chunk_path,
    clean_temporary,
    install,
    read_chunk,
    read_meta,
    read_zarr,
    sync_directory,
    temporary_directory,
    write_array,
    write_synced,
)
from preprocessing.store.schema import (
    SCHEMA_VERSION,
    SCHEMAS,
    VOLATILE_ATTRS,
    Array,
    as_stored,
    check_arrays,
    check_pairing,
    content_hash,
    coords_hash,
    payload,
    plain_json,
)

__all__ = [
    "SCHEMAS", "SCHEMA_VERSION", "VOLATILE_ATTRS", "CorruptBag", "as_stored", "bag_path", "check_arrays",
    "check_pairing", "clean_temporary", "coords_hash", "finished_attrs", "is_finished", "read_arrays", "read_attrs",
    "validate_bag", "write_bag",
]  # fmt: skip

_BAG_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_RESERVED = "store"


def bag_path(store: Path | str, bag_id: str) -> Path:
    """Directory of one bag.

    Raises:
        ValueError: an id that is no plain file name.
    """
    if not _BAG_ID.fullmatch(bag_id):
        raise ValueError(f"bag id {bag_id!r}: expected letters, digits, '.', '_' or '-', not starting with '.'")
    return Path(store) / bag_id


def write_bag(
    store: Path | str, bag_id: str, arrays: Mapping[str, Array], attrs: Mapping[str, Any], *, schema: str, key: str = ""
) -> str:
    """Writes one bag atomically, replacing an older one of the same name.

    Args:
        store: directory of the tree; made if absent.
        bag_id: name of the bag.
        arrays: exactly the arrays of the schema.
        attrs: JSON-able facts; the name "store" is taken. A feature bag needs `coords_hash`; an instances bag gets it.
        schema: "instances" or "features".
        key: what the bag was made from (stage version, settings, sources), compared by `is_finished`.

    Returns:
        SHA-256 of arrays and attributes (software versions excepted): equal content, equal hash.

    Raises:
        ValueError: arrays or attributes that the schema does not allow; nothing is written then.
    """
    target = bag_path(store, bag_id)
    where = f"bag {bag_id} ({schema})"
    check_arrays(arrays, schema, where=where)
    facts = plain_json(attrs, where)
    if _RESERVED in facts:
        raise ValueError(f"{where}: the attribute name {_RESERVED!r} belongs to the store")
    if schema == "instances":
        facts["coords_hash"] = coords_hash(arrays["coords"], arrays["grid"])
    elif not isinstance(facts.get("coords_hash"), str):
        raise ValueError(f"{where}: attribute coords_hash is missing, expected that of the instances bag")
    sums = {name: hashlib.sha256(payload(array)).hexdigest() for name, array in sorted(arrays.items())}
    content = content_hash(arrays, sums, facts, schema)
    n = len(next(iter(arrays.values())))
    facts[_RESERVED] = {
        **{"schema": schema, "version": SCHEMA_VERSION, "key": key},
        **{"content": content, "sha256": sums, "n": n},
    }
    with temporary_directory(Path(store), bag_id) as built:
        for name, array in arrays.items():
            write_array(built / name, array)
        group = {"zarr_format": 3, "node_type": "group", "attributes": facts}
        write_synced(built / "zarr.json", json.dumps(group, indent=1, sort_keys=True, allow_nan=False).encode())
        sync_directory(built)
        install(built, target)
    return content


def read_attrs(store: Path | str, bag_id: str) -> dict[str, Any]:
    """Attributes of one bag; "store" among them holds schema, key, content hash, checksums and n.

    Raises:
        FileNotFoundError: there is no such bag.
        CorruptBag: its metadata is unreadable.
    """
    meta = read_meta(bag_path(store, bag_id) / "zarr.json")
    attributes = meta.get("attributes")
    if not isinstance(attributes, dict) or not isinstance(attributes.get(_RESERVED), dict):
        raise CorruptBag(f"{bag_path(store, bag_id) / 'zarr.json'}: not a bag of this store, expected its attributes")
    return attributes


def read_arrays(
    store: Path | str,
    bag_id: str,
    names: Iterable[str] | None = None,
    *,
    via: Literal["path", "zarr"] = "path",
    verify: bool = False,
) -> dict[str, Array]:
    """Arrays of one bag.

    Args:
        store: directory of the tree.
        bag_id: name of the bag.
        names: arrays to read; None reads all.
        via: "path" reads the chunk file, "zarr" goes through the Zarr library; both give the same.
        verify: also compare each array with its stored checksum.

    Raises:
        FileNotFoundError: there is no such bag.
        CorruptBag: a chunk is missing, has the wrong length, or fails its checksum; the message names the file.
    """
    info = read_attrs(store, bag_id)[_RESERVED]
    directory = bag_path(store, bag_id)
    wanted = sorted(info["sha256"]) if names is None else list(names)
    unknown = sorted(set(wanted) - set(info["sha256"]))
    if unknown:
        raise ValueError(f"{directory}: no arrays {unknown}, expected some of {sorted(info['sha256'])}")
    out: dict[str, Array] = {}
    for name in wanted:
        dtype, shape = check_chunk(directory / name)
        out[name] = read_chunk(directory / name, dtype, shape) if via == "path" else read_zarr(directory / name)
        if verify and hashlib.sha256(payload(out[name])).hexdigest() != info["sha256"][name]:
            chunk = chunk_path(directory / name, len(shape))
            raise CorruptBag(f"{chunk}: the bytes differ from the checksum taken when they were written")
    return out


def finished_attrs(store: Path | str, bag_id: str, key: str) -> dict[str, Any] | None:
    """Attributes of the bag if it exists, was made from `key`, and every chunk file has its full length; else None.

    Who asks and then wants to know more takes it from here: read again, the bag can be gone for a moment, when another
    job replaces it by its equal.
    """
    try:
        attrs = read_attrs(store, bag_id)
        info = attrs[_RESERVED]
        if info["key"] != key or info["version"] != SCHEMA_VERSION:
            return None
        for name in info["sha256"]:
            check_chunk(bag_path(store, bag_id) / name)
    except (FileNotFoundError, NotADirectoryError, CorruptBag):
        return None
    return attrs


def is_finished(store: Path | str, bag_id: str, key: str) -> bool:
    """True if `finished_attrs` finds the bag."""
    return finished_attrs(store, bag_id, key) is not None


def validate_bag(store: Path | str, bag_id: str, *, schema: str, verify: bool = True) -> dict[str, Any]:
    """Checks one bag wholly: metadata, sizes, schema and (verify) checksums; returns its attributes.

    Raises:
        FileNotFoundError: there is no such bag.
        CorruptBag: naming the file and what is wrong with it.
    """
    attrs = read_attrs(store, bag_id)
    found = attrs[_RESERVED].get("schema")
    if found != schema:
        raise CorruptBag(f"{bag_path(store, bag_id)}: schema {found!r}, expected {schema!r}")
    arrays = read_arrays(store, bag_id, verify=verify)
    try:
        check_arrays(arrays, schema, where=str(bag_path(store, bag_id)))
    except ValueError as error:
        raise CorruptBag(str(error)) from error
    if schema == "instances" and coords_hash(arrays["coords"], arrays["grid"]) != attrs.get("coords_hash"):
        raise CorruptBag(f"{bag_path(store, bag_id)}: attribute coords_hash does not belong to coords and grid")
    return attrs
