"""Overrides of single bags: what files may say, what one changes, that only its bag is redone and none is silent."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from preprocessing.bags.overrides import apply_overrides, bag_options, overrides_of, read_overrides
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import COLUMNS, read_bags, write_bags
from preprocessing.common.options import TISSUE_PRESETS, wsi_options
from preprocessing.datasets.base import source_files
from preprocessing.store.bags import read_arrays, read_instance_attrs
from preprocessing.tiling.mask_file import mask_contours, masked_windows, read_mask
from preprocessing.tiling.panda_windows import make_canvas, plan_windows
from tests.helpers.cohorts import BOX, Cohort, picture, write_slide

ROW = BagRow("a", "wsi", ("a.tif",), 0, "train")


def put(text: str, tmp_path: Path, row: BagRow = ROW) -> BagRow:
    """The row with the overrides of a file of one line."""
    (tmp_path / "o.csv").write_text(text)
    overrides = read_overrides(tmp_path / "o.csv")
    return apply_overrides([row], overrides, tmp_path, "o.csv")[0]


# --- files ------------------------------------------------------------------------------------------------------


def test_values_are_typed_and_survive_the_list(tmp_path) -> None:
    row = put("bag_id,sthresh,close,fallback,mpp,skip\na, 8 ,,true,0.25,\n", tmp_path)
    assert row.overrides == '{"fallback":true,"sthresh":8}' and row.mpp == 0.25 and row.skip == ""
    write_bags(tmp_path / "bags.csv", [row, replace(ROW, bag_id="b", skip="pen, all over")])
    assert read_bags(tmp_path / "bags.csv") == [row, replace(ROW, bag_id="b", skip="pen, all over")]
    assert overrides_of(row).as_dict() == {"sthresh": 8, "fallback": True}
    write_bags(tmp_path / "bags.csv", [ROW])
    assert (tmp_path / "bags.csv").read_text().startswith(",".join(COLUMNS) + "\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bag_id,colour\na,red\n", r"unknown columns \['colour'\]"),
        ("name,mpp\na,0.5\n", r"expected also \['bag_id'\]"),
        ("bag_id,mpp\na,0.5\na,0.4\n", r"line 3 \('a'\): bag_id occurs twice"),
        ("bag_id,mpp\n,0.5\n", "bag_id is empty"),
        ("bag_id,mpp\na,900\n", "mpp: found '900'.*less than or equal to 20"),
        ("bag_id,sthresh\na,many\n", "sthresh: found 'many'.*integer"),
        ("bag_id,sthresh\na,256\n", "sthresh: found '256'"),
        ("bag_id,mthresh\na,4\n", "mthresh: found '4', expected an odd number"),
        ("bag_id,preset\na,20x\n", "preset: found '20x', expected one of bwh_biopsy"),
        ("bag_id,use_otsu,sthresh\na,true,8\n", "leave sthresh empty"),
        ("bag_id,mask,close\na,m.png,2\n", "mask replaces the whole tissue mask: leave close empty"),
        ("bag_id,mask\na,gone.png\n", "mask: found 'gone.png', expected a PNG or GeoJSON file"),
        ("bag_id,mask\na,../m.png\n", "leaves the dataset's root"),
        ("bag_id,a_t,a_h\na,-1,\nb,,x\n", r"(?s)2 problems.*line 2 \('a'\): a_t.*line 3 \('b'\): a_h"),
        ("bag_id,skip\nz,bad\n", "'z': no such bag, expected one of the 1 listed"),
    ],
)
def test_what_is_refused(tmp_path, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        put(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "change", "problem"),
    [
        ("bag_id,mpp\na,0.5\n", {"mpp": 0.25}, "mpp: given twice"),
        ("bag_id,sthresh\na,3\n", {"overrides": '{"sthresh":4}'}, "sthresh: given twice"),
        ("bag_id,use_otsu\na,1\n", {"overrides": '{"sthresh":4}'}, "leave sthresh empty"),
        ("bag_id,sthresh\na,3\n", {"modality": "ct"}, "sthresh: a CT scan takes no override but skip"),
    ],
)
def test_values_of_two_files_and_of_scans_are_refused(tmp_path, text: str, change: dict, problem: str) -> None:
    row = replace(ROW, **change)
    assert put("bag_id,skip\na,motion\n", tmp_path, row).skip == "motion"
    with pytest.raises(ValueError, match=problem):
        put(text, tmp_path, row)


# --- settings ---------------------------------------------------------------------------------------------------


def test_a_preset_changes_the_tissue_and_not_the_scale() -> None:
    options = wsi_options({"preset": "20x", "tile_px": 256})
    mine = bag_options(options, replace(ROW, overrides='{"preset":"tcga","sthresh":3}'))
    expected = {**options.tissue.model_dump(), **TISSUE_PRESETS["tcga"].model_dump(exclude_unset=True), "sthresh": 3}
    assert mine.tissue.model_dump() == expected and mine.tissue.anchor_corrected
    assert mine.model_dump(exclude={"tissue"}) == options.model_dump(exclude={"tissue"})
    assert bag_options(options, ROW) is options
    windows = bag_options(wsi_options({"preset": "panda"}), replace(ROW, overrides='{"min_tissue":0.3}'))
    assert windows.min_tissue == 0.3


@pytest.mark.parametrize(
    ("preset", "overrides", "problem"),
    [
        ("panda", '{"sthresh":3}', "a: override of sthresh has no effect"),
        ("paper", '{"min_tissue":0.3}', "min_tissue has no effect"),
        ("paper", '{"colour":3}', "a: overrides .* list the bags again"),
    ],
)
def test_an_override_without_effect_is_refused(preset: str, overrides: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        bag_options(wsi_options({"preset": preset}), replace(ROW, overrides=overrides))


# --- mask files -------------------------------------------------------------------------------------------------


def save(path: Path, mask: np.ndarray, mode: str = "L") -> Path:
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_kind_of_png_is_more_than_zero(tmp_path, mode: str) -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 5:50] = True
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", mask, mode), (600, 400)), mask)


def rgba(colour: int) -> Image.Image:
    """Four pixels of a colour, the first two transparent."""
    pixels = np.full((1, 4, 4), colour, np.uint8)
    pixels[..., 3] = (0, 0, 255, 255)
    return Image.fromarray(pixels)


def palette(*colours: int) -> Image.Image:
    """Three pixels with the indices 0, 1 and 2 of a palette."""
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette(colours)
    return image


WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (rgba(255), {}, [False, False, True, True]),
        (Image.fromarray(np.array([[0, 9, 200]], np.uint8)), {"transparency": 9}, [False, False, True]),
        (palette(*BLACK, *RED, *BLUE), {"transparency": 1}, [False, False, True]),
        # labels on a white background, as QuPath writes them
        (palette(*WHITE, 200, 0, 0, *BLUE), {}, [False, True, True]),
        (rgba(0), {}, r"m\.png: every pixel is 0 or transparent"),
        (palette(*WHITE, *BLACK, *BLUE), {}, r"m\.png: palette with black at index 1 and RGB \(255, 255, 255\) at 0"),
    ],
)
def test_transparent_pixels_are_no_tissue_and_indices_count_unless_colours_say_the_opposite(
    tmp_path, image: Image.Image, options: dict, expected: list[bool] | str
) -> None:
    image.save(tmp_path / "m.png", **options)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_mask(tmp_path / "m.png", image.size)
    else:
        assert read_mask(tmp_path / "m.png", image.size).tolist() == [expected]


def test_a_photograph_and_a_map_of_probabilities_are_no_masks(tmp_path) -> None:
    rng = np.random.default_rng(0)
    photograph = np.full((60, 90, 3), 255, np.uint8)
    photograph[20:40, 30:60] = rng.integers(90, 220, (20, 30, 3))
    probabilities = (255 * rng.random((60, 90))).astype(np.uint8)
    for pixels in (photograph, probabilities):
        Image.fromarray(pixels).save(tmp_path / "m.png")
        with pytest.raises(ValueError, match=r"m\.png: \d+ different values, expected a mask of few"):
            read_mask(tmp_path / "m.png", (900, 600))
    labels = rng.integers(0, 20, (60, 90)).astype(np.uint8)
    smooth = cv2.GaussianBlur(cv2.circle(np.zeros((300, 300), np.uint8), (150, 150), 90, 255, -1), (9, 9), 0)
    for pixels in (labels, smooth):
        Image.fromarray(pixels).save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", pixels.shape[::-1]), pixels > 0)


def test_other_shapes_and_other_files_are_refused(tmp_path) -> None:
    mask = np.ones((40, 60), bool)
    path = save(tmp_path / "m.png", mask)
    read_mask(path, (601, 399))
    save(tmp_path / "m.bmp", mask)
    data = path.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:60])
    # a header may claim a million pixels a side, so it is not unpacked
    (tmp_path / "bomb.png").write_bytes(data[:16] + bytes.fromhex("000927c0 00061a80") + data[24:])
    for name, size, text in (
        ("m.png", (400, 600), r"m\.png: mask of 60 x 40 px for a slide of 400 x 600"),
        ("m.bmp", (600, 400), "not a PNG file"),
        ("cut.png", (600, 400), "damaged PNG"),
        ("bomb.png", (600, 400), "600000 x 400000 px, expected at most 50000000"),
    ):
        with pytest.raises(ValueError, match=text):
            read_mask(tmp_path / name, size)


@pytest.mark.parametrize("cells", [1, 4, 40])
def test_contours_of_a_mask_lie_where_it_is(cells: int) -> None:
    """A square with a hole, drawn with 1, 4 or 40 mask px per 100 level-0 px; coarse masks are refined."""
    mask = np.zeros((10 * cells, 20 * cells), bool)
    mask[2 * cells : 8 * cells, 3 * cells : 9 * cells] = True
    mask[4 * cells : 6 * cells, 5 * cells : 7 * cells] = False
    (contour,), scale = mask_contours(mask, (2000, 1000))
    half = max(scale) / 2
    assert max(scale) <= 64 and len(contour.holes) == 1
    found = (*contour.outer.min(axis=0), *contour.outer.max(axis=0))
    np.testing.assert_allclose(found, (300, 200, 900, 800), atol=half + 1)
    hole = (*contour.holes[0].min(axis=0), *contour.holes[0].max(axis=0))
    np.testing.assert_allclose(hole, (500, 400, 700, 600), atol=half + 1)
    assert mask_contours(np.zeros((5, 5), bool), (100, 100))[0] == []


def test_windows_on_a_mask_count_every_pixel() -> None:
    """Against the mask blown up to level 0 by nearest neighbour, padding and remainders included."""
    rng = np.random.default_rng(0)
    plan = plan_windows(wsi_options({"preset": "panda", "tile_px": 32, "step_px": 32, "window_px": 64}), "x")
    for dimensions in ((203, 170), (50, 300)):
        mask = rng.random((17, 23)) < 0.4
        width, height = dimensions
        rows = ((np.arange(height) + 0.5) * 17 / height).astype(int)
        columns = ((np.arange(width) + 0.5) * 23 / width).astype(int)
        canvas = make_canvas(dimensions, plan)
        whole = np.zeros((canvas.height, canvas.width))
        whole[canvas.top :, canvas.left :][:height, :width] = mask[rows][:, columns]
        found = masked_windows(mask, dimensions, plan, 0.35)
        kept = {}
        for r in range(canvas.windows[0]):
            for c in range(canvas.windows[1]):
                share = whole[32 * r : 32 * r + 64, 32 * c : 32 * c + 64].mean()
                if share > 0.35:
                    kept[r, c] = share
        assert [tuple(cell) for cell in found.grid.tolist()] == list(kept)
        np.testing.assert_allclose(found.tissue, list(kept.values()), atol=1e-6)
        np.testing.assert_array_equal(found.coords, found.grid[:, ::-1] * 32 - [canvas.left, canvas.top])


# --- through the stages -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut_once(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    made = Cohort(tmp_path_factory.mktemp("cut"))
    for name in "abc":
        write_slide(made.raw / f"{name}.tif")
        made.add(name, f"{name}.tif")
    assert made.list_bags() == 0 and made.cut() == 0
    return made


@pytest.fixture
def cohort(tmp_path, cut_once: Cohort) -> Cohort:
    copied = Cohort(tmp_path)
    shutil.copytree(cut_once.raw.parent, tmp_path, dirs_exist_ok=True)
    copied.rows = [dict(row) for row in cut_once.rows]
    return copied


def redone(cohort: Cohort) -> list[str]:
    """Bags that the last run of the shard worked on."""
    return [line["bag_id"] for line in cohort.status_lines()[-3:] if line["redone"]]


def in_file(cohort: Cohort, text: str) -> None:
    path = cohort.raw.parent / "o.csv"
    path.write_text(text)
    cohort.source["overrides"] = str(path)


@pytest.mark.parametrize(
    ("cells", "where"),
    [
        ({"sthresh": "200"}, "file"),
        ({"preset": "tcga"}, "manifest"),
        ({"mpp": "0.25"}, "file"),
        ({"mask": "m.png"}, "manifest"),
    ],
)
def test_only_the_bag_of_an_override_is_redone(cohort: Cohort, cells: dict[str, str], where: str) -> None:
    left = np.zeros((64, 80), bool)
    left[:, :40] = True
    save(cohort.raw / "m.png", left)
    before = cohort.entries()
    if where == "file":
        ((name, value),) = cells.items()
        in_file(cohort, f"bag_id,{name}\nb,{value}\n")
    else:
        cohort.rows[1] |= cells
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    after = cohort.entries()
    assert redone(cohort) == ["b"] and [n for n in "abc" if before[n] != after[n]] == ["b"]
    if "mask" in cells:
        store = cohort.results / "instances/store"
        x = read_arrays(store, "b", ["coords"])["coords"][:, 0]
        assert len(x) and x.max() < 320 and x.min() <= 4 < BOX[0]
        assert read_instance_attrs(store, "b").overrides == {"mask": "m.png"}
        save(cohort.raw / "m.png", ~left)
        assert cohort.cut() == 0 and redone(cohort) == ["b"]
        assert read_arrays(store, "b", ["coords"])["coords"][:, 0].min() >= 256


def test_a_skipped_bag_is_named_everywhere_and_its_shard_keeps_the_others(cohort: Cohort, caplog) -> None:
    (cohort.raw / "b.tif").write_bytes(b"ruined")
    in_file(cohort, "bag_id,skip\nb,slide is broken\n")
    # a scan without any file is not opened either
    (cohort.raw / "scan").mkdir()
    cohort.add("scan", "scan", skip="no such scan")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    assert "slide is broken" in caplog.text and {line["redone"] for line in cohort.status_lines()[-4:-1]} == {False}
    entries = cohort.entries()
    assert (entries["b"].state, entries["b"].reason, entries["b"].n) == ("skipped", "slide is broken", 0)
    assert [entries[name].state for name in ("a", "c", "scan")] == ["ok", "ok", "skipped"]
    report = json.loads((cohort.results / "bags.report.json").read_text())
    assert report["skipped"][0] == {"name": "b", "reason": "slide is broken"} and report["found"]["skipped"] == 2
    status = cohort.status()
    assert status["total"]["skipped"] == 2
    assert {"stage": "instances", "bag_id": "b", "state": "skipped", "reason": "slide is broken"} in status["problems"]
    (cohort.raw / "b.tif").unlink()
    assert cohort.list_bags() == 0 and cohort.cut() == 0, "a skipped slide need not be there"


def test_the_workflow_knows_the_files_of_a_source(tmp_path) -> None:
    inside, given = tmp_path / "inside.csv", tmp_path / "given.csv"
    for path in (inside, given):
        path.touch()
    assert source_files(tmp_path, {"manifest": str(given), "overrides": "inside.csv"}) == [given, inside]
    assert source_files(tmp_path, {"partition": "x"}) == [] == source_files(tmp_path, {"manifest": "gone.csv"})


def test_a_mask_keeps_what_thresholds_miss(tmp_path) -> None:
    """A slide too pale for any threshold: empty without a mask, tiles exactly under it with one."""
    cohort = Cohort(tmp_path)
    write_slide(cohort.raw / "pale.tif", np.maximum(picture(), 252))
    save(cohort.raw / "m.png", picture()[::8, ::8].min(axis=2) < 255)
    cohort.add("plain", "pale.tif")
    cohort.add("drawn", "pale.tif", mask="m.png")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    entries = cohort.entries()
    assert entries["plain"].state == "empty" and entries["drawn"].state == "ok"
    centre = read_arrays(cohort.results / "instances/store", "drawn", ["coords"])["coords"] + 32
    assert (centre >= (BOX[0] - 32, BOX[1] - 32)).all() and (centre <= (BOX[2] + 32, BOX[3] + 32)).all()
    assert len(centre) >= (BOX[2] - BOX[0]) * (BOX[3] - BOX[1]) // 64**2
