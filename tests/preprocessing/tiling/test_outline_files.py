"""Formats of annotations: what each may hold, what becomes of it, and which files are refused by name."""

import json
import re

import numpy as np
import pytest

from preprocessing.common.options import wsi_options
from preprocessing.store.attrs import AnnotationCounts
from preprocessing.tiling.annotations import read_lesion
from preprocessing.tiling.outline_files import EXCLUSION_CLASSES, LESION_CLASSES
from tests.helpers.annotations import BIT, INNER, SQUARE, WHOLE, asap, far, feature, read_asap, write
from tests.oracles import clam


@pytest.mark.parametrize(("tumour", "cut"), [("_0", "_2"), ("_1", "Exclusion"), ("TUMOR", "exclusion")])
def test_groups_of_both_parts_of_camelyon(tmp_path, tumour: str, cut: str) -> None:
    lesion = read_asap(tmp_path, (tumour, "Polygon", SQUARE), (cut, "Spline", INNER))
    assert lesion.geometry.area == 100 * 100 - 20 * 20
    assert lesion.counts == AnnotationCounts(lesion=1, exclusion=1)


def test_points_are_sorted_by_order_as_numbers(tmp_path) -> None:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = [(float(x), float(y)) for x, y in zip(50 + 40 * np.cos(angle), 50 + 40 * np.sin(angle), strict=True)]
    lesion = read_asap(tmp_path, ("_0", "Polygon", ring), shuffle=True)
    assert lesion.geometry.area == pytest.approx(clam.polygon_area(ring), rel=1e-4)  # %g keeps six digits
    assert lesion.counts.self_crossing == 0


def test_groups_within_groups_and_mapped_groups(tmp_path) -> None:
    """Group "part" lies in "Tumor"; a group without a role is refused until the option names one."""
    part = asap([("part", "Polygon", SQUARE), ("Necrosis", "Rectangle", INNER)])
    part = part.replace("<AnnotationGroups>", '<AnnotationGroups><Group Name="part" PartOfGroup="Tumor" />')
    path = write(tmp_path / "a.xml", part)
    with pytest.raises(
        ValueError, match=r"a\.xml: .*1 of class 'Necrosis'; give it a role, .*\{\"Necrosis\": ignore\}"
    ):
        read_lesion(path)
    assert read_lesion(path, classes={" necrosis": "exclusion"}).geometry.area == 100 * 100 - 20 * 20
    assert read_lesion(path, classes={"Necrosis": "ignore"}).counts.listing == "1 of class 'Necrosis'"
    assert read_lesion(path, classes={"part": "ignore", "Necrosis": "lesion"}).geometry.area == 20 * 20


@pytest.mark.parametrize("kind", ["Dot", "PointSet", "Measurement"])
def test_dots_are_counted_and_unknown_types_refused(tmp_path, kind: str) -> None:
    dot = ("None", kind, [(1.0, 1.0), (2.0, 2.0)])
    assert read_asap(tmp_path, ("_0", "Polygon", SQUARE), dot).counts == AnnotationCounts(lesion=1, points=1)
    with pytest.raises(ValueError, match="type 'Cloud'"):
        read_asap(tmp_path, ("_0", "Cloud", SQUARE))


BOMB = '[<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]'
OUTSIDE = '[<!ENTITY b SYSTEM "file:///secret.txt">]'
DTD = 'SYSTEM "http://example.org/x.dtd"'


@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE, DTD])
def test_entities_are_refused(tmp_path, doctype: str) -> None:
    text = f'<?xml version="1.0"?><!DOCTYPE x {doctype}><ASAP_Annotations>&b;</ASAP_Annotations>'
    with pytest.raises(ValueError, match=r"evil\.xml: XML with a DTD, entities or external references refused"):
        read_lesion(write(tmp_path / "evil.xml", text))


PLAIN = asap([("_0", "Polygon", SQUARE)])
XML_FAULTS = {
    "XML that ends early": ("<ASAP_Annotations>", "not well-formed XML after line 1"),
    "XML cut off within a line": (PLAIN[:200], "not well-formed XML after line 1: cut short"),
    "XML in an unknown encoding": (
        '<?xml version="1.0" encoding="martian"?><ASAP_Annotations/>',
        "not well-formed XML",
    ),
    "empty XML file": ("", r"empty file \(0 bytes\)"),
    "XML of another program": ("<svg/>", "root element 'svg'"),
    "coordinate in words": (PLAIN.replace('X="0"', 'X="left"'), "X, Y = 0, left, 0; expected numbers"),
    "coordinate with a decimal comma": (PLAIN.replace('X="100"', 'X="10,5"'), "10,5, 0; .* with a decimal point"),
    "point without Order": (PLAIN.replace('Order="0"', ""), "X, Y = absent, 0, 0; expected numbers"),
    "coordinate nan": (PLAIN.replace('X="0"', 'X="nan"'), "not finite"),
    "coordinate beyond 1e8 px": (PLAIN.replace('X="0"', 'X="1e300"'), r"not finite numbers below 1e\+08 px"),
}
JSON_FAULTS = {
    "integer of 400 digits": (
        '{"type": "Polygon", "coordinates": [[[0, 0], [1%s, 0], [9, 9]]]}' % ("0" * 400),
        "an outline is no list of points",
    ),
    "JSON cut off after the first character": ("{", "not JSON .*cut short or damaged"),
    "empty JSON file": (" \n", "empty file"),
    "JSON nested too deeply": ("[" * 100_000, "not JSON .*recursion limit"),
    "NCRF list without vertices": ('{"positive": [{"name": 1}]}', "positive.0.vertices: Field required"),
    "NCRF list with a decimal comma": (
        '{"positive": [{"vertices": [["1,5", 2]]}]}',
        r"positive\[0\].vertices: an outline is no list of points",
    ),
    "features that are null": ('{"features": null}', "features is null; expected GeoJSON features"),
    "object that is no feature": (
        '{"features": [{"name": 1}]}',
        r"features\[0\] is an object with the keys name; expected GeoJSON",
    ),
    "geometry without a type": ('[{"geometry": {}}]', r"\[0\]: geometry.type: Field required"),
    "unknown type of geometry": (
        '[{"geometry": {"type": "Circle"}}]',
        r"\[0\]: geometry of type 'Circle', expected one of Polygon",
    ),
    "polygon without rings": (
        '{"type": "Polygon", "coordinates": [[1, 2], [3, 4]]}',
        "an outline is no list of points",
    ),
    "multipolygon without polygons": (
        '{"type": "MultiPolygon", "coordinates": [1]}',
        "coordinates of a MultiPolygon are not lists",
    ),
    "coordinates that are one number": ('{"type": "Polygon", "coordinates": 7}', "coordinates are 7, expected lists"),
    "properties that are a number": (
        '[{"properties": 3, "geometry": null}]',
        r"\[0\]: properties: Input should be an object",
    ),
    "JSON cut off within a feature": (
        '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [',
        "not JSON in UTF-8 .*EOF",
    ),
    "number instead of GeoJSON": ("3", "content is 3; expected GeoJSON"),
}
FAULTS = {
    **{name: ("a.xml", *case) for name, case in XML_FAULTS.items()},
    **{name: ("a.json", *case) for name, case in JSON_FAULTS.items()},
    "other suffix": ("a.txt", "", "suffix '.txt'"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_files_are_named(tmp_path, case: str) -> None:
    name, text, message = FAULTS[case]
    with pytest.raises(ValueError, match=f"{name}: .*{message}") as error:
        read_lesion(write(tmp_path / name, text))
    assert not {"KeyError", "NoneType", "Expecting"} & set(str(error.value).replace(":", " ").split())


@pytest.mark.parametrize("suffix", ["xml", "geojson"])
def test_a_byte_order_mark_is_no_fault_and_utf16_json_is_named(tmp_path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    text = PLAIN if suffix == "xml" else json.dumps(feature([SQUARE]))
    path.write_text(text, encoding="utf-8-sig")
    assert read_lesion(path).geometry.area == 100 * 100
    path.write_text(text, encoding="utf-16")
    if suffix == "xml":  # XML states its encoding
        assert read_lesion(path).geometry.area == 100 * 100
    else:
        with pytest.raises(ValueError, match=r"a\.geojson: text in UTF-16 or UTF-32, expected UTF-8"):
            read_lesion(path)


@pytest.mark.parametrize("points", [[], [(1, 1)], [(1, 1), (5, 5)], [(0, 0), (5, 5), (9, 9)]])
def test_outlines_without_area_are_dropped(tmp_path, points) -> None:
    lesion = read_asap(tmp_path, ("_0", "Polygon", points), ("_0", "Polygon", SQUARE))
    assert lesion.counts.without_area == 1 and lesion.geometry.area == 100 * 100


CLOSED, OPEN = [*SQUARE, (0, 0.0001)], SQUARE
COLLECTION = {"type": "GeometryCollection", "geometries": [feature([far(INNER)])["geometry"], {"type": "Point"}]}
CHILD = feature(
    [far(INNER)], "Tumor", childObjects=[feature([INNER], "Exclusion", children=[feature([far(INNER, 90)])])]
)
NAMES = {"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}}

SHAPES = {
    "FeatureCollection": ({"type": "FeatureCollection", "features": [feature([SQUARE])]}, WHOLE, {"lesion": 1}),
    "FeatureCollection without features": ({"type": "FeatureCollection", "features": []}, 0, {}),
    "list of features": ([feature([SQUARE]), feature([far(INNER)])], WHOLE + BIT, {"lesion": 2}),
    "lists of lists of features": (
        [[feature([SQUARE])], [feature([INNER], "Exclusion")]],
        WHOLE - BIT,
        {"lesion": 1, "exclusion": 1},
    ),
    "single feature": (feature([SQUARE, INNER]), WHOLE - BIT, {"lesion": 1}),
    "geometry without a feature": (feature([SQUARE])["geometry"], WHOLE, {"lesion": 1}),
    "GeometryCollection without a feature": (COLLECTION, BIT, {"lesion": 1, "points": 1}),
    "points with a third coordinate": (feature([[(x, y, 0) for x, y in SQUARE]]), WHOLE, {"lesion": 1}),
    "MultiPolygon": (feature([[SQUARE, INNER], [far(INNER)]], kind="MultiPolygon"), WHOLE, {"lesion": 2}),
    "MultiPolygon of overlapping parts": (feature([[SQUARE], [INNER]], kind="MultiPolygon"), WHOLE, {"lesion": 2}),
    "GeometryCollection of a feature": ([{**feature([]), "geometry": COLLECTION}], BIT, {"lesion": 1, "points": 1}),
    "closed line with a class": (feature(CLOSED, kind="LineString"), WHOLE, {"lesion": 1}),
    "closed line as an exclusion": (
        [feature([SQUARE]), feature([*INNER, INNER[0]], "Exclusion", "LineString")],
        WHOLE - BIT,
        None,
    ),
    "closed line without class": (feature(CLOSED, None, "LineString"), 0, {"open_lines": 1}),
    "open line": ([feature([SQUARE]), feature(OPEN, "Stroma", "LineString")], WHOLE, {"lesion": 1, "open_lines": 1}),
    "closed and open lines together": (
        feature([CLOSED, OPEN], kind="MultiLineString"),
        WHOLE,
        {"lesion": 1, "open_lines": 1},
    ),
    "points": ([feature([SQUARE]), feature([1, 1], "Mitosis", "Point")], WHOLE, {"lesion": 1, "points": 1}),
    "null in a GeometryCollection": (
        [{**feature([]), "geometry": {"type": "GeometryCollection", "geometries": [None, COLLECTION]}}],
        BIT,
        {"lesion": 1, "points": 1, "null_geometries": 1},
    ),
    "feature without a geometry": (
        [feature([SQUARE]), feature([], kind="null")],
        WHOLE,
        {"lesion": 1, "null_geometries": 1},
    ),
    "polygon without coordinates": ([feature([SQUARE]), feature([], None)], WHOLE, {"lesion": 1, "null_geometries": 1}),
    "outline of two points with a hole": ([feature([[[1, 1], [2, 2]], INNER])], 0, {"without_area": 1}),
    "any id": ({**feature([SQUARE], objectType=None), "id": "cell"}, WHOLE, {"lesion": 1}),
    "ring without points": ([feature([SQUARE]), feature([[]])], WHOLE, {"lesion": 1, "without_area": 1}),
    "children of QuPath objects": ([CHILD, feature([SQUARE])], WHOLE + BIT, {"lesion": 3, "exclusion": 1}),
    "root object of QuPath": (
        feature([far(SQUARE)], None, objectType="root", childObjects=[CHILD]),
        2 * BIT,
        {"lesion": 2, "exclusion": 1},
    ),
    "root object without geometry": (
        {"properties": {"objectType": "root", "children": [feature([SQUARE])]}},
        WHOLE,
        {"lesion": 1},
    ),
    "hierarchy of QuPath": (
        {"root": feature([], None, "null", objectType="root", childObjects=[feature([SQUARE])])},
        WHOLE,
        None,
    ),
    "objects of QuPath 0.2": (
        {**feature([SQUARE], objectType=None), "id": "PathAnnotationObject"},
        WHOLE,
        {"lesion": 1},
    ),
    "cells of QuPath beside annotations": (
        [
            feature([SQUARE], childObjects=[feature([INNER], "Negative", objectType="cell")]),
            {**feature([INNER], "Negative", objectType=None), "id": "PathDetectionObject"},
        ],
        WHOLE,
        {"lesion": 1, "detections": 2},
    ),
    "class as several names": (feature([SQUARE], None, **NAMES), WHOLE, {"lesion": 1}),
    "class as one name": (feature([SQUARE], None, classification={"names": ["Tumor"]}), WHOLE, {"lesion": 1}),
    "derived class (Tumor: Positive)": (feature([SQUARE], "Tumor: Positive"), WHOLE, {"lesion": 1}),
    "class as text": (feature([SQUARE], None, classification="metastases"), WHOLE, {"lesion": 1}),
    "classes that end in *": (
        [feature([far(SQUARE)], "Region*"), feature([SQUARE]), feature([INNER], "Ignore*")],
        WHOLE,
        {"lesion": 1, "class Region*": 1, "class Ignore*": 1},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_geojson_may_hold(tmp_path, caplog, shape: str) -> None:
    content, area, numbers = SHAPES[shape]
    with caplog.at_level("INFO"):
        lesion = read_lesion(write(tmp_path / "a.geojson", json.dumps(content)), origin=(7, 11))
    assert lesion.geometry.area == area
    if numbers is not None:
        assert lesion.counts.numbers == numbers
    if area:
        assert lesion.geometry.bounds[1] in (11, 31), "QuPath counts from the scanned region"
    assert (lesion.counts.unused > 0) == (
        "a.geojson: not used: " in caplog.text
    ) and lesion.counts.listing in caplog.text


CLASSES = {
    "derived first": ("Tumor: Positive", {"tumor: positive": "ignore", "Tumor": "lesion"}, 0),
    "base": ("Stroma: Positive: 1+", {"Stroma": "lesion"}, WHOLE),
    "known name": ("Tumor", {"Tumor": "exclusion"}, 0),
    "star": ("Region*", {"Region*": "lesion"}, WHOLE),
    "none": (None, {"": "lesion"}, WHOLE),
}


@pytest.mark.parametrize("case", CLASSES)
def test_an_option_gives_classes_a_role(tmp_path, case: str) -> None:
    name, classes, area = CLASSES[case]
    options = wsi_options({"annotation_classes": classes})
    path = write(tmp_path / "a.geojson", json.dumps([feature([SQUARE], name)]))
    assert read_lesion(path, classes=options.annotation_classes).geometry.area == area


def test_classes_without_a_role_are_refused_by_name_all_at_once(tmp_path) -> None:
    outlines = [feature([SQUARE], name) for name in (None, "Stroma: Positive", "Stroma: Positive", "Tumor")]
    message = (
        r"a\.geojson: outlines without a known role: 1 without class, 2 of class 'Stroma: Positive'; .*\{\"\": ignore\}"
    )
    with pytest.raises(ValueError, match=message):
        read_lesion(write(tmp_path / "a.geojson", json.dumps(outlines)))
    with pytest.raises(ValueError, match=r"annotation_classes\.Tumor: .*'lesion', 'exclusion' or 'ignore'"):
        wsi_options({"annotation_classes": {"Tumor": "tumour"}})
    with pytest.raises(ValueError, match="annotation_classes: .*a class occurs twice"):
        wsi_options({"annotation_classes": {"Tumor": "lesion", "tumor ": "ignore"}})


def test_an_absent_file_and_detections_alone_are_no_annotation(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"gone\.xml: no such annotation"):
        read_lesion(tmp_path / "gone.xml")
    cells = [feature([SQUARE], objectType=kind) for kind in ("cell", "tile", "tmaCore", "detection")]
    with pytest.raises(ValueError, match=r"a\.geojson: 4 detections, cells, tiles or cores .* convert detections"):
        read_lesion(write(tmp_path / "a.geojson", json.dumps(cells)))


def test_outlines_outside_the_slide_are_counted_and_refused_if_none_is_inside(tmp_path) -> None:
    inside, outside = ("_0", "Polygon", SQUARE), ("_0", "Polygon", far(SQUARE, 9000))
    lesion = read_asap(tmp_path, inside, outside, dimensions=(600, 400))
    assert lesion.geometry.area == WHOLE and lesion.counts == AnnotationCounts(lesion=1, outside=1)
    for one in (outside, ("_0", "Polygon", [(x, y - 500) for x, y in SQUARE])):
        with pytest.raises(
            ValueError, match=r"a\.xml: no lesion outline inside the slide of 600 x 400 px, .*y upwards"
        ):
            read_asap(tmp_path, one, ("_2", "Polygon", INNER), dimensions=(600, 400))


def test_ncrf_lists(tmp_path) -> None:
    content = {"positive": [{"name": "_0", "vertices": SQUARE}], "negative": [{"name": "_2", "vertices": INNER}]}
    lesion = read_lesion(write(tmp_path / "a.json", json.dumps(content)), origin=(5, 5))
    assert lesion.geometry.area == 9600 and lesion.geometry.bounds[:2] == (0, 0)


def test_the_guide_names_every_known_class(repository) -> None:
    text = (repository / "docs/reference/annotations.md").read_text(encoding="utf-8")
    for role, classes in (("lesion", LESION_CLASSES), ("exclusion", EXCLUSION_CLASSES)):
        row = next(line for line in text.splitlines() if line.startswith(f"| {role} |"))
        assert set(re.findall(r"`([^`]+)`", row)) == classes
