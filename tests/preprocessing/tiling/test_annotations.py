"""Lesion polygons: unions, outlines that cross themselves, and exact coverage against polygons clipped by hand."""

import json

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preprocessing.store.attrs import AnnotationCounts
from preprocessing.tiling.annotations import coverage, even_odd, read_lesion
from tests.helpers.annotations import INNER, SQUARE, feature, read_asap, write
from tests.oracles import clam

ROUNDING = 1e-7  # of float32 coverages


def pentagram(radius: float) -> list[tuple[float, float]]:
    """Five points, every second one joined; the centre is enclosed twice."""
    angle = np.pi / 2 + 4 * np.pi / 5 * np.arange(5)
    return [(float(x), float(y)) for x, y in zip(radius * np.cos(angle), radius * np.sin(angle), strict=True)]


def test_an_outline_that_crosses_itself_follows_the_even_odd_rule_everywhere(tmp_path, caplog) -> None:
    """Coverage, drawn outlines and OpenCV's filled polygon agree: the centre of a pentagram is no lesion."""
    points = [(round(x + 300), round(y + 300)) for x, y in pentagram(250)]
    with caplog.at_level("INFO"):
        lesion = read_asap(tmp_path, ("_0", "Polygon", points), ("_1", "Polygon", INNER))
    assert lesion.counts == AnnotationCounts(lesion=2, self_crossing=1) and "1 outlines cross themselves" in caplog.text
    centre, tip = np.array([[290, 290]]), np.array([[295, 150]])
    assert coverage(lesion.geometry, centre, 20).tolist() == [0]
    assert coverage(lesion.geometry, tip, 10).tolist() == [clam.inside(points, (300, 155)) == 1]
    filled = cv2.fillPoly(np.zeros((600, 600), np.uint8), [np.array(points, np.int32)], 1)
    drawn = np.zeros_like(filled)
    for part in shapely.get_parts(lesion.geometry):
        rings = [np.rint(ring.coords).astype(np.int32) for ring in (part.exterior, *part.interiors)]
        cv2.fillPoly(drawn, rings, 1)
    filled[20:41, 20:41] = 1  # INNER
    assert filled[300, 300] == drawn[300, 300] == 0
    assert (filled != drawn).mean() < 0.01, "all but borders of a pixel"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=3, max_size=12))
def test_even_odd_counts_how_often_a_point_is_enclosed(points) -> None:
    """Against the number of edges that a ray from the point crosses, edges that are drawn twice included."""
    area = even_odd(np.array(points, float))
    assert area.is_valid
    for x, y in [(x + 0.37, y + 0.41) for x in range(0, 12, 3) for y in range(0, 12, 2)]:
        if shapely.LinearRing(points).distance(shapely.Point(x, y)) > 1e-6:
            assert area.contains(shapely.Point(x, y)) == (clam.inside(points, (x, y)) == 1)


def test_holes_of_a_crossing_outline_are_cut_out(tmp_path) -> None:
    bow = [(0, 0), (60, 60), (60, 0), (0, 60)]
    lesion = read_lesion(
        write(tmp_path / "a.json", json.dumps(feature([bow, [(50, 25), (55, 25), (55, 30), (50, 30)]])))
    )
    assert lesion.geometry.area == pytest.approx(60 * 60 / 2 - 25) and lesion.counts.self_crossing == 1


def star(seed: int, points: int, radius: float, centre: tuple[float, float]) -> list[tuple[float, float]]:
    """A simple polygon with a ragged outline."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    r = radius * rng.uniform(0.4, 1.0, points)
    return [
        (float(x), float(y)) for x, y in zip(centre[0] + r * np.cos(angle), centre[1] + r * np.sin(angle), strict=True)
    ]


@settings(max_examples=25, deadline=None)
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


def test_exact_fractions_are_exact() -> None:
    lesion = shapely.union_all([shapely.box(0, 0, 512, 256), shapely.box(1024, 0, 2048, 4096)])
    coords = np.array([[0, 0], [256, 128], [1024, 0], [1100, 100], [3000, 0], [-512, 0]], np.int32)
    assert coverage(lesion, coords, 512).tolist() == [0.5, 0.125, 1.0, 1.0, 0.0, 0.0]
    assert coverage(lesion, np.empty((0, 2), np.int32), 512).shape == (0,)
    assert coverage(shapely.Polygon(), coords, 512).tolist() == [0] * 6


def test_official_polygons_with_cut_outs_and_crossings(shared_data) -> None:
    lesion = read_lesion(shared_data / "camelyon16" / "lesion_polygons" / "Tumor_016.json")
    assert lesion.counts == AnnotationCounts(lesion=7, exclusion=2, self_crossing=5)
    assert lesion.geometry.is_valid
    x0, y0, x1, y1 = lesion.geometry.bounds
    x, y = np.meshgrid(np.arange(x0, x1, 512).astype(int), np.arange(y0, y1, 512).astype(int))
    coords = np.stack([x.ravel(), y.ravel()], axis=1)
    share = coverage(lesion.geometry, coords, 512)

    assert float(share.astype(np.float64).sum()) * 512**2 == pytest.approx(lesion.geometry.area, rel=1e-6)
    # the cut-outs are really cut out
    content = json.loads((shared_data / "camelyon16" / "lesion_polygons" / "Tumor_016.json").read_text())
    for entry in content["negative"]:
        hole = shapely.make_valid(shapely.Polygon(entry["vertices"]))
        assert lesion.geometry.intersection(hole).area < 1e-6 * hole.area


def test_overlapping_outlines_count_once(tmp_path) -> None:
    lesion = read_asap(tmp_path, ("_0", "Polygon", SQUARE), ("_1", "Polygon", INNER))
    assert lesion.geometry.area == 100 * 100


def cut_by_geos(lesion, coords, footprint: int) -> np.ndarray:
    """Share of each tile by intersecting whole polygons with boxes: slow and obvious."""
    x, y = coords.astype(float).T
    boxes = shapely.box(x, y, x + footprint, y + footprint)
    shapely.prepare(lesion)
    near = shapely.intersects(lesion, boxes)
    out = np.zeros(len(coords))
    out[near] = shapely.area(shapely.intersection(lesion, boxes[near])) / footprint**2
    return out


def test_many_jagged_outlines_with_holes_at_slide_scale() -> None:
    """Positions of 100,000 px, overlapping tiles in any order."""
    parts = []
    for i in range(9):
        centre = (90_000.0 + 3000 * (i % 3), 40_000.0 + 3000 * (i // 3))
        ring, hole = star(i, 160, 1400.0, centre), star(50 + i, 40, 500.0, centre)
        parts.append(shapely.Polygon(ring, [hole[::-1] if i % 2 else hole]))
    lesion = shapely.MultiPolygon(parts)
    assert lesion.is_valid
    x, y = np.meshgrid(np.arange(88_000, 98_000, 128), np.arange(38_000, 48_000, 128))
    coords = np.random.default_rng(0).permutation(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32))
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
