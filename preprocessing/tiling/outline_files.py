"""Read the outlines of an annotation file: ASAP XML, GeoJSON (QuPath and others), and the lists of the NCRF project.

What an object means follows from its class (QuPath) or group (ASAP). Objects without an area, such as points, are
counted and left out; a file that cannot be read, and a class without a known role, are refused by name.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import numpy.typing as npt
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import AliasChoices, BaseModel, Field, ValidationError
from pydantic_core import from_json, to_json

from preprocessing.common.cli import validation_problems
from preprocessing.common.options import ClassRole

LESION_CLASSES = frozenset({"_0", "_1", "tumor", "tumour", "lesion", "metastasis", "metastases", "positive"})
EXCLUSION_CLASSES = frozenset({"_2", "exclusion", "negative"})
_GEOMETRIES = tuple("Polygon MultiPolygon LineString MultiLineString GeometryCollection Point MultiPoint".split())
_ASAP_AREAS = frozenset({"polygon", "spline", "rectangle"})
_ASAP_POINTS = frozenset({"dot", "pointset", "measurement"})
# objects that QuPath computes or lays out; the root object only holds the others
_NO_ANNOTATION = frozenset({"detection", "cell", "tile", "tmacore"})
MAX_COORDINATE = 1e8  # px, far beyond every slide
LISTED = 5

Ring = npt.NDArray[np.float64]
_RecordT = TypeVar("_RecordT", bound=BaseModel)


@dataclass(frozen=True)
class Outline:
    """One area of an annotation: rings (V, 2) of level-0 px (x, y), further ones are holes of the first; its class."""

    role: ClassRole
    rings: list[Ring]
    name: str = ""


@dataclass
class OutlineFile:
    """What an annotation file holds.

    Attributes:
        roles: role of each class name in lower case.
        outlines: areas of lesions and exclusions.
        skipped: objects left out, by the field of `AnnotationCounts`.
        ignored_classes: areas of classes with the role "ignore", by name.
        unknown: areas of classes without a role, by name.
    """

    path: Path
    roles: Mapping[str, ClassRole]
    outlines: list[Outline] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    ignored_classes: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def add(self, names: Sequence[str], areas: Sequence[list[Ring]]) -> None:
        """Add the areas of one object; `names` are its class and the classes that stand in for it, in this order."""
        if not areas:
            return
        role = next((role for name in names if (role := self._role(name))), None)
        if role is None:
            self.unknown[names[0]] += len(areas)
        elif role == "ignore":
            self.ignored_classes[names[0]] += len(areas)
        else:
            self.outlines += [Outline(role, rings, names[0]) for rings in areas]

    def _role(self, name: str) -> ClassRole | None:
        key = name.strip().lower()
        return self.roles.get(key, "ignore" if key.endswith("*") else None)


def read_outlines(path: Path, classes: Mapping[str, ClassRole], origin: tuple[int, int] = (0, 0)) -> OutlineFile:
    """Read an annotation file by its suffix: `.xml` (ASAP), `.geojson` or `.json` (QuPath, NCRF).

    Args:
        path: the file.
        classes: roles of classes, `WsiOptions.annotation_classes`. A derived class of QuPath ("Tumor: Positive") and a
            group within a group of ASAP have the role of the class or group they belong to unless they have their own.
        origin: level-0 position of the scanned region on the canvas. It is added to GeoJSON, because QuPath measures
            from the region (MIRAX); ASAP and NCRF measure from the canvas.

    Raises:
        ValueError: an unreadable file, a class without a role, or non-numeric coordinates; the message names the file.
    """
    file = parse_outlines(path, classes, origin)
    if file.unknown:
        names = list(file.unknown)
        listing = [f"{file.unknown[name]} " + (f"of class {name!r}" if name else "without class") for name in names]
        more = [f"{len(names) - LISTED} more classes"] if len(names) > LISTED else []
        example = f"{{wsi: {{annotation_classes: {{{to_json(names[0]).decode()}: ignore}}}}}}"
        raise ValueError(
            f"{path}: outlines without a known role: {', '.join([*listing[:LISTED], *more])}; give it a role, e.g. "
            f"`instances: {example}` (lesion, exclusion or ignore); known are "
            f"{', '.join(sorted(LESION_CLASSES))} (lesion), {', '.join(sorted(EXCLUSION_CLASSES))} "
            "(cut out of it) and names that end in * (ignored)"
        )
    if not file.outlines and file.skipped["detections"]:
        raise ValueError(
            f"{path}: {file.skipped['detections']} detections, cells, tiles or cores of QuPath and no outline of a "
            "lesion or exclusion; export annotations, or convert detections to annotations in QuPath"
        )
    return file


def parse_outlines(path: Path, classes: Mapping[str, ClassRole], origin: tuple[int, int] = (0, 0)) -> OutlineFile:
    """Read a file like `read_outlines`, but leave classes without a role in `unknown`."""
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")
    suffix = path.suffix.lower()
    if suffix not in {".xml", ".json", ".geojson"}:
        raise ValueError(
            f"{path}: annotation with suffix {path.suffix!r}, expected .xml (ASAP), .geojson or .json "
            "(label masks: recipe panda)"
        )
    content = path.read_bytes()
    if not content.strip(b"\xef\xbb\xbf \t\r\n\0"):
        raise ValueError(f"{path}: empty file ({len(content)} bytes), expected outlines; export the annotation again")
    roles: dict[str, ClassRole] = dict.fromkeys(LESION_CLASSES, "lesion")
    roles |= dict.fromkeys(EXCLUSION_CLASSES, "exclusion")
    file = OutlineFile(path, roles | {name.strip().lower(): role for name, role in classes.items()})
    if suffix == ".xml":
        _read_asap(content, file)
    else:
        _read_json(content, file, np.array(origin, np.float64))
    if not all((np.abs(ring) < MAX_COORDINATE).all() for outline in file.outlines for ring in outline.rings):
        raise ValueError(f"{path}: an outline has coordinates that are not finite numbers below {MAX_COORDINATE:g} px")
    return file


def _read_asap(content: bytes, file: OutlineFile) -> None:
    path = file.path
    try:
        root = fromstring(content.lstrip(), forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError(f"{path}: XML with a DTD, entities or external references refused ({error})") from error
    except (ParseError, LookupError, ValueError) as error:
        line = f" after line {error.position[0]}" if isinstance(error, ParseError) else ", unknown encoding"
        raise ValueError(
            f"{path}: not well-formed XML{line}: cut short, damaged or in another encoding? Copy or export it again"
        ) from error
    if root.tag != "ASAP_Annotations":
        raise ValueError(
            f"{path}: root element {root.tag!r}, expected 'ASAP_Annotations'; export as ASAP XML or GeoJSON"
        )
    parents = {group.get("Name", ""): group.get("PartOfGroup", "") for group in root.iter("Group")}
    for number, annotation in enumerate(root.iter("Annotation")):
        what = f"annotation {annotation.get('Name', number)!r}"
        kind = annotation.get("Type", "Polygon").lower()
        if kind in _ASAP_POINTS:
            file.skipped["points"] += 1
        elif kind in _ASAP_AREAS:
            file.add(_groups(annotation.get("PartOfGroup", ""), parents), [[_asap_ring(annotation, path, what)]])
        else:
            raise ValueError(
                f"{path}: {what} has type {annotation.get('Type')!r}, expected Polygon, Spline or Rectangle (areas) "
                "or Dot, PointSet or Measurement (left out)"
            )


def _groups(name: str, parents: Mapping[str, str]) -> list[str]:
    """Return a group of ASAP and the groups it lies in."""
    groups = [name]
    while (name := parents.get(name, "")) and name not in groups:
        groups.append(name)
    return groups


def _asap_ring(annotation: Element, path: Path, what: str) -> Ring:
    points = []
    for coordinate in annotation.iter("Coordinate"):
        values = [coordinate.get(key, "absent") for key in ("Order", "X", "Y")]
        try:
            points.append([float(value) for value in values])
        except ValueError:
            raise ValueError(
                f"{path}: {what} has a Coordinate with Order, X, Y = {', '.join(values)}; expected numbers with a "
                "decimal point"
            ) from None
    points.sort(key=lambda point: point[0])
    return np.array([point[1:] for point in points], np.float64).reshape(-1, 2)


class _Vertices(BaseModel):
    vertices: Any


class _NcrfFile(BaseModel):
    positive: list[_Vertices] = []
    negative: list[_Vertices] = []


class _Geometry(BaseModel):
    type: str
    coordinates: Any = None
    geometries: list[_Geometry | None] = []


class _Classification(BaseModel):
    name: str | None = None
    names: list[str] | None = None


class _Properties(BaseModel):
    """Properties of an object; QuPath reads all three names of the type and both of the children."""

    object_type: Any = Field(None, validation_alias=AliasChoices("objectType", "object_type", "type"))
    classification: _Classification | str | None = None
    children: list[Any] | None = Field(None, validation_alias=AliasChoices("childObjects", "children"))


class _Feature(BaseModel):
    id: Any = None
    geometry: _Geometry | None = None
    properties: _Properties | None = None

    @property
    def kind(self) -> str:
        """QuPath's type in lower case; up to version 0.2 it was the id, e.g. "PathAnnotationObject"."""
        legacy = self.id if str(self.id).endswith("Object") else None
        return (
            str((self.properties and self.properties.object_type) or legacy)
            .lower()
            .replace("_", "")
            .removeprefix("path")
            .removesuffix("object")
        )

    @property
    def classes(self) -> list[str]:
        """The class and those it is derived from, the whole name first; [""] without a class."""
        given = self.properties and self.properties.classification
        if isinstance(given, _Classification):
            given = ": ".join(given.names) if given.names else given.name
        parts = [part.strip() for part in (given or "").split(":")]
        return [": ".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _read_json(content: bytes, file: OutlineFile, offset: npt.NDArray[np.float64]) -> None:
    path = file.path
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise ValueError(f"{path}: text in UTF-16 or UTF-32, expected UTF-8; save it again as UTF-8")
    try:
        parsed = from_json(content.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON in UTF-8 ({error}): cut short or damaged? Copy or export it again"
        ) from error
    if isinstance(parsed, dict) and {"positive", "negative"} & set(parsed):
        lists = _validated(_NcrfFile, parsed, path, "")
        for name, entries in (("positive", lists.positive), ("negative", lists.negative)):
            for number, entry in enumerate(entries):
                file.add([name], [[_ring(entry.vertices, path, f"{name}[{number}].vertices")]])
        return
    for where, feature in _features(parsed, path):
        if feature.kind == "root":
            continue
        if feature.kind in _NO_ANNOTATION:
            file.skipped["detections"] += 1
        elif feature.geometry is None:
            file.skipped["null_geometries"] += 1
        else:
            before = file.skipped.total()
            areas = _areas(feature.geometry, file, where, has_class=feature.classes != [""])
            if not areas and file.skipped.total() == before:
                file.skipped["null_geometries"] += 1
            file.add(feature.classes, [[ring + offset for ring in rings] for rings in areas])


def _features(content: object, path: Path) -> Iterator[tuple[str, _Feature]]:
    """Iterate over all objects of a GeoJSON file with their place in it, children of QuPath's objects included.

    A bare geometry has no place for a class; it counts as a lesion.
    """
    queue: deque[tuple[str, object]] = deque([("", content)])
    while queue:
        where, item = queue.popleft()
        if isinstance(item, list):
            queue.extend((f"{where}[{number}]", entry) for number, entry in enumerate(item))
        elif isinstance(item, dict) and (group := next((key for key in ("features", "root") if key in item), None)):
            queue.append((f"{where}.{group}".lstrip("."), item[group]))
        elif isinstance(item, dict) and item.get("type") in _GEOMETRIES:
            properties = _Properties(classification="lesion")
            yield where, _Feature(geometry=_validated(_Geometry, item, path, where), properties=properties)
        elif isinstance(item, dict) and {"geometry", "properties"} & set(item):
            feature = _validated(_Feature, item, path, where)
            yield where, feature
            if feature.properties and feature.properties.children:
                queue.append((f"{where}.childObjects".lstrip("."), feature.properties.children))
        else:
            kind = f"an object with the keys {', '.join(item)}" if isinstance(item, dict) else to_json(item).decode()
            raise ValueError(
                f"{path}: {where or 'content'} is {kind[:80]}; expected GeoJSON features, a geometry, or the lists of "
                "polygons `positive` and `negative`"
            )


def _areas(geometry: _Geometry, file: OutlineFile, where: str, *, has_class: bool) -> list[list[Ring]]:
    """Return the rings of every area of a geometry and count its other parts.

    A line whose ends are less than a pixel apart encloses an area if its object has a class.
    """
    kind, parts = geometry.type, geometry.coordinates or []
    if kind not in _GEOMETRIES:
        raise ValueError(f"{file.path}: {where}: geometry of type {kind!r}, expected one of {', '.join(_GEOMETRIES)}")
    if kind == "GeometryCollection":
        collected = (_areas(part, file, where, has_class=has_class) for part in geometry.geometries if part)
        file.skipped["null_geometries"] += geometry.geometries.count(None)
        return [area for areas in collected for area in areas]
    if not isinstance(parts, list):
        raise ValueError(f"{file.path}: {where}: coordinates are {to_json(parts).decode()[:80]}, expected lists")
    if kind in ("Point", "MultiPoint"):
        file.skipped["points"] += 1
        return []
    if kind in ("Polygon", "MultiPolygon"):
        polygons = parts if kind == "MultiPolygon" else [parts] if parts else []
        if not all(isinstance(polygon, list) for polygon in polygons):
            raise ValueError(f"{file.path}: {where}: coordinates of a {kind} are not lists of rings")
        return [[_ring(ring, file.path, where) for ring in polygon] for polygon in polygons]
    lines = [_ring(line, file.path, where) for line in (parts if kind == "MultiLineString" else [parts])]
    closed = [[line] for line in lines if has_class and len(line) > 3 and np.ptp(line[[0, -1]], axis=0).max() < 1]
    file.skipped["open_lines"] += len(lines) - len(closed)
    return closed


def _ring(vertices: object, path: Path, where: str) -> Ring:
    try:
        ring = np.array(vertices, np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.empty(1)
    if ring.size and (ring.ndim != 2 or ring.shape[1] < 2):
        raise ValueError(f"{path}: {where}: an outline is no list of points [x, y], numbers with a decimal point")
    return ring.reshape(-1, ring.shape[-1] if ring.size else 2)[:, :2]


def _validated(record: type[_RecordT], value: object, path: Path, where: str) -> _RecordT:
    try:
        return record.model_validate(value)
    except ValidationError as error:
        problems = re.sub(r"a valid dictionary or instance of \w+", "an object", validation_problems(error))
        raise ValueError(f"{path}: {where or 'content'}: {problems}") from error
