"""From positions alone to the stored geometry: order, lattice cells, neighbours, and what an export says about them.

No tool's file holds neighbours, so an import makes them again: instances within sqrt 2 lattice steps (for one lattice
exactly its eight neighbours, for CLAM's overlapping lattices their true distance), the chain of slices for a scan.
Rows of slides are sorted by (y, x) as everywhere here; equal positions keep their order. Level-0 px throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.exchange.model import Array

# a lattice is doubted only where enough tiles stand in a row
LEAST_GAPS = 8


def as_coords(found: Array, where: str) -> npt.NDArray[np.int32]:
    """Level-0 positions (N,2) int32 from whatever numbers a tool wrote.

    Raises:
        ValueError: another shape, fractions of a pixel, or numbers beyond 32 bits.
    """
    if found.size == 0:
        return np.empty((0, 2), np.int32)
    if found.ndim != 2 or found.shape[1] != 2:
        raise ValueError(f"{where}: coordinates are {found.dtype}{found.shape}, expected (N, 2) with x, y at level 0")
    if found.dtype.kind == "f" and not (np.isfinite(found).all() and (found == np.round(found)).all()):
        raise ValueError(f"{where}: coordinates hold fractions or NaN, expected whole level-0 pixels")
    limit = np.iinfo(np.int32)
    if found.min() < limit.min or found.max() > limit.max:
        raise ValueError(f"{where}: coordinates span {found.min()}..{found.max()}, expected 32-bit pixels")
    return np.ascontiguousarray(found.astype(np.int32))


def as_features(found: Array, n: int, where: str) -> Array:
    """Features (N,P) float16 or float32.

    Raises:
        ValueError: another shape or length, integers, NaN or infinity.
    """
    if found.size == 0 and n == 0:
        return found.reshape(0, found.shape[-1] if found.ndim == 2 else 0).astype(np.float32)
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 2 or found.dtype.kind != "f" or found.shape[1] == 0:
        raise ValueError(f"{where}: features are {found.dtype}{found.shape}, expected floats of shape (N, P)")
    if len(found) != n:
        raise ValueError(f"{where}: {len(found)} rows of features for {n} coordinates; one of the files is not whole")
    kept = found if found.dtype in (np.float16, np.float32) else found.astype(np.float32)
    if not np.isfinite(kept).all():
        rows = np.flatnonzero(~np.isfinite(kept).all(axis=1))
        raise ValueError(f"{where}: features of {len(rows)} rows hold NaN or infinity (first: row {rows[0]})")
    return kept


def as_coverage(found: Array | None, n: int, label: int | None, where: str) -> npt.NDArray[np.float32]:
    """Lesion shares (N,); where nothing is carried 0 for a negative bag, else NaN (not annotated).

    Raises:
        ValueError: another length, or values outside 0..1.
    """
    if found is None:
        return np.full(n, 0.0 if label == 0 else np.nan, np.float32)
    shares = found.reshape(-1).astype(np.float32) if found.size == n else found
    if shares.shape != (n,) or np.any((shares < 0) | (shares > 1)):
        raise ValueError(f"{where}: lesion shares are {found.dtype}{found.shape}, expected ({n},) in 0..1 or NaN")
    return shares


def reading_order(coords: Array) -> npt.NDArray[np.intp]:
    """Order by (y, x); rows at one position keep theirs."""
    return np.lexsort((coords[:, 0], coords[:, 1]))


def slide_geometry(coords: npt.NDArray[np.int32], attrs: Mapping[str, Any]) -> tuple[Array, Array]:
    """Lattice cells (N,2) int32 and neighbours (N,K) int32 of sorted positions."""
    from preprocessing.instances.graph import distance_neighbors

    step = int(attrs["l0_step_px"])
    origin = np.array(attrs.get("grid_origin_l0") or (0, 0), np.int64)
    grid = np.ascontiguousarray(((coords - origin) // step)[:, ::-1]).astype(np.int32)
    return grid, distance_neighbors(coords, math.sqrt(2) * step)


def scan_geometry(n: int) -> tuple[Array, Array]:
    """Cells (slice index, 0) and the chain of a scan of n slices."""
    from preprocessing.instances.graph import chain_neighbors

    index = np.arange(n, dtype=np.int32)
    return np.stack([index, np.zeros(n, np.int32)], axis=1), chain_neighbors(n)


def grid_origin(coords: Array, grid: Array, step: int) -> list[int] | None:
    """Level-0 origin (x, y) from which the cells count, so that cells come back; None if there is no single one."""
    coords = coords.astype(np.int64)
    if np.array_equal(grid[:, ::-1], coords // step):
        return [0, 0]
    offsets = np.unique(coords - grid[:, ::-1].astype(np.int64) * step, axis=0)
    return [int(v) for v in offsets[0]] if len(offsets) == 1 else None


def check_step(coords: npt.NDArray[np.int32], step: int, path: Path) -> None:
    """Refuses a lattice step that is larger than the tiles' real distance: neighbours would be too many.

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
    found, counts = np.unique(gaps, return_counts=True)
    usual = int(found[counts.argmax()])
    if usual < step and 2 * counts.max() > len(gaps):
        raise ValueError(
            f"{path}: tiles of a row stand {usual} px apart, not {step}: they overlap; give --step-px {usual}"
        )
