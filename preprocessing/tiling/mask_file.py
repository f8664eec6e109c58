"""Tissue mask of a single slide, drawn by a person, instead of the thresholded one: a PNG, or GeoJSON of QuPath.

PNG of any size: mask pixel (i, j) of (h, w) covers level-0 x in [j W/w, (j+1) W/w), y likewise, on a slide of W x H px.
Values above 0 are tissue (any colour above 0, any palette index above 0); transparent pixels are not. Photographs and
maps of many values are refused, and palettes whose background is not their first colour. The mask is used as it is: no
filter, no closing, no minimum area.

GeoJSON: outlines of the class `Tissue`, or without class, are the tissue, in the order of the file, with their holes.
Outlines of the class `Exclude` are cut out like holes. Those named after an artefact (`Pen`, `Blur`, ...) stand for
what would be looked for: `tissue.exclude` leaves out their tiles. Classes of lesions, and names that end in *, are
ignored, so one file may hold tissue and annotation. Coordinates are level-0 px from the corner of the scanned region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from preprocessing.common.limits import MAX_MASK_PX
from preprocessing.common.options import ArtefactName, ClassRole
from preprocessing.store.outlines import ArtefactArea
from preprocessing.tiling.artefacts import ARTEFACTS, Artefacts, Mask
from preprocessing.tiling.contour_tiles import TilePlan
from preprocessing.tiling.outline_files import EXCLUSION_CLASSES, LESION_CLASSES, Ring, parse_outlines
from preprocessing.tiling.panda_windows import Canvas, PandaWindows, kept_windows, make_canvas, sum_windows
from preprocessing.tiling.tissue import SEG_DOWNSAMPLE, Contour, Polygon, nested_outlines

ASPECT_TOLERANCE = 0.01
# Beside the background, a few values hold most pixels of a mask, smoothed borders included, but not of a photograph.
COMMON_VALUES, COMMON_SHARE = 32, 0.5
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TISSUE_CLASS, EXCLUDE_CLASS = "Tissue", "Exclude"
# longer side of the picture of outlines, px
MASK_PX = 8192


@dataclass
class MaskFile:
    """What a person drew on a slide.

    Attributes:
        contours: tissue with its holes.
        downsample: (x, y) level-0 px per px in which the contours were traced.
        artefacts: outlines by kind, share of the tissue's area; None = a PNG, which says nothing about them.
        mask: (h, w) of a PNG; None = GeoJSON.
    """

    contours: list[Contour]
    downsample: tuple[float, float] = (1.0, 1.0)
    artefacts: Artefacts | None = None
    mask: Mask | None = None

    def pixels(self, dimensions: tuple[int, int]) -> Mask:
        """Return the mask (h, w), of at most `MASK_PX` px a side if it has to be drawn, of a slide (width, height)."""
        if self.mask is not None:
            return self.mask
        scale = min(1.0, MASK_PX / max(dimensions))
        picture = np.zeros([max(1, round(side * scale)) for side in dimensions[::-1]], np.uint8)
        outer, holes = [item.outer for item in self.contours], [hole for item in self.contours for hole in item.holes]
        # all holes last: what is cut out of one contour is cut out of those that overlap it
        for polygons, value in ((outer, 1), (holes, 0)):
            for polygon in polygons:
                cv2.fillPoly(picture, [np.rint(polygon * scale).astype(np.int32)], value)
        return picture > 0


def read_mask_file(path: Path, dimensions: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> MaskFile:
    """Read the mask of one slide.

    Args:
        path: a PNG or GeoJSON file.
        dimensions: (width, height) of the slide at level 0.
        origin: level-0 (x, y) of the scanned region, from which GeoJSON measures.

    Raises:
        ValueError: a PNG that is damaged, too large, of another aspect ratio than the slide, empty, or no mask; no
            GeoJSON, an unknown class, no tissue, or outlines beyond the slide. The message names the file.
    """
    if path.suffix.lower() == ".geojson":
        return _read_outlines(path, dimensions, origin)
    mask = read_mask(path, dimensions)
    contours, downsample = mask_contours(mask, dimensions)
    return MaskFile(contours, downsample, None, mask)


def read_mask(path: Path, dimensions: tuple[int, int]) -> Mask:
    """Read a PNG as (h, w) bool; raise as `read_mask_file`."""
    width, height = _size(path)
    if width * height > MAX_MASK_PX:
        raise ValueError(f"{path}: mask of {width} x {height} px, expected at most {MAX_MASK_PX} px; save it smaller")
    # rounding the size of a thumbnail changes the ratio by up to one pixel
    if abs(width - height * dimensions[0] / dimensions[1]) > max(1.0, ASPECT_TOLERANCE * width):
        raise ValueError(
            f"{path}: mask of {width} x {height} px for a slide of {dimensions[0]} x {dimensions[1]} px, expected the "
            "same aspect ratio; draw it on the whole slide"
        )
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: damaged PNG ({error}); save the mask again") from error
    mask = _above_zero(image, path)
    if not mask.any():
        raise ValueError(f"{path}: every pixel is 0 or transparent, expected tissue above 0; save the mask again")
    return mask


def _size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the header, before anything is decompressed."""
    with path.open("rb") as stream:
        head = stream.read(24)
    if len(head) < 24 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise ValueError(f"{path}: not a PNG file, expected a tissue mask (more than 0 = tissue)")
    width, height = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
    if width < 1 or height < 1:
        raise ValueError(f"{path}: mask of {width} x {height} px, expected a picture")
    return width, height


def _above_zero(image: Image.Image, path: Path) -> Mask:
    if image.mode == "P":
        _check_palette(image, path)
    values = np.asarray(image.convert("RGB") if image.mode in ("LA", "RGB", "RGBA") else image)
    _check_values(values, path)
    mask = (values if values.ndim == 2 else values.max(axis=2)) > 0
    if image.has_transparency_data and image.mode in ("L", "LA", "P", "RGB", "RGBA"):
        mask &= np.asarray(image.convert("RGBA").getchannel("A")) > 0
    return np.asarray(mask, np.bool_)


def _check_palette(image: Image.Image, path: Path) -> None:
    """Refuse a palette in which the first colour is not black while another index in use is."""
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    black = [index for index in used.tolist() if index < len(colours) and not colours[index].any()]
    if black and colours[0].any():
        raise ValueError(
            f"{path}: palette with black at index {black[0]} and RGB {tuple(colours[0].tolist())} at 0; a mask counts "
            "indices above 0 as tissue, which would be the black pixels: save it as grey levels, 0 = background"
        )


def _check_values(values: npt.NDArray[np.generic], path: Path) -> None:
    """Refuse a picture (h, w) or (h, w, 3) of so many values that it is no mask."""
    step = max(1, math.isqrt(values.shape[0] * values.shape[1] // 10**6))
    sample = values[::step, ::step].astype(np.int64)
    packed = sample if sample.ndim == 2 else sample @ np.array([1 << 16, 1 << 8, 1])
    counts = np.sort(np.unique(packed, return_counts=True)[1])[::-1]
    if counts[1 : COMMON_VALUES + 1].sum() < COMMON_SHARE * counts[1:].sum():
        raise ValueError(
            f"{path}: {len(counts)} different values, expected a mask of few (0 = background, more = tissue); a "
            "photograph or a map of probabilities has to be thresholded first"
        )


def _read_outlines(path: Path, dimensions: tuple[int, int], origin: tuple[int, int]) -> MaskFile:
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
    return MaskFile(contours, artefacts=artefacts)


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


def mask_contours(mask: Mask, dimensions: tuple[int, int]) -> tuple[list[Contour], tuple[float, float]]:
    """Return the contours of a mask (h, w) with all their holes, and the (x, y) level-0 px per pixel.

    Contours run through the centres of their border pixels. A mask coarser than the usual segmentation level is
    upsampled first (nearest), which keeps the error at the border below 32 level-0 px.
    """
    shape = (dimensions[0] / mask.shape[1], dimensions[1] / mask.shape[0])
    factor = max(1, math.ceil(max(shape) / SEG_DOWNSAMPLE))
    picture = np.repeat(np.repeat(mask.astype(np.uint8), factor, axis=0), factor, axis=1)
    scale = np.array([shape[0] / factor, shape[1] / factor])
    outlines, parent = nested_outlines(picture)
    rings = [((outline + 0.5) * scale).astype(np.int32) for outline in outlines]
    contours = [
        Contour(rings[int(outer)], tuple(rings[int(hole)] for hole in np.flatnonzero(parent == outer)))
        for outer in np.flatnonzero(parent == -1)
    ]
    return contours, (float(scale[0]), float(scale[1]))


def masked_windows(mask: Mask, dimensions: tuple[int, int], plan: TilePlan, min_tissue: float) -> PandaWindows:
    """Return PANDA's windows with the tissue share counted on a mask (h, w) instead of grey levels; threshold -1."""
    canvas = make_canvas(dimensions, plan)
    rows = _pixels_per_cell(mask.shape[0], dimensions[1], canvas.top, canvas.cells[0], canvas)
    columns = _pixels_per_cell(mask.shape[1], dimensions[0], canvas.left, canvas.cells[1], canvas)
    cells = np.rint(rows @ mask.astype(np.float64) @ columns.T).astype(np.int64)
    return kept_windows(canvas, sum_windows(cells, canvas) / plan.footprint**2, min_tissue, -1, [])


def _pixels_per_cell(mask_px: int, side: int, padding: int, cells: int, canvas: Canvas) -> npt.NDArray[np.float64]:
    """Count the level-0 px of each mask row (or column) in each cell of the lattice, (cells, mask_px)."""
    position = np.arange(side)
    pixel = ((2 * position + 1) * mask_px) // (2 * side)
    index = (position + padding) // canvas.cell * mask_px + pixel
    return np.bincount(index, minlength=cells * mask_px).reshape(cells, mask_px).astype(np.float64)
