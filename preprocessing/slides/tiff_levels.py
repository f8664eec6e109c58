"""Directories of a tiled JPEG TIFF as levels that can be decoded directly: offsets, shared tables, sizes.

Only what holds 8-bit three-channel JPEG in one plane counts; levels of fractional downsample are left out, because
OpenSlide interpolates there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.slides.regions import ReferenceSlide

_JPEG = 7
_COLOURSPACE = {2: "RGB", 6: "YCBCR"}
_CHECKED_TILES = 3
_MAX_CHECK_PX = 1024


@dataclass(frozen=True)
class Level:
    """One TIFF directory.

    Attributes:
        offsets, counts: (tiles,) int64 position and length in the file; length 0 = missing tile.
        tables: shared JPEG tables, or None.
        colourspace: of the coded data.
        tile: (width, height) of a tile.
        size: (width, height) of the picture; what a tile holds beyond is padding.
        columns: tiles per row.
    """

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    tables: bytes | None
    colourspace: str
    tile: tuple[int, int]
    size: tuple[int, int]
    columns: int


def probes(level: Level, dimensions: tuple[int, int]) -> list[tuple[int, int, tuple[int, int]]]:
    """Regions to compare, (left, top, size): the fullest tiles, the last tile with its border, one across tiles."""
    tile_w, tile_h = level.tile
    fullest = np.argsort(-level.counts, kind="stable")[:_CHECKED_TILES]
    places = [(int(i) % level.columns * tile_w, int(i) // level.columns * tile_h) for i in fullest]
    size = (min(tile_w, _MAX_CHECK_PX), min(tile_h, _MAX_CHECK_PX))
    x, y = places[0]
    probes = [(x, y, size) for x, y in places]
    probes.append((max(x - tile_w // 3, 0), max(y - tile_h // 5, 0), size))
    probes.append((dimensions[0] - size[0] // 2, dimensions[1] - size[1] // 2, size))
    return probes


def match_levels(slide: ReferenceSlide, pages: list[Any]) -> dict[int, Level]:
    """OpenSlide's levels to TIFF directories: by equal size, for Philips (padded directories) by order."""
    levels: dict[int, Level] = {}
    in_order = slide.properties.get("openslide.vendor") == "philips" and len(pages) == len(slide.level_dimensions)
    for number, size in enumerate(slide.level_dimensions):
        fitting = [pages[number]] if in_order else [p for p in pages if (p.imagewidth, p.imagelength) == size]
        whole = float(slide.level_downsamples[number]).is_integer()
        if len(fitting) == 1 and whole:
            level = _level(fitting[0], size)
            if level is not None:
                levels[number] = level
    return levels


def _level(page: Any, size: tuple[int, int]) -> Level | None:
    """A directory as level, None if it is anything but 8-bit three-channel JPEG in one plane."""
    plain = (
        page.compression == _JPEG
        and page.planarconfig == 1
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and int(page.photometric) in _COLOURSPACE
        and page.imagedepth == 1
    )
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    if not plain or len(page.dataoffsets) != columns * rows or len(page.databytecounts) != columns * rows:
        return None
    return Level(
        np.array(page.dataoffsets, np.int64),
        np.array(page.databytecounts, np.int64),
        page.jpegtables,
        _COLOURSPACE[int(page.photometric)],
        (page.tilewidth, page.tilelength),
        (min(size[0], page.imagewidth), min(size[1], page.imagelength)),
        columns,
    )
