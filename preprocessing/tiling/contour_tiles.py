"""Choose the tiles of a slide that become instances: CLAM's patching per contour, or one lattice for the whole slide.

A tile is accepted if its contour function passes and its centre is not strictly inside a kept hole. All coordinates are
level-0 (x, y) of the top-left corner, rows sorted by (y, x); grid cells are (row, col) = (y, x) // level-0 step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from preprocessing.common.options import WsiOptions
from preprocessing.slides.slide import nominal_downsample
from preprocessing.tiling.tissue import Contour

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TilePlan:
    """How one tile is read and how far it reaches.

    Attributes:
        level: pyramid level read.
        read_px: side of the region read, px of `level`.
        tile_px: side of the encoder's input, px; smaller than `read_px` if the level is finer than the target.
        downsample: whole-numbered downsample of `level`; with `snap: level` coordinates are multiples of it.
        footprint: side of a tile, level-0 px.
        step: lattice step, level-0 px.
    """

    level: int
    read_px: int
    tile_px: int
    downsample: int
    footprint: int
    step: int


@dataclass
class Tiles:
    """Accepted tiles, rows sorted by (y, x).

    Attributes:
        coords: (N, 2) int32 level-0 (x, y).
        grid: (N, 2) int32 (row, col).
        contour: (N,) int32, index of the contour that accepted the tile.
        shared_cells: number of tiles that share their cell with another tile.
    """

    coords: npt.NDArray[np.int32]
    grid: npt.NDArray[np.int32]
    contour: npt.NDArray[np.int32]
    shared_cells: int


def plan_tiles(downsamples: Sequence[float], mpp: float, options: WsiOptions, name: str) -> TilePlan:
    """Choose level and sizes.

    With `target_mpp` a level within `mpp_tolerance` of it is used unchanged; without such a level the coarsest finer
    one is shrunk. A coarser level is never enlarged.

    Args:
        downsamples: per level, as the file states them.
        mpp: um per level-0 px.
        options: tile sizes and level or target.
        name: the file, for messages.

    Raises:
        ValueError: no such level, a level whose downsample is not a whole number within 5 %, or a target finer than
            the slide.
    """
    target, read_px = options.target_mpp, options.tile_px
    if target is None:
        level = _read_level(downsamples, options, name)
    else:
        level = _level_for_target(downsamples, mpp, target, options, name)
        scale = target / (mpp * downsamples[level])
        if not _close_enough(scale, options):
            read_px = round(options.tile_px * scale)
    downsample = nominal_downsample(downsamples[level])
    assert downsample is not None
    step = max(round(options.step_px * read_px / options.tile_px), 1) * downsample
    return TilePlan(level, read_px, options.tile_px, downsample, read_px * downsample, step)


def _read_level(downsamples: Sequence[float], options: WsiOptions, name: str) -> int:
    level = options.read_level
    if level is None:
        raise ValueError(f"{name}: neither read_level nor target_mpp is set, expected one of them")
    if level >= len(downsamples):
        raise ValueError(f"{name}: read_level {level} asked, found levels 0..{len(downsamples) - 1}")
    if nominal_downsample(downsamples[level]) is None:
        raise ValueError(
            f"{name}: level {level} has downsample {downsamples[level]:g}, expected a whole number within 5 %; choose "
            "another read_level"
        )
    return level


def _level_for_target(downsamples: Sequence[float], mpp: float, target: float, options: WsiOptions, name: str) -> int:
    levels = [i for i, ds in enumerate(downsamples) if nominal_downsample(ds) is not None]
    if options.read_level is not None:
        levels = [_read_level(downsamples, options, name)]
    scale = {i: target / (mpp * downsamples[i]) for i in levels}
    near = [i for i in levels if _close_enough(scale[i], options)]
    if near:
        return min(near, key=lambda i: abs(scale[i] - 1))
    finer = [i for i in levels if scale[i] > 1]
    if not finer:
        raise ValueError(
            f"{name}: finest level offered is {mpp * downsamples[levels[0]]:g} um/px, target_mpp {target:g} is finer; "
            "tiles are never enlarged: choose a coarser target_mpp, exclude the slide, or give its true `mpp` in the "
            "manifest (`smmil predict --mpp`) if the file states a wrong one"
        )
    return min(finer, key=lambda i: scale[i])


def _close_enough(scale: float, options: WsiOptions) -> bool:
    """Return whether the mpp of a level (= target / scale) is within the tolerance of the target."""
    return abs(1 / scale - 1) <= options.mpp_tolerance


def contour_tiles(
    contours: Sequence[Contour], plan: TilePlan, dimensions: tuple[int, int], options: WsiOptions
) -> Tiles:
    """Place one lattice per contour, from the corner of its bounding box (CLAM).

    The lattices of two contours are not aligned, so tiles may overlap or coincide; all are kept and counted.

    Args:
        contours: tissue, level-0.
        plan: sizes.
        dimensions: (width, height) of level 0.
        options: contour function, corner rule and padding rule. `snap: level` moves a corner up and left to a whole
            pixel of the read level, `snap: clam` keeps it, possibly between two pixels. With padding tiles may overhang
            the slide; without, a tile's origin stays below the slide's size - footprint + 1.
    """
    rows = [np.empty((0, 3), np.int64)]
    for number, contour in enumerate(contours):
        low, high = _box(contour)
        if options.snap == "level":
            low = low - low % plan.downsample
        stop = high if options.use_padding else np.minimum(high, np.array(dimensions) - plan.footprint + 1)
        xs, ys = (np.arange(low[axis], stop[axis], plan.step, dtype=np.int64) for axis in (0, 1))
        rows.append(_accepted(contour, xs, ys, plan, options.contour_fn, number))
    return _sorted_tiles(np.concatenate(rows), plan)


def global_tiles(
    contours: Sequence[Contour], plan: TilePlan, dimensions: tuple[int, int], options: WsiOptions
) -> Tiles:
    """Place one lattice from (0, 0) for the slide, each cell at most once, of the first contour that accepts it.

    Args as for `contour_tiles`; only with padding may the last column and row overhang the slide. The origin of a cell
    (row, column) is (column, row) * step.
    """
    last = np.array(dimensions) - (1 if options.use_padding else plan.footprint)
    parts = [np.empty((0, 3), np.int64)]
    for number, contour in enumerate(contours):
        low, high = _box(contour)
        first_cell = np.maximum((low - plan.footprint) // plan.step + 1, 0)
        last_cell = np.minimum(high - 1, last) // plan.step
        xs, ys = (np.arange(first_cell[a], last_cell[a] + 1, dtype=np.int64) * plan.step for a in (0, 1))
        parts.append(_accepted(contour, xs, ys, plan, options.contour_fn, number))
    rows = np.concatenate(parts)
    _, first = np.unique(rows[:, :2], axis=0, return_index=True)
    return _sorted_tiles(rows[first], plan)


def _box(contour: Contour) -> tuple[Ints, Ints]:
    """Return the bounding box as (low, high), high exclusive as in OpenCV."""
    outer = contour.outer.astype(np.int64)
    return outer.min(axis=0), outer.max(axis=0) + 1


def _accepted(contour: Contour, xs: Ints, ys: Ints, plan: TilePlan, contour_fn: str, number: int) -> Ints:
    """Return the accepted lattice points of one contour as (n, 3) rows x, y, contour index."""
    keep = contour_passes(contour, xs, ys, plan.footprint, contour_fn)
    for hole in contour.holes:
        keep &= points_in_polygon(hole, xs + plan.footprint / 2, ys + plan.footprint / 2) <= 0
    row, column = np.nonzero(keep)
    return np.stack([xs[column], ys[row], np.full(len(row), number)], axis=1)


def contour_passes(contour: Contour, xs: Ints, ys: Ints, footprint: int, contour_fn: str) -> npt.NDArray[np.bool_]:
    """Apply CLAM's contour functions to a lattice of tile origins; points on the contour count as inside.

    `basic`: the origin. `center`: origin + footprint // 2. `four_pt`: any of the four points at centre +- shift,
    shift = int((footprint // 2) * 0.5), or the centre if the shift is 0. `four_pt_hard`: all four.

    Returns:
        (Y, X) bool, row i for `ys[i]`, column j for `xs[j]`.
    """
    half = footprint // 2
    shift = int(half * 0.5)
    if contour_fn == "basic":
        offsets = [(0, 0)]
    elif contour_fn == "center" or shift == 0:
        offsets = [(half, half)]
    else:
        offsets = [(half + dx, half + dy) for dx in (-shift, shift) for dy in (-shift, shift)]
    inside = np.stack([points_in_polygon(contour.outer, xs + dx, ys + dy) >= 0 for dx, dy in offsets])
    return np.asarray(inside.all(axis=0) if contour_fn == "four_pt_hard" else inside.any(axis=0))


def points_in_polygon(
    polygon: npt.NDArray[np.integer], xs: npt.NDArray[np.number], ys: npt.NDArray[np.number]
) -> npt.NDArray[np.int8]:
    """Test the lattice ys (Y,) x xs (X,) against a closed polygon (V, 2) of (x, y), like `cv2.pointPolygonTest`.

    The polygon may cross itself (even-odd rule) or have no area.

    Returns:
        (Y, X) int8: 1 inside, 0 on an edge or a vertex, -1 outside.
    """
    # repeating the first vertex changes nothing and gives short contours the four points that a ring needs
    area = shapely.Polygon(np.concatenate([polygon, polygon[[0, 0, 0]]]))
    shapely.prepare(area)
    x, y = np.meshgrid(xs, ys)
    inside, touched = shapely.contains_xy(area, x, y), shapely.intersects_xy(area, x, y)
    return np.where(inside, 1, np.where(touched, 0, -1)).astype(np.int8)


def _sorted_tiles(rows: Ints, plan: TilePlan) -> Tiles:
    rows = rows[np.lexsort((rows[:, 2], rows[:, 0], rows[:, 1]))]
    coords = rows[:, :2].astype(np.int32)
    grid = np.ascontiguousarray(coords[:, ::-1] // plan.step).astype(np.int32)
    return Tiles(coords, grid, rows[:, 2].astype(np.int32), count_shared(grid))


def count_shared(grid: npt.NDArray[np.int32]) -> int:
    """Count the rows of `grid` (N, 2) whose cell occurs more than once."""
    counts = np.unique(grid, axis=0, return_counts=True)[1]
    return int(counts[counts > 1].sum())
