"""Neighbour tables of one bag: 8 lattice neighbours, neighbours by true distance, or the slice chain of a scan.

A table is `(N, K) int32`: row i holds the indices of the neighbours of instance i in ascending order, padded with -1.
Every table is symmetric (j in row i <=> i in row j) and has no self loops or duplicates. Weights and normalisation are
computed in training when bags are loaded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GRID_K = 8
_OFFSETS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def grid_neighbors(grid: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Return the eight-neighbourhood of lattice cells: edge <=> Chebyshev distance 1.

    Args:
        grid: (N, 2) integer cells (row, col), each cell at most once; may be negative and in any order.

    Returns:
        (N, 8) int32 neighbour table.

    Raises:
        ValueError: two instances in one cell (use `distance_neighbors` for those).
    """
    if len(grid) == 0:
        return np.empty((0, GRID_K), np.int32)
    # A border of one empty cell makes every key of a neighbour valid and keeps rows from wrapping into each other.
    rows, columns = (grid.astype(np.int64) - grid.min(axis=0).astype(np.int64) + 1).T
    pitch = columns.max() + 2
    keys = rows * pitch + columns
    order = np.argsort(keys)
    ordered = keys[order]
    if shared := len(keys) - len(np.unique(keys)):
        raise ValueError(
            f"grid: {shared} of {len(keys)} instances share a lattice cell with another one, expected one instance per "
            "cell; overlapping lattices need distance_neighbors"
        )
    targets = keys[:, None] + np.array([row * pitch + column for row, column in _OFFSETS])
    slot = np.minimum(np.searchsorted(ordered, targets), len(keys) - 1)
    return _padding_last(np.where(ordered[slot] == targets, order[slot], -1).astype(np.int32))


def distance_neighbors(coords: npt.NDArray[np.number], reach_l0_px: float) -> npt.NDArray[np.int32]:
    """Return neighbours by distance, for tiles that do not lie on one lattice: edge <=> Euclidean distance <= reach.

    Args:
        coords: (N, 2) origins (x, y) in level-0 px; equal origins are neighbours of each other.
        reach_l0_px: largest distance of two neighbours in level-0 px, e.g. sqrt(2) tile footprints.

    Returns:
        (N, K) int32 neighbour table, K = max(8, largest degree), so that nothing is dropped.
    """
    # imported here, because commands that import this module load no scipy for --help
    from scipy.spatial import cKDTree

    n = len(coords)
    if n < 2:
        return np.full((n, GRID_K), -1, np.int32)
    # The relative slack includes diagonal neighbours at exactly sqrt(2) footprints despite rounding of the root.
    pairs = cKDTree(coords.astype(np.float64)).query_pairs(reach_l0_px * (1.0 + 1e-9), output_type="ndarray")
    source, target = np.concatenate([pairs, pairs[:, ::-1]]).T
    degree = np.bincount(source, minlength=n)
    table = np.full((n, max(GRID_K, degree.max())), -1, np.int32)
    table[np.arange(table.shape[1]) < degree[:, None]] = target[np.lexsort((target, source))]
    return table


def chain_neighbors(n: int) -> npt.NDArray[np.int32]:
    """Return the neighbours in a chain of `n` slices in anatomical order: slice i and i +- 1, (n, 2) int32."""
    index = np.arange(n, dtype=np.int32)
    table = np.stack([index - 1, index + 1], axis=1)
    table[-1:, 1] = -1
    return _padding_last(table)


def _padding_last(table: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Sort every row (N, K) in place; -1 read as unsigned is the largest number, so padding ends up last."""
    table.view(np.uint32).sort(axis=1)
    return table
