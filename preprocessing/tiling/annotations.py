"""Lesion annotations: the area that pathologists outlined, and the exact share of each tile that it covers.

Lesion = union(lesion outlines) - union(exclusions), level-0 px. An outline that crosses itself covers what it encloses
an odd number of times (even-odd rule, as in ASAP). `outline_files` reads the formats.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from preprocessing.common.options import ClassRole
from preprocessing.store.attrs import AnnotationCounts
from preprocessing.tiling.outline_files import Ring, read_outlines

log = logging.getLogger(__name__)


@dataclass
class Lesion:
    """A slide's lesion (polygon or multipolygon, level-0 px), and what became of the objects of the file."""

    geometry: BaseGeometry
    counts: AnnotationCounts = field(default_factory=AnnotationCounts)


def read_lesion(
    path: Path | str,
    *,
    classes: Mapping[str, ClassRole] | None = None,
    origin: tuple[int, int] = (0, 0),
    dimensions: tuple[int, int] | None = None,
) -> Lesion:
    """Read an annotation file; path, classes and origin as for `read_outlines`.

    Outlines outside the slide of `dimensions` (width, height) at level 0 are counted and left out.

    Raises:
        ValueError: an unreadable file, a class without a role, coordinates that are no finite numbers, or no lesion
            outline within the slide; the message names the file.
    """
    path = Path(path)
    file = read_outlines(path, classes or {}, origin)
    counts = file.skipped
    areas: dict[ClassRole, list[BaseGeometry]] = {"lesion": [], "exclusion": []}
    slide = None if dimensions is None else shapely.box(0, 0, *dimensions)
    outside: list[Ring] = []
    for outline in file.outlines:
        shape, crossing = _area(outline.rings)
        if shape.area == 0:
            counts["without_area"] += 1
        elif slide is not None and (slide.disjoint(shape) or slide.touches(shape)):
            counts["outside"] += 1
            outside += outline.rings if outline.role == "lesion" else []
        else:
            counts["self_crossing"] += crossing
            areas[outline.role].append(shape)
    if outside and not areas["lesion"]:
        corners = np.concatenate(outside)
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        assert dimensions is not None
        raise ValueError(
            f"{path}: no lesion outline inside the slide of {dimensions[0]} x {dimensions[1]} px, outlines span x "
            f"{x0:g}..{x1:g}, y {y0:g}..{y1:g}; expected level-0 px from the top left corner: is it the annotation of "
            "another slide, in um, of another level, or with y upwards?"
        )
    used = {role: len(shapes) for role, shapes in areas.items()}
    record = AnnotationCounts(**used, **counts, ignored_classes=dict(file.ignored_classes))
    if record.self_crossing:
        log.info("%s: %d outlines cross themselves (even-odd rule)", path, record.self_crossing)
    if record.unused:
        log.log(logging.WARNING if record.left_out else logging.INFO, "%s: not used: %s", path, record.listing)
    lesion = shapely.union_all(areas["lesion"])
    return Lesion(_polygonal(shapely.difference(lesion, shapely.union_all(areas["exclusion"]))), record)


def _area(rings: list[Ring]) -> tuple[BaseGeometry, bool]:
    """Return the area inside the first ring and outside the others, and whether rings crossed themselves or another."""
    if not rings or len(rings[0]) < 3:
        return shapely.Polygon(), False
    rings = [ring for ring in rings if len(ring) >= 3]
    shape = shapely.Polygon(rings[0], rings[1:])
    if shape.is_valid:
        return shape, False
    outer, *holes = (even_odd(ring) for ring in rings)
    return _polygonal(shapely.difference(outer, shapely.union_all(holes))), True


def even_odd(ring: Ring) -> BaseGeometry:
    """Return the area that a closed ring (V, 2) encloses an odd number of times."""
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.union_all([polygon.exterior]))))
    centres = shapely.point_on_surface(faces)
    # of an invalid polygon, too, this counts the edges that a ray from the point crosses
    shapely.prepare(polygon)
    return shapely.union_all(faces[shapely.contains_xy(polygon, shapely.get_x(centres), shapely.get_y(centres))])


def _polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """Return the parts of a geometry with an area as one (multi)polygon, without lines and points."""
    return shapely.union_all([part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"])


def coverage(lesion: BaseGeometry, coords: npt.NDArray[np.integer], footprint_l0_px: int) -> npt.NDArray[np.float32]:
    """Return the share (N,) of each tile that lies inside the lesion, area(lesion in tile) / area(tile).

    Args:
        lesion: valid (multi)polygon, level-0 px.
        coords: (N, 2) top-left corners (x, y), level-0 px, in any order, also overlapping.
        footprint_l0_px: side of a tile, level-0 px.
    """
    x, y = coords.astype(np.float64).T
    tiles = shapely.box(x, y, x + footprint_l0_px, y + footprint_l0_px)
    tree = shapely.STRtree(tiles)
    area = np.zeros(len(tiles))
    for part in shapely.get_parts(lesion):
        shapely.prepare(part)
        near = tree.query(part, predicate="intersects")
        inside = shapely.covers(part, tiles[near])
        area[near[inside]] = footprint_l0_px**2
        crossed = near[~inside]
        area[crossed] += shapely.area(shapely.intersection(part, tiles[crossed]))
    return np.asarray(np.minimum(area / footprint_l0_px**2, 1), np.float32)
