"""Tissue contours of a slide: CLAM's segmentation (Lu et al. 2021, the released tool's behaviour, from a description).

HSV saturation at a low-resolution level -> median filter -> threshold (fixed or Otsu) -> closing -> contours with holes
-> area filter -> level-0 coordinates. A faithful version depends on: OpenCV's fixed-point saturation; even closing
kernels that shift the mask by one pixel right and down (`anchor_corrected` undoes it); areas by the shoelace formula
through pixel centres; a net area without all holes, also those not kept; OpenCV's order of contours.
Input is (h, w, 3) uint8 RGB at the segmentation level, transparent = black; contours are int32 level-0 (x, y).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.common.options import TissueOptions
from preprocessing.slides.regions import Image, TileReadError
from preprocessing.slides.slide import LEVEL_TOLERANCE, Slide

Polygon = npt.NDArray[np.int32]

SEG_DOWNSAMPLE = 64
SEG_MAX_PX = 100_000_000
REFERENCE_PATCH_PX = 512
CELL_PX = 256


@dataclass(frozen=True)
class Contour:
    """One piece of tissue: `outer` (n,2) int32 level-0 (x, y) and its kept holes, largest first."""

    outer: Polygon
    holes: tuple[Polygon, ...] = ()


@dataclass
class Tissue:
    """Result of `segment_tissue`.

    Attributes:
        contours: kept contours in OpenCV's order; may be empty.
        level: pyramid level read.
        downsample: (x, y) level-0 px per px of the mask.
        marks: deviations from the standard procedure: "shrunk:<factor>", "level:<n>", "fallback", "own mask".
        unreadable: file tiles of the level that could not be decoded and count as background.
    """

    contours: list[Contour]
    level: int
    downsample: tuple[float, float]
    marks: list[str] = field(default_factory=list)
    unreadable: int = 0


def tissue_mask(rgb: Image, options: TissueOptions) -> Image:
    """Compute the binary tissue mask, (h, w, 3) uint8 RGB -> (h, w) uint8 in {0, 255}."""
    saturation = np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1])
    blurred = cv2.medianBlur(saturation, options.mthresh)
    mode = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if options.use_otsu else 0)
    mask = cv2.threshold(blurred, 0 if options.use_otsu else options.sthresh, 255, mode)[1]
    if options.close > 0:
        mask = _close(np.asarray(mask, np.uint8), options.close, options.anchor_corrected)
    return np.asarray(mask, np.uint8)


def _close(mask: Image, side: int, anchor_corrected: bool) -> Image:
    """Close a mask with a square of ones.

    OpenCV uses the anchor side // 2 for dilation and erosion, which shifts the result of an even kernel by one pixel;
    mirroring the anchor in the erosion gives the textbook closing.
    """
    kernel = np.ones((side, side), np.uint8)
    if not anchor_corrected:
        return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel), np.uint8)
    anchor, mirrored = side // 2, side - 1 - side // 2
    dilated = cv2.dilate(mask, kernel, anchor=(anchor, anchor))
    return np.asarray(cv2.erode(dilated, kernel, anchor=(mirrored, mirrored)), np.uint8)


def tissue_contours(rgb: Image, downsample: tuple[float, float], options: TissueOptions) -> list[Contour]:
    """Segment one picture (h, w, 3) uint8; contours in OpenCV's order, areas in 512 x 512 px level-0 patches.

    Raises:
        ValueError: an even median kernel.
    """
    if options.mthresh % 2 == 0:
        raise ValueError(f"tissue.mthresh: found {options.mthresh}, expected an odd number (side of a median filter)")
    outlines, parent = nested_outlines(tissue_mask(rgb, options))
    area = np.array([cv2.contourArea(outline) for outline in outlines])
    unit = int(REFERENCE_PATCH_PX**2 / (downsample[0] * downsample[1]))
    kept = []
    for outer in np.flatnonzero(parent == -1):
        holes = np.flatnonzero(parent == outer)
        net = area[outer] - area[holes].sum()
        if net == 0 or net <= options.a_t * unit:
            continue
        largest = holes[np.argsort(-area[holes], kind="stable")][: options.max_n_holes]
        chosen = [outer, *(hole for hole in largest if area[hole] > options.a_h * unit)]
        rings = [(outlines[int(i)] * np.array(downsample)).astype(np.int32) for i in chosen]
        kept.append(Contour(rings[0], tuple(rings[1:])))
    return kept


def nested_outlines(mask: Image) -> tuple[list[Polygon], npt.NDArray[np.int32]]:
    """Trace a mask (h, w) > 0: outlines (n, 2) int32 (x, y), and for each the outline whose hole it is, or -1."""
    outlines, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parent = np.empty(0, np.int32) if hierarchy is None else np.asarray(hierarchy, np.int32).reshape(-1, 4)[:, 3]
    return [np.asarray(outline, np.int32).reshape(-1, 2) for outline in outlines], parent


def segmentation_level(slide: Slide, options: TissueOptions) -> int:
    """Return the level to segment: `seg_level`, or for -1 the best for downsample 64 (0 on a single-level slide).

    Raises:
        ValueError: the level does not exist.
    """
    if options.seg_level >= len(slide.level_dimensions):
        raise ValueError(
            f"{slide.path}: tissue.seg_level {options.seg_level} asked, found levels "
            f"0..{len(slide.level_dimensions) - 1}; use -1 to choose per slide"
        )
    if options.seg_level >= 0:
        return options.seg_level
    # CLAM asks OpenSlide, which rejects a level of 64.003 for 64; the corrected mode accepts it
    return slide.level_at(SEG_DOWNSAMPLE, LEVEL_TOLERANCE if options.anchor_corrected else 0.0)


def segment_tissue(slide: Slide, options: TissueOptions, *, max_bad_tiles: int = 0) -> Tissue:
    """Segment a slide at its segmentation level.

    If the level has more than 1e8 px, where CLAM gives up, a coarser level is read, or without one the level is shrunk
    block by block towards downsample 64. If nothing is found and `options.fallback` is set, thresholds are loosened
    once. Both are recorded in `marks`. Up to `max_bad_tiles` unreadable file tiles of the level count as background.

    Raises:
        TileReadError: more tiles of the level than allowed cannot be decoded.
    """
    level, factor, marks = segmentation_level(slide, options), 1, list[str]()
    pixels = [width * height for width, height in slide.level_dimensions]
    if pixels[level] > SEG_MAX_PX:
        coarser = [i for i in range(level + 1, len(pixels)) if pixels[i] <= SEG_MAX_PX]
        if coarser:
            level = coarser[0]
            marks.append(f"level:{level}")
        else:
            needed = math.ceil(math.sqrt(pixels[level] / SEG_MAX_PX))
            factor = max(needed, int(SEG_DOWNSAMPLE / slide.level_downsamples[level]))
            marks.append(f"shrunk:{factor}")
    rgb, unreadable = read_despite_damage(slide, level, factor, max_bad_tiles)
    width, height = slide.level_dimensions[level]
    # of a padded or rounded level both axes differ a little
    downsample = (factor * slide.dimensions[0] / width, factor * slide.dimensions[1] / height)
    contours = tissue_contours(rgb, downsample, options)
    if not contours and options.fallback:
        contours = tissue_contours(rgb, downsample, loosened(options))
        marks.append("fallback")
    return Tissue(contours, level, downsample, marks, unreadable)


def read_despite_damage(slide: Slide, level: int, factor: int, allowed: int) -> tuple[Image, int]:
    """Read a level (h, w, 3) uint8 like `Slide.read_level`, unreadable file tiles black, and count these.

    Raises:
        TileReadError: more tiles than allowed cannot be decoded.
    """
    try:
        return slide.read_level(level, factor, white=False), 0
    except TileReadError:
        if allowed == 0:
            raise
    tile_w, tile_h = (side or CELL_PX for side in slide.level_tiles[level])
    downsample, bad = slide.level_downsamples[level], set[tuple[int, int]]()

    def read_block(left: int, top: int, size: tuple[int, int]) -> Image:
        """Read a block (height, width, 3) uint8 at (left, top), px of the level, without its unreadable tiles."""
        right, bottom = left + size[0], top + size[1]
        block = np.zeros((size[1], size[0], 3), np.uint8)
        columns, rows = range(left // tile_w, -(-right // tile_w)), range(top // tile_h, -(-bottom // tile_h))
        for column, row in itertools.product(columns, rows):
            x0, y0 = max(column * tile_w, left), max(row * tile_h, top)
            x1, y1 = min((column + 1) * tile_w, right), min((row + 1) * tile_h, bottom)
            corner = (round(x0 * downsample), round(y0 * downsample))
            try:
                tile = slide.read(*corner, level, (x1 - x0, y1 - y0), white=False)
            except TileReadError:
                bad.add((column, row))
                if len(bad) > allowed:
                    raise
            else:
                block[y0 - top : y1 - top, x0 - left : x1 - left] = tile
        return block

    return slide.read_level(level, factor, read_block=read_block), len(bad)


def loosened(options: TissueOptions) -> TissueOptions:
    """Return thresholds for pale or tiny tissue: half the saturation, a sixteenth of the area, no Otsu."""
    return options.model_copy(
        update={"sthresh": max(options.sthresh // 2, 1), "a_t": options.a_t / 16, "use_otsu": False}
    )
