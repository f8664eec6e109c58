"""Focus of a slide, from patches of 128 px at about 1 um/px, at most 100 of them spread over the tissue.

A patch's focus is the variance of its fine detail (difference of Gaussians of 1 and 2 px) over that of its coarse
detail (4 and 8 px). Both grow alike with contrast and stain, so the ratio tells how sharp the picture is.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import Slide

UM_PER_PX, PATCH_PX, MAX_PATCHES = 1.0, 128, 100
LEAST_TISSUE = 0.6
# Variance of coarse detail, grey levels squared, that every stained tissue has; less is taken for as much.
LEAST_DETAIL = 4.0


def focus_map(slide: Slide, tissue: npt.NDArray[np.bool_], downsample: float) -> npt.NDArray[np.float32]:
    """Measure the focus in cells of a square lattice.

    Args:
        slide: open slide of known resolution.
        tissue: (h, w) bool, of the whole slide.
        downsample: level-0 px per px of `tissue`.

    Returns:
        (h, w) float32, constant in every cell; NaN without enough tissue.
    """
    level = slide.level_at(UM_PER_PX / slide.mpp)
    shrink = max(1, round(UM_PER_PX / (slide.mpp * slide.level_downsamples[level])))
    side = PATCH_PX * shrink
    footprint = side * slide.level_downsamples[level] / downsample
    cell = max(footprint, math.sqrt(int(tissue.sum()) / MAX_PATCHES), 1.0)
    focus = np.full(tissue.shape, np.nan, np.float32)
    for top in np.arange(0, tissue.shape[0], cell):
        for left in np.arange(0, tissue.shape[1], cell):
            y, x = top + (cell - footprint) / 2, left + (cell - footprint) / 2
            if _part(tissue, x, y, footprint).mean() < LEAST_TISSUE:
                continue
            try:
                patch = slide.read(round(x * downsample), round(y * downsample), level, (side, side))
            except TileReadError:
                continue
            small = np.asarray(cv2.resize(patch, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA), np.uint8)
            _part(focus, left, top, cell)[:] = patch_focus(small)
    return focus


def _part(array: npt.NDArray[np.generic], x: float, y: float, side: float) -> npt.NDArray[np.generic]:
    """Return the view of a square of at least one px."""
    low_x, low_y = max(0, round(x)), max(0, round(y))
    return array[low_y : max(low_y + 1, round(y + side)), low_x : max(low_x + 1, round(x + side))]


def patch_focus(patch: npt.NDArray[np.uint8]) -> float:
    """Return the focus of a patch (h, w, 3) uint8."""
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = [cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1.0, 2.0, 4.0, 8.0)]
    fine, coarse = float((smooth[0] - smooth[1]).var()), float((smooth[2] - smooth[3]).var())
    return fine / max(coarse, LEAST_DETAIL)
