"""Levels of a slide: which show the picture of level 0, padded ones, and what dropping a level leaves unchanged."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import openslide
import pytest

from preprocessing.bags.rows import BagRow
from preprocessing.common.options import parse_instance_options, wsi_options
from preprocessing.instances.slide_bag import wsi_instances
from preprocessing.instances.stage import cut_bag
from preprocessing.slides.pyramid import SlideLevel, _without_padding
from preprocessing.slides.slide import open_slide
from preprocessing.slides.tile_reader import iter_tiles
from preprocessing.store.bags import read_instance_attrs
from tests.helpers.pyramids import missing, shrunk, texture, tissue, write_philips, write_tiff

Array = npt.NDArray[Any]
MAIN = tissue()
HALF, QUARTER = shrunk(MAIN, 2), shrunk(MAIN, 4)
ROUNDED = [np.asarray(cv2.resize(MAIN, (MAIN.shape[1] // n, MAIN.shape[0] // n))) for n in (3, 13, 50)]
OTHER = tissue(9)


def padded(image: Array, tile: int = 128, value: int = 0) -> Array:
    return np.pad(image, [(0, -side % tile) for side in image.shape[:2]] + [(0, 0)], constant_values=value)


class Levels(NamedTuple):
    """Levels of a file after level 0, the sizes of those that are kept, and what the warnings say."""

    levels: list[Array]
    kept: list[Array]
    warned: str = ""


LEVELS = {
    "levels of 1/2 and 1/4, averaged": Levels([HALF, QUARTER], [HALF, QUARTER]),
    "levels of 1/2 and 1/4, every second pixel": Levels([MAIN[::2, ::2], MAIN[::4, ::4]], [HALF, QUARTER]),
    "levels down to 1/32": Levels([shrunk(MAIN, 2**n) for n in range(1, 6)], [shrunk(MAIN, 2**n) for n in range(1, 6)]),
    "sizes of levels rounded down": Levels(ROUNDED, ROUNDED),
    "levels of 1/3 and 1/9": Levels([shrunk(MAIN, 3), shrunk(MAIN, 9)], [shrunk(MAIN, 3), shrunk(MAIN, 9)]),
    "macro image as the last level": Levels(
        [QUARTER, texture(300, 150)],
        [QUARTER],
        r"level 2 \(150 x 300 px\).*its width / height is 0\.500, that of level 0 is 1\.273",
    ),
    "macro image between the levels": Levels(
        [HALF, texture(600, 300), QUARTER],
        [HALF, QUARTER],
        r"level 2 \(300 x 600 px\).*its width / height is 0\.500, that of level 0 is 1\.273",
    ),
    "square thumbnail as a level": Levels(
        [HALF, cv2.resize(MAIN, (64, 64))],
        [HALF],
        r"level 2 \(64 x 64 px\).*its width / height is 1\.000, that of level 0 is 1\.273",
    ),
    "other picture of a padded size": Levels(
        [HALF, texture(128, 128)],
        [HALF],
        r"level 2 \(128 x 128 px\).*its width / height is 1\.000, that of level 0 is 1\.273",
    ),
    "level of another slide": Levels(
        [shrunk(OTHER, 2), QUARTER], [QUARTER], r"level 1 .*it shows another picture than level 0"
    ),
    "mirrored level": Levels([HALF[:, ::-1], QUARTER], [QUARTER], r"level 1 .*it shows another picture than level 0"),
    "part of the slide as a level": Levels(
        [HALF, MAIN[200:376, 300:524]], [HALF], r"level 2 .*it shows another picture than level 0"
    ),
    "level 0 twice": Levels([MAIN, HALF], [HALF], r"level 1 .*it is not smaller than level 0"),
    "level 1 twice": Levels([HALF, HALF], [HALF], r"level 2 .*it is not smaller than level 1"),
    "level of one row": Levels([HALF, MAIN[:1, :448]], [HALF], "level 2 .*its width / height is 448"),
    "levels not in order": Levels([QUARTER, HALF], [HALF, QUARTER]),
}
# whose pixels are no means of those of level 0
EXACT = ("levels of 1/2 and 1/4, every second pixel", "levels of 1/3 and 1/9", "sizes of levels rounded down")


@pytest.mark.parametrize("name", LEVELS)
def test_levels_are_those_of_level_0(tmp_path: Path, name: str) -> None:
    case = LEVELS[name]
    path = write_tiff(
        tmp_path / "a.tif", [MAIN, *map(np.ascontiguousarray, case.levels)], quality=98, subsampling=(1, 1)
    )
    with open_slide(path) as slide, open_slide(path, raw=False) as plain:
        sizes = [level.shape[1::-1] for level in (MAIN, *case.kept)]
        assert list(slide.level_dimensions) == sizes == list(plain.level_dimensions)
        assert len(slide.warnings) == bool(case.warned)
        assert not case.warned or re.search(case.warned, slide.warnings[0])
        for number, (level, downsample) in enumerate(zip((MAIN, *case.kept), slide.level_downsamples, strict=True)):
            place = (round(40 * downsample), round(24 * downsample), number, (48, 40))
            region = slide.read(*place)
            np.testing.assert_array_equal(region, plain.read(*place))
            if downsample <= 8 and name not in EXACT:
                assert np.abs(region.astype(int) - level[24:64, 40:88]).mean() < 4, "the pixels of that level"


def test_a_macro_image_changes_no_tile(tmp_path: Path) -> None:
    macro = np.full((500, 250, 3), 245, np.uint8)
    macro[60:400, 30:220] = [120, 60, 130]
    options = wsi_options({"preset": "20x", "tile_px": 64, "step_px": 64, "tissue": {"a_t": 0.0625, "a_h": 0.0625}})
    bags = []
    for name, more in (("ref", []), ("macro", [macro])):
        path = write_tiff(tmp_path / f"{name}.tif", [MAIN, shrunk(MAIN, 2), *more, QUARTER], compression="zlib")
        bag = wsi_instances(path, options, BagRow("a", "wsi", (path.name,)), tmp_path)
        bags.append((bag, np.stack(list(iter_tiles(path, bag.attrs, bag.coords)))))
    (ref, ref_tiles), (bag, tiles) = bags
    np.testing.assert_array_equal(bag.coords, ref.coords)
    np.testing.assert_array_equal(tiles, ref_tiles)
    np.testing.assert_array_equal(bag.thumbnail, ref.thumbnail)
    assert len(ref.coords) > 20 and not ref.attrs.warnings and "250 x 500" in bag.attrs.warnings[0]
    assert "warnings" not in ref.attrs.as_json(), "good slides are stored as before"


def test_a_warning_is_stored_and_reaches_the_manifest(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [MAIN, QUARTER, texture(300, 150)])
    wsi = {"preset": "20x", "tile_px": 64, "step_px": 64, "tissue": {"a_t": 0.0625, "a_h": 0.0625}}
    options = parse_instance_options(json.dumps({"wsi": wsi}))
    for redone in (True, False):
        outcome = cut_bag(BagRow("a", "wsi", ("a.tif",)), options, tmp_path, tmp_path / "out", dataset="d")
        assert outcome.redone is redone and outcome.state == "ok" and "150 x 300" in outcome.warnings[0]
    assert read_instance_attrs(tmp_path / "out" / "store", "a").warnings == outcome.warnings[:1]


@pytest.mark.parametrize(("height", "width", "value"), [(1280, 1408, 0), (1408, 1408, 255)])
def test_padding_to_whole_tiles_moves_nothing(tmp_path: Path, height: int, width: int, value: int) -> None:
    image = tissue(3, height, width)
    true = [image, *(shrunk(image, factor) for factor in (2, 4, 8, 16))]
    path = write_tiff(tmp_path / "a.tif", [padded(level, value=value) for level in true], compression="zlib")
    with openslide.OpenSlide(path) as plain:
        assert plain.level_dimensions[3:] == ((256, 256), (128, 128)) and plain.level_downsamples[4] < 11.1
    with open_slide(path) as slide:
        assert slide.level_downsamples == (1, 2, 4, 8, 16) and not slide.warnings
        assert slide.level_dimensions == tuple(level.shape[1::-1] for level in true)
        for number, (level, downsample) in enumerate(zip(true, slide.level_downsamples, strict=True)):
            whole = slide.read_level(number)
            assert whole.shape == level.shape and np.abs(whole.astype(int) - level).mean() < 6
            x, y = int((level.shape[1] - 20) * downsample), int((level.shape[0] - 10) * downsample)
            corner = slide.read(x, y, number, (40, 30))
            assert (corner[:, 20:] == 255).all() and (corner[10:] == 255).all(), "padding is outside the slide"
            assert np.abs(corner[:10, :20].astype(int) - level[-10:, -20:]).mean() < 12
            assert (slide.read(x, y, number, (40, 30), white=False)[10:] == 0).all()


def test_sizes_of_a_padded_slide_of_camelyon16() -> None:
    stated = [(86016, 89600), (43008, 45056), (21504, 22528), (10752, 11264), (5632, 5632), (3072, 3072), (1536, 1536)]
    levels = [SlideLevel(i, size, 0.0, 0.0, (512, 512)) for i, size in enumerate([*stated, (1024, 1024), (512, 512)])]
    true = [_without_padding(level, levels[0]) for level in levels]
    assert true[0] is None, "level 0 is what it is"
    assert [level.downsample for level in true if level] == [2, 4, 8, 16, 32, 64, 128, 256]
    assert [level.size for level in true if level][-3:] == [(1344, 1400), (672, 700), (336, 350)]


def test_levels_without_evidence_and_declared_ones_are_kept(tmp_path: Path) -> None:
    """Missing tiles, a flat slide, and Philips, which declares its levels."""
    path = write_tiff(tmp_path / "missing.tif", [MAIN, HALF, QUARTER])
    for index in range(0, 42, 2):
        missing(path, 0, index)
    flat = write_tiff(tmp_path / "flat.tif", [np.full((side, side, 3), 240, np.uint8) for side in (512, 256, 128)])
    for file in (path, flat, write_philips(tmp_path / "philips.tif", MAIN, [1, 2, 4])):
        with open_slide(file) as slide:
            assert len(slide.level_dimensions) == 3 and not slide.warnings
