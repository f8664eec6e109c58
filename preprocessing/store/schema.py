"""What a bag may hold: arrays, dtypes, shapes and values per schema, and the hashes that identify the content.

The table of arrays is in `preprocessing.store.bags`. Everything here works on arrays in memory.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.store.attrs import FeatureAttrs, InstanceAttrs

Array = npt.NDArray[Any]
Dim = str | int

SCHEMA_VERSION = 1
# name -> (dtypes, dimensions); equal letters mean equal sizes within the bag
SCHEMAS: dict[str, dict[str, tuple[tuple[str, ...], tuple[Dim, ...]]]] = {
    "instances": {
        "coords": (("int32", "float32"), ("N", "D")),
        "grid": (("int32",), ("N", 2)),
        "neighbors": (("int32",), ("N", "K")),
        "coverage": (("float32",), ("N",)),
    },
    "features": {"features": (("float16", "float32"), ("N", "P"))},
}
# Attributes about how a bag was made, not what is in it, are not part of the content hash.
VOLATILE_ATTRS = frozenset({"software"})


def coords_hash(coords: Array, grid: Array) -> str:
    """Hash positions and order of the instances, which pairs a feature bag with its instances bag.

    Args:
        coords: (N, 2) or (N, 1).
        grid: (N, 2).

    Returns:
        SHA-256, hexadecimal.
    """
    digest = hashlib.sha256()
    for name, array in (("coords", coords), ("grid", grid)):
        digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        digest.update(payload(array))
    return digest.hexdigest()


def check_arrays(arrays: Mapping[str, Array], schema: str, *, where: str) -> None:
    """Raise `ValueError` unless names, dtypes, shapes and values of the arrays are those of a schema of `SCHEMAS`."""
    rules = SCHEMAS[schema]
    if set(arrays) != set(rules):
        raise ValueError(f"{where}: found arrays {sorted(arrays)}, expected {sorted(rules)}")
    sizes: dict[str, int] = {}
    for name, (dtypes, dims) in rules.items():
        array = arrays[name]
        actual = f"{where}: {name} is {array.dtype}{array.shape}"
        if array.dtype.name not in dtypes or array.ndim != len(dims):
            raise ValueError(f"{actual}, expected {' or '.join(dtypes)} of shape {dims}")
        for dim, size in zip(dims, array.shape, strict=True):
            expected = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
            if size != expected:
                raise ValueError(f"{actual}, expected shape {dims} with {dim} = {expected}")
    _check_values(arrays, schema, where)


def _check_values(arrays: Mapping[str, Array], schema: str, where: str) -> None:
    if schema == "features":
        if not np.isfinite(arrays["features"]).all():
            raise ValueError(f"{where}: features hold NaN or infinity")
        return
    width = 2 if arrays["coords"].dtype == np.int32 else 1
    if arrays["coords"].shape[1] != width:
        raise ValueError(
            f"{where}: coords is {arrays['coords'].dtype}{arrays['coords'].shape}, expected {width} columns"
        )
    coverage = arrays["coverage"]
    if np.any((coverage < 0) | (coverage > 1)):
        raise ValueError(f"{where}: coverage spans {np.nanmin(coverage)}..{np.nanmax(coverage)}, expected 0..1 or NaN")
    try:
        check_neighbors(arrays["neighbors"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def as_stored(features: npt.NDArray[np.floating[Any]], dtype: str) -> Array:
    """Cast features (N, P) for storage.

    Values beyond the range of float16 are refused rather than clipped or silently widened, so that the bags of one
    encoder never differ in dtype.

    Raises:
        ValueError: a value that does not fit.
    """
    peak = float(np.abs(features).max()) if features.size else 0.0
    if dtype == "float16" and peak > float(np.finfo(np.float16).max):
        raise ValueError(f"features reach {peak:.6g}, float16 ends at 65504: store this encoder as float32")
    return features.astype(dtype, copy=False)


def check_pairing(instances: InstanceAttrs, features: FeatureAttrs, bag_id: str) -> None:
    """Raise ValueError if the instances have changed since the features were extracted."""
    if instances.coords_hash != features.coords_hash:
        raise ValueError(
            f"bag {bag_id}: the features ({features.encoder or 'unknown encoder'}) belong to other coordinates "
            f"({features.coords_hash[:12]}) than the instances ({instances.coords_hash[:12]}); extract the features of "
            "this bag again"
        )


def payload(array: Array) -> memoryview:
    """Return the bytes of an array of any shape as the chunk holds them."""
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    flat: Any = little.reshape(-1).view(np.uint8)
    return memoryview(flat)


def content_hash(arrays: Mapping[str, Array], sums: Mapping[str, str], facts: Mapping[str, object], schema: str) -> str:
    """Return the SHA-256 of a bag's content, from the attributes and the shapes, dtypes and checksums of its arrays."""
    content = {
        "schema": schema,
        "arrays": {name: [arrays[name].dtype.name, list(arrays[name].shape), sums[name]] for name in sums},
        "attrs": {name: value for name, value in facts.items() if name not in VOLATILE_ATTRS},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def check_neighbors(neighbors: npt.NDArray[np.integer]) -> None:
    """Check the invariants of a neighbour table (N, K): range, order, padding, no self loop, symmetry.

    Raises:
        ValueError: naming the first violated invariant.
    """
    if neighbors.ndim != 2 or not np.issubdtype(neighbors.dtype, np.integer):
        raise ValueError(f"neighbors is {neighbors.dtype}{neighbors.shape}, expected integers of shape (N, K)")
    n = len(neighbors)
    if n == 0:
        return
    present = neighbors >= 0
    if neighbors.min() < -1 or neighbors.max() >= n:
        raise ValueError(f"neighbors holds {neighbors.min()}..{neighbors.max()}, expected indices -1..{n - 1}")
    if np.any(present[:, 1:] & ~present[:, :-1]):
        raise ValueError("neighbors has -1 before an index, expected all -1 at the end of a row")
    if np.any(present[:, 1:] & (neighbors[:, 1:] <= neighbors[:, :-1])):
        raise ValueError("neighbors has a row that is not strictly ascending")
    source, slot = np.nonzero(present)
    target = neighbors[source, slot].astype(np.int64)
    if np.any(source == target):
        raise ValueError(f"neighbors has a self loop at instance {int(source[source == target][0])}")
    if not np.array_equal(source * n + target, np.sort(target * n + source)):
        raise ValueError("neighbors is not symmetric: some i lists j while j does not list i")
