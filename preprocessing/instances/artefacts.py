"""Artefacts of one slide: find them inside what was cut, and leave out the tiles they cover if the options say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from preprocessing.common.options import ArtefactName, TissueOptions
from preprocessing.slides.regions import Image
from preprocessing.slides.slide import Slide
from preprocessing.store.outlines import ArtefactArea, Ring
from preprocessing.tiling.annotations import coverage, even_odd
from preprocessing.tiling.artefacts import Mask, View, find_artefacts
from preprocessing.tiling.focus import focus_map

Artefacts = Mapping[ArtefactName, ArtefactArea]


@dataclass(frozen=True)
class Cut:
    """What was cut out of a slide.

    Attributes:
        tissue, holes: rings of level-0 px (x, y); without tissue the tiles count.
        coords: (N, 2) level-0 px.
        footprint: side of a tile, level-0 px.
        otsu: grey level up to which a pixel is tissue (windows of PANDA); None or below 0 = no such level.
    """

    tissue: Sequence[Ring | npt.NDArray[np.int32]]
    holes: Sequence[Ring | npt.NDArray[np.int32]]
    coords: npt.NDArray[np.integer]
    footprint: int
    otsu: float | None = None


def slide_artefacts(slide: Slide, thumbnail: Image, downsample: float, cut: Cut) -> dict[ArtefactName, ArtefactArea]:
    """Find the artefacts of an open slide.

    Args:
        slide: patches of it are read.
        thumbnail: (h, w, 3) of the whole slide.
        downsample: level-0 px per px of the thumbnail.
        cut: what counts as tissue.
    """
    tissue = _tissue(thumbnail, downsample, cut)
    view = View(thumbnail, tissue, focus_map(slide, tissue, downsample), slide.mpp * downsample)
    return find_artefacts(view, downsample)


def _tissue(thumbnail: Image, downsample: float, cut: Cut) -> Mask:
    mask = np.zeros(thumbnail.shape[:2], np.uint8)
    for rings, value in ((cut.tissue, 1), (cut.holes, 0)):
        for ring in rings:
            cv2.fillPoly(mask, [np.round(np.asarray(ring, np.float64) / downsample).astype(np.int32)], value)
    if not cut.tissue:
        for x, y in (cut.coords / downsample).tolist():
            side = cut.footprint / downsample
            mask[max(0, round(y)) : max(0, round(y + side)), max(0, round(x)) : max(0, round(x + side))] = 1
    if cut.otsu is not None and cut.otsu >= 0:
        mask &= cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY) <= cut.otsu
    return mask > 0


def tiles_without_artefacts(
    artefacts: Artefacts, options: TissueOptions, coords: npt.NDArray[np.integer], footprint: int
) -> npt.NDArray[np.bool_]:
    """Return which tiles (N,) are kept: those of which the artefacts of `options.exclude` cover not too much."""
    shapes = [
        shapely.difference(even_odd(np.array(rings[0])), shapely.union_all([even_odd(np.array(r)) for r in rings[1:]]))
        for name in options.exclude
        if name in artefacts
        for rings in artefacts[name].areas
    ]
    return np.asarray(coverage(shapely.union_all(shapes), coords, footprint) <= options.exclude_share, np.bool_)
