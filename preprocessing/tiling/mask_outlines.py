"""Tissue mask of a single slide from GeoJSON outlines, as QuPath writes them, instead of the thresholded one.

Outlines of the class `Tissue`, or without class, are the tissue, in the order of the file, with their holes. Outlines
of the class `Exclude` are cut out like holes. Those named after an artefact (`Pen`, `Blur`, ...) stand for what would
be looked for: `tissue.exclude` leaves out their tiles. Classes of lesions, and names that end in *, are ignored, so one
file may hold tissue and annotation. Coordinates are level-0 px from the corner of the scanned region.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.common.options import ArtefactName, ClassRole
from preprocessing.store.outlines import ArtefactArea
from preprocessing.tiling.annotations import MAX_COORDINATE
from preprocessing.tiling.artefacts import ARTEFACTS
from preprocessing.tiling.outline_files import EXCLUSION_CLASSES, LESION_CLASSES, Ring, parse_outlines
from preprocessing.tiling.tissue import Contour

Polygon = npt.NDArray[np.int32]

TISSUE_CLASS, EXCLUDE_CLASS = "Tissue", "Exclude"
# longer side of the picture of a mask, px
MASK_PX = 8192


@dataclass
class MaskOutlines:
    """What a person outlined on a slide.

    Attributes:
        contours: tissue with its holes.
        artefacts: outlines by kind; share is that of the tissue's area.
    """

    contours: list[Contour]
    artefacts: dict[ArtefactName, ArtefactArea] = field(default_factory=dict)


def read_mask_outlines(path: Path, dimensions: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> MaskOutlines:
    """Read the outlines of one slide.

    Args:
        path: a GeoJSON file.
        dimensions: (width, height) of the slide at level 0.
        origin: level-0 (x, y) of the scanned region, from which the file measures.

    Raises:
        ValueError: not GeoJSON, an unknown class, no tissue, or outlines beyond the slide.
    """
    roles: dict[str, ClassRole] = dict.fromkeys((*LESION_CLASSES, *EXCLUSION_CLASSES), "ignore")
    roles |= dict.fromkeys((TISSUE_CLASS.lower(), "", *ARTEFACTS), "lesion")
    roles[EXCLUDE_CLASS.lower()] = "exclusion"
    file = parse_outlines(path, roles, origin)
    if file.unknown:
        names = ", ".join(repr(name) for name in file.unknown)
        raise ValueError(
            f"{path}: outlines of the class {names}, expected {TISSUE_CLASS}, {EXCLUDE_CLASS} or an artefact "
            f"({', '.join(name.capitalize() for name in ARTEFACTS)}); give them a class in QuPath, or a name that ends "
            "in * to ignore them"
        )
    tissue, cut_out = list[list[Polygon]](), list[Polygon]()
    areas: dict[ArtefactName, list[list[Polygon]]] = {}
    for outline in file.outlines:
        if not all((np.abs(ring) < MAX_COORDINATE).all() for ring in outline.rings):
            raise ValueError(f"{path}: coordinates that are no finite numbers below {MAX_COORDINATE:g} px")
        rings = [_closed_once(ring) for ring in outline.rings if len(ring) >= 3]
        kind = next((name for name in ARTEFACTS if name == outline.name.strip().lower()), None)
        if not rings:
            continue
        if outline.role == "exclusion":
            cut_out.append(rings[0])
        elif kind is not None:
            areas.setdefault(kind, []).append(rings)
        else:
            tissue.append(rings)
    if not tissue:
        raise ValueError(
            f"{path}: no outline of the class {TISSUE_CLASS} or without class; draw the tissue, or exclude the slide"
        )
    _check_inside(path, tissue, dimensions)
    contours = [Contour(rings[0], (*rings[1:], *cut_out)) for rings in tissue]
    total = sum(map(_area, tissue))
    artefacts = {
        name: ArtefactArea(
            share=round(min(1.0, sum(map(_area, shapes)) / total), 4) if total else 0.0,
            areas=[[[(x, y) for x, y in ring.tolist()] for ring in rings] for rings in shapes],
        )
        for name, shapes in areas.items()
    }
    return MaskOutlines(contours, artefacts)


def _closed_once(ring: Ring) -> Polygon:
    """Round a ring (V, 2) and drop a last point that repeats the first."""
    points = np.rint(ring).astype(np.int32)
    return points[:-1] if len(points) > 1 and (points[0] == points[-1]).all() else points


def _area(rings: list[Polygon]) -> float:
    outer, *holes = (float(cv2.contourArea(ring)) for ring in rings)
    return outer - sum(holes)


def _check_inside(path: Path, tissue: list[list[Polygon]], dimensions: tuple[int, int]) -> None:
    corners = np.concatenate([rings[0] for rings in tissue])
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    if x0 >= dimensions[0] or y0 >= dimensions[1] or x1 <= 0 or y1 <= 0:
        raise ValueError(
            f"{path}: outlines span x {x0}..{x1}, y {y0}..{y1}, the slide has {dimensions[0]} x {dimensions[1]} px; "
            "expected level-0 px: is it the mask of another slide, or in um?"
        )


def outline_mask(contours: list[Contour], dimensions: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Draw contours as a mask (h, w) of at most `MASK_PX` px a side, for windows that count its pixels."""
    scale = min(1.0, MASK_PX / max(dimensions))
    mask = np.zeros([max(1, round(side * scale)) for side in dimensions[::-1]], np.uint8)
    for contour in contours:
        cv2.fillPoly(mask, [np.rint(contour.outer * scale).astype(np.int32)], 1)
    for contour in contours:
        for hole in contour.holes:
            cv2.fillPoly(mask, [np.rint(hole * scale).astype(np.int32)], 0)
    return mask > 0
