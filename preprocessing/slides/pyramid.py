"""Which levels of a slide show the picture of level 0, and at which downsample.

OpenSlide takes every tiled reduced picture of a TIFF for a level, a macro image or thumbnail included, and computes the
downsample from its size. Here a level is kept if it has the aspect of level 0 up to the rounding of a pixel, or if
without padding to whole file tiles its downsample is a power of two, as in the test slides of CAMELYON16. In TIFFs that
do not declare their levels, some regions must also look like those of a finer level. Regions are compared by their
block means, so the filter that shrank a level matters little. Regions that are flat in both levels prove nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import openslide

from preprocessing.slides.regions import Image

# Scanners that declare their levels round, and leave out parts, far below this share.
DECLARED_TOLERANCE = 0.05
# Levels of a scan correlate above 0.95, drawn tissue of which single pixels were taken above 0.8, other pictures below
# 0.55.
SAME_PICTURE = 0.6
# Standard deviation in grey levels below which regions are flat, and above which they are not.
_FLAT, _STRUCTURED = 4.0, 12.0
_GRID, _PLACES, _PATCH_PX, _MAX_PATCH_PX, _BLOCKS = 8, 12, 64, 256, 8
# Levels further apart are compared by way of one between them: rounding shifts a level by up to a pixel of its own.
_MAX_RATIO = 16
# How writers shrink levels; the pixel that stands for a square is its first or its middle one.
_FILTERS = (cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
Place = tuple[float, float]


@dataclass(frozen=True)
class SlideLevel:
    """One level of the pyramid.

    Attributes:
        number: OpenSlide's.
        size: (width, height) in px, without padding.
        downsample: level-0 px per px.
        stated_downsample: of OpenSlide, wrong for a padded level.
        tile: (width, height) of a file tile in px, 0 where unknown.
    """

    number: int
    size: tuple[int, int]
    downsample: float
    stated_downsample: float
    tile: tuple[int, int]

    @property
    def is_padded(self) -> bool:
        """Whether the file holds more pixels than the level has."""
        return self.downsample != self.stated_downsample

    def __str__(self) -> str:
        return f"level {self.number} ({self.size[0]} x {self.size[1]} px)"


class Probe:
    """A handle for samples, replaced after an error because a handle that failed once fails for ever."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, openslide.OpenSlide(str(path))

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()

    def levels(self) -> list[SlideLevel]:
        """Return the levels as the file states them."""
        properties, levels = self._handle.properties, []
        stated = zip(self._handle.level_dimensions, self._handle.level_downsamples, strict=True)
        for number, (size, downsample) in enumerate(stated):
            tile_w, tile_h = (
                int(properties.get(f"openslide.level[{number}].tile-{side}", "0")) for side in ("width", "height")
            )
            levels.append(SlideLevel(number, size, downsample, downsample, (tile_w, tile_h)))
        return levels

    def read(self, level: SlideLevel, left: int, top: int, size: tuple[int, int]) -> Image | None:
        """Read (h, w, 3) at (left, top) in px of the level, None if a part is missing or cannot be decoded."""
        place = (round(left * level.stated_downsample), round(top * level.stated_downsample))
        try:
            rgba = np.asarray(self._handle.read_region(place, level.number, size), np.uint8)
        except openslide.OpenSlideError:
            self._handle.close()
            self._handle = openslide.OpenSlide(str(self._path))
            return None
        return None if rgba[..., 3].min() < 255 else rgba[..., :3]

    def grid(self, level: SlideLevel) -> list[tuple[Place, Image]]:
        """Read small regions all over a level as far as possible; places are shares of width and height."""
        side = min(_PATCH_PX, *level.size)
        shares = [(i + 0.5) / _GRID for i in range(_GRID)]
        places = [(x, y) for y in shares for x in shares]
        regions = ((place, self.read(level, *corner(place, side, level), (side, side))) for place in places)
        return [(place, rgb) for place, rgb in regions if rgb is not None]


def corner(place: Place, side: int, level: SlideLevel) -> tuple[int, int]:
    """Return the corner of a square around a place, moved into the level, px of the level."""
    x, y = (
        min(max(round(share * length - side / 2), 0), length - side)
        for share, length in zip(place, level.size, strict=True)
    )
    return x, y


def check_levels(probe: Probe, *, is_tiff: bool, compare: bool) -> tuple[list[SlideLevel], list[str]]:
    """Choose the levels that can be used: these, finest first, and a line about each of the others.

    Args:
        probe: the slide.
        is_tiff: whether each level is a picture of a TIFF, which has the aspect of level 0 to the pixel.
        compare: whether pixels are compared, because the file does not declare its levels.
    """
    first, *others = probe.levels()
    kept, dropped = [first], list[str]()
    options = {level.number: _readings(level, first, is_tiff=is_tiff, compare=compare) for level in others}
    # the last reading of a padded level leaves out the edge of its padding, which has structure but no evidence
    likely = [readings[-1] for readings in options.values() if readings]
    places = _structured(probe, [first, *likely]) if compare and likely else []
    for level in others:
        readings = options[level.number]
        used = _most_alike(probe, kept, readings, places) if compare else next(iter(readings), None)
        if used is not None and used.downsample > kept[-1].downsample:
            kept.append(used)
            continue
        if used is not None:
            reason = f"it is not smaller than {kept[-1]}"
        elif level in readings:
            reason = "it shows another picture than level 0"
        else:
            shapes = [f"{item.size[0] / max(item.size[1], 1):.3f}" for item in (level, first)]
            reason = f"its width / height is {shapes[0]}, that of level 0 is {shapes[1]}"
        dropped.append(f"{level} is no level of this slide and is not used: {reason}")
    return kept, dropped


def _readings(level: SlideLevel, first: SlideLevel, *, is_tiff: bool, compare: bool) -> list[SlideLevel]:
    """Return how the size of a level can be understood: as it is stated, without padding, or not at all."""
    stated = [level] if _has_aspect(level, first, is_tiff=is_tiff) else []
    padded = _without_padding(level, first) if compare else None
    return stated if padded is None else [*stated, padded]


def _most_alike(
    probe: Probe, kept: Sequence[SlideLevel], readings: Sequence[SlideLevel], places: Sequence[Place]
) -> SlideLevel | None:
    """Return the reading of a level that looks like a finer one; without evidence, the level as the file states it."""
    best, most = None, SAME_PICTURE
    for reading in readings:
        near = [level for level in kept if reading.downsample <= _MAX_RATIO * level.downsample]
        value = likeness(probe, near[0] if near else kept[-1], reading, places)
        if math.isnan(value) and not reading.is_padded:
            return reading
        if value >= most:
            best, most = reading, value
    return best


def _has_aspect(level: SlideLevel, first: SlideLevel, *, is_tiff: bool) -> bool:
    """Return whether one downsample explains both sides, each rounded by less than a pixel."""
    (width, height), (w, h) = first.size, level.size
    if not is_tiff and abs(width * h - height * w) <= DECLARED_TOLERANCE * height * w:
        return True
    least = max(width / (w + 1), height / (h + 1))
    most = min(width / (w - 1) if w > 1 else math.inf, height / (h - 1) if h > 1 else math.inf)
    return least < most


def _without_padding(level: SlideLevel, first: SlideLevel) -> SlideLevel | None:
    """Return a level without its padding to whole file tiles, None if it is no padded power-of-two level."""
    if 0 in level.tile or 0 in level.size:
        return None
    least = max(big / small for big, small in zip(first.size, level.size, strict=True))
    factor = 1 << max(math.ceil(math.log2(least)), 0)
    size = (-(-first.size[0] // factor), -(-first.size[1] // factor))
    padded = tuple(-(-side // tile) * tile for side, tile in zip(size, level.tile, strict=True))
    if padded != level.size or size == level.size:
        return None
    return replace(level, size=size, downsample=float(factor))


def _structured(probe: Probe, levels: Sequence[SlideLevel]) -> list[Place]:
    """Return the places with the most structure in a coarse level, as shares of width and height."""
    # in a smaller level the regions overlap and say little about places
    large = [level for level in levels if min(level.size) >= _GRID * _PATCH_PX]
    regions = probe.grid(large[-1] if large else levels[0])
    regions.sort(key=lambda region: -float(region[1].std()))
    return [place for place, _ in regions[:_PLACES]]


def likeness(probe: Probe, fine: SlideLevel, coarse: SlideLevel, places: Sequence[Place]) -> float:
    """Correlate the block means of two levels at some places (centres of regions, shares of width and height).

    Returns:
        Pearson's coefficient for the filter that fits best; NaN where all regions are flat in both, 0 where they are
        flat in one only.
    """
    pairs = [pair for place in places if (pair := _block_means(probe, fine, coarse, place)) is not None]
    if not pairs:
        return math.nan
    best = math.nan
    for number in range(len(_FILTERS)):
        a = np.concatenate([shrunk[number].ravel() for shrunk, _ in pairs])
        b = np.concatenate([stored.ravel() for _, stored in pairs])
        low, high = sorted((float(a.std()), float(b.std())))
        if low >= _FLAT:
            best = np.fmax(best, float(np.corrcoef(a, b)[0, 1]))
        elif high > _STRUCTURED:
            best = np.fmax(best, 0.0)
    return float(best)


def _block_means(
    probe: Probe, fine: SlideLevel, coarse: SlideLevel, place: Place
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None:
    """Return a region of the fine level, shrunk by every filter, and of the coarse level; None if a part is missing."""
    ratio = coarse.downsample / fine.downsample
    side = max(min(_PATCH_PX, int(_MAX_PATCH_PX / ratio), *coarse.size), 1)
    left, top = corner(place, side, coarse)
    # by axis, because rounding makes the downsamples of width and height differ
    scales = [big / small for big, small in zip(fine.size, coarse.size, strict=True)]
    if coarse.is_padded:
        scales = [ratio, ratio]
    size = (max(round(side * scales[0]), 1), max(round(side * scales[1]), 1))
    source = probe.read(fine, round(left * scales[0]), round(top * scales[1]), size)
    stored = probe.read(coarse, left, top, (side, side))
    if source is None or stored is None:
        return None
    blocks = min(_BLOCKS, side)

    def means(rgb: Image) -> npt.NDArray[np.float32]:
        """Return (blocks, blocks)."""
        grey = rgb.mean(axis=2, dtype=np.float32)
        return np.asarray(cv2.resize(grey, (blocks, blocks), interpolation=cv2.INTER_AREA), np.float32)

    shrunk = [np.asarray(cv2.resize(source, (side, side), interpolation=kind), np.uint8) for kind in _FILTERS]
    return [means(rgb) for rgb in shrunk], means(stored)
