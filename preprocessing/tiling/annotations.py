"""Lesion annotations: read polygons of pathologists and compute the exact share of each tile they cover.

Formats: ASAP XML (CAMELYON16: groups `_0`, `_1`, `Tumor` are tumour, `_2`, `Exclusion` are cut out of it), GeoJSON of
QuPath, and the JSON of the NCRF project (`positive` / `negative` lists). Lesion = union(tumour) - union(exclusions),
level-0 px. Self-crossing outlines are repaired, counted and logged. Coverage = area(lesion in tile) / area(tile).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import numpy.typing as npt
import shapely
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse
from shapely.geometry.base import BaseGeometry

TUMOUR_GROUPS = frozenset({"_0", "_1", "tumor", "tumour", "lesion", "positive"})
EXCLUSION_GROUPS = frozenset({"_2", "exclusion", "negative"})
_AREA_TYPES = frozenset({"polygon", "spline", "rectangle"})
_POINT_TYPES = frozenset({"dot", "pointset", "measurement"})

log = logging.getLogger(__name__)
Ring = npt.NDArray[np.float64]


@dataclass
class Lesion:
    """A slide's lesion.

    Attributes:
        geometry: shapely polygon or multipolygon, level-0 px; empty without tumour.
        counts: `tumour`, `exclusion` (outlines used), `repaired` (self-crossing), `dropped` (without area),
            `ignored` (dots and measurements).
    """

    geometry: BaseGeometry
    counts: dict[str, int] = field(default_factory=dict)


def read_lesion(path: Path | str, *, origin: tuple[int, int] = (0, 0)) -> Lesion:
    """Read an annotation file by its suffix: `.xml` (ASAP), `.geojson` or `.json` (QuPath, NCRF).

    Args:
        path: the file.
        origin: level-0 position of the scanned region on the canvas. It is added to GeoJSON, because QuPath measures
            from the region (MIRAX); ASAP and NCRF measure from the canvas.

    Raises:
        ValueError: unreadable file, entities in the XML, an unknown group, or non-numeric coordinates; the message
            names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    if path.suffix.lower() == ".xml":
        return _build(*_asap_outlines(path), path)
    if path.suffix.lower() in {".json", ".geojson"}:
        return _build(*_json_outlines(path, origin), path)
    raise ValueError(f"{path}: annotation with suffix {path.suffix!r}, expected .xml (ASAP), .geojson or .json")


# (is tumour, rings): the first ring is the outline, further ones are its holes
_Polygons = list[tuple[bool, list[Ring]]]


def _is_tumour(group: str, path: Path, what: str) -> bool:
    name = group.strip().lower()
    if name in TUMOUR_GROUPS or name in EXCLUSION_GROUPS:
        return name in TUMOUR_GROUPS
    raise ValueError(
        f"{path}: {what} has group {group!r}, expected one of {', '.join(sorted(TUMOUR_GROUPS))} (tumour) or "
        f"{', '.join(sorted(EXCLUSION_GROUPS))} (cut out of it); rename or delete it"
    )


def _asap_outlines(path: Path) -> tuple[_Polygons, int]:
    try:
        root = parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise ValueError(f"{path}: XML with a DTD, entities or external references refused ({error})") from error
    except ParseError as error:
        raise ValueError(f"{path}: not well-formed XML ({error})") from error
    if root.tag != "ASAP_Annotations":
        raise ValueError(f"{path}: root element {root.tag!r}, expected 'ASAP_Annotations'")
    polygons: _Polygons = []
    ignored = 0
    for annotation in root.iter("Annotation"):
        what = f"annotation {annotation.get('Name', '?')!r}"
        kind = annotation.get("Type", "Polygon").lower()
        if kind in _POINT_TYPES:
            ignored += 1
            continue
        if kind not in _AREA_TYPES:
            raise ValueError(f"{path}: {what} has type {annotation.get('Type')!r}, expected Polygon or Spline")
        tumour = _is_tumour(annotation.get("PartOfGroup", ""), path, what)
        polygons.append((tumour, [_asap_ring(annotation, path, what)]))
    return polygons, ignored


def _asap_ring(annotation: Element, path: Path, what: str) -> Ring:
    try:
        points = [[float(c.attrib[key]) for key in ("Order", "X", "Y")] for c in annotation.iter("Coordinate")]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {what} has a Coordinate without numeric Order, X and Y ({error})") from error
    points.sort(key=lambda point: point[0])
    return np.array([point[1:] for point in points], np.float64).reshape(-1, 2)


def _json_outlines(path: Path, origin: tuple[int, int]) -> tuple[_Polygons, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    try:
        if isinstance(content, dict) and {"positive", "negative"} & set(content):
            lists = [(group == "positive", content.get(group, [])) for group in ("positive", "negative")]
            return [(tumour, [_ring(entry["vertices"])]) for tumour, entries in lists for entry in entries], 0
        return _geojson_outlines(content, np.array(origin, np.float64), path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: neither GeoJSON features nor positive/negative polygon lists ({error!r})") from error


def _geojson_outlines(content: Any, offset: npt.NDArray[np.float64], path: Path) -> tuple[_Polygons, int]:
    features = content if isinstance(content, list) else content.get("features", [content])
    polygons: _Polygons = []
    ignored = 0
    for number, feature in enumerate(features):
        geometry, properties = feature["geometry"], feature.get("properties") or {}
        if geometry["type"] not in {"Polygon", "MultiPolygon"}:
            ignored += 1
            continue
        group = (properties.get("classification") or {}).get("name", "")
        tumour = _is_tumour(group, path, f"feature {number}")
        parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        polygons += [(tumour, [_ring(ring) + offset for ring in part]) for part in parts]
    return polygons, ignored


def _ring(vertices: Any) -> Ring:
    ring = np.array(vertices, np.float64)
    if ring.size and (ring.ndim != 2 or ring.shape[1] < 2):
        raise TypeError(f"vertices of shape {ring.shape}")
    return ring.reshape(-1, ring.shape[-1] if ring.size else 2)[:, :2]


def _build(polygons: _Polygons, ignored: int, path: Path) -> Lesion:
    counts = {"tumour": 0, "exclusion": 0, "repaired": 0, "dropped": 0, "ignored": ignored}
    areas: dict[bool, list[BaseGeometry]] = {True: [], False: []}
    for tumour, rings in polygons:
        if not all(np.isfinite(ring).all() for ring in rings):
            raise ValueError(f"{path}: an outline has coordinates that are not finite numbers")
        rings = [ring for ring in rings if len(ring) >= 3]
        shape = shapely.Polygon(rings[0], rings[1:]) if rings else shapely.Polygon()
        if not shape.is_valid:
            counts["repaired"] += 1
            shape = _polygonal(shapely.make_valid(shape))
        if shape.is_empty or shape.area == 0:
            counts["dropped"] += 1
            continue
        counts["tumour" if tumour else "exclusion"] += 1
        areas[tumour].append(shape)
    if counts["repaired"] or counts["dropped"]:
        log.info("%s: %d outlines repaired, %d without area dropped", path, counts["repaired"], counts["dropped"])
    lesion = shapely.union_all(areas[True])
    return Lesion(_polygonal(shapely.difference(lesion, shapely.union_all(areas[False]))), counts)


def _polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """Return the parts of a geometry with an area as one (multi)polygon, without lines and points left by repairs."""
    parts = shapely.get_parts(geometry)
    while any(part.geom_type in {"MultiPolygon", "GeometryCollection"} for part in parts):
        parts = shapely.get_parts(parts)
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon"])


def coverage(lesion: BaseGeometry, coords: npt.NDArray[np.integer], footprint_l0_px: int) -> npt.NDArray[np.float32]:
    """Return the share of each tile that lies inside the lesion.

    Args:
        lesion: valid (multi)polygon, level-0 px.
        coords: (N, 2) top-left corners (x, y), level-0 px, in any order, also overlapping.
        footprint_l0_px: side of a tile, level-0 px.

    Returns:
        (N,) float32 in [0, 1]; exactly 0 and 1 for tiles wholly outside and inside.
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
