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
plain Zarr opens the result. A bag is complete from the moment its name exists:
it is built under `.tmp`, synced, and renamed; a replaced bag is moved out of the way first, so a crash leaves
the old bag, no bag, or the new bag. N = 0 is valid (an empty bag has no chunk files).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError

from preprocessing.common.cli import validation_problems
from preprocessing.store.attrs import BagAttrs, FeatureAttrs, InstanceAttrs, StoreInfo
from preprocessing.store.files import (
    CorruptBag,
    check_chunk,
    chunk_path,
    clean_temporary,
    install,
    read_chunk,
    read_meta,
    sync_directory,
    temporary_directory,
    write_array,
    write_synced,
)
from preprocessing.store.schema import (
    SCHEMA_VERSION,
    Array,
    as_stored,
    check_arrays,
    check_pairing,
    content_hash,
    coords_hash,
    payload,
)

__all__ = [
    "CorruptBag", "FeatureAttrs", "InstanceAttrs", "as_stored", "bag_path", "check_pairing", "clean_temporary",
    "coords_hash", "finished_attrs", "read_arrays", "read_feature_attrs", "read_info",
    "read_instance_attrs", "read_stored", "validate_bag", "write_bag",
]  # fmt: skip

T = TypeVar("T")
AttrsT = TypeVar("AttrsT", bound=BagAttrs)
_BAG_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def bag_path(store: Path | str, bag_id: str) -> Path:
    """Return the directory of one bag.

    Raises:
        ValueError: an id that is not a plain file name.
    """
    if not _BAG_ID.fullmatch(bag_id):
        raise ValueError(f"bag id {bag_id!r}: expected letters, digits, '.', '_' or '-', not starting with '.'")
    return Path(store) / bag_id


def write_bag(
    store: Path | str, bag_id: str, arrays: Mapping[str, Array], attrs: InstanceAttrs | FeatureAttrs, *, key: str = ""
) -> str:
    """Write one bag atomically, replacing an older one of the same name.

    Args:
        store: directory of the tree; made if absent.
        bag_id: name of the bag.
        arrays: exactly the arrays of the schema.
        attrs: attributes, whose class is the schema. Features need `coords_hash`; instances get it here.
        key: hash of what the bag was made from (stage version, settings, sources), compared by `finished_attrs`.

    Returns:
        SHA-256 of arrays and attributes, software versions excepted: equal content, equal hash.

    Raises:
        ValueError: arrays or attributes that the schema does not allow; nothing is written then.
    """
    target, schema = bag_path(store, bag_id), attrs.schema_name
    where = f"bag {bag_id} ({schema})"
    check_arrays(arrays, schema, where=where)
    facts = attrs.as_json()
    if schema == "instances":
        facts["coords_hash"] = coords_hash(arrays["coords"], arrays["grid"])
    elif not attrs.coords_hash:
        raise ValueError(f"{where}: attribute coords_hash is missing, expected that of the instances bag")
    sums = {name: hashlib.sha256(payload(array)).hexdigest() for name, array in sorted(arrays.items())}
    try:
        content = content_hash(arrays, sums, facts, schema)
    except ValueError as error:
        raise ValueError(f"{where}: an attribute is infinite or NaN, expected plain JSON ({error})") from error
    n = len(next(iter(arrays.values())))
    info = StoreInfo(schema=schema, version=SCHEMA_VERSION, key=key, content=content, sha256=sums, n=n)
    with temporary_directory(Path(store), bag_id) as built:
        for name, array in arrays.items():
            write_array(built / name, array)
        group = {"zarr_format": 3, "node_type": "group", "attributes": {**facts, "store": asdict(info)}}
        write_synced(built / "zarr.json", json.dumps(group, indent=1, sort_keys=True, allow_nan=False).encode())
        sync_directory(built)
        install(built, target)
    return content


def read_instance_attrs(store: Path | str, bag_id: str) -> InstanceAttrs:
    """Return the attributes of a bag's instances.

    Raises:
        FileNotFoundError: there is no such bag.
        CorruptBag: its metadata is unreadable; file and key are named.
    """
    return _parsed(_attributes(store, bag_id), InstanceAttrs, bag_path(store, bag_id))


def read_feature_attrs(store: Path | str, bag_id: str) -> FeatureAttrs:
    """Return the attributes of a bag's features; raises as `read_instance_attrs`."""
    return _parsed(_attributes(store, bag_id), FeatureAttrs, bag_path(store, bag_id))


def read_info(store: Path | str, bag_id: str) -> StoreInfo:
    """Return what the store records about any bag; raises as `read_instance_attrs`."""
    return _parsed({"store": _attributes(store, bag_id)["store"]}, BagAttrs, bag_path(store, bag_id)).store


def _attributes(store: Path | str, bag_id: str) -> dict[str, JsonValue]:
    path = bag_path(store, bag_id) / "zarr.json"
    attributes = read_meta(path).get("attributes")
    if not isinstance(attributes, dict) or not isinstance(attributes.get("store"), dict):
        raise CorruptBag(f"{path}: not a bag of this store, expected its attributes")
    return attributes


def _parsed(attributes: dict[str, JsonValue], record: type[AttrsT], bag: Path) -> AttrsT:
    try:
        return record.model_validate(attributes)
    except ValidationError as error:
        raise CorruptBag(f"{bag / 'zarr.json'}: attributes: {validation_problems(error)}") from error


def read_arrays(
    store: Path | str,
    bag_id: str,
    names: Iterable[str] | None = None,
    *,
    verify: bool = False,
) -> dict[str, Array]:
    """Read arrays of one bag, from their files: Zarr's own reader takes five times as long.

    Args:
        store: directory of the tree.
        bag_id: name of the bag.
        names: arrays to read; None reads all.
        verify: also compare each array with its stored checksum.

    Returns:
        Arrays by name; shapes as in the table at the top of this file.

    Raises:
        FileNotFoundError: there is no such bag.
        CorruptBag: a chunk is missing, has the wrong length, or fails its checksum; the message names the file.
    """
    sums = read_info(store, bag_id).sha256
    directory = bag_path(store, bag_id)
    out: dict[str, Array] = {}
    for name in sorted(sums) if names is None else names:
        dtype, shape = check_chunk(directory / name)
        out[name] = read_chunk(directory / name, dtype, shape)
        if verify and hashlib.sha256(payload(out[name])).hexdigest() != sums[name]:
            chunk = chunk_path(directory / name, len(shape))
            raise CorruptBag(f"{chunk}: the bytes differ from the checksum taken when they were written")
    return out


def finished_attrs(store: Path | str, bag_id: str, key: str, record: type[AttrsT]) -> AttrsT | None:
    """Return the attributes of a bag that was made from `key` and whose chunk files have their full length, else None.

    Use the returned attributes: re-reading can race with another job that replaces the bag by its equal.
    """
    try:
        attrs = _parsed(_attributes(store, bag_id), record, bag_path(store, bag_id))
        if attrs.store.key != key or attrs.store.version != SCHEMA_VERSION:
            return None
        for name in attrs.store.sha256:
            check_chunk(bag_path(store, bag_id) / name)
    except (FileNotFoundError, NotADirectoryError, CorruptBag):
        return None
    return attrs


def read_stored(reader: Callable[..., T], store: Path, bag_id: str, *arguments: Any, **options: Any) -> T:
    """Call a reader of this module on the store `{stage}/store`; errors say how to rebuild the bag.

    Raises:
        ValueError: a damaged or missing bag, naming its file.
    """
    try:
        return reader(store, bag_id, *arguments, **options)
    except CorruptBag as error:
        raise ValueError(
            f"{error}; `python -m preprocessing.check {store.parent} --remove` deletes what is damaged,"
            " then run the workflow again: it makes these bags again"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(
            f"{store}: bag {bag_id} is missing although its manifest calls it ok; run the shard again"
        ) from error


def validate_bag(store: Path | str, bag_id: str, *, schema: str) -> InstanceAttrs | FeatureAttrs:
    """Check one bag wholly, metadata, sizes, schema and checksums, and return its attributes.

    Raises:
        FileNotFoundError: there is no such bag.
        CorruptBag: naming the file and what is wrong with it.
    """
    path = bag_path(store, bag_id)
    stored_schema = read_info(store, bag_id).schema
    if stored_schema != schema:
        raise CorruptBag(f"{path}: schema {stored_schema!r}, expected {schema!r}")
    attrs = (read_feature_attrs if schema == "features" else read_instance_attrs)(store, bag_id)
    arrays = read_arrays(store, bag_id, verify=True)
    try:
        check_arrays(arrays, schema, where=str(path))
    except ValueError as error:
        raise CorruptBag(str(error)) from error
    if schema == "instances" and coords_hash(arrays["coords"], arrays["grid"]) != attrs.coords_hash:
        raise CorruptBag(f"{path}: attribute coords_hash does not belong to coords and grid")
    return attrs
