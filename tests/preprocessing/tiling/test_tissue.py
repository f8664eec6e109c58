"""Tissue segmentation against loops over pixels, hand-made pictures with known contours, and its limit cases."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing.common.options import TissueOptions
from preprocessing.slides.slide import open_slide
from preprocessing.tiling.tissue import loosened, segment_tissue, segmentation_level, tissue_contours, tissue_mask
from tests.helpers.pyramids import texture, write_tiff
from tests.oracles import clam

PINK = (200, 100, 150)
PLAIN = TissueOptions(sthresh=15, mthresh=1, close=0, a_t=0, a_h=0, max_n_holes=8)


def picture(mask: np.ndarray) -> np.ndarray:
    """White with pink where the mask is set."""
    return np.where(np.asarray(mask, bool)[..., None], np.array(PINK), 255).astype(np.uint8)


def blank(height: int = 64, width: int = 80) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(3, 14), st.integers(3, 14), st.just(3))),
    st.integers(0, 250),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([0, 1, 2, 3, 4]),
)
def test_mask_equals_loops_over_pixels(rgb: np.ndarray, threshold: int, median: int, close: int) -> None:
    options = TissueOptions(sthresh=threshold, mthresh=median, close=close)
    smooth = clam.median(clam.saturation(rgb), median)
    expected = np.where(smooth > threshold, 255, 0).astype(np.uint8)
    if close:
        expected = clam.closing_shifted(expected, close)
    np.testing.assert_array_equal(tissue_mask(rgb, options), expected)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(4, 16), st.integers(4, 16))), st.integers(1, 5))
def test_corrected_closing_is_the_closing_of_the_textbook(mask: np.ndarray, side: int) -> None:
    options = TissueOptions(mthresh=1, close=side, anchor_corrected=True)
    computed = tissue_mask(picture(mask), options)
    np.testing.assert_array_equal(computed, clam.closing_true(np.where(mask, 255, 0).astype(np.uint8), side))


def test_areas_run_through_pixel_centres_and_all_holes_count() -> None:
    mask = blank()
    mask[10:20, 10:20] = 1
    mask[13:15, 13:15] = 0
    mask[40, 5:30] = 1  # a line has no area
    (contour,) = tissue_contours(picture(mask), (1.0, 1.0), PLAIN)
    assert cv2.contourArea(contour.outer) == 81
    assert [cv2.contourArea(hole) for hole in contour.holes] == [7]
    # net area 74 in units of int(512 ** 2 / ds ** 2) = 1 at ds 512: the limit is strict
    at = {"mthresh": 1, "close": 0, "max_n_holes": 0}
    assert tissue_contours(picture(mask), (512.0, 512.0), TissueOptions(a_t=73.9, **at))
    assert not tissue_contours(picture(mask), (512.0, 512.0), TissueOptions(a_t=74, **at))


def test_largest_holes_are_kept_and_small_ones_dropped() -> None:
    mask = blank()
    mask[2:60, 2:70] = 1
    for left, side in ((6, 3), (20, 9), (40, 6)):
        mask[20 : 20 + side, left : left + side] = 0
    options = TissueOptions(mthresh=1, close=0, a_t=0, a_h=0, max_n_holes=2)
    (contour,) = tissue_contours(picture(mask), (1.0, 1.0), options)
    assert [int(hole[:, 0].min()) for hole in contour.holes] == [19, 39], "largest first"
    # areas through the surrounding pixels: 9 x 9 hole 98, 6 x 6 hole 47
    areas = [cv2.contourArea(hole) for hole in contour.holes]
    (contour,) = tissue_contours(picture(mask), (512.0, 512.0), options.model_copy(update={"a_h": areas[1]}))
    assert len(contour.holes) == 1, "strictly above a_h"


def test_coordinates_are_scaled_per_axis_and_truncated() -> None:
    mask = blank()
    mask[10:21, 10:31] = 1
    (contour,) = tissue_contours(picture(mask), (3.7, 2.9), PLAIN)
    assert contour.outer.dtype == np.int32
    assert contour.outer.min(axis=0).tolist() == [37, 29]  # 10 * 3.7, 10 * 2.9
    assert contour.outer.max(axis=0).tolist() == [111, 58]  # 30 * 3.7, 20 * 2.9


@pytest.mark.parametrize("otsu", [False, True])
def test_blank_picture_is_empty(otsu: bool) -> None:
    assert tissue_contours(np.full((40, 40, 3), 255, np.uint8), (64.0, 64.0), TissueOptions(use_otsu=otsu)) == []
    black = np.zeros((40, 40, 3), np.uint8)
    assert tissue_contours(black, (64.0, 64.0), TissueOptions(use_otsu=otsu)) == [], "transparent reads as black"


def test_otsu_finds_what_a_fixed_threshold_misses() -> None:
    rgb = np.full((60, 60, 3), 240, np.uint8)
    rgb[20:40, 20:40] = (240, 230, 235)  # saturation 11
    fixed = TissueOptions(sthresh=15, mthresh=3, close=0, a_t=0)
    assert tissue_contours(rgb, (1.0, 1.0), fixed) == []
    assert len(tissue_contours(rgb, (1.0, 1.0), fixed.model_copy(update={"use_otsu": True}))) == 1


def test_even_median_is_refused() -> None:
    with pytest.raises(ValueError, match="mthresh.*odd"):
        tissue_contours(picture(blank()), (1.0, 1.0), TissueOptions(mthresh=4))


def test_segmentation_level_rules(tmp_path) -> None:
    image = texture(512, 512)
    levels = [np.ascontiguousarray(image[::f, ::f]) for f in (1, 4, 16)]
    with open_slide(write_tiff(tmp_path / "three.tif", levels)) as slide:
        assert segmentation_level(slide, TissueOptions()) == 2
        assert segmentation_level(slide, TissueOptions(seg_level=1)) == 1
        with pytest.raises(ValueError, match="three.tif.*seg_level 7"):
            segmentation_level(slide, TissueOptions(seg_level=7))
    with open_slide(write_tiff(tmp_path / "one.tif", levels[:1])) as slide:
        assert segmentation_level(slide, TissueOptions()) == 0
    # 1281 / 20 = 64.05: OpenSlide's own rule, which CLAM uses, falls back to the next finer level
    levels = [np.full((n, n, 3), 255, np.uint8) for n in (1281, 40, 20)]
    with open_slide(write_tiff(tmp_path / "a.tif", levels, tile=16 * 4)) as slide:
        assert segmentation_level(slide, TissueOptions()) == 1
        assert segmentation_level(slide, TissueOptions(anchor_corrected=True)) == 2


def test_a_huge_level_is_shrunk_unless_there_is_a_coarser_one(tmp_path, monkeypatch) -> None:
    mask = np.zeros((1024, 1200), np.uint8)
    mask[256:768, 300:900] = 1
    path = write_tiff(tmp_path / "one.tif", [picture(mask)], compression="zlib", tile=256)
    monkeypatch.setattr("preprocessing.tiling.tissue.SEG_MAX_PX", 100_000)
    with open_slide(path) as slide:
        tissue = segment_tissue(slide, TissueOptions(mthresh=3, a_t=0, close=0, anchor_corrected=True))
    assert tissue.marks == ["shrunk:64"] and tissue.level == 0
    (contour,) = tissue.contours
    assert np.abs(contour.outer.min(axis=0) - [300, 256]).max() <= 64
    assert np.abs(contour.outer.max(axis=0) - [900, 768]).max() <= 2 * 64
    image = texture(512, 512)
    with open_slide(write_tiff(tmp_path / "two.tif", [image, np.ascontiguousarray(image[::8, ::8])])) as slide:
        assert segment_tissue(slide, TissueOptions(seg_level=0)).marks == ["level:1"]


def test_fallback_is_marked(tmp_path) -> None:
    mask = np.zeros((600, 600), np.uint8)
    mask[100:300, 100:300] = 1  # 200 x 200 px: below one 512 x 512 patch
    path = write_tiff(tmp_path / "small.tif", [picture(mask)], compression="zlib")
    with open_slide(path) as slide:
        strict = segment_tissue(slide, TissueOptions())
        loose = segment_tissue(slide, TissueOptions(fallback=True))
    assert strict.contours == [] and strict.marks == []
    assert len(loose.contours) == 1 and loose.marks == ["fallback"]
    assert loosened(TissueOptions(sthresh=1)).sthresh == 1


def test_real_slide_has_one_large_piece(shared_data) -> None:
    with open_slide(shared_data / "wsi" / "CMU-1-Small-Region.svs") as slide:
        tissue = segment_tissue(slide, TissueOptions())
    assert len(tissue.contours) == 1
    area = cv2.contourArea(tissue.contours[0].outer)
    assert 0.3 < area / (2220 * 2967) < 0.7
