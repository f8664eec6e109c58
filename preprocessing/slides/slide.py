"""A whole-slide image: RGB on white, level-0 coordinates, one checked resolution.

Differences to plain OpenSlide: transparent pixels (outside the scan, missing tiles) become white instead of black,
level and position are matched with a tolerance instead of truncated, coordinates are snapped to whole pixels of the
level read, several threads may read, and a handle that failed once (it would fail for ever) is replaced. Plain tiled
JPEG TIFFs are decoded directly where a check has shown equal pixels (`tiff_tiles`). Level-0 coordinates are OpenSlide's
canvas; formats with an offset (MIRAX) report it in `bounds`. Arrays are (h, w, 3) uint8.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide

from preprocessing.common.limits import check_slide_sizes
from preprocessing.slides.inspect import Inspection, explain_refusal, inspect_slide
from preprocessing.slides.mpp import Resolution, resolve_mpp
from preprocessing.slides.pyramid import SlideLevel
from preprocessing.slides.regions import Image, TileReadError
from preprocessing.slides.tiff_tiles import TiffTiles, checked_tiles

ReadBlock = Callable[[int, int, tuple[int, int]], Image]
LEVEL_TOLERANCE = 0.05
MAX_READ_PX = 4096

log = logging.getLogger(__name__)


def nominal_downsample(downsample: float) -> int | None:
    """Return the whole number nearest to a level's downsample (4.0003 -> 4), None if it is off by more than 5 %."""
    nominal = max(round(downsample), 1)
    return nominal if abs(downsample / nominal - 1) <= LEVEL_TOLERANCE else None


class Slide:
    """An open slide; a context manager. Made by `open_slide`.

    Attributes:
        path: the file.
        dimensions: (width, height) of level 0.
        level_dimensions, level_downsamples, level_tiles: size, downsample and size of a file tile (0 = unknown) per
            level, without levels that are none and without padding (`preprocessing.slides.pyramid`).
        mpp, mpp_source: um per level-0 px and its source (NaN and "none" if it was not requested).
        warnings: what is odd about the file, one line each.
        bounds: (x, y, width, height) of the scanned region on the level-0 canvas; the whole canvas if not stated.
        properties: all of OpenSlide's.
        reopened: how often a failed handle was replaced.
    """

    def __init__(
        self, path: Path, handle: openslide.OpenSlide, inspection: Inspection, resolution: Resolution, *, raw: bool
    ) -> None:
        self.path = path
        self.mpp, self.mpp_source = resolution.mpp, resolution.source
        self.warnings = (*inspection.warnings, *resolution.warnings)
        self.properties: Mapping[str, str] = dict(handle.properties)
        self.dimensions = handle.dimensions
        self.level_dimensions = tuple(level.size for level in inspection.levels)
        self.level_downsamples = tuple(level.downsample for level in inspection.levels)
        self.level_tiles = tuple(level.tile for level in inspection.levels)
        self.bounds = _bounds(self.properties, self.dimensions)
        self.reopened = 0
        self._levels: tuple[SlideLevel, ...] = inspection.levels
        self._handle: openslide.OpenSlide | None = handle
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._want_raw = raw
        self._raw: TiffTiles | None = None

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; no read may be under way in another thread."""
        with self._lock:
            if self._handle is not None and self._pid == os.getpid():
                self._handle.close()
            if self._raw is not None:
                self._raw.close()
            self._handle, self._raw, self._want_raw, self._closed = None, None, False, True

    def level_at(self, downsample: float, tolerance: float = LEVEL_TOLERANCE) -> int:
        """Return the coarsest level not coarser than `downsample`, up to a relative `tolerance`.

        OpenSlide's rule (tolerance 0) returns a finer level for 4.0 if the level's downsample is 4.0003.
        """
        fitting = [i for i, ds in enumerate(self.level_downsamples) if ds <= downsample * (1 + tolerance)]
        return fitting[-1] if fitting else 0

    def read(self, l0_x: int, l0_y: int, level: int, size: tuple[int, int], *, white: bool = True) -> Image:
        """Read a region, (height, width, 3) uint8.

        Args:
            l0_x: left edge in level-0 px, snapped to the nearest whole pixel of `level`; may be negative.
            l0_y: top edge, likewise.
            level: pyramid level.
            size: (width, height) in px of `level`; what lies outside the slide is white.
            white: composite transparency on white; False leaves the colour as stored (transparent = black).

        Raises:
            ValueError: no such level or an empty size.
            TileReadError: the region cannot be decoded.
        """
        if not 0 <= level < len(self.level_dimensions) or min(size) < 1:
            raise ValueError(
                f"{self.path}: level {level}, size {size} asked, expected level 0..{len(self.level_dimensions) - 1} "
                "and a positive size"
            )
        downsample, (width, height) = self.level_downsamples[level], size
        left, top = math.floor(l0_x / downsample + 0.5), math.floor(l0_y / downsample + 0.5)
        if width <= MAX_READ_PX and height <= MAX_READ_PX:
            return self._read_block(left, top, level, size, white)
        out = np.empty((height, width, 3), np.uint8)
        for y in range(0, height, MAX_READ_PX):
            for x in range(0, width, MAX_READ_PX):
                part = (min(MAX_READ_PX, width - x), min(MAX_READ_PX, height - y))
                out[y : y + part[1], x : x + part[0]] = self._read_block(left + x, top + y, level, part, white)
        return out

    def read_level(
        self, level: int, factor: int = 1, *, white: bool = True, read_block: ReadBlock | None = None
    ) -> Image:
        """Read a whole level block by block, (ceil(height / factor), ceil(width / factor), 3) uint8.

        Args:
            level: pyramid level.
            factor: side of the boxes whose mean becomes one pixel; an incomplete last box is the mean of its part.
            white: composite transparency on white, as in `read`.
            read_block: replaces `read` for a block, (left, top, (width, height)) in px of the level -> (h, w, 3).
        """
        downsample = self.level_downsamples[level]

        def plain(left: int, top: int, size: tuple[int, int]) -> Image:
            """Read a block (height, width, 3) uint8 at (left, top), px of the level."""
            return self.read(round(left * downsample), round(top * downsample), level, size, white=white)

        width, height = self.level_dimensions[level]
        out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
        block = max(MAX_READ_PX // factor, 1) * factor
        for y in range(0, height, block):
            for x in range(0, width, block):
                part = (read_block or plain)(x, y, (min(block, width - x), min(block, height - y)))
                small = _box_mean(part, factor)
                out[y // factor :, x // factor :][: small.shape[0], : small.shape[1]] = small
        return out

    def thumbnail(self, max_px: int) -> tuple[Image, float]:
        """Return the whole slide (h, w, 3), its longer side at most `max_px`, never enlarged, and the downsample."""
        fitting = [i for i, dims in enumerate(self.level_dimensions) if max(dims) >= max_px]
        level = fitting[-1] if fitting else 0
        factor = max(max(self.level_dimensions[level]) // max_px, 1)
        image = self.read_level(level, factor)
        longer = max(image.shape[:2])
        if longer > max_px:
            size = (max(round(image.shape[1] * max_px / longer), 1), max(round(image.shape[0] * max_px / longer), 1))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        return image, max(self.dimensions) / max(image.shape[:2])

    def _read_block(self, left: int, top: int, level: int, size: tuple[int, int], white: bool) -> Image:
        """Read a region of at most 4096 px a side; `left` and `top` in px of the level."""
        direct = self._direct_reader()
        if direct is not None:
            block = direct.read(self, left, top, level, size, 255 if white else 0)
            if block is not None:
                return block
        source = self._levels[level]
        stated = source.stated_downsample
        origin = (math.floor(left * stated + 0.5), math.floor(top * stated + 0.5))
        rgb = _to_rgb(self._openslide_read(origin, level, size), white)
        if source.is_padded:
            width, height = source.size
            rgb[:, max(width - left, 0) :] = rgb[max(height - top, 0) :] = 255 if white else 0
        return rgb

    def _direct_reader(self) -> TiffTiles | None:
        with self._lock:
            if self._want_raw:
                self._want_raw, self._raw = False, checked_tiles(self)
            return self._raw

    def openslide_rgb(self, l0_x: int, l0_y: int, level: int, size: tuple[int, int]) -> Image:
        """Read (h, w, 3) of a level without padding through OpenSlide on white; the direct tile reader's reference."""
        return _to_rgb(self._openslide_read((l0_x, l0_y), level, size), True)

    def _openslide_read(self, origin: tuple[int, int], level: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Return (height, width, 4) RGBA; `origin` in OpenSlide's level-0 px, `size` in px of the level."""
        failure: openslide.OpenSlideError | None = None
        for _ in range(2):
            handle = self._current_handle()
            try:
                return np.asarray(handle.read_region(origin, self._levels[level].number, size))
            except openslide.OpenSlideError as error:
                if failure is None:
                    log.warning("%s: read at level-0 %s failed (%s); reopening the file", self.path, origin, error)
                failure = error
            with self._lock:
                # the last reference closes a failed handle, because another thread may still be reading
                if self._handle is handle:
                    self._handle = None
                    self.reopened += 1
        raise TileReadError(
            f"{self.path}: level {level}, {size[0]} x {size[1]} px at level-0 {origin} cannot be decoded ({failure}); "
            "the file is damaged there: copy it again, or allow unreadable tiles with `max_bad_tiles`"
        ) from failure

    def _current_handle(self) -> openslide.OpenSlide:
        """Return the handle of this process; it is opened again after an error or a fork."""
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path}: read after close, expected an open slide")
            if self._handle is None or self._pid != os.getpid():
                self._handle, self._pid = _open(self.path), os.getpid()
            return self._handle


def open_slide(
    path: Path | str, *, mpp_override: float | None = None, require_mpp: bool = True, raw: bool = True
) -> Slide:
    """Open a slide.

    Args:
        path: any file OpenSlide reads.
        mpp_override: um per level-0 px from the manifest, replaces the file's own.
        require_mpp: False for files whose resolution is irrelevant (label masks, tiles of recorded geometry).
        raw: decode JPEG tiles directly where a self-check allows it; False = always OpenSlide.

    Raises:
        ValueError: no such file, not a slide, sizes beyond any scanner, pixels that would be read wrong (see
            `preprocessing.slides.inspect`), or no believable resolution (see `mpp.resolve_mpp`).
    """
    path = Path(path)
    handle = _open(path)
    try:
        check_slide_sizes(handle, path)
        inspection = inspect_slide(path, handle.properties.get("openslide.vendor", ""))
        resolution = Resolution(math.nan, "none")
        if require_mpp or mpp_override is not None:
            properties = handle.properties if inspection.resolution is None else inspection.resolution
            resolution = resolve_mpp(properties, mpp_override, str(path))
        return Slide(path, handle, inspection, resolution, raw=raw)
    except ValueError:
        handle.close()
        raise


def _open(path: Path) -> openslide.OpenSlide:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a whole-slide image")
    try:
        return openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        known = not isinstance(error, openslide.OpenSlideUnsupportedFormatError)
        raise ValueError(explain_refusal(path, str(error) if known else "")) from error


def _bounds(properties: Mapping[str, str], dimensions: tuple[int, int]) -> tuple[int, int, int, int]:
    keys = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    if not all(key in properties for key in keys):
        return (0, 0, *dimensions)
    x, y, w, h = (int(float(properties[key])) for key in keys)
    return x, y, w, h


def _box_mean(image: Image, factor: int) -> Image:
    """Shrink (h, w, 3) by an integer factor, (ceil(h / factor), ceil(w / factor), 3); the border is replicated."""
    if factor == 1:
        return image
    bottom, right = (-side % factor for side in image.shape[:2])
    padded = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    size = (padded.shape[1] // factor, padded.shape[0] // factor)
    return np.asarray(cv2.resize(padded, size, interpolation=cv2.INTER_AREA), np.uint8)


def _to_rgb(rgba: npt.NDArray[np.uint8], white: bool) -> Image:
    """Turn (h, w, 4) into (h, w, 3); transparency over white (rounded), or colours as they are."""
    rgb = np.ascontiguousarray(rgba[..., :3])
    if not white or rgba[..., 3].min() == 255:
        return rgb
    alpha = rgba[..., 3:].astype(np.uint16)
    return np.asarray((rgb * alpha + 255 * (255 - alpha) + 127) // 255, np.uint8)
