"""Regions of slides: their type, memory that is fast to fill, and the error for an unreadable one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
# On x86 libjpeg-turbo bypasses the cache for rows that begin at a multiple of 32 bytes (16 with SSE2), which makes
# decoding an eighth slower and the next access a cache miss. Tile widths in a TIFF are multiples of 16 px, so rows are
# multiples of 48 bytes: starting 8 bytes past a multiple of 16, no row begins at such an address.
ALIGNMENT, PAST = 16, 8


def tile_memory(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return an uninitialised uint8 array (..., H, W, 3) that begins 8 bytes past a multiple of 16."""
    size = math.prod(shape)
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = (PAST - block.ctypes.data) % ALIGNMENT
    return block[first : first + size].reshape(shape)


class TileReadError(ValueError):
    """A region could not be decoded, even with a new handle."""


class ReferenceSlide(Protocol):
    """The slide with which the direct tile reader is compared: its pyramid, and OpenSlide's pixels of it."""

    path: Path
    properties: Mapping[str, str]
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]

    def openslide_rgb(self, l0_x: int, l0_y: int, level: int, size: tuple[int, int]) -> Image:
        """Return a region (h, w, 3) as OpenSlide reads it; the origin is in level-0 px, the size in px of the level."""
