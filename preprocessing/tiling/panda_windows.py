"""PANDA's windows (recipe of Silva-Rodriguez et al. 2021): overlapping windows over the whole slide, Otsu on grey.

Windows of `window_px` level-0 px lie every `step_px` from (0, 0), fully inside the slide. Slides smaller than a window
are padded with white and centred. Tissue is grey <= Otsu's threshold of the whole slide; a window is kept if its tissue
share is above `min_tissue`. The cancer share is counted on the label mask. The slide is read once in cells of `step_px`
and only a 256-bin grey histogram is kept per cell. Windows are sums of cells, so nothing is decoded twice although
windows overlap. Results are level-0 coords (x, y) and grid = (row, col) of the step lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.common.options import WsiOptions
from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import Slide
from preprocessing.tiling.contour_tiles import TilePlan

GREY_LEVELS = 256
_FLOAT32_EPSILON = 1.1920929e-07
_FALLBACK_LEVEL2_DOWNSAMPLE = 16.0


@dataclass(frozen=True)
class Canvas:
    """The slide after padding, in cells.

    Attributes:
        left, top: padding, level-0 px.
        width, height: padded size, level-0 px.
        cell: side of a cell = lattice step, level-0 px.
        per_window: cells along a window's side.
    """

    left: int
    top: int
    width: int
    height: int
    cell: int
    per_window: int

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of cells, incomplete ones at the right and bottom included."""
        return -(-self.height // self.cell), -(-self.width // self.cell)

    @property
    def windows(self) -> tuple[int, int]:
        """(rows, columns) of windows fully inside."""
        window = self.cell * self.per_window
        return (self.height - window) // self.cell + 1, (self.width - window) // self.cell + 1

    def origin(self, row: int, column: int) -> tuple[int, int]:
        """Level-0 (x, y) of a cell or window."""
        return column * self.cell - self.left, row * self.cell - self.top

    def box(self, row: int, column: int) -> tuple[int, int]:
        """(width, height) of a cell, cut at the canvas."""
        return min(self.cell, self.width - column * self.cell), min(self.cell, self.height - row * self.cell)


@dataclass
class PandaWindows:
    """Kept windows, rows sorted by (y, x).

    Attributes:
        coords: (N, 2) int32 level-0 (x, y); negative where the slide was padded.
        grid: (N, 2) int32 (row, col).
        tissue: (N,) float32 tissue share.
        threshold: Otsu's grey level; -1 if the slide was skipped.
        marks: "padded", "too large: ...", "unreadable: ..." where they apply.
        unreadable: number of cells that could not be read and count as white.
    """

    coords: npt.NDArray[np.int32]
    grid: npt.NDArray[np.int32]
    tissue: npt.NDArray[np.float32]
    threshold: int
    marks: list[str] = field(default_factory=list)
    unreadable: int = 0


def plan_windows(options: WsiOptions, name: str) -> TilePlan:
    """Return the sizes of the recipe; the window is twice the tile unless `window_px` is set.

    Raises:
        ValueError: a window that is no multiple of the step, or smaller than the tile.
    """
    window = options.window_px or 2 * options.tile_px
    if window % options.step_px or window < options.tile_px:
        raise ValueError(
            f"{name}: window_px {window}, step_px {options.step_px}, tile_px {options.tile_px} found, expected a "
            "window that is a multiple of the step and not smaller than the tile"
        )
    return TilePlan(0, window, options.tile_px, 1, window, options.step_px)


def make_canvas(dimensions: tuple[int, int], plan: TilePlan) -> Canvas:
    """Return the canvas of a slide; sides smaller than a window are padded, an odd pixel right and below."""
    width, height = (max(side, plan.footprint) for side in dimensions)
    left, top = (width - dimensions[0]) // 2, (height - dimensions[1]) // 2
    return Canvas(left, top, width, height, plan.step, plan.footprint // plan.step)


def panda_windows(slide: Slide, plan: TilePlan, options: WsiOptions) -> PandaWindows:
    """Find the windows with enough tissue; none in a blank slide, or in one beyond `max_level2_px` (marked)."""
    canvas = make_canvas(slide.dimensions, plan)
    marks = ["padded"] if (canvas.width, canvas.height) != slide.dimensions else []
    downsample = slide.level_downsamples[2] if len(slide.level_downsamples) > 2 else _FALLBACK_LEVEL2_DOWNSAMPLE
    size = int(slide.dimensions[0] / downsample) * int(slide.dimensions[1] / downsample)
    if options.max_level2_px is not None and size >= options.max_level2_px:
        marks.append(f"too large: {size} px at level 2, limit {options.max_level2_px}")
        return kept_windows(canvas, np.zeros(canvas.windows), 1.0, -1, marks)
    histograms, unreadable = grey_histograms(slide, canvas, options)
    if unreadable:
        marks.append(f"unreadable: {unreadable} cells counted as white")
    threshold = otsu_threshold(histograms.sum(axis=(0, 1)))
    bright = histograms[..., threshold + 1 :].sum(axis=-1)
    share = 1 - sum_windows(bright, canvas) / plan.footprint**2
    windows = kept_windows(canvas, share, options.min_tissue, threshold, marks)
    windows.unreadable = unreadable
    return windows


def kept_windows(
    canvas: Canvas, share: npt.NDArray[np.float64], min_tissue: float, threshold: int, marks: list[str]
) -> PandaWindows:
    """Return the windows whose tissue share (rows, columns) is above `min_tissue`."""
    grid = np.argwhere(share > min_tissue).astype(np.int32)
    coords = grid[:, ::-1] * np.int32(canvas.cell) - np.array([canvas.left, canvas.top], np.int32)
    tissue = share[grid[:, 0], grid[:, 1]].astype(np.float32)
    return PandaWindows(np.ascontiguousarray(coords, np.int32), grid, tissue, threshold, marks)


def grey_histograms(slide: Slide, canvas: Canvas, options: WsiOptions) -> tuple[npt.NDArray[np.int64], int]:
    """Compute the grey histogram of every cell, (rows, columns, 256); padding counts as white.

    `otsu_bgr` weighs R as if it were B and the reverse, because the original code handed RGB to a BGR function.

    Returns:
        The histograms and the number of unreadable cells, which count as white.

    Raises:
        TileReadError: more than `max_bad_tiles` cells are unreadable.
    """
    rows, columns = canvas.cells
    code = cv2.COLOR_BGR2GRAY if options.otsu_bgr else cv2.COLOR_RGB2GRAY
    out = np.zeros((rows, columns, GREY_LEVELS), np.int64)
    unreadable = 0
    for row, column in np.ndindex(rows, columns):
        width, height = canvas.box(row, column)
        try:
            grey = cv2.cvtColor(slide.read(*canvas.origin(row, column), 0, (width, height)), code)
            out[row, column] = cv2.calcHist([grey], [0], None, [GREY_LEVELS], [0, GREY_LEVELS]).ravel()
        except TileReadError:
            unreadable += 1
            if unreadable > options.max_bad_tiles:
                raise
            out[row, column, -1] = width * height
    return out, unreadable


def otsu_threshold(histogram: npt.NDArray[np.int64]) -> int:
    """Compute Otsu's threshold of a histogram (256,) like OpenCV: the first maximum of the variance between classes.

    Returns:
        The largest grey level of the dark class; 0 for a picture of one grey level.
    """
    share = histogram / histogram.sum()
    mean = float((np.arange(GREY_LEVELS) * share).sum())
    dark, dark_mean, best, threshold = 0.0, 0.0, 0.0, 0
    for level, p in enumerate(share):
        dark_mean *= dark
        dark += float(p)
        light = 1.0 - dark
        if min(dark, light) < _FLOAT32_EPSILON or max(dark, light) > 1.0 - _FLOAT32_EPSILON:
            continue
        dark_mean = (dark_mean + level * float(p)) / dark
        light_mean = (mean - dark * dark_mean) / light
        variance = dark * light * (dark_mean - light_mean) ** 2
        if variance > best:
            best, threshold = variance, level
    return threshold


def sum_windows(cells: npt.NDArray[np.int64], canvas: Canvas) -> npt.NDArray[np.int64]:
    """Sum over the cells of every window, (rows, columns) of cells -> (rows, columns) of windows."""
    blocks = np.lib.stride_tricks.sliding_window_view(cells, (canvas.per_window, canvas.per_window))
    rows, columns = canvas.windows
    return np.asarray(blocks[:rows, :columns].sum(axis=(2, 3)))


def mask_coverage(
    mask: Slide, coords: npt.NDArray[np.int32], footprint: int, dimensions: tuple[int, int], provider: str
) -> npt.NDArray[np.float32]:
    """Return the cancer share (N,) of each kept window from the label mask, cancer pixels / window area.

    Args:
        mask: the mask file; channel R of level 0 is read.
        coords: (N, 2) corners of the windows, level-0 px.
        footprint: side of a window, level-0 px.
        dimensions: (width, height) of the slide at level 0.
        provider: `radboud` or `karolinska`.

    Raises:
        ValueError: mask and slide differ in size, or the mask holds values that the provider does not use.
    """
    if mask.dimensions != dimensions:
        raise ValueError(
            f"{mask.path}: mask of {mask.dimensions[0]} x {mask.dimensions[1]} px, expected the slide's "
            f"{dimensions[0]} x {dimensions[1]} px"
        )
    counts = np.zeros(len(coords), np.int64)
    for i, (x, y) in enumerate(coords.tolist()):
        # pixels missing from the mask are background (0), not white
        values = mask.read(x, y, 0, (footprint, footprint), white=False)[..., 0]
        counts[i] = np.count_nonzero(mask_is_positive(values, provider, str(mask.path)))
    return (counts / footprint**2).astype(np.float32)


def mask_outlines(mask: Slide, provider: str) -> list[npt.NDArray[np.int32]]:
    """Trace the cancer in a label mask at the finest level of at most 2048 px a side: (V,2) int32 level-0 px (x, y)."""
    fits = [i for i, size in enumerate(mask.level_dimensions) if max(size) <= 2048]
    level = fits[0] if fits else len(mask.level_dimensions) - 1
    values = mask.read(0, 0, level, mask.level_dimensions[level], white=False)[..., 0]
    positive = mask_is_positive(values, provider, str(mask.path)).astype(np.uint8)
    contours, _ = cv2.findContours(positive, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    scale = mask.level_downsamples[level]
    return [np.rint(contour.reshape(-1, 2) * scale).astype(np.int32) for contour in contours if len(contour) > 2]


def mask_is_positive(values: npt.NDArray[np.uint8], provider: str, name: str) -> npt.NDArray[np.bool_]:
    """Return which pixels of a PANDA label mask (any shape, channel R) are cancer.

    The numbering depends on the provider: `radboud` (0 background, 1 stroma, 2 benign, 3..5 Gleason) or `karolinska`
    (0, 1 benign, 2 cancer).

    Raises:
        ValueError: another provider, or a value that the provider does not use; `name` is the file.
    """
    limits = {"radboud": 5, "karolinska": 2}
    if provider not in limits:
        raise ValueError(f"{name}: provider {provider!r}, expected radboud or karolinska: masks differ in meaning")
    if values.size and int(values.max()) > limits[provider]:
        raise ValueError(
            f"{name}: mask value {int(values.max())} found, expected 0..{limits[provider]} for {provider}; wrong "
            "provider, or a mask saved with loss or with a palette"
        )
    return values >= 3 if provider == "radboud" else values == 2
