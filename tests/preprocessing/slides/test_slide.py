"""Opening and reading slides: resolution and its source, white instead of transparent, snapping, recovery, threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import openslide
import pytest

from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import _bounds, _to_rgb, nominal_downsample, open_slide
from tests.helpers.pyramids import corrupt, missing, texture, write_tiff


@pytest.fixture
def opened(pyramid):
    """The pyramid as an open slide, and its levels."""
    with open_slide(pyramid[0]) as slide:
        yield slide, pyramid[1]


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """600 x 500 lossless pyramid with levels 1, 2, 4 (box means)."""
    image = texture(512, 640)
    levels = [image] + [image.reshape(512 // f, f, 640 // f, f, 3).mean(axis=(1, 3)).astype(np.uint8) for f in (2, 4)]
    path = write_tiff(tmp_path_factory.mktemp("slide") / "plain.tif", levels, compression="zlib", mpp=0.25)
    return path, levels


def test_manifest_wins_over_the_file(pyramid) -> None:
    with open_slide(pyramid[0]) as slide:
        assert slide.mpp == pytest.approx(0.25) and slide.mpp_source == "openslide.mpp"
    with open_slide(pyramid[0], mpp_override=0.5) as slide:
        assert slide.mpp == 0.5 and slide.mpp_source == "manifest"
    with open_slide(pyramid[0], require_mpp=False) as slide:
        assert np.isnan(slide.mpp) and slide.mpp_source == "none"
    with pytest.raises(ValueError, match=r"gone\.svs: no such file"):
        open_slide(pyramid[0].with_name("gone.svs"))


def test_reads_are_the_pixels(opened) -> None:
    slide, levels = opened
    assert slide.level_downsamples == (1, 2, 4) and slide.bounds == (0, 0, 640, 512)
    for level, downsample in enumerate((1, 2, 4)):
        region = slide.read(40 * downsample, 20 * downsample, level, (50, 30))
        assert region.shape == (30, 50, 3) and region.dtype == np.uint8
        np.testing.assert_array_equal(region, levels[level][20:50, 40:90])
    with pytest.raises(ValueError, match="level 3"):
        slide.read(0, 0, 3, (1, 1))
    with pytest.raises(ValueError, match="positive size"):
        slide.read(0, 0, 0, (0, 5))


def test_odd_coordinates_snap_instead_of_interpolating(opened) -> None:
    slide, levels = opened
    np.testing.assert_array_equal(slide.read(81, 39, 1, (20, 10)), levels[1][20:30, 41:61])
    np.testing.assert_array_equal(slide.read(81, 41, 2, (20, 10)), levels[2][10:20, 20:40])
    np.testing.assert_array_equal(slide.read(-3, 0, 2, (4, 1))[:, 1:], levels[2][0:1, :3])


def test_outside_is_white(opened) -> None:
    slide, levels = opened
    region = slide.read(-10, -20, 0, (700, 600))
    expected = np.full((600, 700, 3), 255, np.uint8)
    expected[20 : 20 + 512, 10 : 10 + 640] = levels[0]
    np.testing.assert_array_equal(region, expected)
    assert (slide.read(5000, 5000, 0, (8, 8)) == 255).all()
    assert (slide.read(5000, 5000, 0, (8, 8), white=False) == 0).all()


def test_large_reads_are_assembled(pyramid, monkeypatch) -> None:
    path, levels = pyramid
    monkeypatch.setattr("preprocessing.slides.slide.MAX_READ_PX", 100)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, (640, 512)), levels[0])
        np.testing.assert_array_equal(slide.read(6, 10, 1, (250, 201)), levels[1][5:206, 3:253])


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_shrunk_level_is_a_box_mean(pyramid, monkeypatch, factor: int) -> None:
    path, levels = pyramid
    monkeypatch.setattr("preprocessing.slides.slide.MAX_READ_PX", 97)
    with open_slide(path) as slide:
        region = slide.read_level(1, factor)
    height, width = levels[1].shape[0] // factor, levels[1].shape[1] // factor
    whole = levels[1][: height * factor, : width * factor].astype(float)
    boxes = whole.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    assert region.shape[:2] == (-(-levels[1].shape[0] // factor), -(-levels[1].shape[1] // factor))
    assert np.abs(region[:height, :width] - boxes).max() <= 0.51


def test_thumbnail(opened) -> None:
    slide, levels = opened
    small, downsample = slide.thumbnail(100)
    assert small.shape == (80, 100, 3) and downsample == pytest.approx(6.4)
    assert np.abs(small.mean(axis=(0, 1)) - levels[0].mean(axis=(0, 1))).max() < 2
    full, downsample = slide.thumbnail(5000)
    assert full.shape == levels[0].shape and downsample == 1.0


def test_level_choice_has_a_tolerance(tmp_path) -> None:
    # 1001 / 250 = 4.004
    levels = [np.full((n, n, 3), 200, np.uint8) for n in (1001, 500, 250)]
    with open_slide(write_tiff(tmp_path / "odd.tif", levels)) as slide:
        assert slide.level_downsamples[2] > 4
        assert slide.level_at(4.0) == 2 and slide.level_at(4.0, tolerance=0) == 1
        assert slide.level_at(0.5) == 0 and slide.level_at(100) == 2
    assert [nominal_downsample(ds) for ds in (1.0, 3.999, 4.0003, 8.0128, 64.3)] == [1, 4, 4, 8, 64]
    assert nominal_downsample(2.5) is None and nominal_downsample(1.2) is None


def test_a_failed_handle_is_replaced(tmp_path) -> None:
    image = texture(256, 256)
    path = write_tiff(tmp_path / "bad.tif", [image], tile=128)
    corrupt(path, 0, 3)
    with openslide.OpenSlide(path) as plain:
        with pytest.raises(openslide.OpenSlideError):
            plain.read_region((128, 128), 0, (128, 128))
        with pytest.raises(openslide.OpenSlideError):
            plain.read_region((0, 0), 0, (128, 128))  # the reason for all this: a healthy tile fails as well
    with open_slide(path) as slide:
        with pytest.raises(TileReadError, match=r"bad\.tif.*level 0.*128 x 128.*max_bad_tiles"):
            slide.read(128, 128, 0, (128, 128))
        assert slide.reopened == 2
        assert np.abs(slide.read(0, 0, 0, (128, 128)).astype(int) - image[:128, :128]).mean() < 20


def test_one_retry_is_enough_for_a_passing_fault(pyramid, monkeypatch) -> None:
    path, levels = pyramid
    original, calls = openslide.OpenSlide.read_region, []

    def flaky(self, *args):
        calls.append(args)
        if len(calls) == 1:
            raise openslide.OpenSlideError("network")
        return original(self, *args)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", flaky)
    with open_slide(path, raw=False) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, (32, 32)), levels[0][:32, :32])
        assert slide.reopened == 1 and len(calls) == 2


def test_read_after_close_is_refused(pyramid) -> None:
    slide = open_slide(pyramid[0])
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="after close"):
        slide.read(0, 0, 0, (1, 1))


def test_errors_pickle_for_worker_processes() -> None:
    assert str(pickle.loads(pickle.dumps(TileReadError("x")))) == "x"


def test_bounds_of_the_scanned_region() -> None:
    properties = {f"openslide.bounds-{k}": v for k, v in {"x": "7", "y": "9", "width": "50", "height": "40"}.items()}
    assert _bounds(properties, (100, 90)) == (7, 9, 50, 40) and _bounds({}, (100, 90)) == (0, 0, 100, 90)


def test_missing_tile_is_white_where_openslide_says_transparent(tmp_path) -> None:
    path = write_tiff(tmp_path / "hole.tif", [texture(256, 256)], tile=128)
    missing(path, 0, 3)
    with open_slide(path) as slide:
        region = slide.read(0, 0, 0, (256, 256))
        assert (region[128:, 128:] == 255).all() and not (region[:128, :128] == 255).all()
    with openslide.OpenSlide(path) as plain:
        assert np.asarray(plain.read_region((128, 128), 0, (128, 128)))[..., 3].max() == 0


def test_transparency_is_mixed_with_white() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (20, 30, 4)).astype(np.uint8)
    share = rgba[..., 3:] / 255
    expected = np.floor(rgba[..., :3] * share + 255 * (1 - share) + 0.5)
    assert np.abs(_to_rgb(rgba, True) - expected).max() <= 1
    np.testing.assert_array_equal(_to_rgb(rgba, False), rgba[..., :3])


def test_non_integer_pyramid_reads_the_right_place(tmp_path) -> None:
    image = texture(1001, 1201)
    small = cv2.resize(image, (300, 250), interpolation=cv2.INTER_AREA)
    with open_slide(write_tiff(tmp_path / "odd.tif", [image, small], compression="zlib")) as slide:
        region = slide.read(800, 600, 1, (40, 40)).astype(int)
    left, top = (round(v / slide.level_downsamples[1]) for v in (800, 600))
    assert np.abs(region - small[top : top + 40, left : left + 40]).mean() < 4, "at most a fraction of a pixel off"


def test_many_threads_read_one_slide(pyramid) -> None:
    path, levels = pyramid
    rng = np.random.default_rng(0)
    places = rng.integers(0, 400, (200, 2)).tolist()
    with open_slide(path) as slide, ThreadPoolExecutor(8) as pool:
        region = list(pool.map(lambda p: slide.read(p[0], p[1], 0, (60, 40)), places))
    for (x, y), tile in zip(places, region, strict=True):
        np.testing.assert_array_equal(tile, levels[0][y : y + 40, x : x + 60])
