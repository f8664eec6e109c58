"""From positions to the stored geometry: order, lattice cells and neighbours; checks of imported arrays.

No tool's file holds neighbours, so an import computes them: instances within sqrt 2 lattice steps (for one lattice
exactly its eight neighbours, for CLAM's overlapping lattices their true distance), the chain of slices for a scan.
Rows of slides are sorted by (y, x) as in every stored bag; equal positions keep their order. Level-0 px throughout.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.exchange.model import Array
from preprocessing.instances.graph import chain_neighbors, distance_neighbors
from preprocessing.store.attrs import InstanceAttrs

# With fewer gaps between tiles of a row, the step is not checked.
LEAST_GAPS = 8


def as_coords(array: Array, where: str) -> npt.NDArray[np.int32]:
    """Convert positions to level-0 px, (N,2) int32.

    Raises:
        ValueError: another shape, fractions of a pixel, or numbers beyond 32 bits.
    """
    if array.size == 0:
        return np.empty((0, 2), np.int32)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"{where}: coordinates are {array.dtype}{array.shape}, expected (N, 2) with x, y at level 0")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.round(array)).all()):
        raise ValueError(f"{where}: coordinates hold fractions or NaN, expected whole level-0 pixels")
    limit = np.iinfo(np.int32)
    if array.min() < limit.min or array.max() > limit.max:
        raise ValueError(f"{where}: coordinates span {array.min()}..{array.max()}, expected 32-bit pixels")
    return np.ascontiguousarray(array.astype(np.int32))


def as_features(array: Array, n: int, where: str) -> Array:
    """Return features as (N,P) float16 or float32.

    Raises:
        ValueError: another shape or length, integers, NaN or infinity.
    """
    if array.size == 0 and n == 0:
        return array.reshape(0, array.shape[-1] if array.ndim == 2 else 0).astype(np.float32)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] == 0:
        raise ValueError(f"{where}: features are {array.dtype}{array.shape}, expected floats of shape (N, P)")
    if len(array) != n:
        raise ValueError(f"{where}: {len(array)} rows of features for {n} coordinates; one of the files is not whole")
    kept = array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
    if not np.isfinite(kept).all():
        rows = np.flatnonzero(~np.isfinite(kept).all(axis=1))
        raise ValueError(f"{where}: features of {len(rows)} rows hold NaN or infinity (first: row {rows[0]})")
    return kept


def as_coverage(array: Array | None, n: int, label: int | None, where: str) -> npt.NDArray[np.float32]:
    """Check lesion shares (N,); without an array they are 0 for a negative bag, else NaN (not annotated).

    Raises:
        ValueError: another length, or values outside 0..1.
    """
    if array is None:
        return np.full(n, 0.0 if label == 0 else np.nan, np.float32)
    shares = array.reshape(-1).astype(np.float32) if array.size == n else array
    if shares.shape != (n,) or np.any((shares < 0) | (shares > 1)):
        raise ValueError(f"{where}: lesion shares are {array.dtype}{array.shape}, expected ({n},) in 0..1 or NaN")
    return shares


def reading_order(coords: Array) -> npt.NDArray[np.intp]:
    """Return the order (N,) by (y, x); rows at one position keep theirs."""
    return np.lexsort((coords[:, 0], coords[:, 1]))


def slide_geometry(coords: npt.NDArray[np.int32], attrs: InstanceAttrs) -> tuple[Array, Array]:
    """Compute lattice cells (N,2) int32 and neighbours (N,K) int32 of sorted positions (N,2)."""
    step = attrs.l0_step_px
    origin = np.array(attrs.grid_origin_l0 or (0, 0), np.int64)
    # Cells are (row, column), positions (x, y).
    grid = np.ascontiguousarray(((coords - origin) // step)[:, ::-1]).astype(np.int32)
    return grid, distance_neighbors(coords, math.sqrt(2) * step)


def scan_geometry(n: int) -> tuple[Array, Array]:
    """Return cells (slice index, 0) and the chain of a scan of n slices, (n,2) int32 each."""
    index = np.arange(n, dtype=np.int32)
    return np.stack([index, np.zeros(n, np.int32)], axis=1), chain_neighbors(n)


def grid_origin(coords: Array, grid: Array, step: int) -> tuple[int, int] | None:
    """Return the level-0 position (x, y) of cell (0, 0); None if the cells do not follow from the coordinates."""
    coords = coords.astype(np.int64)
    if np.array_equal(grid[:, ::-1], coords // step):
        return 0, 0
    offsets = np.unique(coords - grid[:, ::-1].astype(np.int64) * step, axis=0)
    return (int(offsets[0, 0]), int(offsets[0, 1])) if len(offsets) == 1 else None


def check_step(coords: npt.NDArray[np.int32], step: int, path: Path) -> None:
    """Refuse a lattice step larger than the distance of neighbouring tiles: there would be too many neighbours.

    Args:
        coords: (N,2) level-0 px (x, y), sorted by row.
        step: of the lattice, level-0 px.
        path: file of the coordinates, for messages.

    Raises:
        ValueError: most tiles of a row stand closer than `step`.
    """
    if len(coords) <= LEAST_GAPS:
        return
    same_row = np.diff(coords[:, 1]) == 0
    gaps = np.diff(coords[:, 0])[same_row]
    gaps = gaps[gaps > 0]
    if len(gaps) < LEAST_GAPS:
        return
    distances, counts = np.unique(gaps, return_counts=True)
    usual = int(distances[counts.argmax()])
    if usual < step and 2 * counts.max() > len(gaps):
        raise ValueError(
            f"{path}: tiles of a row stand {usual} px apart, not {step}: they overlap; give --step-px {usual}"
        )
