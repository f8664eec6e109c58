"""Artefacts on a slide: pen, blur, folds, pale tissue, and air or gaps inside the tissue's outline.

All but blur are looked for in the thumbnail (1024 px) by colour and shape; blur by the focus of patches read at about
1 um/px. Colours are optical densities (OD) relative to the glass of the same slide, so that neither exposure nor the
tint of the glass matters. In haematoxylin and eosin green light is absorbed most: inks are recognised by what they
absorb instead. Sizes count in px of the thumbnail. `ARTEFACTS` has one entry per kind;
docs/howto/quality-control.md says how well each is found. Masks are (h, w) bool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.common.options import ArtefactName
from preprocessing.slides.regions import Image, TileReadError
from preprocessing.slides.slide import Slide
from preprocessing.store.outlines import ArtefactArea, Ring
from preprocessing.tiling.tissue import Contour

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Artefacts = dict[ArtefactName, ArtefactArea]

# OD summed over red, green and blue: glass has 0.03, unstained or washed-out tissue less than 0.3, a normal stain 0.8
GAP_OD, PALE_OD = 0.09, 0.30
# Grey level of glass that is not to be seen, and how tinted and dark glass can be.
GLASS, GLASS_TINT, GLASS_LEAST = 240.0, 25, 180
# Patches for the focus are spread over the tissue.
UM_PER_PX, PATCH_PX, MAX_PATCHES, LEAST_TISSUE = 1.0, 128, 100, 0.6
# Variance of coarse detail, grey levels squared, that every stained tissue has; less is taken for as much.
LEAST_DETAIL = 4.0
# Variance of fine detail over that of coarse detail at 1 um/px: sharp tissue has 0.6 to 3.5; blurred by a Gaussian of
# 2 um 0.13 to 0.5, of 3 um at most 0.18.
FOCUS_LIMIT = 0.25
PEN_PX, SPECK_PX = 3, 50
# Folds are looked for where single cells cannot be told apart any more.
FOLD_UM_PER_PX, FOLD_UM, FOLD_LENGTH_UM = 8.0, 240.0, 400.0
FOLD_RATIO, FOLD_DYE_RATIO, FOLD_OD, FOLD_MOST = 1.5, 1.3, 1.1, 0.15


@dataclass(frozen=True)
class View:
    """What detectors look at.

    Attributes:
        rgb: (h, w, 3) uint8 thumbnail on white.
        tissue: (h, w) bool, what counts as tissue.
        focus: (h, w) float32, see `FOCUS_LIMIT`; NaN = unknown.
        um_per_px: of the thumbnail.
    """

    rgb: Image
    tissue: Mask
    focus: Floats
    um_per_px: float

    @cached_property
    def od(self) -> Floats:
        """Optical density (h, w, 3), smoothed over about 3 px; 0 = glass."""
        smooth = cv2.GaussianBlur(self.rgb, (0, 0), 1.2).astype(np.float32)
        grey = smooth.mean(axis=2)
        glass = np.median(smooth[grey >= np.percentile(grey, 90)], axis=0)
        if np.ptp(glass) > GLASS_TINT or glass.min() < GLASS_LEAST:
            glass = np.full(3, GLASS)  # tissue everywhere
        return np.asarray(np.log(glass / np.maximum(smooth, 1)), np.float32)

    @cached_property
    def density(self) -> Floats:
        """OD summed over the channels (h, w)."""
        return np.asarray(self.od.sum(axis=2), np.float32)

    @cached_property
    def pen(self) -> Mask:
        """Ink, which other detectors leave out."""
        return find_pen(self)


@dataclass(frozen=True)
class Artefact:
    """One kind of artefact.

    Attributes:
        name: in the configuration and the override column `exclude`.
        title: for people.
        find: returns the mask of a view.
        colour: RGB of its outline.
        warn_above: share of the tissue above which a slide is warned about.
        advice: end of the warning.
    """

    name: ArtefactName
    title: str
    find: Callable[[View], Mask]
    colour: tuple[int, int, int]
    warn_above: float
    advice: str

    def warning(self, share: float) -> str:
        """Return the warning for its share of the tissue, "" if the share is small."""
        return f"{self.title} on {100 * share:.2g} % of the tissue: {self.advice}" if share > self.warn_above else ""


def find_pen(view: View) -> Mask:
    """Find blue, green, red and black ink: strokes at least `PEN_PX` wide, with their paler borders."""
    red, green, blue = np.moveaxis(view.od, 2, 0)
    strong = np.zeros(red.shape, np.bool_)
    border = strong.copy()
    # Ink absorbs mostly red (blue and green ink), green and blue alike (red ink), or everything (black ink).
    for mask, margin in ((strong, 0.0), (border, 0.12)):
        least = 1 - 4 * margin
        mask |= (red > (1.1 - margin) * green) & (red > 0.8 * least)
        mask |= (blue > (0.75 - margin) * green) & (red < (0.30 + margin) * green) & (green > 1.2 * least)
        alike = (np.minimum(red, blue) > (0.77 - margin) * green) & (np.maximum(red, blue) < 1.25 * green)
        mask |= alike & (view.density > 3.0 * least)
    regions = _labelled(border)
    inked = np.bincount(regions[_opened(strong, PEN_PX)], minlength=regions.max() + 1) > 0
    inked[0] = False
    return np.asarray(inked[regions], np.bool_)


def find_blur(view: View) -> Mask:
    """Find regions out of focus; what is pale has no detail to judge by."""
    blurred = np.nan_to_num(view.focus, nan=np.inf) < FOCUS_LIMIT
    return np.asarray(blurred & (view.density > PALE_OD), np.bool_)


def find_folds(view: View) -> Mask:
    """Find long dark bands, as two layers of tissue absorb twice as much as what lies on both sides of them."""
    from skimage.color import rgb2hed
    from skimage.measure import regionprops

    height, width = view.density.shape
    scale = min(1.0, view.um_per_px / FOLD_UM_PER_PX)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    od = np.asarray(cv2.resize(view.od, size, interpolation=cv2.INTER_AREA), np.float32)
    density = od.sum(axis=2)
    um_per_px = view.um_per_px / scale
    radius, length = (max(3, round(um / um_per_px)) for um in (FOLD_UM / 2, FOLD_LENGTH_UM))
    # Tissue is compared with tissue alone, without its pale rim: a narrow strip of it on glass is no fold.
    glass = cv2.dilate((density < PALE_OD).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    haematoxylin, eosin, _ = np.moveaxis(rgb2hed(np.exp(-od)), 2, 0)
    # In a fold both stains are doubled; epithelium beside stroma has more haematoxylin, but not more eosin.
    dark = density > FOLD_OD
    for dye, ratio in ((density, FOLD_RATIO), (haematoxylin, FOLD_DYE_RATIO), (eosin, FOLD_DYE_RATIO)):
        beside = np.where(glass, dye.max(), dye).astype(np.float32)
        dark &= dye > ratio * cv2.morphologyEx(beside, cv2.MORPH_OPEN, _disk(radius))
    # A band that makes up a seventh of the tissue is another tissue, such as epithelium.
    most = FOLD_MOST * float((density > GAP_OD).sum())
    folds = np.zeros(dark.shape, np.uint8)
    for region in regionprops(_labelled(_opened(dark, 1))):  # type: ignore[no-untyped-call]
        if region.axis_major_length > max(length, 3 * region.axis_minor_length) and region.area < most:
            folds[region.slice] |= region.image
    return np.asarray(cv2.resize(folds, (width, height), interpolation=cv2.INTER_NEAREST) > 0, np.bool_) & ~view.pen


def _labelled(mask: Mask) -> npt.NDArray[np.int32]:
    """Number the connected regions of a mask from 1."""
    return np.asarray(cv2.connectedComponents(mask.astype(np.uint8))[1], np.int32)


def _opened(mask: Mask, radius: int) -> Mask:
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disk(radius)) > 0, np.bool_)


def _disk(radius: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def find_pale(view: View) -> Mask:
    """Find tissue with hardly any stain."""
    return np.asarray(view.tissue & (view.density > GAP_OD) & (view.density < PALE_OD), np.bool_)


def find_gaps(view: View) -> Mask:
    """Find glass inside the tissue's outline: tears, lumina and fat as well as air bubbles."""
    return np.asarray(view.tissue & (view.density <= GAP_OD), np.bool_)


# Colours are told apart from each other, and from those of tissue, holes, tiles and lesion, without red-green vision.
_KINDS = (
    Artefact("pen", "pen or ink", find_pen, (0, 158, 115), 0.003, "the ink hides the tissue"),
    Artefact("blur", "out of focus", find_blur, (86, 180, 233), 0.10, "scan the slide again, or leave these parts out"),
    Artefact("fold", "folds", find_folds, (20, 20, 20), 0.03, "long dark bands, or dense epithelium: look at them"),
    Artefact("pale", "hardly stained", find_pale, (204, 121, 167), 0.30, "pale tissue, or mucus and fat"),
    Artefact("air", "glass or air", find_gaps, (190, 170, 0), 0.30, "tears, lumina, fat or bubbles within the outline"),
)
ARTEFACTS: Mapping[ArtefactName, Artefact] = {kind.name: kind for kind in _KINDS}


def slide_artefacts(slide: Slide, thumbnail: Image, downsample: float, tissue: Mask) -> Artefacts:
    """Find the artefacts of an open slide inside the tissue (h, w) of its thumbnail (h, w, 3).

    Args:
        slide: patches of it are read; its resolution is known.
        thumbnail: of the whole slide.
        downsample: level-0 px per px of the thumbnail.
        tissue: see `tissue_on`.
    """
    view = View(thumbnail, tissue, focus_map(slide, tissue, downsample), slide.mpp * downsample)
    return find_artefacts(view, downsample)


def find_artefacts(view: View, downsample: float) -> Artefacts:
    """Return share of the tissue and outlines (level-0 px) of every kind; share 0 where there is none."""
    pixels = int(view.tissue.sum())
    areas = {}
    for name, kind in ARTEFACTS.items():
        mask = kind.find(view) & view.tissue
        share = round(int(mask.sum()) / pixels, 4) if pixels else 0.0
        areas[name] = ArtefactArea(share=share, areas=outline_areas(mask, downsample))
    return areas


def tissue_on(
    thumbnail: Image,
    downsample: float,
    contours: Sequence[Contour],
    coords: npt.NDArray[np.integer],
    footprint: int,
    otsu: float | None,
) -> Mask:
    """Return what was cut out of a slide, (h, w) of its thumbnail (h, w, 3).

    Args:
        thumbnail: of the whole slide.
        downsample: level-0 px per px of the thumbnail.
        contours: level-0 px; without one the tiles count.
        coords: (N, 2) corners of the tiles, level-0 px.
        footprint: side of a tile, level-0 px.
        otsu: grey level up to which a pixel is tissue (windows of PANDA); None or below 0 = no such level.
    """
    mask = np.zeros(thumbnail.shape[:2], np.uint8)
    outer, holes = [item.outer for item in contours], [hole for item in contours for hole in item.holes]
    for rings, value in ((outer, 1), (holes, 0)):
        for ring in rings:
            cv2.fillPoly(mask, [np.round(ring.astype(np.float64) / downsample).astype(np.int32)], value)
    if not contours:
        for x, y in (coords / downsample).tolist():
            side = footprint / downsample
            mask[max(0, round(y)) : max(0, round(y + side)), max(0, round(x)) : max(0, round(x + side))] = 1
    if otsu is not None and otsu >= 0:
        mask &= cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY) <= otsu
    return mask > 0


def focus_map(slide: Slide, tissue: Mask, downsample: float) -> Floats:
    """Measure the focus of patches of 128 px at about 1 um/px, at most 100 of them spread over the tissue.

    Args:
        slide: open slide of known resolution.
        tissue: (h, w) bool, of the whole slide.
        downsample: level-0 px per px of `tissue`.

    Returns:
        (h, w) float32, constant in every cell of a square lattice; NaN without enough tissue.
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


def patch_focus(patch: Image) -> float:
    """Return the focus of a patch (h, w, 3): variance of its fine detail over that of its coarse detail.

    Details are differences of Gaussians of 1 and 2 px, and of 4 and 8 px. Both variances grow alike with contrast and
    stain, so the ratio tells how sharp the picture is.
    """
    grey = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = [cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1.0, 2.0, 4.0, 8.0)]
    fine, coarse = float((smooth[0] - smooth[1]).var()), float((smooth[2] - smooth[3]).var())
    return fine / max(coarse, LEAST_DETAIL)


def outline_areas(mask: Mask, downsample: float) -> list[list[Ring]]:
    """Trace a mask, without specks below `SPECK_PX` px: per area its outer ring and its holes, level-0 px."""
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings: dict[int, Ring] = {}
    for i, contour in enumerate(contours):
        short = cv2.approxPolyDP(contour, 1.5, True).reshape(-1, 2)
        if len(short) >= 3 and cv2.contourArea(contour) >= SPECK_PX:
            rings[i] = [(round((x + 0.5) * downsample), round((y + 0.5) * downsample)) for x, y in short.tolist()]
    parents = {} if hierarchy is None else {i: int(hierarchy[0][i][3]) for i in rings}
    outer = [i for i in rings if parents[i] == -1]
    return [[rings[i], *(rings[hole] for hole in rings if parents[hole] == i)] for i in outer]


def warnings_of_artefacts(areas: Mapping[ArtefactName, ArtefactArea] | None) -> list[str]:
    """Return a sentence for every kind that covers much of the tissue."""
    texts = [ARTEFACTS[name].warning(area.share) for name, area in (areas or {}).items()]
    return [text for text in texts if text]
