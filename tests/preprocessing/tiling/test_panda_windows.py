"""PANDA's windows against the original recipe on a picture in memory, mask semantics, padding, limits."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing.bags.rows import BagRow
from preprocessing.common.options import wsi_options
from preprocessing.instances.slide_bag import wsi_instances
from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import open_slide
from preprocessing.slides.tile_reader import iter_tiles
from preprocessing.store.arrays import Instances
from preprocessing.store.schema import check_neighbors
from preprocessing.tiling.panda_windows import mask_is_positive, mask_outlines, otsu_threshold
from tests.helpers.pyramids import corrupt, missing, write_tiff
from tests.preprocessing.instances.test_wsi import bag, tissue_slide


def cut(path: Path, row: BagRow | None = None, **options: object) -> Instances:
    """Cut windows of 128 px every 64 px, unless `options` say otherwise."""
    sizes = {"preset": "panda", "tile_px": 64, "window_px": 128, "step_px": 64}
    return wsi_instances(path, wsi_options({**sizes, **options}), row or bag(label=0), path.parent)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_otsu_from_a_histogram_equals_opencv(grey: np.ndarray) -> None:
    expected = int(cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0])
    threshold = otsu_threshold(np.bincount(grey.ravel(), minlength=256))
    # two thresholds of equal variance differ by rounding, which depends on how OpenCV was built
    variances = [
        (grey <= level).mean() * (grey > level).mean() * (grey[grey <= level].mean() - grey[grey > level].mean()) ** 2
        for level in (threshold, expected)
        if threshold != expected
    ]
    assert len(set(variances)) <= 1 or variances[0] == pytest.approx(variances[1], rel=1e-12)


def panda_oracle(image: np.ndarray, window: int, step: int, least: float, code: int):
    """The original recipe on a picture in memory: pad, grey, Otsu, all windows."""
    h, w = image.shape[:2]
    big_h, big_w = max(h, window), max(w, window)
    top, left = (big_h - h) // 2, (big_w - w) // 2
    padded = np.full((big_h, big_w, 3), 255, np.uint8)
    padded[top : top + h, left : left + w] = image
    bright = cv2.threshold(cv2.cvtColor(padded, code), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
    windows = []
    for y in range(0, big_h - window + 1, step):
        for x in range(0, big_w - window + 1, step):
            if 1 - bright[y : y + window, x : x + window].sum() / window**2 > least:
                tile = cv2.resize(padded[y : y + window, x : x + window], (window // 2, window // 2))
                windows.append(((x - left, y - top), (y // step, x // step), tile))
    return windows


@pytest.mark.parametrize(
    ("size", "bgr"),
    [((600, 700), True), ((512, 512), False), ((100, 300), True), ((90, 80), False), ((333, 129), True)],
)
def test_panda_windows_equal_the_original_recipe(tmp_path, size, bgr: bool) -> None:
    h, w = size
    image = tissue_slide(h, w, (w // 5, h // 5, w - w // 4, h - h // 4))
    path = write_tiff(tmp_path / "p.tif", [image], compression="zlib")
    windows = cut(path, otsu_bgr=bgr)
    expected = panda_oracle(image, 128, 64, 0.20, cv2.COLOR_BGR2GRAY if bgr else cv2.COLOR_RGB2GRAY)
    assert [tuple(c) for c in windows.coords.tolist()] == [e[0] for e in expected]
    assert [tuple(c) for c in windows.grid.tolist()] == [e[1] for e in expected]
    for tile, (_, _, pixels) in zip(iter_tiles(path, windows.attrs, windows.coords), expected, strict=True):
        np.testing.assert_array_equal(tile, pixels)
    check_neighbors(windows.neighbors)


@pytest.mark.parametrize("provider", ["radboud", "karolinska"])
def test_panda_coverage_counts_mask_pixels(tmp_path, provider: str) -> None:
    image = tissue_slide(500, 600, (50, 60, 550, 440))
    path = write_tiff(tmp_path / "p.tif", [image], compression="zlib")
    values = np.random.default_rng(0).integers(0, 6 if provider == "radboud" else 3, (500, 600)).astype(np.uint8)
    values[:250] = {"radboud": 2, "karolinska": 1}[provider]
    mask = np.zeros((500, 600, 3), np.uint8)
    mask[..., 0] = values
    mask_path = write_tiff(tmp_path / "p_mask.tif", [mask], compression="zlib", mpp=None)
    missing(mask_path, 0, 0)
    values[:128, :128] = 0
    windows = cut(path, bag(annotation="p_mask.tif", provider=provider))
    cancer = values >= 3 if provider == "radboud" else values == 2
    expected = [cancer[y : y + 128, x : x + 128].mean() for x, y in windows.coords.tolist()]
    np.testing.assert_allclose(windows.coverage, expected, rtol=1e-6)
    assert 0 < windows.coverage.max() < 1 and windows.coverage.min() == 0


def test_panda_mask_must_fit_and_provider_must_be_known(tmp_path) -> None:
    path = write_tiff(tmp_path / "p.tif", [tissue_slide(500, 600, (50, 60, 550, 440))], compression="zlib")
    write_tiff(tmp_path / "m.tif", [np.zeros((400, 600, 3), np.uint8)], compression="zlib", mpp=None)
    with pytest.raises(ValueError, match=r"m\.tif: mask of 600 x 400 px, expected the slide's 600 x 500"):
        cut(path, bag(annotation="m.tif", provider="radboud"))
    with pytest.raises(ValueError, match="provider 'x'"):
        mask_is_positive(np.zeros((2, 2), np.uint8), "x", "m")
    with pytest.raises(ValueError, match=r"mask value 5 found, expected 0\.\.2 for karolinska"):
        mask_is_positive(np.array([[5]], np.uint8), "karolinska", "m")


def test_panda_size_limit(tmp_path) -> None:
    path = write_tiff(tmp_path / "p.tif", [tissue_slide(320, 480, (50, 60, 400, 300))], compression="zlib")
    limit = (480 // 16) * (320 // 16)
    windows = cut(path, max_level2_px=limit)
    assert len(windows) == 0 and windows.attrs.empty_reason.startswith(f"too large: {limit} px at level 2")
    assert len(cut(path, max_level2_px=limit + 1)) > 0
    with pytest.raises(ValueError, match="multiple of the step"):
        cut(path, step_px=48)


def test_panda_counts_unreadable_cells_as_white_within_the_limit(tmp_path) -> None:
    path = write_tiff(tmp_path / "p.tif", [tissue_slide(512, 512, (40, 40, 480, 480))], tile=128)
    whole = cut(path)
    corrupt(path, 0, 5)
    windows = cut(path, max_bad_tiles=4)
    assert windows.attrs.marks == ("unreadable: 4 cells counted as white",) and 0 < len(windows) < len(whole)
    with pytest.raises(TileReadError, match=r"p\.tif"):
        cut(path, max_bad_tiles=3)


def test_mask_outlines_enclose_the_cancer_and_nothing_else(tmp_path):
    values = np.zeros((300, 400, 3), np.uint8)
    values[50:120, 60:200, 0] = 4
    values[200:260, 300:380, 0] = 3
    values[10:40, 10:40, 0] = 2
    tifffile.imwrite(tmp_path / "m_mask.tiff", values, tile=(128, 128), photometric="rgb", compression="deflate")
    with open_slide(tmp_path / "m_mask.tiff", require_mpp=False) as mask:
        outlines = mask_outlines(mask, "radboud")
    drawn = np.zeros((300, 400), np.uint8)
    cv2.fillPoly(drawn, outlines, 1)
    assert len(outlines) == 2
    assert np.array_equal(drawn == 1, values[..., 0] >= 3)
