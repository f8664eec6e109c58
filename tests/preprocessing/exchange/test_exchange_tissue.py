"""Tissue outlines to QuPath and back: the same tiles, and after an edit exactly the edited ones are gone."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from preprocessing.bags.overrides import override as apply_override
from preprocessing.bags.overrides import parse_overrides
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.options import InstanceOptions, wsi_options
from preprocessing.exchange.__main__ import main
from preprocessing.instances.stage import cut_bag
from preprocessing.slides.slide import open_slide
from preprocessing.store.bags import read_arrays, read_instance_attrs
from preprocessing.store.outlines import Outlines
from preprocessing.tiling.mask_file import read_mask_file
from tests.helpers.cohorts import WSI, write_slide
from tests.helpers.pyramids import texture

ROW = BagRow("s", "wsi", ("s.tif",), 0, "train")


def picture(ink: bool) -> np.ndarray:
    """Two pieces of tissue, the first with a hole, the second perhaps with ink."""
    image = np.full((1024, 1280, 3), 245, np.uint8)
    for x0, y0, x1, y1 in ((130, 120, 600, 610), (760, 300, 1190, 910)):
        image[y0:y1, x0:x1] = np.minimum(texture(y1 - y0, x1 - x0), [230, 140, 190])
    cv2.circle(image, (360, 380), 90, (245, 245, 245), -1)
    if ink:
        cv2.line(image, (860, 500), (1050, 640), (30, 80, 190), 90)
    return image


def cut(folder: Path, row: BagRow, name: str, **options: Any) -> np.ndarray:
    tissue_options = {**WSI["tissue"], "max_n_holes": 8, **options.pop("tissue", {})}
    settings = InstanceOptions(wsi=wsi_options({**WSI, **options, "tissue": tissue_options}))
    outcome = cut_bag(row, settings, folder, folder / name, dataset="d")
    assert outcome.state == "ok"
    return read_arrays(folder / name / "store", "s")["coords"]


def exported(folder: Path, name: str) -> dict[str, Any]:
    """Export the outlines and put them where the mask of the slide is expected."""
    write_bags(folder / "bags.csv", [ROW])
    files = ["--bags", str(folder / "bags.csv"), "--instances", str(folder / name), "--root", str(folder)]
    assert main(["export", "--format", "qupath", "--object-type", "tissue", *files, "--out", str(folder / "geo")]) == 0
    return json.loads((folder / "geo/s.geojson").read_text())


def masked(folder: Path, collection: dict[str, Any], **cells: str) -> BagRow:
    (folder / "m.geojson").write_text(json.dumps(collection))
    return apply_override(ROW, parse_overrides({"mask": "m.geojson", **cells}), folder)


@pytest.mark.parametrize("lattice", ["contour", "global"])
@pytest.mark.parametrize("exclude", [[], ["pen"]])
def test_outlines_come_back_as_the_same_tiles(tmp_path: Path, lattice: str, exclude: list[str]) -> None:
    write_slide(tmp_path / "s.tif", picture(ink=True))
    settings = {"lattice": lattice, "tissue": {"exclude": exclude}}
    before = cut(tmp_path, ROW, "a", **settings)
    collection = exported(tmp_path, "a")
    classes = [feature["properties"]["classification"]["name"] for feature in collection["features"]]
    assert classes.count("Tissue") == 2 and "Pen" in classes
    after = cut(tmp_path, masked(tmp_path, collection), "b", **settings)
    np.testing.assert_array_equal(after, before)
    if exclude:
        assert len(before) < len(cut(tmp_path, ROW, "c", lattice=lattice))
        assert read_instance_attrs(tmp_path / "a/store", "s").excluded_tiles > 0
        # The pen of the edited file counts: without it nothing is left out.
        collection["features"] = [
            one for one, name in zip(collection["features"], classes, strict=True) if name != "Pen"
        ]
        assert len(cut(tmp_path, masked(tmp_path, collection), "d", **settings)) > len(after)


def test_a_removed_piece_and_a_cut_out_region_remove_exactly_their_tiles(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tif", picture(ink=False))
    before = cut(tmp_path, ROW, "a")
    piece = np.array(read_instance_attrs(tmp_path / "a/store", "s").contour_of_tile)
    collection = exported(tmp_path, "a")
    tissues = [one for one in collection["features"] if one["properties"]["classification"]["name"] == "Tissue"]
    assert len(tissues) == 2 and all(len(one["geometry"]["coordinates"]) > 1 for one in tissues)
    alone = cut(tmp_path, masked(tmp_path, {"type": "FeatureCollection", "features": tissues[:1]}), "b")
    np.testing.assert_array_equal(alone, before[piece == 0])
    x, y = before[piece == 0][len(alone) // 2].tolist()
    box = [[x - 10, y - 10], [x + 140, y - 10], [x + 140, y + 90], [x - 10, y + 90], [x - 10, y - 10]]
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [box]}}
    region["properties"] = {"objectType": "annotation", "classification": {"name": "Exclude"}}
    edited = cut(tmp_path, masked(tmp_path, {"type": "FeatureCollection", "features": [*tissues, region]}), "c")
    centre = before + 32
    inside = ((centre > [x - 10, y - 10]) & (centre < [x + 140, y + 90])).all(axis=1)
    assert inside.sum() >= 2
    np.testing.assert_array_equal(edited, before[~inside])


def test_the_column_exclude_leaves_out_the_tiles_of_one_bag(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tif", picture(ink=True))
    everything = cut(tmp_path, ROW, "a")
    row = apply_override(ROW, parse_overrides({"exclude": "pen"}), tmp_path)
    kept = cut(tmp_path, row, "b")
    assert 0 < len(kept) < len(everything) and set(map(tuple, kept)) < set(map(tuple, everything))
    np.testing.assert_array_equal(kept, cut(tmp_path, ROW, "c", tissue={"exclude": ["pen"]}))
    none = apply_override(ROW, parse_overrides({"exclude": "none"}), tmp_path)
    np.testing.assert_array_equal(cut(tmp_path, none, "d", tissue={"exclude": ["pen"]}), everything)
    with pytest.raises(ValueError, match="exclude: found 'ink', expected some of pen blur"):
        parse_overrides({"exclude": "ink"})


@pytest.mark.parametrize(
    ("name", "shift", "problem"),
    [
        ("Tumour bed", 0, "outlines of the class 'Tumour bed', expected Tissue, Exclude or an artefact"),
        ("Tumor", 0, "no outline of the class Tissue or without class"),
        ("Tissue", 5000, "outlines span x 5010..5100"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused_by_name(tmp_path: Path, name: str, shift: int, problem: str) -> None:
    ring = [[10 + shift, 10], [100 + shift, 10], [100 + shift, 100], [10 + shift, 10]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}
    feature["properties"] = {"classification": {"name": name}}
    (tmp_path / "m.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(ValueError, match="m.geojson") as refusal:
        read_mask_file(tmp_path / "m.geojson", (1000, 1000))
    assert problem in str(refusal.value)


def test_outlines_count_from_the_scanned_region_and_windows_take_them(tmp_path: Path) -> None:
    ring = [[0, 0], [300, 0], [300, 300], [0, 300], [0, 0]]
    (tmp_path / "m.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    with pytest.raises(ValueError, match="no outline of the class Tissue"):
        read_mask_file(tmp_path / "m.geojson", (1000, 1000))
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    (tmp_path / "m.geojson").write_text(json.dumps(feature))
    outlines = read_mask_file(tmp_path / "m.geojson", (1000, 1000), (50, 20))
    assert outlines.contours[0].outer.tolist() == [[50, 20], [350, 20], [350, 320], [50, 320]]
    write_slide(tmp_path / "s.tif", picture(ink=False))
    row = apply_override(ROW, parse_overrides({"mask": "m.geojson"}), tmp_path)
    windows = {"recipe": "panda", "tile_px": 64, "window_px": 128, "step_px": 64}
    coords = cut(tmp_path, row, "p", **windows)
    assert coords.max() <= 300 and len(coords) >= 16
    with open_slide(tmp_path / "s.tif") as slide:
        assert coords.min() >= 0 and slide.dimensions == (1280, 1024)


def test_a_bag_cut_before_anybody_looked_gets_its_artefacts_and_is_not_cut_again(tmp_path: Path) -> None:
    write_slide(tmp_path / "s.tif", picture(ink=True))
    cut(tmp_path, ROW, "a")
    known = Outlines.read(tmp_path / "a", "s")
    assert known.artefacts is not None and known.artefacts["pen"].share > 0.01
    known.model_copy(update={"artefacts": None}).write(tmp_path / "a/thumbnails/s.json")
    settings = InstanceOptions(wsi=wsi_options({**WSI, "tissue": {**WSI["tissue"], "max_n_holes": 8}}))
    outcome = cut_bag(ROW, settings, tmp_path, tmp_path / "a", dataset="d")
    assert not outcome.redone and any("pen or ink" in text for text in outcome.warnings)
    again = Outlines.read(tmp_path / "a", "s").artefacts
    assert again is not None and again["pen"].share == pytest.approx(known.artefacts["pen"].share, rel=0.05)
