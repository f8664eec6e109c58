"""What was cut is looked at: good slides and scans are silent, odd ones are described in plain sentences."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.bags.rows import BagRow
from preprocessing.common.options import CtOptions, InstanceOptions, wsi_options
from preprocessing.instances.checks import warnings_of
from preprocessing.instances.scan_bag import ct_instances
from preprocessing.instances.slide_bag import wsi_instances
from preprocessing.instances.stage import cut_bag
from preprocessing.instances.statistics import SAMPLED_TILES
from preprocessing.store.arrays import Instances
from preprocessing.store.attrs import InstanceAttrs, ScanStatistics, SlideStatistics
from preprocessing.store.bags import read_instance_attrs
from tests.helpers.dicoms import write_slice
from tests.helpers.pyramids import corrupt, tissue, write_tiff

Picture = np.ndarray
PRESETS = {
    "paper": wsi_options({"preset": "paper", "tile_px": 64, "step_px": 64, "tissue": {"a_t": 0, "a_h": 0}}),
    "panda": wsi_options({"preset": "panda", "tile_px": 64, "step_px": 64, "window_px": 128}),
}


def cut(path: Path, picture: Picture, preset: str = "paper", **options: object) -> Instances:
    write_tiff(path, [picture, picture[::2, ::2]], **options)
    return wsi_instances(path, PRESETS[preset], BagRow("a", "wsi", (path.name,), 0), path.parent)


def grey(picture: Picture) -> Picture:
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def channel(picture: Picture, index: int, value: int) -> Picture:
    changed = picture.copy()
    changed[..., index] = value
    return changed


def patched(picture: Picture, value: tuple[int, int, int], share: float) -> Picture:
    """Fill the left part of a picture."""
    changed = picture.copy()
    changed[:, : round(share * picture.shape[1])] = value
    return changed


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("seed", range(2))
def test_a_good_slide_is_silent(tmp_path: Path, preset: str, seed: int) -> None:
    found = cut(tmp_path / "a.tif", tissue(seed), preset)
    statistics = found.attrs.statistics
    assert isinstance(statistics, SlideStatistics) and warnings_of(found.attrs) == ()
    assert statistics.tiles == len(found) and statistics.sampled == min(len(found), SAMPLED_TILES)
    assert statistics.black == statistics.white == statistics.flat == statistics.unreadable == 0


ODD_SLIDES: dict[str, tuple[Callable[[Picture], Picture], str]] = {
    "no colour": (grey, "this slide has no colour: no threshold can find tissue, give a mask"),
    "inverted": (lambda picture: 255 - picture, r"\d\d% of this slide is black: is it inverted"),
    "12 bits": (lambda picture: picture >> 4, r"nothing on this slide is brighter than 1[4-6] of 255"),
    "black": (np.zeros_like, "nothing on this slide is brighter than 0 of 255: is it empty"),
    "glass": (lambda picture: np.full_like(picture, 240), r"a single shade \(240 to 240 of 255\): is it empty"),
    "part black": (lambda picture: patched(picture, (4, 0, 6), 0.4), "4[01]% of this slide is black: .*parts missing"),
    "part flat": (lambda picture: patched(picture, (230, 120, 200), 0.5), r"of \d+ tiles looked at have no contrast"),
    "no blue": (lambda picture: channel(picture, 2, 255), "blue hardly varies over this slide"),
    "YCbCr": (lambda picture: cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb), "not white: is this another colour space"),
    "RGB as YCbCr": (
        lambda picture: cv2.cvtColor(np.ascontiguousarray(picture[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB),
        "not white: is this another colour space",
    ),
}


@pytest.mark.parametrize("name", ODD_SLIDES)
def test_an_odd_slide_is_described(tmp_path: Path, name: str) -> None:
    change, expected = ODD_SLIDES[name]
    found = cut(tmp_path / "a.tif", change(tissue()), compression="zlib")
    texts = warnings_of(found.attrs)
    assert any(re.search(expected, text) for text in texts), texts


def test_a_slide_without_colour_is_described_also_where_its_tiles_were_found(tmp_path: Path) -> None:
    found = cut(tmp_path / "a.tif", grey(tissue()), "panda")
    assert len(found) and warnings_of(found.attrs) == ("this slide has no colour: encoders expect stained tissue",)


def test_black_and_white_tiles_are_counted(tmp_path: Path) -> None:
    """A lattice of 6 x 5 tiles of 64 px, whose first column is black and whose second is white."""
    picture = patched(patched(tissue(0, 320, 384), (255, 255, 255), 1 / 3), (0, 0, 0), 1 / 6)
    cv2.imwrite(str(tmp_path / "all.png"), np.full((320, 384), 255, np.uint8))
    write_tiff(tmp_path / "a.tif", [picture], compression="zlib", tile=64)
    options = wsi_options({"preset": "20x", "tile_px": 64, "step_px": 64})
    row = BagRow("a", "wsi", ("a.tif",), 0, overrides='{"mask": "all.png"}')
    found = wsi_instances(tmp_path / "a.tif", options, row, tmp_path)
    columns = found.coords[:, 0] // 64
    statistics = found.attrs.statistics
    assert isinstance(statistics, SlideStatistics)
    assert (statistics.tiles, statistics.black, statistics.white) == (len(found), *np.bincount(columns)[:2])
    assert warnings_of(found.attrs)[:2] == (
        f"{statistics.black} of {len(found)} tiles are black: are parts of the slide missing?",
        f"{statistics.white} of {len(found)} tiles are white: has the mask taken glass for tissue?",
    )


def test_tiles_that_cannot_be_read_are_counted_and_do_not_stop_the_bag(tmp_path: Path) -> None:
    picture = tissue()
    path = write_tiff(tmp_path / "a.tif", [picture, picture[::2, ::2], picture[::4, ::4]])
    for index in range(7, 28):
        corrupt(path, 0, index)
    options = PRESETS["paper"].model_copy(
        update={"tissue": PRESETS["paper"].tissue.model_copy(update={"seg_level": 2})}
    )
    found = wsi_instances(path, options, BagRow("a", "wsi", ("a.tif",), 0), tmp_path)
    statistics = found.attrs.statistics
    assert isinstance(statistics, SlideStatistics) and 0 < statistics.unreadable <= statistics.sampled
    assert any("cannot be decoded: is the file damaged?" in text for text in warnings_of(found.attrs))


# --- scans ------------------------------------------------------------------------------------------------------


def head(k: int = 0) -> np.ndarray:
    """A slice of a head (64, 64) in HU: air, a ring of bone, brain, some noise."""
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(x, y)
    noise = np.random.default_rng(k).normal(0, 5, radius.shape)
    return np.where(radius < 22, 35, np.where(radius < 25, 1500, -1000)) + noise


def cut_scan(folder: Path, change: Callable[[np.ndarray, int], np.ndarray]) -> InstanceAttrs:
    names = [f"{k}.dcm" for k in range(5)]
    for k, name in enumerate(names):
        hu = np.round(change(head(k), k)).astype(np.int16)
        write_slice(folder / name, hu, z=5.0 * k, InstanceNumber=k, RescaleIntercept=0)
    return ct_instances(CtOptions(slice_px=32), BagRow("a", "ct", tuple(names), 0), folder).attrs


def test_a_good_scan_is_silent_and_its_shares_are_right(tmp_path: Path) -> None:
    attrs = cut_scan(tmp_path, lambda hu, k: hu)
    statistics = attrs.statistics
    assert isinstance(statistics, ScanStatistics) and warnings_of(attrs) == ()
    slices = np.stack([np.round(head(k)) for k in range(5)])
    assert (statistics.least, statistics.largest) == (slices.min(), slices.max())
    assert statistics.air == round(float((slices < -500).mean()), 3)
    assert statistics.bone == round(float((slices > 300).mean()), 3)
    assert statistics.soft == round(float((np.abs(slices) <= 200).mean()), 3)
    assert (statistics.sampled, statistics.clipped, statistics.flat) == (5, 0, 0)


ODD_SCANS: dict[str, tuple[Callable[[np.ndarray, int], np.ndarray], list[str]]] = {
    "window": (
        lambda hu, k: np.clip(hu, 0, 80),
        [
            "no air in this scan (least value 0 HU): are these Hounsfield units?",
            "largest value 80 HU: no bone; are these Hounsfield units?",
            "values end at 80 HU in 5 of 5 slices: were they clipped to a window?",
        ],
    ),
    "no intercept": (
        lambda hu, k: hu + 1024,
        ["no air in this scan (least value", "of this scan is as dense as bone: are these Hounsfield units?"],
    ),
    "intercept twice": (
        lambda hu, k: hu - 1024,
        ["% of this scan is as dense as soft tissue (-200 to 200 HU): are these Hounsfield units?"],
    ),
    "empty slices": (
        lambda hu, k: np.full_like(hu, -1000) if k in (0, 4) else hu,
        ["2 of 5 slices hold a single value: are they empty?"],
    ),
}


@pytest.mark.parametrize("name", ODD_SCANS)
def test_an_odd_scan_is_described(tmp_path: Path, name: str) -> None:
    change, expected = ODD_SCANS[name]
    texts = warnings_of(cut_scan(tmp_path, change))
    assert len(texts) == len(expected)
    assert all(part in text for part, text in zip(expected, texts, strict=True)), texts


# --- where warnings go ------------------------------------------------------------------------------------------


def test_warnings_pass_from_the_store_to_the_outcome_and_the_log(tmp_path: Path, caplog) -> None:
    write_tiff(tmp_path / "a.tif", [grey(tissue())])
    row, options = BagRow("a", "wsi", ("a.tif",), 0), InstanceOptions(wsi=PRESETS["paper"])
    first, again = (cut_bag(row, options, tmp_path, tmp_path / "out", dataset="d") for _ in range(2))
    assert first.state == "empty" and first.redone and not again.redone
    assert first.warnings == again.warnings == warnings_of(read_instance_attrs(tmp_path / "out/store", "a"))
    assert first.entry("a").warnings == first.warnings and first.warnings[0].startswith("this slide has no colour")
    assert caplog.messages == [f"a: {text}" for text in first.warnings]


def test_statistics_and_warnings_leave_the_pixels_key_alone(tmp_path: Path, monkeypatch) -> None:
    write_tiff(tmp_path / "a.tif", [tissue()])
    keys = []
    for name in ("one", "two"):
        cut_bag(
            BagRow("a", "wsi", ("a.tif",), 0),
            InstanceOptions(wsi=PRESETS["paper"]),
            tmp_path,
            tmp_path / name,
            dataset="d",
        )
        keys.append(read_instance_attrs(tmp_path / name / "store", "a").pixels_key)
        monkeypatch.setattr("preprocessing.instances.slide_bag.slide_statistics", lambda *arguments: None)
    assert keys[0] == keys[1] != ""
