"""Bags that are not the ones their manifests name, and damaged ones: refused by name, by whatever reads them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.files import write_json
from preprocessing.qc.__main__ import main as qc_main
from preprocessing.store.bags import (
    FeatureAttrs,
    InstanceAttrs,
    coords_hash,
    read_arrays,
    read_feature_attrs,
    read_info,
    write_bag,
)
from smmil.artifacts.results import load_predictions
from smmil.config.training_options import DataOptions
from smmil.data.arguments import BagPaths
from smmil.data.batch import Bag
from smmil.data.sources import open_source
from smmil.data.splits import read_splits
from smmil.figures.__main__ import main as figures_main
from smmil.maps import main as maps_main
from smmil.predictions import runs as predictions
from smmil.predictions.__main__ import main as predict
from smmil.train import __main__ as train
from smmil.train import job
from tests.faults.damage import flip
from tests.helpers.pages import put_slide
from tests.helpers.predictions import metrics_object, write_index, write_run
from tests.helpers.train_helpers import FACTS, make_dataset, source_arguments, train_arguments

# ---- written again after the manifest


def name_bags(data: Path) -> None:
    """Writes the manifests as the stages do at their end: what is stored, by its content."""
    for stage in ("instances", "features/tiny"):
        stored = sorted((data / stage / "store").glob("bag*"))
        hashes = {path.name: read_info(path.parent, path.name).content for path in stored}
        bags = [{"bag_id": name, "state": "ok", "n": 1, "hash": content} for name, content in hashes.items()]
        write_json(data / stage / "shards/0000.json", {"dataset": "tiny", "stage": stage, "bags": bags})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = make_dataset(tmp_path / "tiny")
    name_bags(made)
    return made


def write_features_again(data: Path, bag_id: str = "bag03") -> None:
    """Other features of the same coordinates: whole, paired, with checksums of their own."""
    store = data / "features/tiny/store"
    features = read_arrays(store, bag_id)["features"] + np.float16(1)
    attrs = {**FACTS, "coords_hash": read_feature_attrs(store, bag_id).coords_hash}
    write_bag(store, bag_id, {"features": features}, FeatureAttrs(**attrs))


def write_coverage_again(data: Path, bag_id: str = "bag03") -> None:
    """Another annotation of the same tiles: the coordinates, hence the pairing, stay."""
    arrays = read_arrays(data / "instances/store", bag_id)
    arrays["coverage"] = np.float32(1) - arrays["coverage"]
    write_bag(data / "instances/store", bag_id, arrays, InstanceAttrs(dataset="tiny"))
    features = read_feature_attrs(data / "features/tiny/store", bag_id)
    assert coords_hash(arrays["coords"], arrays["grid"]) == features.coords_hash


def load(data: Path, *manifests: str) -> list[Bag]:
    """All bags, as every job loads them."""
    paths = [data / stage / "shards" / "0000.json" for stage in manifests or ("instances", "features/tiny")]
    found = BagPaths(data / "bags.csv", data / "instances", data / "features/tiny", paths)
    return open_source(found, DataOptions()).load()[0]


@pytest.mark.parametrize(("again", "stage"), [(write_features_again, "features"), (write_coverage_again, "instances")])
def test_a_bag_written_after_its_manifest_is_refused_by_name_until_the_stage_writes_it(data, again, stage, capsys):
    again(data)
    # the manifest of the instances counts, too, where only that of the features is given
    for manifests in ((), ("features/tiny",)):
        with pytest.raises(ValueError, match=rf"bag bag03: found stored {stage}.*0000.json.*stage again"):
            load(data, *manifests)
    assert train.main(train_arguments(data, data / "runs", "abmil")) == 2
    assert f"error: bag bag03: found stored {stage}" in capsys.readouterr().err
    assert not (data / "runs/runs.json").exists()
    name_bags(data)
    assert len(load(data)) == 16


def test_manifests_of_an_older_cut_into_shards_and_those_without_hashes_refuse_nothing(data):
    shards = data / "instances/shards"
    write_coverage_again(data)
    (shards / "0001.json").write_bytes((shards / "0000.json").read_bytes())
    name_bags(data)
    assert len(load(data)) == 16
    write_coverage_again(data)
    for path in (*shards.iterdir(), data / "features/tiny/shards/0000.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({"bags": [{**bag, "hash": ""} for bag in content["bags"]]}))
    assert len(load(data)) == 16


def test_another_annotation_alone_makes_predictions_again_and_trains_nothing(data, monkeypatch):
    training = train_arguments(data, data / "runs", "abmil", epochs=1)
    listed = ["--runs", str(data / "runs/runs.json"), *source_arguments(data), "--device", "cpu", "--threads", "1"]
    listed += ["--out", str(data / "p"), "--index", str(data / "p/index.json")]
    for arguments in (training, listed):
        # as a workflow gives them: the manifests of the features, which say nothing of annotations
        arguments.remove(str(data / "instances/shards/0000.json"))
    npz = data / "p/split1_lr0.01.npz"
    assert train.main(training) == 0 and predict(listed) == 0
    before, stamp = load_predictions(npz), npz.stat().st_mtime_ns
    assert predict(listed) == 0 and npz.stat().st_mtime_ns == stamp
    bag_id = str(before.arrays["bag_id"][-1])
    write_coverage_again(data, bag_id)
    name_bags(data)
    monkeypatch.setattr(job, "_train_pending", lambda *_: pytest.fail("labels of instances reach no weight"))
    assert train.main(training) == 0 and predict(listed) == 0
    after = load_predictions(npz)
    old, new = before.bag(bag_id), after.bag(bag_id)
    np.testing.assert_array_equal(new["coverage"], np.float32(1) - old["coverage"])
    np.testing.assert_array_equal(new["instance_score"], old["instance_score"])
    assert predictions.is_current(npz, after.meta.key) and not predictions.is_current(npz, before.meta.key)


@pytest.mark.parametrize("finished", [True, False])
def test_runs_are_trained_again_when_an_annotation_decides_that_other_bags_take_part(data, monkeypatch, finished):
    argv = [*train_arguments(data, data / "runs", "abmil", epochs=2, drop_inconsistent=True)]
    argv.remove(str(data / "instances/shards/0000.json"))
    if finished:
        assert train.main(argv) == 0
    else:

        def die(*_: object) -> str:
            raise KeyError("killed")

        monkeypatch.setattr(job, "save_weights", die)
        with pytest.raises(KeyError):
            train.main(argv)
        monkeypatch.undo()
        assert (data / "runs/split1_lr0.01/state.pt").exists()
    config = json.loads((data / "runs/split1_lr0.01/config.json").read_text())
    # a positive bag without a positive instance, in the half that was learned from
    name = next(i for i in read_splits(data / "runs/splits.csv")[1].items() if i[1] == "train" and int(i[0][3:]) % 2)[0]
    arrays = read_arrays(data / "instances/store", name)
    arrays["coverage"] = np.zeros_like(arrays["coverage"])
    write_bag(data / "instances/store", name, arrays, InstanceAttrs(dataset="tiny"))
    assert train.main(argv) == 2
    name_bags(data)
    assert train.main(argv) == 0
    again = json.loads((data / "runs/split1_lr0.01/config.json").read_text())
    assert again["key"] == config["key"] and again["split"]["bags_sha256"] != config["split"]["bags_sha256"]
    assert name not in read_splits(data / "runs/splits.csv")[1]
    # the same as trained on these bags from the start
    fresh = [word.replace(str(data / "runs"), str(data / "fresh")) for word in argv]
    assert train.main(fresh) == 0
    for file in ("best.safetensors", "done.json"):
        assert (data / "runs/split1_lr0.01" / file).read_bytes() == (data / "fresh/split1_lr0.01" / file).read_bytes()
    monkeypatch.setattr(job, "_train_pending", lambda *_: pytest.fail("nothing has changed"))
    assert train.main(argv) == 0


# ---- damaged chunks


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """One slide with predictions and metrics of one run; then a byte of a chunk is changed by each test."""
    put_slide(tmp_path / "instances", "t1", 3, 1)
    bags = [("v0", "val", 0, -1.0, [0.1], [0]), ("t1", "test", 1, 1.5, [0.8, 0.1, 0.95], [1, 0, 1])]
    folder = tmp_path / "predictions/abmil"
    write_index(folder, [write_run(folder, bags)])
    write_json(tmp_path / "abmil.json", metrics_object("toy", "abmil", {"instance_auroc": [0.7]}))
    write_bags(tmp_path / "bags.csv", [BagRow("t1", "wsi", ("t1.tif",), 1, "test")])
    write_json(tmp_path / "report.json", {})
    write_json(tmp_path / "0000.json", {"bags": [{"bag_id": "t1", "state": "ok", "n": 3, "hash": "", "reason": ""}]})
    return tmp_path


def readers_of(folder: Path) -> dict[str, tuple[Any, list[str]]]:
    """Every command line that shows stored bags."""
    given = ["--index", str(folder / "predictions/abmil/index.json"), "--metrics", str(folder / "abmil.json")]
    dataset = {"name": "toy", "title": "Toy", "encoder": "resnet18", "methods": ["abmil"]}
    layout = json.dumps({"figure": "fig5", "protocol": "as_written", "splits": [1], "datasets": [dataset]})
    instances = str(folder / "instances")
    sheet = ["--dataset", "toy", "--bags", str(folder / "bags.csv"), "--report", str(folder / "report.json")]
    return {
        "maps": (maps_main, ["--layout", layout, "--instances", instances, *given, "--out", str(folder / "maps")]),
        "fig_maps": (
            figures_main,
            [
                *("--figure", "fig5", "--layout", layout, *given, "--instances", f"toy={instances}"),
                *("--out", str(folder / "fig5.png")),
            ],
        ),
        "qc": (
            qc_main,
            [*sheet, "--instances", instances, "--manifests", str(folder / "0000.json"), "--out", str(folder / "qc")],
        ),
    }


@pytest.mark.parametrize("damage", ["coords", "coverage", "missing", "rewritten"])
def test_damaged_missing_and_rewritten_bags_are_named_before_anything_is_drawn(slides, damage, capsys):
    store, expected = slides / "instances/store/t1", "bag t1 is missing"
    readers = readers_of(slides)
    if damage == "missing":
        shutil.rmtree(store)
    elif damage == "rewritten":
        entry = {"bag_id": "t1", "state": "ok", "n": 3, "hash": "0" * 64, "reason": ""}
        write_json(slides / "instances/shards/0000.json", {"dataset": "toy", "stage": "instances", "bags": [entry]})
        expected = "bag t1: found stored instances"
        del readers["qc"]  # shows what is stored
    else:
        (chunk,) = (store / damage).glob("c.*")
        # stays a small number: nothing but the checksum can tell
        flip(chunk, 0)
        expected = str(chunk)
    for name, (main, arguments) in readers.items():
        assert main(arguments) == 2, name
        text = capsys.readouterr().err
        assert expected in text and ("checksum" in text) == (damage in ("coords", "coverage")), name
    assert not list(slides.rglob("*.png")) and not list(slides.rglob("*.html"))
