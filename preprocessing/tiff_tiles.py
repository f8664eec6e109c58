"""JPEG tiles of plain tiled TIFFs decoded directly: the same pixels as OpenSlide, several times faster.

OpenSlide composes every region through Cairo, which costs more than decoding it. Here a region is cut from decoded file
tiles: offsets and shared JPEG tables from tifffile, libjpeg-turbo through imagecodecs, a cache of decoded tiles.
A level is used only after some of its tiles and a region across tiles were compared with OpenSlide, max difference 0;
any doubt (another vendor, another compression, a fractional downsample, a tile that does not decode) leaves the read to
OpenSlide. Positions are px of the level; regions (h, w, 3) uint8.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from preprocessing.slide import Slide

Image = npt.NDArray[np.uint8]

CACHE_BYTES = 256 << 20
_JPEG = 7
_COLOURSPACE = {2: "RGB", 6: "YCBCR"}
# Vendors whose levels are one TIFF directory each, without overlaps between tiles.
_VENDORS = frozenset({"generic-tiff", "aperio", "philips"})
# Aperio's missing tiles are filled from another level by OpenSlide, so a read that meets one is left to it.
_MISSING_IS_BLANK = frozenset({"generic-tiff", "philips"})
_CHECKED_TILES = 3
_MAX_CHECK_PX = 1024
_COMPARED: dict[tuple[int, ...], bool] = {}

log = logging.getLogger(__name__)


class _NotDirect(Exception):
    """This region has to be read by OpenSlide."""


@dataclass(frozen=True)
class _Level:
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


class TiffTiles:
    """Direct reader of one file; safe for several threads and after a fork (positional reads only)."""

    _file: int | None = None

    def __init__(self, path: Path, levels: dict[int, _Level], vendor: str, cache_bytes: int = CACHE_BYTES) -> None:
        self._path, self._levels, self._vendor = path, levels, vendor
        self._file = os.open(path, os.O_RDONLY)
        self._trusted: dict[int, bool] = {}
        self._lock = threading.Lock()
        self._check_lock = threading.RLock()
        self._cache: OrderedDict[tuple[int, int], Image] = OrderedDict()
        self._handed_out: set[tuple[int, int]] = set()
        self._overlapping = False
        self._room = cache_bytes

    def close(self) -> None:
        """Close the file and forget the decoded tiles."""
        if self._file is not None:
            os.close(self._file)
            self._cache.clear()
        self._file = None

    def __del__(self) -> None:
        self.close()

    def read(self, slide: Slide, left: int, top: int, level: int, size: tuple[int, int], fill: int) -> Image | None:
        """Read a region.

        Args:
            slide: the same file, for the comparison before the first read of a level.
            left: x in px of the level; may lie outside.
            top: y, likewise.
            level: pyramid level.
            size: (width, height) in px of the level.
            fill: grey level of what lies outside and of missing tiles.

        Returns:
            (height, width, 3) uint8, or None if this region has to be read by OpenSlide.
        """
        if level not in self._levels or not self._trust(slide, level):
            return None
        try:
            return self._compose(level, left, top, size, fill)
        except _NotDirect as reason:
            log.info("%s: level %d, region at (%d, %d) left to OpenSlide: %s", self._path, level, left, top, reason)
            return None

    def _compose(self, number: int, left: int, top: int, size: tuple[int, int], fill: int) -> Image:
        level = self._levels[number]
        (tile_w, tile_h), (width, height) = level.tile, size
        x0, x1 = max(left, 0), min(left + width, level.size[0])
        y0, y1 = max(top, 0), min(top + height, level.size[1])
        covered = x0 == left and y0 == top and x1 == left + width and y1 == top + height
        if covered and size == level.tile and left % tile_w == 0 and top % tile_h == 0:
            tile = self._tile(number, level, top // tile_h * level.columns + left // tile_w, True)
            if tile is not None:
                return tile if tile.flags.writeable else tile.copy()
        out = np.empty((height, width, 3), np.uint8) if covered else np.full((height, width, 3), fill, np.uint8)
        for row in range(y0 // tile_h, -(-y1 // tile_h) if x1 > x0 and y1 > y0 else 0):
            for column in range(x0 // tile_w, -(-x1 // tile_w)):
                ox, oy = column * tile_w, row * tile_h
                a, b = max(x0, ox), min(x1, ox + tile_w)
                c, d = max(y0, oy), min(y1, oy + tile_h)
                whole = b - a == tile_w and d - c == tile_h
                tile = self._tile(number, level, row * level.columns + column, whole)
                part = fill if tile is None else tile[c - oy : d - oy, a - ox : b - ox]
                out[c - top : d - top, a - left : b - left] = part
        return out

    def _tile(self, number: int, level: _Level, index: int, whole: bool) -> Image | None:
        """One decoded tile, None for a missing one.

        A tile wanted whole is not needed by a neighbouring region unless regions overlap, so it is not kept (fresh
        memory for every tile would cost half as much as decoding) until such a tile is asked for a second time.
        """
        key = (number, index)
        with self._lock:
            tile = self._cache.get(key)
            if tile is not None:
                self._cache.move_to_end(key)
                return tile
            keep = not whole or self._overlapping or key in self._handed_out
            if whole:
                self._overlapping = keep
                self._handed_out.add(key)
        if level.counts[index] == 0:
            if self._vendor not in _MISSING_IS_BLANK:
                raise _NotDirect(f"missing tile {index}")
            return None
        tile = self._decode(level, index)
        if keep:
            # two rows of tiles: what a lattice off the tile grid needs to decode every tile once
            room = max(min(2 * level.columns + 8, self._room // tile.nbytes), 4)
            tile.flags.writeable = False  # shared from now on
            with self._lock:
                self._cache[key] = tile
                while len(self._cache) > room:
                    self._cache.popitem(last=False)
        return tile

    def _decode(self, level: _Level, index: int) -> Image:
        import imagecodecs

        if self._file is None:
            raise _NotDirect("closed")
        count = int(level.counts[index])
        data = os.pread(self._file, count, int(level.offsets[index]))
        if len(data) != count:
            raise _NotDirect(f"tile {index} is cut off")
        # into memory of the size that the directory states: a stream that claims more is refused, not unpacked
        tile = np.empty((level.tile[1], level.tile[0], 3), np.uint8)
        try:
            imagecodecs.jpeg8_decode(
                data, tables=level.tables, colorspace=level.colourspace, outcolorspace="RGB", out=tile
            )
        except (imagecodecs.Jpeg8Error, ValueError) as error:
            raise _NotDirect(f"tile {index} does not decode ({error})") from error
        return tile

    def _trust(self, slide: Slide, level: int) -> bool:
        """Whether this level was found equal to OpenSlide; compared once per file and process."""
        known = self._trusted.get(level)
        if known is not None or self._file is None:
            return bool(known)
        with self._check_lock:
            # every segment of a bag opens its slide anew: what was compared already need not be again
            state = os.fstat(self._file)
            key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, level)
            if key not in _COMPARED:
                _COMPARED[key] = self._check(slide, level)
                with self._lock:  # the probes are no sign of overlapping regions
                    self._handed_out.clear()
                    self._overlapping = False
            return self._trusted.setdefault(level, _COMPARED[key])

    def _check(self, slide: Slide, number: int) -> bool:
        from preprocessing.slide import TileReadError

        downsample = int(slide.level_downsamples[number])
        compared = 0
        for left, top, size in _probes(self._levels[number], slide.level_dimensions[number]):
            try:
                ours = self._compose(number, left, top, size, 255)
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


def _probes(level: _Level, dimensions: tuple[int, int]) -> list[tuple[int, int, tuple[int, int]]]:
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


def checked_tiles(slide: Slide) -> TiffTiles | None:
    """The direct reader of a slide, None if the file is not a plain tiled JPEG TIFF.

    Levels of fractional downsample are left out: OpenSlide interpolates there.
    """
    vendor = slide.properties.get("openslide.vendor", "")
    if vendor not in _VENDORS:
        return None
    import tifffile

    try:
        with tifffile.TiffFile(slide.path) as tiff:
            pages = [page for page in tiff.pages if getattr(page, "is_tiled", False)]
            levels = _match_levels(slide, pages)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError) as error:
        log.info("%s: directories not understood (%s); reading through OpenSlide", slide.path, error)
        return None
    return TiffTiles(slide.path, levels, vendor) if levels else None


def _match_levels(slide: Slide, pages: list[Any]) -> dict[int, _Level]:
    """OpenSlide's levels to TIFF directories: by equal size, for Philips (padded directories) by order."""
    levels: dict[int, _Level] = {}
    in_order = slide.properties.get("openslide.vendor") == "philips" and len(pages) == len(slide.level_dimensions)
    for number, size in enumerate(slide.level_dimensions):
        fitting = [pages[number]] if in_order else [p for p in pages if (p.imagewidth, p.imagelength) == size]
        whole = float(slide.level_downsamples[number]).is_integer()
        if len(fitting) == 1 and whole:
            level = _level(fitting[0], size)
            if level is not None:
                levels[number] = level
    return levels


def _level(page: Any, size: tuple[int, int]) -> _Level | None:
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
    return _Level(
        np.array(page.dataoffsets, np.int64),
        np.array(page.databytecounts, np.int64),
        page.jpegtables,
        _COLOURSPACE[int(page.photometric)],
        (page.tilewidth, page.tilelength),
        (min(size[0], page.imagewidth), min(size[1], page.imagelength)),
        columns,
    )
