"""Lesion polygons: readers, rejected files, repairs, and exact coverage against polygons clipped by hand."""

import json

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preprocessing.tiling.annotations import coverage, read_lesion
from tests.oracles import clam

SQUARE = [(0, 0), (100, 0), (100, 100), (0, 100)]
INNER = [(20, 20), (40, 20), (40, 40), (20, 40)]
ROUNDING = 1e-7  # of float32 coverages


def asap(outlines: list[tuple[str, str, list[tuple[float, float]]]], shuffle: bool = False) -> str:
    """ASAP XML of (group, type, points)."""
    parts = []
    for number, (group, kind, points) in enumerate(outlines):
        rows = [f'<Coordinate Order="{i}" X="{x:g}" Y="{y:g}" />' for i, (x, y) in enumerate(points)]
        if shuffle:
            rows = rows[::2] + rows[1::2]
        parts.append(
            f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{''.join(rows)}</Coordinates></Annotation>"
        )
    group = '<Group Name="Tumor" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>'
    groups = f"<AnnotationGroups>{group}</AnnotationGroups>"
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(parts)}</Annotations>{groups}</ASAP_Annotations>'
    )


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def read_asap(folder, *outlines, shuffle: bool = False):
    """Read the lesion of an ASAP file with these outlines."""
    return read_lesion(write(folder / "a.xml", asap(list(outlines), shuffle)))


@pytest.mark.parametrize("tumour", ["_0", "_1", "Tumor", "TUMOR", "tumor"])
@pytest.mark.parametrize("cut", ["_2", "Exclusion", "exclusion"])
def test_groups_of_both_parts_of_camelyon(tmp_path, tumour: str, cut: str) -> None:
    lesion = read_asap(tmp_path, (tumour, "Polygon", SQUARE), (cut, "Spline", INNER))
    assert lesion.geometry.area == 100 * 100 - 20 * 20
    assert lesion.counts == {"tumour": 1, "exclusion": 1, "repaired": 0, "dropped": 0, "ignored": 0}


def test_points_are_sorted_by_order_not_by_place(tmp_path) -> None:
    lesion = read_asap(tmp_path, ("_0", "Polygon", SQUARE), shuffle=True)
    assert lesion.geometry.area == 100 * 100 and lesion.counts["repaired"] == 0


def test_order_beyond_nine_is_a_number_not_a_text(tmp_path) -> None:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = [(float(x), float(y)) for x, y in zip(50 + 40 * np.cos(angle), 50 + 40 * np.sin(angle), strict=True)]
    lesion = read_asap(tmp_path, ("_0", "Polygon", ring), shuffle=True)
    assert lesion.geometry.area == pytest.approx(clam.polygon_area(ring), rel=1e-4)  # %g keeps six digits


def test_overlapping_outlines_count_once(tmp_path) -> None:
    lesion = read_asap(tmp_path, ("_0", "Polygon", SQUARE), ("_1", "Polygon", INNER))
    assert lesion.geometry.area == 100 * 100


def test_unknown_group_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"a\.xml: annotation 'Annotation 1' has group 'None', expected one of"):
        read_asap(tmp_path, ("_0", "Polygon", SQUARE), ("None", "Polygon", INNER))


def test_dots_are_ignored_and_other_types_refused(tmp_path) -> None:
    dot = ("Tumor", "Dot", [(1.0, 1.0)])
    assert read_asap(tmp_path, ("_0", "Polygon", SQUARE), dot).counts["ignored"] == 1
    with pytest.raises(ValueError, match="type 'Cloud'"):
        read_asap(tmp_path, ("_0", "Cloud", SQUARE))


def test_no_tumour_is_an_empty_lesion(tmp_path) -> None:
    lesion = read_asap(tmp_path)
    assert lesion.geometry.is_empty
    assert coverage(lesion.geometry, np.zeros((2, 2), np.int32), 10).tolist() == [0, 0]


BOMB = '[<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]'
OUTSIDE = '[<!ENTITY b SYSTEM "file:///secret.txt">]'
DTD = 'SYSTEM "http://example.org/x.dtd"'


@pytest.mark.parametrize("doctype", [BOMB, OUTSIDE, DTD])
def test_entities_are_refused(tmp_path, doctype: str) -> None:
    text = f'<?xml version="1.0"?><!DOCTYPE x {doctype}><ASAP_Annotations>&b;</ASAP_Annotations>'
    with pytest.raises(ValueError, match=r"evil\.xml: XML with a DTD, entities or external references refused"):
        read_lesion(write(tmp_path / "evil.xml", text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", "<ASAP_Annotations>", "not well-formed"),
        ("a.xml", "<svg/>", "root element 'svg'"),
        ("a.xml", asap([("_0", "Polygon", SQUARE)]).replace('X="0"', 'X="left"'), "numeric Order, X and Y"),
        ("a.xml", asap([("_0", "Polygon", SQUARE)]).replace('Order="0"', ""), "numeric Order, X and Y"),
        ("a.xml", asap([("_0", "Polygon", SQUARE)]).replace('X="0"', 'X="nan"'), "not finite"),
        ("a.json", "{", "not JSON"),
        ("a.json", '{"positive": [{"name": 1}]}', "neither GeoJSON"),
        ("a.json", '{"features": [{"type": "Feature"}]}', "neither GeoJSON"),
        ("a.json", "3", "neither GeoJSON"),
        ("a.txt", "", "suffix '.txt'"),
    ],
)
def test_bad_files_are_named(tmp_path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read_lesion(write(tmp_path / name, text))


def test_absent_file(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"gone\.xml: no such annotation"):
        read_lesion(tmp_path / "gone.xml")


def test_self_crossing_outline_is_repaired_and_counted(tmp_path, caplog) -> None:
    bow = [(0, 0), (10, 10), (10, 0), (0, 10)]
    with caplog.at_level("INFO"):
        lesion = read_asap(tmp_path, ("_0", "Polygon", bow))
    assert lesion.geometry.is_valid and lesion.geometry.area == pytest.approx(50)
    assert lesion.counts["repaired"] == 1 and "1 outlines repaired" in caplog.text


@pytest.mark.parametrize("points", [[], [(1, 1)], [(1, 1), (5, 5)], [(0, 0), (5, 5), (9, 9)]])
def test_outlines_without_area_are_dropped(tmp_path, points) -> None:
    lesion = read_asap(tmp_path, ("_0", "Polygon", points), ("_0", "Polygon", SQUARE))
    assert lesion.counts["dropped"] == 1 and lesion.geometry.area == 100 * 100


def feature(rings, name: str | None = "Tumor", kind: str = "Polygon") -> dict:
    properties = {"objectType": "annotation", **({"classification": {"name": name}} if name else {})}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def test_geojson_with_holes_multipolygons_and_origin(tmp_path) -> None:
    far = [[(x + 500, y) for x, y in SQUARE]]
    features = [feature([SQUARE, INNER]), feature([far, [[(x + 900, y) for x, y in INNER]]], kind="MultiPolygon")]
    features.append(feature([[(x + 500, y) for x, y in INNER]], "Exclusion"))
    features.append(feature([1, 1], "Tumor", "Point"))
    for content in ({"type": "FeatureCollection", "features": features}, features):
        lesion = read_lesion(write(tmp_path / "a.geojson", json.dumps(content)), origin=(7, 11))
        assert lesion.geometry.area == 2 * (10000 - 400) + 400
        assert lesion.geometry.bounds[:2] == (7, 11), "QuPath counts from the scanned region"
        assert lesion.counts["ignored"] == 1
    single = read_lesion(write(tmp_path / "b.geojson", json.dumps(feature([SQUARE]))))
    assert single.geometry.area == 10000


@pytest.mark.parametrize("name", [None, "Stroma"])
def test_geojson_without_a_known_class_is_an_error(tmp_path, name) -> None:
    with pytest.raises(ValueError, match=r"a\.geojson: feature 0 has group"):
        read_lesion(write(tmp_path / "a.geojson", json.dumps([feature([SQUARE], name)])))


def test_ncrf_lists(tmp_path) -> None:
    content = {"positive": [{"name": "_0", "vertices": SQUARE}], "negative": [{"name": "_2", "vertices": INNER}]}
    lesion = read_lesion(write(tmp_path / "a.json", json.dumps(content)), origin=(5, 5))
    assert lesion.geometry.area == 9600 and lesion.geometry.bounds[:2] == (0, 0)


def star(seed: int, points: int, radius: float, centre: tuple[float, float]) -> list[tuple[float, float]]:
    """A simple polygon with a ragged outline."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    r = radius * rng.uniform(0.4, 1.0, points)
    return [
        (float(x), float(y)) for x, y in zip(centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle), strict=True)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 700), st.integers(1, 90))
def test_coverage_equals_cutting_each_tile(seed: int, points: int, footprint: int) -> None:
    outline = star(seed, points, 120.0, (150.0, 140.0))
    if seed % 2:
        # whole-numbered corners meet the tiles' borders
        outline = [(float(round(x)), float(round(y))) for x, y in outline]
        assume(shapely.Polygon(outline).is_valid)
    coords = np.random.default_rng(seed).integers(-50, 300, (15, 2)).astype(np.int32)
    expected = [
        clam.clipped_area(outline, (x, y, x + footprint, y + footprint)) / footprint**2 for x, y in coords.tolist()
    ]
    share = coverage(shapely.Polygon(outline[:: 1 - 2 * (seed // 2 % 2)]), coords, footprint)
    assert share.dtype == np.float32
    np.testing.assert_allclose(share, expected, rtol=0, atol=ROUNDING)


def cut_by_geos(lesion, coords, footprint: int) -> np.ndarray:
    """Share of each tile by intersecting whole polygons with boxes: slow and obvious."""
    x, y = coords.astype(float).T
    boxes = shapely.box(x, y, x + footprint, y + footprint)
    shapely.prepare(lesion)
    near = shapely.intersects(lesion, boxes)
    out = np.zeros(len(coords))
    out[near] = shapely.area(shapely.intersection(lesion, boxes[near])) / footprint**2
    return out


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_many_jagged_outlines_with_holes_at_slide_scale(overlap: int) -> None:
    """Positions of 100,000 px, tiles apart or overlapping, rows and tiles in any order."""
    parts = []
    for i in range(9):
        centre = (90_000.0 + 3000 * (i % 3), 40_000.0 + 3000 * (i // 3))
        ring, hole = star(i, 160, 1400.0, centre), star(50 + i, 40, 500.0, centre)
        parts.append(shapely.Polygon(ring, [hole[::-1] if i % 2 else hole]))
    lesion = shapely.MultiPolygon(parts)
    assert lesion.is_valid
    step = 256 // overlap
    x, y = np.meshgrid(np.arange(88_000, 98_000, step), np.arange(38_000, 48_000, step))
    coords = np.random.default_rng(overlap).permutation(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32))
    share, expected = coverage(lesion, coords, 256), cut_by_geos(lesion, coords, 256)
    np.testing.assert_allclose(share, expected, rtol=0, atol=ROUNDING)
    inside, outside = np.isclose(expected, 1, rtol=0, atol=1e-12), expected == 0
    assert inside.any() and outside.any()
    assert (share[inside] == 1).all() and (share[outside] == 0).all(), "no rounding where no outline passes"


def test_edges_along_tile_borders_and_nearly_flat_ones() -> None:
    """Borders shared with tiles, and edges whose slope leaves no digits for a quotient."""
    lesion = shapely.Polygon([(0, 0), (512, 0), (512, 1e-13), (1024, 256), (1024 + 1e-9, 512), (0, 512)])
    coords = np.array([[0, 0], [512, 0], [1024, 0], [-512, 0], [0, 512], [0, -512], [256, 256]], np.int32)
    expected = [1.0, 0.75, 0.0, 0.0, 0.0, 0.0, 0.5]
    np.testing.assert_allclose(coverage(lesion, coords, 512), expected, rtol=0, atol=ROUNDING)


def test_exact_fractions_are_exact() -> None:
    lesion = shapely.union_all([shapely.box(0, 0, 512, 256), shapely.box(1024, 0, 2048, 4096)])
    coords = np.array([[0, 0], [256, 128], [1024, 0], [1100, 100], [3000, 0], [-512, 0]], np.int32)
    assert coverage(lesion, coords, 512).tolist() == [0.5, 0.125, 1.0, 1.0, 0.0, 0.0]
    assert coverage(lesion, np.empty((0, 2), np.int32), 512).shape == (0,)


def test_coverage_over_a_lattice_sums_to_the_area() -> None:
    outline = shapely.Polygon(star(3, 900, 5000.0, (6000.0, 6000.0)), [[(5900, 5900), (6100, 5900), (6000, 6100)]])
    x, y = np.meshgrid(np.arange(0, 12000, 300), np.arange(0, 12000, 300))
    share = coverage(outline, np.stack([x.ravel(), y.ravel()], axis=1), 300)
    assert float(share.astype(np.float64).sum()) * 300**2 == pytest.approx(outline.area, rel=1e-6)
    assert (share == 1).any() and ((share > 0) & (share < 1)).any()


def test_official_polygons_with_cut_outs_and_crossings(shared_data) -> None:
    lesion = read_lesion(shared_data / "camelyon16" / "lesion_polygons" / "Tumor_016.json")
    assert lesion.counts == {"tumour": 7, "exclusion": 2, "repaired": 5, "dropped": 0, "ignored": 0}
    assert lesion.geometry.is_valid
    x0, y0, x1, y1 = lesion.geometry.bounds
    x, y = np.meshgrid(np.arange(x0, x1, 512).astype(int), np.arange(y0, y1, 512).astype(int))
    coords = np.stack([x.ravel(), y.ravel()], axis=1)
    share = coverage(lesion.geometry, coords, 512)
    np.testing.assert_allclose(share, cut_by_geos(lesion.geometry, coords, 512), atol=ROUNDING)
    assert float(share.astype(np.float64).sum()) * 512**2 == pytest.approx(lesion.geometry.area, rel=1e-6)
    # the cut-outs are really cut out
    content = json.loads((shared_data / "camelyon16" / "lesion_polygons" / "Tumor_016.json").read_text())
    for entry in content["negative"]:
        hole = shapely.make_valid(shapely.Polygon(entry["vertices"]))
        assert lesion.geometry.intersection(hole).area < 1e-6 * hole.area
