"""Read the pixels of stored tiles, (tile_px, tile_px, 3) uint8, from a bag's coordinates and attributes.

Tiles are read at the recorded level and size. If that level is finer than the target they are shrunk, never enlarged.
Half-overlapping windows are assembled from cells that are decoded and shrunk once. This is bit-identical to shrinking
every window, because an integer box mean depends on its box only.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import LEVEL_TOLERANCE, Slide, open_slide
from preprocessing.store.attrs import InstanceAttrs

Image = npt.NDArray[np.uint8]
OnBadTile = Callable[[int, TileReadError], None]
WHITE = 255
_CACHE_BYTES = 256 << 20

log = logging.getLogger(__name__)


class ReadTile(Protocol):
    """Read the tile at level-0 (x, y), into `out` if its shape and type fit."""

    def __call__(self, x: int, y: int, out: Image | None = None) -> Image:
        """Return the tile, (tile_px, tile_px, 3)."""
        ...


def shrink(region: Image, side: int, resize_filter: str) -> Image:
    """Shrink a square region to `side` px.

    Args:
        region: (s, s, 3) uint8, s >= side.
        side: target, px.
        resize_filter: `none`, `area` (box mean) or `linear` (OpenCV's; for an exact half a 2 x 2 mean).

    Raises:
        ValueError: an unknown filter, or `none` with another size.
    """
    if region.shape[0] == side:
        return region
    filters = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}
    if resize_filter not in filters or region.shape[0] < side:
        raise ValueError(f"resize_filter {resize_filter!r} for {region.shape[0]} -> {side} px, expected area or linear")
    return np.asarray(cv2.resize(region, (side, side), interpolation=filters[resize_filter]), np.uint8)


def read_tile(slide: Slide, attrs: InstanceAttrs, l0_x: int, l0_y: int, out: Image | None = None) -> Image:
    """Read one tile.

    Args:
        slide: open slide; several threads may read it.
        attrs: attributes of the bag.
        l0_x: left edge, level-0 px.
        l0_y: top edge, level-0 px.
        out: array to reuse for the tile if its shape and type fit; its content is lost.

    Returns:
        (tile_px, tile_px, 3) uint8, `out` or a new array.

    Raises:
        TileReadError: the region cannot be decoded.
    """
    size = (attrs.read_px, attrs.read_px)
    if attrs.snap == "clam" and (l0_x % attrs.read_downsample or l0_y % attrs.read_downsample):
        # between two pixels of the level OpenSlide interpolates, as it does for CLAM
        region = slide.openslide_rgb(int(l0_x), int(l0_y), attrs.read_level, size)
    else:
        region = slide.read(int(l0_x), int(l0_y), attrs.read_level, size, out=out)
    return shrink(region, attrs.tile_px, str(attrs.resize_filter))


def iter_tiles(
    path: Path | str,
    attrs: InstanceAttrs,
    coords: npt.NDArray[np.integer],
    *,
    mpp_override: float | None = None,
    on_bad_tile: OnBadTile | None = None,
) -> Generator[Image, Image | None, None]:
    """Iterate over all tiles of a bag, in the order of `coords`.

    An array that is sent to the generator may be reused for the next tile.

    Args:
        path: the slide.
        attrs: attributes of the bag from `wsi_instances`.
        coords: (N, 2) level-0 (x, y).
        mpp_override: replaces the file's resolution; the geometry is recorded and does not change.
        on_bad_tile: called with (position, error) for every unreadable tile; the tile is white.

    Yields:
        (tile_px, tile_px, 3) uint8.

    Raises:
        ValueError: the file is not the slide the bag was made from, or more tiles are unreadable than allowed.
    """
    allowed, side, bad = attrs.max_bad_tiles, attrs.tile_px, 0
    out: Image | None = None
    with open_slide(path, mpp_override=mpp_override, require_mpp=False) as slide:
        check_same_slide(slide, attrs)
        read = tile_source(slide, attrs)
        for position, (x, y) in enumerate(np.asarray(coords).tolist()):
            try:
                tile = read(x, y, out)
            except TileReadError as error:
                bad += 1
                if on_bad_tile is not None:
                    on_bad_tile(position, error)
                if bad > allowed:
                    raise ValueError(f"{error}; {bad} unreadable tiles, {allowed} allowed by max_bad_tiles") from error
                log.warning("tile %d of %s is unreadable and replaced by white: %s", position, path, error)
                tile = np.full((side, side, 3), WHITE, np.uint8)
            out = yield tile


def check_same_slide(slide: Slide, attrs: InstanceAttrs) -> None:
    """Check that a file has the recorded level-0 size and read level.

    Raises:
        ValueError: size or downsample of the read level differ.
    """
    recorded = attrs.dimensions
    if recorded is not None and recorded != slide.dimensions:
        raise ValueError(
            f"{slide.path}: level 0 is {slide.dimensions[0]} x {slide.dimensions[1]} px, the bag was made from "
            f"{recorded[0]} x {recorded[1]} px; the file was replaced: run the instances stage again"
        )
    downsamples, level = slide.level_downsamples, attrs.read_level
    if level >= len(downsamples) or abs(downsamples[level] / attrs.read_downsample - 1) > LEVEL_TOLERANCE:
        raise ValueError(
            f"{slide.path}: the bag was read from level {level} of downsample {attrs.read_downsample:g}, found "
            f"{', '.join(f'{value:.4g}' for value in downsamples)}; run the instances stage again"
        )


def tile_source(slide: Slide, attrs: InstanceAttrs) -> ReadTile:
    """Return the reader of a bag's tiles: plain, or from shared cells where windows overlap."""
    read_px, tile_px, step = attrs.read_px, attrs.tile_px, attrs.l0_step_px
    ratio = read_px // tile_px
    overlapping = attrs.recipe == "panda" and attrs.read_level == 0 and step < read_px
    if overlapping and read_px % tile_px == 0 and read_px % step == 0 and step % ratio == 0:
        return _CellReader(slide, read_px, tile_px, step, str(attrs.resize_filter)).tile
    return lambda x, y, out=None: read_tile(slide, attrs, x, y, out)


class _CellReader:
    """Assemble windows from cells of one lattice step, with a cache of the last rows; not thread-safe."""

    def __init__(self, slide: Slide, read_px: int, tile_px: int, step: int, resize_filter: str) -> None:
        self._slide, self._step, self._filter = slide, step, resize_filter
        self._per_side = read_px // step
        self._side = tile_px // self._per_side
        self._cells: OrderedDict[tuple[int, int], Image] = OrderedDict()
        cells_of_rows = (self._per_side + 1) * (slide.dimensions[0] // step + 2)
        self._capacity = max(min(cells_of_rows, _CACHE_BYTES // (3 * self._side**2)), self._per_side**2)

    def tile(self, x: int, y: int, out: Image | None = None) -> Image:
        """Return the window at level-0 (x, y), (tile_px, tile_px, 3)."""
        side, k = self._side, self._per_side
        if out is None or out.shape != (side * k, side * k, 3) or out.dtype != np.uint8:
            out = np.empty((side * k, side * k, 3), np.uint8)
        for i in range(k):
            for j in range(k):
                cell = self._cell(x + j * self._step, y + i * self._step)
                out[i * side : (i + 1) * side, j * side : (j + 1) * side] = cell
        return out

    def _cell(self, x: int, y: int) -> Image:
        cell = self._cells.get((x, y))
        if cell is None:
            region = self._slide.read(x, y, 0, (self._step, self._step))
            cell = shrink(region, self._side, self._filter)
            self._cells[x, y] = cell
            if len(self._cells) > self._capacity:
                self._cells.popitem(last=False)
        else:
            self._cells.move_to_end((x, y))
        return cell
