"""Top tiles: the extremes of a bag, read as the encoder saw them, apart from each other, and none in both strips."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from preprocessing.bags.rows import BagRow
from preprocessing.common.options import CtOptions, wsi_options
from preprocessing.instances.scan_bag import ct_instances
from preprocessing.instances.slide_bag import wsi_instances
from preprocessing.slides.tile_reader import iter_tiles
from smmil.figures.top_tiles import draw_top_tiles, read_top_tiles
from tests.helpers.cohorts import write_slide
from tests.helpers.dicoms import write_slice


@pytest.mark.parametrize("step", [64, 32])
def test_the_extremes_of_a_slide_are_its_tiles_and_do_not_overlap(tmp_path: Path, step: int) -> None:
    slide = write_slide(tmp_path / "a.tif")
    options = wsi_options({"preset": "paper", "tile_px": 64, "step_px": step, "tissue": {"a_t": 0.01, "a_h": 0.01}})
    bag = wsi_instances(slide, options, BagRow("a", "wsi", ("a.tif",)), tmp_path)
    scores = np.random.default_rng(0).normal(size=len(bag.coords))
    tiles = read_top_tiles(slide, bag.attrs, bag.coords, scores, n=4)
    assert len(tiles.highest) == len(tiles.lowest) == 4
    assert tiles.highest[0].index == scores.argmax() and tiles.lowest[0].index == scores.argmin()
    assert tiles.highest[0].rank == 1 and tiles.lowest[0].rank == len(scores)
    for strip, sign in ((tiles.highest, -1), (tiles.lowest, 1)):
        assert [tile.score for tile in strip] == sorted((tile.score for tile in strip), key=lambda s: sign * s)
        places = bag.coords[[tile.index for tile in strip]]
        gaps = [np.abs(a - b).max() for i, a in enumerate(places) for b in places[:i]]
        assert min(gaps) >= bag.attrs.l0_footprint_px
    expected = list(iter_tiles(slide, bag.attrs, bag.coords))
    for tile in (*tiles.highest, *tiles.lowest):
        assert (tile.picture == expected[tile.index]).all() and tile.score == scores[tile.index]
    if step == 64:
        assert [tile.index for tile in tiles.highest] == np.argsort(-scores, kind="stable")[:4].tolist()
    draw_top_tiles(tiles, bag.attrs, "a", tmp_path / "tiles.png", random=True)
    assert imread(tmp_path / "tiles.png").std() > 0.01 and (tmp_path / "tiles.pdf").is_file()
    with pytest.raises(ValueError, match="3 scores of"):
        read_top_tiles(slide, bag.attrs, bag.coords, scores[:3])


def test_no_instance_of_a_small_bag_is_in_both_strips(tmp_path: Path) -> None:
    names = [f"{i}.dcm" for i in range(5)]
    for i, name in enumerate(names):
        write_slice(tmp_path / name, np.full((16, 16), 1024 + 20 * i, np.int16), z=5.0 * i)
    bag = ct_instances(CtOptions(slice_px=16), BagRow("s", "ct", tuple(names)), tmp_path)
    tiles = read_top_tiles(tmp_path, bag.attrs, bag.coords, np.array([0.0, 3, 1, 2, 2]), n=8)
    assert [tile.index for tile in tiles.highest] == [1, 3, 4] and [tile.index for tile in tiles.lowest] == [0, 2]
    brighter, darker = (next(t for t in strip if t.index in (4, 0)) for strip in (tiles.highest, tiles.lowest))
    assert brighter.picture.shape == (16, 16, 3) and brighter.picture.mean() > darker.picture.mean()
    draw_top_tiles(tiles, bag.attrs, "s", tmp_path / "slices.png")
    assert imread(tmp_path / "slices.png").std() > 0.01
