"""The error for an unreadable region, and the interface of a slide that the direct tile reader is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


class TileReadError(ValueError):
    """A region could not be decoded, even with a new handle."""


class ReferenceSlide(Protocol):
    """The pyramid of a slide and OpenSlide's pixels of it."""

    path: Path
    properties: Mapping[str, str]
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]

    def openslide_rgb(self, l0_x: int, l0_y: int, level: int, size: tuple[int, int]) -> Image:
        """Return a region (h, w, 3) as OpenSlide reads it; the origin is in level-0 px, the size in px of the level."""
