"""Look at what was cut: grey levels and colours of a slide and its tiles, Hounsfield units of a scan.

The numbers are stored with the instances; `preprocessing.instances.checks` turns them into warnings. They cost little:
a slide's thumbnail exists anyway, the middle of at most 16 tiles is read, and slices are decoded for the montage.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.slides.regions import Image, TileReadError
from preprocessing.slides.slide import Slide
from preprocessing.store.attrs import InstanceAttrs, ScanStatistics, SlideStatistics

# more would take longer than all the rest of cutting
SAMPLED_TILES, SAMPLED_PX = 16, 256
# mean grey levels: no stain is as dark, no tissue as bright
BLACK, WHITE = 20, 250
# share of the grey levels that a tile with tissue spans at least (1 to 99 percentile); glass spans 0.02 to 0.05
LEAST_CONTRAST = 0.08
# every fourth pixel suffices for percentiles
_STEP = 4
AIR_BELOW, SOFT, BONE_ABOVE = -500, (-200, 200), 300
CLIPPED_SHARE = 0.01


def slide_statistics(
    slide: Slide, attrs: InstanceAttrs, coords: npt.NDArray[np.integer], thumbnail: Image | None, downsample: float
) -> SlideStatistics | None:
    """Look at the thumbnail of a slide and at the middle of some of its tiles; None if there is nothing to look at.

    Args:
        slide: open slide.
        attrs: how its tiles are read.
        coords: (N, 2) level-0 (x, y) of the tiles.
        thumbnail: (h, w, 3) of the whole slide; None = it cannot be read.
        downsample: level-0 px per px of the thumbnail.
    """
    from skimage.exposure import is_low_contrast

    chosen = coords[np.unique(np.linspace(0, len(coords) - 1, SAMPLED_TILES).round().astype(int))[: len(coords)]]
    tiles: list[Image] = []
    side = min(attrs.read_px, SAMPLED_PX)
    middle = (attrs.read_px - side) / 2 * attrs.read_downsample
    for x, y in chosen.tolist():
        with contextlib.suppress(TileReadError):
            tiles.append(slide.read(round(x + middle), round(y + middle), attrs.read_level, (side, side)))
    if thumbnail is not None:
        colours = _tile_colours(thumbnail, coords / downsample, attrs.l0_footprint_px / downsample)
        pixels = thumbnail
    elif tiles:
        colours = np.array([tile.mean(axis=(0, 1)) for tile in tiles])
        pixels = np.concatenate(tiles)
    else:
        return None
    grey = colours @ np.array([0.299, 0.587, 0.114])
    return SlideStatistics(
        tiles=len(colours),
        black=int((grey < BLACK).sum()),
        white=int((grey > WHITE).sum()),
        sampled=len(chosen),
        unreadable=len(chosen) - len(tiles),
        flat=sum(
            bool(is_low_contrast(tile[::_STEP, ::_STEP], fraction_threshold=LEAST_CONTRAST))  # type: ignore[no-untyped-call]
            for tile in tiles
        ),
        **_colours(np.ascontiguousarray(pixels[::_STEP, ::_STEP])),
    )


def _tile_colours(thumbnail: Image, corners: npt.NDArray[np.floating], side: float) -> npt.NDArray[np.float64]:
    """Return the mean colour (N, 3) of every tile; `corners` (N, 2) and `side` in px of the thumbnail."""
    sums = cv2.integral(thumbnail).astype(np.int64)
    size = np.array(thumbnail.shape[1::-1])
    low = np.clip(np.round(corners).astype(int), 0, size - 1)
    high = np.clip(np.round(corners + side).astype(int), low + 1, size)
    (x0, y0), (x1, y1) = low.T, high.T
    total = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return np.asarray(total / ((x1 - x0) * (y1 - y0))[:, None], np.float64)


def _colours(pixels: Image) -> dict[str, Any]:
    """Return the statistics of the colours of pixels (h, w, 3)."""
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    low, bright, high = np.percentile(grey, (0.1, 90, 99.9))
    red, green, blue = cv2.split(pixels)
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return {
        "black_area": round(float((grey < BLACK).mean()), 3),
        "luminance": _rounded((low, high)),
        "channel_ranges": _rounded(np.subtract(*np.percentile(pixels, (99.9, 0.1), axis=(0, 1)))),
        "colour": round(float(np.percentile(colour, 99.9)), 3),
        "background": _rounded(np.median(pixels[grey >= bright], axis=0)),
    }


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)


def scan_statistics(slices: Sequence[npt.NDArray[np.float32]]) -> ScanStatistics:
    """Sum up the slices (H, W) of a scan that were looked at, at least one, HU."""
    hu = np.stack(slices)
    largest = hu.max()

    def share(where: npt.NDArray[np.bool_]) -> float:
        """Return the share of the pixels of `where` (N, H, W) that are True."""
        return round(float(where.sum() / where.size), 3)

    return ScanStatistics(
        sampled=len(slices),
        least=round(float(hu.min()), 3),
        largest=round(float(largest), 3),
        air=share(hu < AIR_BELOW),
        soft=share((hu >= SOFT[0]) & (hu <= SOFT[1])),
        bone=share(hu > BONE_ABOVE),
        clipped=sum(bool((s == largest).sum() >= CLIPPED_SHARE * s.size) for s in slices),
        flat=sum(bool(s.min() == s.max()) for s in slices),
    )
