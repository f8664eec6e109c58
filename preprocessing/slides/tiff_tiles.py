"""Decode the JPEG tiles of plain tiled TIFFs directly: OpenSlide's pixels, several times faster.

OpenSlide composes every region through Cairo, which costs more than decoding it. Here a region is cut from decoded file
tiles: offsets and shared JPEG tables from tifffile, libjpeg-turbo through imagecodecs, a cache of decoded tiles.
A level (8-bit three-channel JPEG in one plane, whole-numbered downsample) is used only after some of its tiles and a
region across tiles were compared with OpenSlide, maximum difference 0. Whatever is uncertain (another vendor, another
compression, a tile that does not decode) is read by OpenSlide. Positions are px of the level; regions (h, w, 3) uint8.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from preprocessing.slides.regions import Image, ReferenceSlide, TileReadError, tile_memory

CACHE_BYTES = 256 << 20
# Vendors whose levels are one TIFF directory each, without overlaps between tiles.
TIFF_VENDORS = frozenset({"generic-tiff", "aperio", "philips"})
# Aperio's missing tiles are filled from another level by OpenSlide, so a read that meets one is left to it.
_MISSING_IS_BLANK = TIFF_VENDORS - {"aperio"}
_JPEG = 7
_COLOURSPACE = {2: "RGB", 6: "YCBCR"}
_CHECKED_TILES = 3
_MAX_CHECK_PX = 1024
_BLOCK_PX, _FILL = 8, 128
# in coded data a byte 255 is followed by 0; besides, restarts and the end of the picture are allowed
_FOREIGN_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd9\xff]")
_COMPARED: dict[tuple[int, ...], bool] = {}
# What tifffile raises on damaged directories.
TIFF_DAMAGE = (tifffile.TiffFileError, OSError, ArithmeticError, LookupError, TypeError, ValueError, struct.error)

log = logging.getLogger(__name__)


class _NotDirect(Exception):
    """This region has to be read by OpenSlide."""


@dataclass(frozen=True)
class Level:
    """One TIFF directory.

    Attributes:
        offsets, counts: (tiles,) int64 position and length in the file; length 0 = missing tile.
        tables: shared JPEG tables, or None.
        colourspace: of the coded data.
        tile: (width, height) of a tile, px.
        size: (width, height) of the picture, px; tiles at the right and bottom are padded beyond it.
        columns: tiles per row.
    """

    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    tables: bytes | None
    colourspace: str
    tile: tuple[int, int]
    size: tuple[int, int]
    columns: int


class TiffTiles:
    """Direct reader of one file; usable by several threads and after a fork, because all reads are positional."""

    _file: int | None = None

    def __init__(self, path: Path, levels: dict[int, Level], vendor: str) -> None:
        self._path, self._levels, self._vendor = path, levels, vendor
        self._file = os.open(path, os.O_RDONLY)
        self._trusted: dict[int, bool] = {}
        self._lock = threading.RLock()
        self._cache: OrderedDict[tuple[int, int], Image] = OrderedDict()
        self._room = CACHE_BYTES

    def close(self) -> None:
        """Close the file and forget the decoded tiles."""
        if self._file is not None:
            os.close(self._file)
            self._cache.clear()
        self._file = None

    def __del__(self) -> None:
        self.close()

    def read(
        self,
        slide: ReferenceSlide,
        left: int,
        top: int,
        level: int,
        size: tuple[int, int],
        fill: int,
    ) -> Image | None:
        """Read a region (height, width, 3) uint8, None if it has to be read by OpenSlide.

        Args:
            slide: the same file, for the comparison before the first read of a level.
            left: x in px of the level; may lie outside.
            top: y, likewise.
            level: pyramid level.
            size: (width, height) in px of the level.
            fill: grey level of what lies outside and of missing tiles.
        """
        if level not in self._levels or not self._trust(slide, level):
            return None
        try:
            return self._paste(level, left, top, size, fill)
        except _NotDirect as reason:
            log.info("%s: level %d, region at (%d, %d) left to OpenSlide: %s", self._path, level, left, top, reason)
            return None

    def _paste(self, number: int, left: int, top: int, size: tuple[int, int], fill: int) -> Image:
        """Put a region together from its tiles."""
        level, out = self._levels[number], tile_memory((size[1], size[0], 3))
        (tile_w, tile_h), (width, height) = level.tile, size
        x0, x1 = max(left, 0), min(left + width, level.size[0])
        y0, y1 = max(top, 0), min(top + height, level.size[1])
        covered = x0 == left and y0 == top and x1 == left + width and y1 == top + height
        if covered and size == level.tile and left % tile_w == 0 and top % tile_h == 0:
            tile = self._tile(number, level, top // tile_h * level.columns + left // tile_w, out)
            if tile is not out:
                out[:] = fill if tile is None else tile
            return out
        if not covered:
            out[:] = fill
        for row in range(y0 // tile_h, -(-y1 // tile_h) if x1 > x0 and y1 > y0 else 0):
            for column in range(x0 // tile_w, -(-x1 // tile_w)):
                ox, oy = column * tile_w, row * tile_h
                a, b = max(x0, ox), min(x1, ox + tile_w)
                c, d = max(y0, oy), min(y1, oy + tile_h)
                tile = self._tile(number, level, row * level.columns + column)
                part = fill if tile is None else tile[c - oy : d - oy, a - ox : b - ox]
                out[c - top : d - top, a - left : b - left] = part
        return out

    def _tile(self, number: int, level: Level, index: int, memory: Image | None = None) -> Image | None:
        """Return a decoded tile, None for a missing one; a whole region is decoded into `memory` and not cached."""
        key = (number, index)
        with self._lock:
            tile = self._cache.get(key)
            if tile is not None:
                self._cache.move_to_end(key)
                return tile
        if level.counts[index] == 0:
            if self._vendor not in _MISSING_IS_BLANK:
                raise _NotDirect(f"missing tile {index}")
            return None
        if memory is not None:
            return self._decode(level, index, memory)
        tile = self._decode(level, index, tile_memory((level.tile[1], level.tile[0], 3)))
        # with two rows of tiles, a lattice off the tile grid decodes every tile once
        room = max(min(2 * level.columns + 8, self._room // tile.nbytes), 4)
        with self._lock:
            self._cache[key] = tile
            while len(self._cache) > room:
                self._cache.popitem(last=False)
        return tile

    def _decode(self, level: Level, index: int, tile: Image) -> Image:
        """Decode into `tile`, which has the size that the directory states; a larger stream is an error."""
        if self._file is None:
            raise _NotDirect("closed")
        count = int(level.counts[index])
        data = os.pread(self._file, count, int(level.offsets[index]))
        if len(data) != count:
            raise _NotDirect(f"tile {index} is cut off")
        try:
            imagecodecs.jpeg8_decode(
                data, tables=level.tables, colorspace=level.colourspace, outcolorspace="RGB", out=tile
            )
        except (imagecodecs.Jpeg8Error, ValueError) as error:
            raise _NotDirect(f"tile {index} does not decode ({error})") from error
        # libjpeg skips markers that do not belong into a scan, and fills what is missing with mid-grey, without an
        # error; OpenSlide refuses such a tile
        if _FOREIGN_MARKER.search(data, data.rfind(b"\xff\xda") + 2) or (tile[-_BLOCK_PX:, -_BLOCK_PX:] == _FILL).all():
            raise _NotDirect(f"tile {index} is damaged")
        return tile

    def _trust(self, slide: ReferenceSlide, level: int) -> bool:
        """Return whether this level equals OpenSlide's; compared once per file and process."""
        known = self._trusted.get(level)
        if known is not None or self._file is None:
            return bool(known)
        with self._lock:
            # every segment of a bag opens its slide again, so results are kept per file
            state = os.fstat(self._file)
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, level)
            if key not in _COMPARED:
                _COMPARED[key] = self._check(slide, level)
            return self._trusted.setdefault(level, _COMPARED[key])

    def _check(self, slide: ReferenceSlide, number: int) -> bool:
        downsample = int(slide.level_downsamples[number])
        compared = 0
        for left, top, size in probes(self._levels[number], slide.level_dimensions[number]):
            try:
                ours = self._paste(number, left, top, size, 255)
                theirs = slide.openslide_rgb(left * downsample, top * downsample, number, size)
            except (_NotDirect, TileReadError):
                continue
            compared += 1
            if not np.array_equal(ours, theirs):
                worst = int(np.abs(ours.astype(np.int16) - theirs).max())
                log.warning(
                    "%s: level %d decoded directly differs from OpenSlide by up to %d grey levels at (%d, %d); reading "
                    "it through OpenSlide",
                    *(self._path, number, worst, left, top),
                )
                return False
        if compared == 0:
            log.info("%s: level %d could not be compared; reading it through OpenSlide", self._path, number)
        return compared > 0


def probes(level: Level, dimensions: tuple[int, int]) -> list[tuple[int, int, tuple[int, int]]]:
    """Return the regions to compare, (left, top, size): the fullest tiles, one across tiles, one across the border."""
    tile_w, tile_h = level.tile
    fullest = np.argsort(-level.counts, kind="stable")[:_CHECKED_TILES]
    places = [(int(i) % level.columns * tile_w, int(i) // level.columns * tile_h) for i in fullest]
    size = (min(tile_w, _MAX_CHECK_PX), min(tile_h, _MAX_CHECK_PX))
    x, y = places[0]
    places.append((max(x - tile_w // 3, 0), max(y - tile_h // 5, 0)))
    places.append((dimensions[0] - size[0] // 2, dimensions[1] - size[1] // 2))
    return [(x, y, size) for x, y in places]


def match_levels(slide: ReferenceSlide, pages: list[Any]) -> dict[int, Level]:
    """Return level number -> directory, matched by size, or by order for Philips, whose directories are padded.

    Levels of fractional downsample are left out, because OpenSlide interpolates there.
    """
    levels: dict[int, Level] = {}
    in_order = slide.properties.get("openslide.vendor") == "philips" and len(pages) == len(slide.level_dimensions)
    for number, size in enumerate(slide.level_dimensions):
        matches = [pages[number]] if in_order else [p for p in pages if (p.imagewidth, p.imagelength) == size]
        whole = float(slide.level_downsamples[number]).is_integer()
        level = _level(matches[0], size) if len(matches) == 1 and whole else None
        if level is not None:
            levels[number] = level
    return levels


def _level(page: Any, size: tuple[int, int]) -> Level | None:
    """Return a directory as level, None if it is anything but 8-bit three-channel JPEG in one plane."""
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


def checked_tiles(slide: ReferenceSlide) -> TiffTiles | None:
    """Return the direct reader of a slide, None if the file is not a plain tiled JPEG TIFF."""
    vendor = slide.properties.get("openslide.vendor", "")
    if vendor not in TIFF_VENDORS:
        return None
    try:
        with tifffile.TiffFile(slide.path) as tiff:
            pages = [page for page in tiff.pages if getattr(page, "is_tiled", False)]
            levels = match_levels(slide, pages)
    except TIFF_DAMAGE as error:
        log.info("%s: directories not understood (%s); reading through OpenSlide", slide.path, error)
        return None
    return TiffTiles(slide.path, levels, vendor) if levels else None
