"""GeoJSON for QuPath: valid polygons in level-0 px, measurements as numbers, fixed bytes, offsets, refusals."""

import json

import numpy as np
import pytest
import shapely

from preprocessing.bags.rows import BagRow
from preprocessing.exchange.__main__ import main
from preprocessing.exchange.model import Bag
from preprocessing.exchange.qupath import write_tiles
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_arrays


def slide(n: int = 4, **attrs: object) -> Bag:
    coords = np.array([[i * 100, 40] for i in range(n)], np.int32)
    share = np.linspace(0, 1, n).astype(np.float32)
    share[0] = np.nan
    geometry = InstanceAttrs(modality="wsi", l0_footprint_px=100).updated(**attrs)
    return Bag(BagRow("s1", "wsi", ("s1.tif",)), coords, coverage=share, attrs=geometry)


def test_tiles_with_coverage_and_scores_come_out_of_a_stored_dataset(slides, tmp_path):
    stored = read_arrays(slides.folder / "instances/store", "bag1")
    n = len(stored["coords"])
    scores = np.linspace(-2, 2, n + 3).astype(np.float32)
    arrays = {"bag_id": np.array(["other", "bag1"]), "offsets": np.array([0, 3, n + 3]), "instance_score": scores}
    arrays["signed_score"] = -2 * scores
    np.savez(tmp_path / "run.npz", **arrays)
    argv = ["export", "--format", "qupath", *slides.arguments()[:4], "--out", str(tmp_path / "out")]
    assert main([*argv, "--predictions", str(tmp_path / "run.npz"), "--label-threshold", "0.7"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 6
    found = json.loads((tmp_path / "out/bag1.geojson").read_text())
    assert found["type"] == "FeatureCollection" and len(found["features"]) == n
    ids = {one["id"] for one in found["features"]}
    assert len(ids) == n and all(len(name) == 36 for name in ids)
    for i, one in enumerate(found["features"]):
        polygon, (x, y) = shapely.geometry.shape(one["geometry"]), stored["coords"][i]
        assert polygon.is_valid and polygon.bounds == (x, y, x + 512, y + 512)
        assert one["properties"]["objectType"] == "tile"
        measured = one["properties"]["measurements"]
        assert measured["Score"] == pytest.approx(float(scores[3 + i]), rel=1e-6)
        assert measured["Signed score"] == pytest.approx(-2 * measured["Score"], rel=1e-6)
        assert ("Lesion share" in measured) == (not np.isnan(stored["coverage"][i]))
        assert ("classification" in one["properties"]) == (stored["coverage"][i] > 0.7)
    assert "Score" not in (tmp_path / "out/bag2.geojson").read_text()


def test_coordinates_count_from_the_scanned_region_and_every_object_has_its_line(tmp_path):
    write_tiles(tmp_path / "a.geojson", slide(50, bounds=[30, 10, 900, 900]), object_type="detection")
    tiles = [json.loads(line.rstrip(",")) for line in (tmp_path / "a.geojson").read_text().splitlines()[1:-1]]
    assert len(tiles) == 50 and tiles[0]["geometry"]["coordinates"][0][0] == [-30, 30]
    assert all((one["type"], one["properties"]["objectType"]) == ("Feature", "detection") for one in tiles)


def test_what_qupath_cannot_show_is_refused(tmp_path):
    scan, wrong = slide(modality="ct"), slide()
    wrong.scores["Score"] = np.zeros(7)
    for bag, message in ((scan, "a CT scan"), (wrong, "7 values of 'Score' for 4 tiles")):
        with pytest.raises(ValueError, match=message):
            write_tiles(tmp_path / "x.geojson", bag)
    with pytest.raises(ValueError, match="tile, detection, annotation"):
        write_tiles(tmp_path / "x.geojson", slide(), object_type="cell")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "2 values of 'Score' for"),
        ({"offsets": np.array([0, 9])}, "lengths do not fit"),
        ({"signed_score": np.zeros(3)}, "lengths do not fit"),
        ({"instance_score": None}, "not a predictions file"),
        ({"bag_id": np.array([{}], object)}, "not a predictions file"),
    ],
)
def test_predictions_of_other_bags_are_refused(slides, tmp_path, capsys, changes, message):
    arrays = {"bag_id": np.array(["bag1"]), "offsets": np.array([0, 2]), "instance_score": np.zeros(2), **changes}
    np.savez(tmp_path / "run.npz", **{name: array for name, array in arrays.items() if array is not None})
    argv = ["export", "--format", "qupath", *slides.arguments()[:4], "--out", str(tmp_path / "out"), "--bag-id", "bag1"]
    assert main([*argv, "--predictions", str(tmp_path / "run.npz")]) == 2
    assert message in capsys.readouterr().err
