"""Exact point-in-polygon tests for whole lattices of integer points.

The same answer as OpenCV's `pointPolygonTest` on an integer contour (even-odd rule; 0 on edges and vertices), without
testing every point against every edge: each edge is intersected with the lattice rows it spans, in integer arithmetic,
and a row's points are filled from its crossings. Cost: crossings + points, instead of edges x points.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
_BLOCK_POINTS = 4_000_000


def lattice_test(polygon: npt.NDArray[np.integer], xs: Ints, ys: Ints) -> npt.NDArray[np.int8]:
    """Test the lattice ys x xs against a closed polygon.

    Args:
        polygon: (n, 2) integer vertices (x, y), n >= 1; coordinates below 2**30.
        xs: (nx,) ascending integers.
        ys: (ny,) ascending integers.

    Returns:
        (ny, nx) int8: +1 inside, 0 on an edge or a vertex, -1 outside.
    """
    start = np.asarray(polygon, np.int64)
    end = np.roll(start, -1, axis=0)
    out = np.empty((len(ys), len(xs)), np.int8)
    rows = max(_BLOCK_POINTS // max(len(xs), 1), 1)
    for first in range(0, len(ys), rows):
        out[first : first + rows] = _test_rows(start, end, xs, ys[first : first + rows])
    return out


def _test_rows(start: Ints, end: Ints, xs: Ints, ys: Ints) -> npt.NDArray[np.int8]:
    down = start[:, 1] <= end[:, 1]
    low, high = np.where(down[:, None], start, end), np.where(down[:, None], end, start)
    # an edge owns its lower end and not its upper one, so that a vertex is crossed once; horizontal edges own no row
    first, last = np.searchsorted(ys, low[:, 1]), np.searchsorted(ys, high[:, 1])
    edge, row = _expand(first, last)
    rise, run = high[edge, 1] - low[edge, 1], high[edge, 0] - low[edge, 0]
    offset, rest = np.divmod((ys[row] - low[edge, 1]) * run, rise)
    crossing = low[edge, 0] + offset
    on_integer = rest == 0
    # points strictly left of the crossing are toggled
    left_of = np.searchsorted(xs, np.where(on_integer, crossing, crossing + 1))
    toggles = np.bincount(row * (len(xs) + 1) + left_of, minlength=len(ys) * (len(xs) + 1)).reshape(len(ys), -1)
    right_crossings = toggles[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    out = np.where(right_crossings % 2 == 1, 1, -1).astype(np.int8)
    slot = np.minimum(np.searchsorted(xs, crossing), len(xs) - 1)
    touched = on_integer & (xs[slot] == crossing)
    out[row[touched], slot[touched]] = 0
    _mark_runs(out, low, high, xs, ys)
    return out


def _mark_runs(out: npt.NDArray[np.int8], low: Ints, high: Ints, xs: Ints, ys: Ints) -> None:
    """Set 0 on horizontal edges and on the upper ends of edges, in place."""
    flat = low[:, 1] == high[:, 1]
    from_x = np.concatenate([np.minimum(low[flat, 0], high[flat, 0]), high[:, 0]])
    to_x = np.concatenate([np.maximum(low[flat, 0], high[flat, 0]), high[:, 0]])
    y = np.concatenate([low[flat, 1], high[:, 1]])
    row = np.searchsorted(ys, y)
    on_row = (row < len(ys)) & (ys[np.minimum(row, len(ys) - 1)] == y)
    first = np.searchsorted(xs, from_x[on_row])
    last = np.searchsorted(xs, to_x[on_row], side="right")
    index, column = _expand(first, last)
    out[row[on_row][index], column] = 0


def _expand(first: npt.NDArray[np.integer], last: npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Ranges first[i]..last[i]-1 as pairs (i, value)."""
    count = np.maximum(last - first, 0)
    index = np.repeat(np.arange(len(first), dtype=np.int64), count)
    before = np.cumsum(count) - count
    return index, np.arange(len(index), dtype=np.int64) - before[index] + first[index]
