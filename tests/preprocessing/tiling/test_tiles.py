"""Lattices against a loop that tests every candidate, and the level and size rules."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.common.options import TISSUE_PRESETS, WsiOptions, wsi_options
from preprocessing.tiling.contour_tiles import (
    TilePlan,
    contour_tiles,
    count_shared,
    global_tiles,
    plan_tiles,
    points_in_polygon,
)
from preprocessing.tiling.tissue import Contour
from tests.oracles import clam

POINTS = st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), min_size=1, max_size=12)
FUNCTIONS = ["basic", "center", "four_pt", "four_pt_hard"]


def polygon(points: list[tuple[int, int]]) -> np.ndarray:
    return np.array(points, np.int32)


def plan(footprint: int, step: int | None = None) -> TilePlan:
    return TilePlan(0, footprint, footprint, 1, footprint, step or footprint)


@settings(max_examples=60, deadline=None)
@given(POINTS, st.sampled_from([1, 5461]))
def test_points_in_polygon_equal_opencv(points: list[tuple[int, int]], scale: int) -> None:
    """Any closed chain of points, self-crossing and degenerate ones included, up to the size of a slide."""
    outline, xs, ys = scale * polygon(points), scale * np.arange(-2, 27, 2), scale * np.arange(-1, 28)
    places = [[(float(x), float(y)) for x in xs] for y in ys]
    opencv = [[cv2.pointPolygonTest(outline.reshape(-1, 1, 2), place, False) for place in row] for row in places]
    np.testing.assert_array_equal(points_in_polygon(outline, xs, ys), opencv)


@settings(max_examples=50, deadline=None)
@given(
    POINTS,
    st.lists(POINTS, max_size=2),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(FUNCTIONS),
    st.booleans(),
)
def test_contour_lattice_equals_the_loop(points, holes, footprint: int, step: int, name: str, padding: bool) -> None:
    options = WsiOptions(contour_fn=name, use_padding=padding)
    contour = Contour(polygon(points), tuple(polygon(hole) for hole in holes))
    dimensions = (22, 20)
    tiles = contour_tiles([contour], plan(footprint, step), dimensions, options)
    expected = clam.patches(points, holes, footprint, step, dimensions, name, padding)
    assert [tuple(c) for c in tiles.coords.tolist()] == sorted(expected, key=lambda p: (p[1], p[0]))
    assert tiles.coords.dtype == tiles.grid.dtype == np.int32
    np.testing.assert_array_equal(tiles.grid, tiles.coords[:, ::-1] // step)


@settings(max_examples=50, deadline=None)
@given(st.lists(POINTS, min_size=1, max_size=3), st.integers(1, 7), st.sampled_from(FUNCTIONS), st.booleans())
def test_global_lattice_equals_the_loop(outlines, footprint: int, name: str, padding: bool) -> None:
    options = WsiOptions(contour_fn=name, use_padding=padding, lattice="global")
    width, height = 23, 21
    tiles = global_tiles([Contour(polygon(p)) for p in outlines], plan(footprint), (width, height), options)
    cells = {}
    for y in range(0, height if padding else height - footprint + 1, footprint):
        for x in range(0, width if padding else width - footprint + 1, footprint):
            for number, points in enumerate(outlines):
                if clam.accepted(points, [], (x, y), footprint, name):
                    cells.setdefault((x, y), number)
    assert [tuple(c) for c in tiles.coords.tolist()] == list(cells)
    assert tiles.contour.tolist() == list(cells.values())
    assert tiles.shared_cells == 0


def test_tiles_of_two_contours_are_all_kept_and_counted() -> None:
    a = Contour(polygon([(0, 0), (30, 0), (30, 30), (0, 30)]))
    b = Contour(polygon([(4, 0), (34, 0), (34, 30), (4, 30)]))
    options = WsiOptions(contour_fn="basic")
    tiles = contour_tiles([a, b], plan(10), (100, 100), options)
    alone = [contour_tiles([c], plan(10), (100, 100), options) for c in (a, b)]
    assert len(tiles.coords) == sum(len(t.coords) for t in alone)
    assert tiles.shared_cells == count_shared(tiles.grid) == 2 * len(alone[0].coords)
    order = np.lexsort((tiles.contour, tiles.coords[:, 0], tiles.coords[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    assert set(tiles.contour.tolist()) == {0, 1}


@pytest.mark.parametrize("name", TISSUE_PRESETS)
def test_presets_of_clam_keep_its_corners_to_the_last_pixel(name: str) -> None:
    """At level 1 the corner (37, 41) lies between two pixels; CLAM starts there, the paper's preset at (36, 40)."""
    points = [(37, 41), (900, 43), (903, 897), (450, 700), (39, 901)]
    step = TilePlan(1, 64, 64, 4, 256, 200)
    theirs = clam.patches(points, [], 256, 200, (1000, 1000), "four_pt", True)
    tiles = contour_tiles([Contour(polygon(points))], step, (1000, 1000), wsi_options({"preset": name}))
    assert [tuple(c) for c in tiles.coords.tolist()] == sorted(theirs, key=lambda p: (p[1], p[0]))
    assert (tiles.coords[0] % 4).tolist() == [1, 1]
    for options in (wsi_options({}), wsi_options({"preset": name, "snap": "level"})):
        snapped = contour_tiles([Contour(polygon(points))], step, (1000, 1000), options)
        assert not (snapped.coords % 4).any() and snapped.coords[0].tolist() == [36, 40]


def test_downsample_is_rounded_never_truncated() -> None:
    result = plan_tiles([1.0, 3.999, 16.002], 0.25, WsiOptions(read_level=1), "a")
    assert (result.downsample, result.footprint) == (4, 2048)
    with pytest.raises(ValueError, match=r"a: level 1 has downsample 2.5"):
        plan_tiles([1.0, 2.5], 0.25, WsiOptions(read_level=1), "a")
    with pytest.raises(ValueError, match=r"read_level 3 asked, found levels 0..1"):
        plan_tiles([1.0, 2.0], 0.25, WsiOptions(read_level=3), "a")
    with pytest.raises(ValueError, match="neither read_level nor target_mpp"):
        plan_tiles([1.0, 2.0], 0.25, WsiOptions(read_level=None), "a")


@pytest.mark.parametrize(
    ("downsamples", "mpp", "options", "expected"),
    [
        ([1, 2], 0.2263, {"read_level": 0, "target_mpp": None}, TilePlan(0, 512, 512, 1, 512, 512)),  # the paper's
        ([1, 2, 4], 0.243, {}, TilePlan(1, 512, 512, 2, 1024, 1024)),  # 0.486: within 10 %
        ([1, 2, 4], 0.2263, {}, TilePlan(1, 512, 512, 2, 1024, 1024)),  # 0.4526: within 10 %
        ([1, 4, 16], 0.25, {}, TilePlan(0, 1024, 512, 1, 1024, 1024)),  # no 20x level: shrink level 0 by two
        ([1, 4], 0.25, {"step_px": 256}, TilePlan(0, 1024, 512, 1, 1024, 512)),  # half a tile is half a tile there
        ([1, 4.0003], 0.5, {}, TilePlan(0, 512, 512, 1, 512, 512)),
        ([1, 2.5, 5], 0.1, {}, TilePlan(2, 512, 512, 5, 2560, 2560)),
        ([1, 2.5], 0.2, {}, TilePlan(0, 1280, 512, 1, 1280, 1280)),  # the level of 2.5 fits but is no whole number
    ],
)
def test_target_resolution(downsamples, mpp: float, options, expected: TilePlan) -> None:
    assert (
        plan_tiles(downsamples, mpp, WsiOptions(**{"read_level": None, "target_mpp": 0.5, **options}), "a") == expected
    )


def test_a_coarser_slide_is_refused_not_enlarged() -> None:
    with pytest.raises(ValueError, match="0.97 um/px, target_mpp 0.5 is finer"):
        plan_tiles([1.0, 2.0], 0.97, WsiOptions(read_level=None, target_mpp=0.5), "a")


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 0.5), st.sampled_from([64, 256, 512]), st.floats(0.5, 4.0))
def test_footprint_matches_the_target_within_the_tolerance(mpp: float, tile: int, target: float) -> None:
    options = WsiOptions(read_level=None, target_mpp=target, tile_px=tile, step_px=tile)
    result = plan_tiles([1.0, 2.0, 4.0, 8.0], mpp, options, "a")
    microns = result.footprint * mpp / tile
    assert abs(microns / target - 1) <= options.mpp_tolerance + 1 / tile
    assert result.read_px >= result.tile_px and result.footprint % result.downsample == 0


def test_no_contours_no_tiles() -> None:
    for make in (contour_tiles, global_tiles):
        tiles = make([], plan(10), (100, 100), WsiOptions())
        assert tiles.coords.shape == (0, 2) and tiles.grid.shape == (0, 2) and tiles.coords.dtype == np.int32
