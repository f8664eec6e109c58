"""Neighbour tables of one bag: 8 lattice neighbours, neighbours by true distance, or the slice chain of a scan.

A table is `(N, K) int32`: row i holds the indices of the neighbours of instance i in ascending order, padded with -1.
Every table is symmetric (j in row i <=> i in row j) and has no self loops or duplicates. Weights and normalisation are
computed in training when bags are loaded.

* `grid_neighbors`: one lattice, edge <=> Chebyshev distance 1 between (row, col) cells (Euclidean <= sqrt 2 steps).
* `distance_neighbors`: several overlapping lattices, edge <=> Euclidean distance of the level-0 origins <= reach;
  K grows with the fullest row, so nothing is dropped.
* `chain_neighbors`: slice i and i +- 1 in anatomical order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GRID_K = 8
CHAIN_K = 2
# A dense look-up raster is fastest unless few instances are far apart; beyond this many cells per instance a binary
# search needs less memory.
_RASTER_CELLS_PER_INSTANCE = 64
_RASTER_CELLS_FREE = 1 << 20
_OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def grid_neighbors(grid: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Return the eight-neighbourhood of lattice cells.

    Args:
        grid: (N, 2) integer cells (row, col), each cell at most once; may be negative and in any order.

    Returns:
        (N, 8) int32 neighbour table.

    Raises:
        ValueError: wrong shape or dtype, or two instances in one cell (use `distance_neighbors` for those).
    """
    _check_rank(grid, "grid")
    n = len(grid)
    if n == 0:
        return np.empty((0, GRID_K), np.int32)
    cells = grid.astype(np.int64) - grid.min(axis=0).astype(np.int64)
    height, width = (int(v) for v in cells.max(axis=0) + 1)
    # A border of one empty cell makes every key of a neighbour valid and keeps rows from wrapping into each other.
    pitch = width + 2
    keys = (cells[:, 0] + 1) * pitch + cells[:, 1] + 1
    steps = np.array([row * pitch + col for row, col in _OFFSETS], np.int64)
    if (height + 2) * pitch <= max(_RASTER_CELLS_FREE, _RASTER_CELLS_PER_INSTANCE * n):
        table = _lookup_raster(keys, steps, (height + 2) * pitch)
    else:
        table = _lookup_sorted(keys, steps)
    table.view(np.uint32).sort(axis=1)  # -1 as unsigned is the largest number, so padding ends up last
    return table


def _lookup_raster(keys: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int32]:
    """Look neighbours up in a dense raster of `size` cells; `-1` where there is none."""
    index = np.arange(len(keys), dtype=np.int32)
    raster = np.full(size, -1, np.int32)
    raster[keys] = index
    if not np.array_equal(raster[keys], index):
        _raise_shared_cell(keys)
    table: npt.NDArray[np.int32] = raster[keys[:, None] + steps]
    return table


def _lookup_sorted(keys: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Look neighbours up by binary search in the sorted keys; `-1` where there is none."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if np.any(ordered[1:] == ordered[:-1]):
        _raise_shared_cell(keys)
    targets = keys[:, None] + steps
    slot = np.minimum(np.searchsorted(ordered, targets), len(keys) - 1)
    return np.where(ordered[slot] == targets, order[slot], -1).astype(np.int32)


def _raise_shared_cell(keys: npt.NDArray[np.int64]) -> None:
    shared = len(keys) - len(np.unique(keys))
    raise ValueError(
        f"grid: {shared} of {len(keys)} instances share a lattice cell with another one, expected one instance per "
        "cell; overlapping lattices need distance_neighbors"
    )


def distance_neighbors(coords: npt.NDArray[np.number], reach_l0_px: float) -> npt.NDArray[np.int32]:
    """Return neighbours by distance, for tiles that do not lie on one lattice.

    Args:
        coords: (N, 2) origins (x, y) in level-0 px; equal origins are neighbours of each other.
        reach_l0_px: largest distance of two neighbours in level-0 px, e.g. sqrt(2) tile footprints.

    Returns:
        (N, K) int32 neighbour table, K = max(8, largest degree).

    Raises:
        ValueError: wrong shape, or a reach that is not positive and finite.
    """
    _check_rank(coords, "coords", integer=False)
    if not (np.isfinite(reach_l0_px) and reach_l0_px > 0):
        raise ValueError(f"reach_l0_px is {reach_l0_px}, expected a positive finite number of level-0 pixels")
    n = len(coords)
    if n < 2:
        return np.full((n, GRID_K), -1, np.int32)
    from scipy.spatial import cKDTree

    # The relative slack includes diagonal neighbours at exactly sqrt(2) footprints despite rounding of the root.
    tree = cKDTree(np.ascontiguousarray(coords, dtype=np.float64))
    pairs = tree.query_pairs(float(reach_l0_px) * (1.0 + 1e-9), output_type="ndarray").astype(np.int64)
    source = np.concatenate([pairs[:, 0], pairs[:, 1]])
    target = np.concatenate([pairs[:, 1], pairs[:, 0]])
    order = np.argsort(source * n + target, kind="stable")
    source, target = source[order], target[order]
    degree = np.bincount(source, minlength=n)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    table = np.full((n, max(GRID_K, int(degree.max()))), -1, np.int32)
    table[source, np.arange(len(source)) - first[source]] = target
    return table


def chain_neighbors(n: int) -> npt.NDArray[np.int32]:
    """Return the neighbours in a chain of `n` slices in anatomical order, (n, 2) int32.

    Raises:
        ValueError: `n` is negative.
    """
    if n < 0:
        raise ValueError(f"n is {n}, expected the number of slices, at least 0")
    table = np.full((n, CHAIN_K), -1, np.int32)
    if n > 1:
        index = np.arange(n, dtype=np.int32)
        table[:, 0], table[:, 1] = index - 1, index + 1
        table[0] = (1, -1)
        table[-1] = (n - 2, -1)
    return table


def _check_rank(array: npt.NDArray[np.number], name: str, *, integer: bool = True) -> None:
    wrong_type = integer and not np.issubdtype(array.dtype, np.integer)
    if array.ndim != 2 or array.shape[1] != 2 or wrong_type:
        kind = "integers" if integer else "numbers"
        raise ValueError(f"{name} is {array.dtype}{array.shape}, expected {kind} of shape (N, 2)")
