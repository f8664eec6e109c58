"""What readers of slides share: the error for an unreadable tile and the interface of a reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


class TileReadError(ValueError):
    """A region could not be decoded, also not with a fresh handle."""


class ReferenceSlide(Protocol):
    """What a direct reader needs of the slide it must agree with: its pyramid and OpenSlide's own pixels."""

    path: Path
    properties: Mapping[str, str]
    level_dimensions: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]

    def openslide_rgb(self, l0_x: int, l0_y: int, level: int, size: tuple[int, int]) -> Image:
        """Return a region (h, w, 3) as OpenSlide reads it; the origin is in level-0 px, the size in px of the level."""
