"""A tissue mask that somebody drew, instead of the one that thresholds find: a PNG of any size.

Mask pixel (i, j) of (h, w) stands for level-0 x in [j W/w, (j+1) W/w), y likewise, on a slide of W x H px; more than 0
= tissue (any colour above 0; of a palette the index; transparent = not). The mask is taken as it is: no filter, no
closing, no least area. In: a file; out: contours of int32 level-0 (x, y), or PANDA's windows with their tissue share.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.limits import MAX_MASK_PX
from preprocessing.panda_windows import Canvas, PandaWindows, make_canvas, sum_windows
from preprocessing.tiles import TilePlan
from preprocessing.tissue import SEG_DOWNSAMPLE, Contour

Mask = npt.NDArray[np.bool_]

ASPECT_TOLERANCE = 0.01
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_mask(path: Path, dimensions: tuple[int, int]) -> Mask:
    """Reads a mask.

    Args:
        path: a PNG file.
        dimensions: (width, height) of the slide at level 0.

    Returns:
        (h, w) bool.

    Raises:
        ValueError: no PNG, damaged, too large, or of another aspect ratio than the slide.
    """
    width, height = _size(path)
    if width * height > MAX_MASK_PX:
        raise ValueError(f"{path}: mask of {width} x {height} px, expected at most {MAX_MASK_PX} px; save it smaller")
    # a mask saved from a thumbnail is off by up to a rounded pixel
    if abs(width - height * dimensions[0] / dimensions[1]) > max(1.0, ASPECT_TOLERANCE * width):
        raise ValueError(
            f"{path}: mask of {width} x {height} px for a slide of {dimensions[0]} x {dimensions[1]} px, expected the "
            "same aspect ratio; draw it on the whole slide"
        )
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return _above_zero(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: damaged PNG ({error}); save the mask again") from error


def _size(path: Path) -> tuple[int, int]:
    """(width, height) from the header, before anything is unpacked."""
    with path.open("rb") as stream:
        head = stream.read(24)
    if len(head) < 24 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise ValueError(f"{path}: not a PNG file, expected a tissue mask (more than 0 = tissue)")
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    if width < 1 or height < 1:
        raise ValueError(f"{path}: mask of {width} x {height} px, expected a picture")
    return width, height


def _above_zero(image: Any) -> Mask:
    if image.mode in ("LA", "RGB", "RGBA"):
        alpha = np.asarray(image.getchannel("A")) if "A" in image.mode else None
        colour = np.asarray(image.convert("RGB")).max(axis=2) > 0
        return np.asarray(colour if alpha is None else colour & (alpha > 0), np.bool_)
    return np.asarray(np.asarray(image) > 0, np.bool_)


def mask_contours(mask: Mask, dimensions: tuple[int, int]) -> tuple[list[Contour], tuple[float, float]]:
    """Contours of a mask with all their holes.

    Args:
        mask: (h, w) bool.
        dimensions: (width, height) of the slide at level 0.

    Returns:
        Contours in OpenCV's order, each running through the centres of its border pixels, and the (x, y) level-0 px
        per mask pixel; a mask coarser than the usual segmentation level is refined first (nearest), which keeps the
        error at the border below 32 level-0 px.
    """
    import cv2

    shape = (dimensions[0] / mask.shape[1], dimensions[1] / mask.shape[0])
    fine = max(1, math.ceil(max(shape) / SEG_DOWNSAMPLE))
    picture = np.repeat(np.repeat(mask.astype(np.uint8), fine, axis=0), fine, axis=1)
    scale = np.array([shape[0] / fine, shape[1] / fine])
    found, hierarchy = cv2.findContours(picture, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return [], (float(scale[0]), float(scale[1]))
    rings = [((np.asarray(ring).reshape(-1, 2) + 0.5) * scale).astype(np.int32) for ring in found]
    parent = np.asarray(hierarchy).reshape(-1, 4)[:, 3]
    contours = [
        Contour(rings[int(outer)], tuple(rings[int(hole)] for hole in np.flatnonzero(parent == outer)))
        for outer in np.flatnonzero(parent == -1)
    ]
    return contours, (float(scale[0]), float(scale[1]))


def masked_windows(mask: Mask, dimensions: tuple[int, int], plan: TilePlan, min_tissue: float) -> PandaWindows:
    """PANDA's windows with the tissue share counted on a mask instead of grey levels.

    Args:
        mask: (h, w) bool.
        dimensions: (width, height) of the slide at level 0.
        plan: sizes of the windows.
        min_tissue: a window needs more than this share.

    Returns:
        The kept windows; their threshold is -1, as there is none.
    """
    canvas = make_canvas(dimensions, plan)
    rows = _pixels_per_cell(mask.shape[0], dimensions[1], canvas.top, canvas.cells[0], canvas)
    columns = _pixels_per_cell(mask.shape[1], dimensions[0], canvas.left, canvas.cells[1], canvas)
    cells = np.rint(rows @ mask.astype(np.float64) @ columns.T).astype(np.int64)
    share = sum_windows(cells, canvas) / plan.footprint**2
    grid = np.argwhere(share > min_tissue).astype(np.int32)
    coords = grid[:, ::-1] * np.int32(canvas.cell) - np.array([canvas.left, canvas.top], np.int32)
    tissue = share[grid[:, 0], grid[:, 1]].astype(np.float32)
    return PandaWindows(np.ascontiguousarray(coords, np.int32), grid, tissue, -1)


def _pixels_per_cell(mask_px: int, side: int, padding: int, cells: int, canvas: Canvas) -> npt.NDArray[np.float64]:
    """(cells, mask_px): how many level-0 px of each mask row (or column) fall into each cell of the lattice."""
    place = np.arange(side)
    pixel = ((2 * place + 1) * mask_px) // (2 * side)
    joint = (place + padding) // canvas.cell * mask_px + pixel
    return np.bincount(joint, minlength=cells * mask_px).reshape(cells, mask_px).astype(np.float64)
