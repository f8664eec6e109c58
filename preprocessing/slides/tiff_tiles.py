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
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.slides.regions import ReferenceSlide, TileReadError
from preprocessing.slides.tiff_levels import Level, match_levels, probes
from preprocessing.slides.tile_memory import tile_memory

Image = npt.NDArray[np.uint8]

CACHE_BYTES = 256 << 20
# Vendors whose levels are one TIFF directory each, without overlaps between tiles.
_VENDORS = frozenset({"generic-tiff", "aperio", "philips"})
# Aperio's missing tiles are filled from another level by OpenSlide, so a read that meets one is left to it.
_MISSING_IS_BLANK = frozenset({"generic-tiff", "philips"})
_COMPARED: dict[tuple[int, ...], bool] = {}

log = logging.getLogger(__name__)


class _NotDirect(Exception):
    """This region has to be read by OpenSlide."""


class TiffTiles:
    """Direct reader of one file; safe for several threads and after a fork (positional reads only)."""

    _file: int | None = None

    def __init__(self, path: Path, levels: dict[int, Level], vendor: str, cache_bytes: int = CACHE_BYTES) -> None:
        self._path, self._levels, self._vendor = path, levels, vendor
        self._file = os.open(path, os.O_RDONLY)
        self._trusted: dict[int, bool] = {}
        self._lock = threading.Lock()
        self._check_lock = threading.RLock()
        self._cache: OrderedDict[tuple[int, int], Image] = OrderedDict()
        self._handed_out: set[tuple[int, int]] = set()
        self._overlapping = False
        self._room = cache_bytes
        # memory of tiles that left the cache: new pages for every tile cost a tenth of decoding it
        self._spare: list[Image] = []
        self._reading = 0

    def close(self) -> None:
        """Close the file and forget the decoded tiles."""
        if self._file is not None:
            os.close(self._file)
            self._cache.clear()
            self._spare.clear()
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
        out: Image | None = None,
    ) -> Image | None:
        """Read a region.

        Args:
            slide: the same file, for the comparison before the first read of a level.
            left: x in px of the level; may lie outside.
            top: y, likewise.
            level: pyramid level.
            size: (width, height) in px of the level.
            fill: grey level of what lies outside and of missing tiles.
            out: memory for the region, used if it is of its size and contiguous; its content is lost.

        Returns:
            (height, width, 3) uint8, `out` or a new array, or None if this region has to be read by OpenSlide.
        """
        if level not in self._levels or not self._trust(slide, level):
            return None
        if out is None or out.shape != (size[1], size[0], 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            out = tile_memory((size[1], size[0], 3))
        try:
            return self._compose(level, left, top, size, fill, out)
        except _NotDirect as reason:
            log.info("%s: level %d, region at (%d, %d) left to OpenSlide: %s", self._path, level, left, top, reason)
            return None

    def _compose(self, number: int, left: int, top: int, size: tuple[int, int], fill: int, out: Image) -> Image:
        with self._lock:
            self._reading += 1
        try:
            self._paste(number, left, top, size, fill, out)
        finally:
            with self._lock:
                self._reading -= 1
        return out

    def _paste(self, number: int, left: int, top: int, size: tuple[int, int], fill: int, out: Image) -> None:
        """Fills `out` with a region."""
        level = self._levels[number]
        (tile_w, tile_h), (width, height) = level.tile, size
        x0, x1 = max(left, 0), min(left + width, level.size[0])
        y0, y1 = max(top, 0), min(top + height, level.size[1])
        covered = x0 == left and y0 == top and x1 == left + width and y1 == top + height
        if covered and size == level.tile and left % tile_w == 0 and top % tile_h == 0:
            tile = self._tile(number, level, top // tile_h * level.columns + left // tile_w, out)
            if tile is not out:
                out[:] = fill if tile is None else tile
            return
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

    def _tile(self, number: int, level: Level, index: int, memory: Image | None = None) -> Image | None:
        """One decoded tile, None for a missing one.

        A tile that is a region of its own, decoded into `memory`, is not needed by a neighbouring region unless regions
        overlap, so it is not kept until such a tile is asked for a second time.
        """
        whole = memory is not None
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
        if memory is not None and not keep:
            return self._decode(level, index, memory)
        tile = self._decode(level, index, self._memory_of(level))
        # two rows of tiles: what a lattice off the tile grid needs to decode every tile once
        room = max(min(2 * level.columns + 8, self._room // tile.nbytes), 4)
        with self._lock:
            self._cache[key] = tile  # shared from now on, and only read
            while len(self._cache) > room:
                old = self._cache.popitem(last=False)[1]
                # another thread may be copying from it
                if self._reading == 1 and old.shape == tile.shape:
                    self._spare.append(old)
        return tile

    def _memory_of(self, level: Level) -> Image:
        """Memory of one tile."""
        shape = (level.tile[1], level.tile[0], 3)
        with self._lock:
            while self._spare:
                tile = self._spare.pop()
                if tile.shape == shape:
                    return tile
        return tile_memory(shape)

    def _decode(self, level: Level, index: int, tile: Image) -> Image:
        """Decodes into `tile`, of the size that the directory states: a stream that claims more is refused."""
        import imagecodecs

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
        return tile

    def _trust(self, slide: ReferenceSlide, level: int) -> bool:
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

    def _check(self, slide: ReferenceSlide, number: int) -> bool:
        downsample = int(slide.level_downsamples[number])
        compared = 0
        for left, top, size in probes(self._levels[number], slide.level_dimensions[number]):
            try:
                ours = self._compose(number, left, top, size, 255, np.empty((size[1], size[0], 3), np.uint8))
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


def checked_tiles(slide: ReferenceSlide) -> TiffTiles | None:
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
            levels = match_levels(slide, pages)
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError) as error:
        log.info("%s: directories not understood (%s); reading through OpenSlide", slide.path, error)
        return None
    return TiffTiles(slide.path, levels, vendor) if levels else None
