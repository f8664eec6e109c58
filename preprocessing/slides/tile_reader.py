"""Read the pixels of stored tiles, (tile_px, tile_px, 3) uint8, from a bag's coordinates and attributes.

Tiles are read at the recorded level and size. If that level is finer than the target they are shrunk, never enlarged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.slides.regions import Image, TileReadError
from preprocessing.slides.slide import LEVEL_TOLERANCE, Slide, open_slide
from preprocessing.store.attrs import InstanceAttrs

OnBadTile = Callable[[int, TileReadError], None]
WHITE = 255
# `linear` is OpenCV's; for an exact half it is a 2 x 2 mean
_FILTERS = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR}

log = logging.getLogger(__name__)


def read_tile(slide: Slide, attrs: InstanceAttrs, l0_x: int, l0_y: int) -> Image:
    """Read one tile, (tile_px, tile_px, 3) uint8.

    Args:
        slide: open slide; several threads may read it.
        attrs: attributes of the bag.
        l0_x: left edge, level-0 px.
        l0_y: top edge, level-0 px.

    Raises:
        TileReadError: the region cannot be decoded.
        ValueError: a filter that enlarges or that is unknown.
    """
    read_px, side = attrs.read_px, attrs.tile_px
    if attrs.snap == "clam" and (l0_x % attrs.read_downsample or l0_y % attrs.read_downsample):
        # between two pixels of the level OpenSlide interpolates, as it does for CLAM
        region = slide.openslide_rgb(int(l0_x), int(l0_y), attrs.read_level, (read_px, read_px))
    else:
        region = slide.read(int(l0_x), int(l0_y), attrs.read_level, (read_px, read_px))
    if read_px == side:
        return region
    if attrs.resize_filter not in _FILTERS or read_px < side:
        raise ValueError(f"resize_filter {attrs.resize_filter!r} for {read_px} -> {side} px, expected area or linear")
    return np.asarray(cv2.resize(region, (side, side), interpolation=_FILTERS[attrs.resize_filter]), np.uint8)


def iter_tiles(
    path: Path | str, attrs: InstanceAttrs, coords: npt.NDArray[np.integer], *, on_bad_tile: OnBadTile | None = None
) -> Generator[Image]:
    """Iterate over all tiles of a bag, in the order of `coords`.

    An array that is sent to the generator may be reused for the next tile.

    Args:
        path: the slide.
        attrs: attributes of the bag from `wsi_instances`.
        coords: (N, 2) level-0 (x, y).
        on_bad_tile: called with (position, error) for every unreadable tile; the tile is white.

    Yields:
        (tile_px, tile_px, 3) uint8.

    Raises:
        ValueError: the file is not the slide the bag was made from, or more tiles are unreadable than allowed.
    """
    allowed, side, bad = attrs.max_bad_tiles, attrs.tile_px, 0
    with open_slide(path, require_mpp=False) as slide:
        check_same_slide(slide, attrs)
        for position, (x, y) in enumerate(np.asarray(coords).tolist()):
            try:
                tile = read_tile(slide, attrs, x, y)
            except TileReadError as error:
                bad += 1
                if on_bad_tile is not None:
                    on_bad_tile(position, error)
                if bad > allowed:
                    raise ValueError(f"{error}; {bad} unreadable tiles, {allowed} allowed by max_bad_tiles") from error
                log.warning("tile %d of %s is unreadable and replaced by white: %s", position, path, error)
                tile = np.full((side, side, 3), WHITE, np.uint8)
            yield tile


def check_same_slide(slide: Slide, attrs: InstanceAttrs) -> None:
    """Raise ValueError unless a file has the recorded level-0 size, and its read level the recorded downsample."""
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
