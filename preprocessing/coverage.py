"""Exact share of square tiles inside a polygon, all tiles and edges at once: geometry in closed form, no raster.

The area of a polygon inside a box is an integral over its outline (Green): with outlines running counter-clockwise in
(x, y), holes clockwise, and a box [x0, x0 + s] x [y0, y0 + s],

    area = sum over edges of the integral over y in the box of clip(x(y) - x0, 0, s) dy.

Per edge clipped to the box's rows this is dy times the mean of a clipped linear function: nothing for an edge to the
left of the box, s dy for one to its right, and a trapezium between. Edges to the right are summed up by differences, so
work grows with the pairs of an edge and a tile it passes, not with edges times tiles.

Shapes: E edges, N tiles, R rows of tiles of one y; the result is (N,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# What rounding of sums of 1e5 px leaves behind; less than a ten-millionth of a square pixel of a tile.
_ROUNDING = 1e-12
# Bounds the memory of one step: so many pairs of an edge and a row of tiles, or of a piece and a tile.
_PAIRS = 1 << 18


def shares(lesion: BaseGeometry, coords: npt.NDArray[np.integer], footprint: int) -> Floats:
    """Share of each tile inside a polygon.

    Args:
        lesion: valid (multi)polygon, level-0 px.
        coords: (N, 2) top-left corners (x, y), level-0 px, in any order, also overlapping.
        footprint: side of a tile, level-0 px.

    Returns:
        (N,) float64 in [0, 1]; exactly 0 and 1 for tiles wholly outside and inside.
    """
    edges = _edges(lesion)
    if len(coords) == 0 or len(edges) == 0:
        return np.zeros(len(coords))
    tiles = _Tiles(np.asarray(coords, np.int64), int(footprint))
    area = np.zeros(len(coords))
    for part in _parts(edges, tiles.rows_of(edges)):
        row, piece = _clip_to_rows(part, tiles)
        area += tiles.to_the_right(row, piece)
        tiles.add_passed(area, row, piece)
    share = area / float(footprint) ** 2
    share[share < _ROUNDING] = 0.0
    share[share > 1.0 - _ROUNDING] = 1.0
    out = np.empty(len(coords))
    out[tiles.order] = share
    return out


def _edges(lesion: BaseGeometry) -> Floats:
    """(E, 4) x0, y0, x1, y1 of all edges that are not horizontal; outlines counter-clockwise, holes clockwise."""
    import shapely

    if lesion.is_empty:
        return np.empty((0, 4))
    polygons = shapely.get_parts(lesion)
    rings = shapely.get_rings(polygons)
    holes = shapely.get_num_interior_rings(polygons)
    outer = np.zeros(len(rings), bool)
    outer[np.cumsum(holes + 1) - holes - 1] = True
    points, ring = shapely.get_coordinates(rings, return_index=True)
    same = ring[1:] == ring[:-1]
    start, end, owner = points[:-1][same], points[1:][same], ring[:-1][same]
    # relative to the ring's first point, as products of coordinates of 1e5 px lose digits
    origin = points[np.searchsorted(ring, owner)]
    a, b = start - origin, end - origin
    doubled = np.bincount(owner, a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], len(rings))
    flip = ((doubled > 0) != outer)[owner]
    start[flip], end[flip] = end[flip], start[flip].copy()
    edges = np.concatenate([start, end], axis=1)
    slanted: Floats = edges[edges[:, 1] != edges[:, 3]]
    return slanted


class _Tiles:
    """Tiles sorted by (y, x), as rows of one y each.

    Attributes:
        order: (N,) positions of the sorted tiles in the caller's order.
        side: of a tile, px.
        y: (R,) upper edges of the rows.
    """

    def __init__(self, coords: Ints, side: int) -> None:
        self.side = side
        self.order = np.lexsort((coords[:, 0], coords[:, 1]))
        self._x = coords[self.order, 0]
        self.y, self._row, counts = np.unique(coords[self.order, 1], return_inverse=True, return_counts=True)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        # one ascending key for (row, x), so that one binary search serves all rows; two spare columns at the ends
        self._left = int(self._x.min()) - 1
        self._pitch = int(self._x.max()) - self._left + 2
        self._keys = self._row * self._pitch + (self._x - self._left)

    def rows_of(self, edges: Floats) -> tuple[Ints, Ints]:
        """First row and number of rows that each edge reaches, (E,) each."""
        low, high = np.minimum(edges[:, 1], edges[:, 3]), np.maximum(edges[:, 1], edges[:, 3])
        first = np.searchsorted(self.y + self.side, low, side="right")
        last = np.searchsorted(self.y, high, side="left")
        return first, np.maximum(last - first, 0)

    def to_the_right(self, row: Ints, piece: Floats) -> Floats:
        """Area that pieces wholly to the right of a tile contribute: side times dy; (N,)."""
        left_x = np.minimum(piece[:, 0], piece[:, 2])
        # a piece counts for the tiles of its row before the first that is not wholly left of it
        end = self._position(row, np.floor(left_x - self.side) + 1)
        rises = np.bincount(end + row, piece[:, 3] - piece[:, 1], len(self._x) + len(self.y))
        total = np.cumsum(rises)
        whole = total[self._first[1:] + np.arange(len(self.y))]
        area: Floats = self.side * (whole[self._row] - total[np.arange(len(self._x)) + self._row])
        return area

    def add_passed(self, area: Floats, row: Ints, piece: Floats) -> None:
        """Adds what pieces contribute to the tiles that they pass, neither wholly left nor right of them."""
        low, high = np.minimum(piece[:, 0], piece[:, 2]), np.maximum(piece[:, 0], piece[:, 2])
        start = self._position(row, np.floor(low - self.side) + 1)
        count = self._position(row, np.ceil(high)) - start
        dy = piece[:, 3] - piece[:, 1]
        for some in _chunks(count):
            which, tile = _expand(start[some], count[some])
            left = self._x[tile]
            mean = _mean_clipped(low[some][which] - left, high[some][which] - left, float(self.side))
            area += np.bincount(tile, dy[some][which] * mean, len(area))

    def _position(self, row: Ints, x: Floats) -> Ints:
        """Of the first tile in a row whose left edge is at or beyond a whole-numbered x."""
        column = np.clip(x - self._left, 0, self._pitch - 1).astype(np.int64)
        return np.searchsorted(self._keys, row * self._pitch + column).astype(np.int64)


def _mean_clipped(low: Floats, high: Floats, side: float) -> Floats:
    """Mean of clip(x, 0, side) over x in [low, high]; stays accurate where the two are nearly equal."""
    bottom, top = np.clip(low, 0.0, side), np.clip(high, 0.0, side)
    span = np.where(high > low, high - low, 1.0)
    return bottom + (top - bottom) * ((top - bottom) / 2 + (high - top)) / span


def _parts(edges: Floats, rows: tuple[Ints, Ints]) -> list[tuple[Floats, Ints, Ints]]:
    """Edges with their rows, in parts of bounded memory."""
    return [(edges[some], rows[0][some], rows[1][some]) for some in _chunks(rows[1])]


def _chunks(counts: Ints) -> list[slice]:
    """Consecutive slices with a bounded sum of counts (a single one may exceed it)."""
    if len(counts) == 0:
        return []
    part = (np.cumsum(counts) - counts) // _PAIRS
    cuts = [0, *(np.flatnonzero(part[1:] != part[:-1]) + 1).tolist(), len(counts)]
    return [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _expand(start: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Pairs (i, start[i]), (i, start[i] + 1), ... count[i] times."""
    which = np.repeat(np.arange(len(count)), count)
    return which, np.arange(len(which)) + (start - (np.cumsum(count) - count))[which]


def _clip_to_rows(part: tuple[Floats, Ints, Ints], tiles: _Tiles) -> tuple[Ints, Floats]:
    """Cuts edges at the borders of the rows of tiles: row (P,) and piece (P, 4) x0, y0, x1, y1."""
    edges, first, count = part
    which, row = _expand(first, count)
    x0, y0, x1, y1 = edges[which].T
    top = tiles.y[row].astype(np.float64)
    piece = np.empty((len(which), 4))
    for column, end in ((0, y0), (2, y1)):
        y = np.clip(end, top, top + tiles.side)
        before, after = (y - y0) / (y1 - y0), (y1 - y) / (y1 - y0)
        # from the nearer end: the ends themselves come out exactly
        piece[:, column] = np.where(before < after, x0 + before * (x1 - x0), x1 - after * (x1 - x0))
        piece[:, column + 1] = y
    return row, piece
