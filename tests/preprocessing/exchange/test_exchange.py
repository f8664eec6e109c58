"""Other tools' files: export and import give the same bags back, their own files are read and trained on."""

import json

import h5py
import numpy as np
import pytest

from preprocessing.bags.table import read_bags
from preprocessing.exchange import FORMATS
from preprocessing.exchange.__main__ import main
from preprocessing.instances.graph import grid_neighbors
from preprocessing.qc.__main__ import main as draw_sheet
from preprocessing.store.bags import read_feature_attrs, read_instance_attrs, validate_bag
from smmil.artifacts.results import load_predictions
from smmil.predictions.__main__ import main as predict
from smmil.train import __main__ as train
from tests.helpers.dataset_files import read_table
from tests.helpers.exchange_files import (
    both,
    clam_slide,
    lattice,
    learnable,
    run_import,
    small_clam,
    table,
    torchmil_slide,
    trident_slide,
)
from tests.helpers.workflows import planned

SAME_ATTRS = "coords_hash l0_footprint_px l0_step_px tile_px mpp mpp_source read_level slice_px".split()
SAME_FACTS = ("encoder", "weights_sha256", "random_weights", "resize_policy")


@pytest.mark.parametrize(
    ("kind", "ours"), [("clam", "slides"), ("trident", "slides"), ("torchmil", "slides"), ("torchmil", "scans")]
)
def test_export_and_import_give_the_same_bags_back(tmp_path, request, kind, ours):
    store = request.getfixturevalue(ours)
    assert main(["export", "--format", kind, *store.arguments(), "--out", str(tmp_path / "theirs")]) == 0
    assert run_import(kind, tmp_path / "theirs", tmp_path / "back", "resnet18") == 0
    folders = (store.folder, tmp_path / "back")
    got = {row.bag_id: row for row in read_bags(tmp_path / "back/bags.csv")}
    for row in store.rows:
        back = got[row.bag_id]
        assert (back.label, back.split, back.group, back.modality) == (row.label, row.split, row.group, row.modality)
        before, after = (both(folder, "resnet18", row.bag_id) for folder in folders)
        if kind == "torchmil":
            share = before["coverage"]
            before["coverage"] = np.where(np.isnan(share), share, share > 0.5).astype(np.float32)
        assert before.keys() == after.keys()
        for name, array in before.items():
            assert after[name].dtype == array.dtype, name
            np.testing.assert_array_equal(after[name], array, err_msg=f"{row.bag_id} {name}")
        attrs = [read_instance_attrs(folder / "instances/store", row.bag_id) for folder in folders]
        facts = [read_feature_attrs(folder / "features/resnet18/store", row.bag_id) for folder in folders]
        for names, (first, second) in ((SAME_ATTRS, attrs), (SAME_FACTS, facts)):
            assert [getattr(first, name) for name in names] == [getattr(second, name) for name in names]
        validate_bag(tmp_path / "back/instances/store", row.bag_id, schema="instances")


@pytest.mark.parametrize("kind", ["clam", "trident"])
def test_scans_are_exported_as_torchmil_only(scans, tmp_path, kind, capsys):
    assert main(["export", "--format", kind, *scans.arguments(), "--out", str(tmp_path)]) == 2
    assert "export scans as torchmil" in capsys.readouterr().err


def test_exports_have_equal_bytes(slides, tmp_path):
    for kind in FORMATS:
        for name in ("a", "b"):
            assert main(["export", "--format", kind, *slides.arguments(), "--out", str(tmp_path / kind / name)]) == 0
        files = sorted(p.relative_to(tmp_path / kind / "a") for p in (tmp_path / kind / "a").rglob("*") if p.is_file())
        assert files and not [p for p in files if p.name.startswith(".")]
        for file in files:
            assert (tmp_path / kind / "a" / file).read_bytes() == (tmp_path / kind / "b" / file).read_bytes(), file


def test_clam_reads_our_export_in_its_own_order(slides, tmp_path):
    import torch

    main(["export", "--format", "clam", *slides.arguments(), "--out", str(tmp_path / "clam")])
    ours = both(slides.folder, "resnet18", "bag2")
    contour = np.array(read_instance_attrs(slides.folder / "instances/store", "bag2").contour_of_tile)
    with h5py.File(tmp_path / "clam/patches/bag2.h5") as file:
        attrs, coords = dict(file["coords"].attrs), file["coords"][:]
    assert (attrs["patch_size"], attrs["patch_level"], tuple(attrs["downsample"])) == (512, 0, (1.0, 1.0))
    for number in (0, 1):
        part = coords[:12] if number == 0 else coords[12:]
        assert {*map(tuple, part)} == {*map(tuple, ours["coords"][contour == number])}
        assert [tuple(p) for p in part] == sorted(map(tuple, part))  # x-major
    with h5py.File(tmp_path / "clam/h5_files/bag2.h5") as file:
        assert file["features"].dtype == np.float32 and file["features"].chunks[0] <= 32
        tensor = torch.load(tmp_path / "clam/pt_files/bag2.pt", weights_only=True)
        np.testing.assert_array_equal(tensor.numpy(), file["features"][:])
    position = {tuple(p): i for i, p in enumerate(ours["coords"])}
    np.testing.assert_array_equal(tensor.numpy()[5], ours["features"][position[tuple(coords[5])]].astype(np.float32))
    assert read_table(tmp_path / "clam/dataset.csv")[1] == {"case_id": "g0000", "slide_id": "bag1", "label": "1"}
    splits = read_table(tmp_path / "clam/splits/splits_0.csv")
    assert [line["train"] for line in splits] == ["bag0", "bag1", "bag2"] and splits[0]["test"] == "bag4"


def test_trident_names_its_folder_by_magnification_and_overlap(slides, tmp_path):
    main(["export", "--format", "trident", *slides.arguments(), "--out", str(tmp_path / "job")])
    path = tmp_path / "job/20x_256px_128px_overlap"
    with h5py.File(path / "patches/bag1_patches.h5") as file:
        attrs = dict(file["coords"].attrs)
        assert file["coords"].dtype == np.int64
    expected = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    assert {name: int(attrs[name]) for name in expected} == expected and attrs["overlap"] == 128
    with h5py.File(path / "features_resnet18/bag1.h5") as file:
        assert file["features"].attrs["encoder"] == "resnet18" and file["features"].dtype == np.float32


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_torchmils_own_dataset_reads_our_export(slides, tmp_path):
    """Same features and labels, and after its own scaling of coordinates the same edges."""
    from torchmil.datasets import CAMELYON16MILDataset

    # bags of other lattices cannot be in one tree
    argv = ["export", "--format", "torchmil", *slides.arguments(), "--bag-id", "bag1", "bag3"]
    assert main([*argv, "--out", str(tmp_path / "tree")]) == 0
    theirs = CAMELYON16MILDataset(str(tmp_path / "tree"), features="resnet18", partition="train", patch_size=256)
    assert theirs.bag_names == ["bag1"]
    ours, bag = both(slides.folder, "resnet18", "bag1"), theirs[0]
    np.testing.assert_array_equal(bag["X"].numpy(), ours["features"].astype(np.float32))
    assert int(bag["Y"]) == 1
    edges = {tuple(e) for e in bag["adj"].coalesce().indices().T.tolist()}
    assert edges == {(i, j) for i, row in enumerate(ours["neighbors"].tolist()) for j in row if j >= 0}


def test_clams_own_files_are_read(tmp_path):
    # two contours, the second beside the first and off its lattice, in CLAM's order (x-major)
    coords = np.concatenate([lattice(12, 512)[np.lexsort(lattice(12, 512).T[::-1])], lattice(3, 512, x0=2600, y0=100)])
    features = learnable(15, 1, 0)
    clam_slide(tmp_path / "clam", "TCGA 01 (a)", coords, features)
    labels = table(tmp_path / "classes.csv", "case_id,slide_id,label,mpp", "P-1234,TCGA 01 (a).svs,1,0.25")
    assert run_import("clam", tmp_path / "clam", tmp_path / "out", "clam_resnet50", "--labels", str(labels)) == 0
    row = read_bags(tmp_path / "out/bags.csv")[0]
    assert (row.bag_id, row.label, row.split, row.group) == ("TCGA_01__a_", 1, "", "g00000")
    attrs = read_instance_attrs(tmp_path / "out/instances/store", row.bag_id)
    assert (attrs.l0_footprint_px, attrs.l0_step_px, attrs.tile_px, attrs.read_level) == (512, 512, 256, 1)
    assert (attrs.mpp, attrs.mpp_source, attrs.tile_mpp) == (0.25, "manifest", 0.5)
    got = both(tmp_path / "out", "clam_resnet50", row.bag_id)
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    np.testing.assert_array_equal(got["coords"], coords[order])
    np.testing.assert_array_equal(got["features"], features[order])
    assert got["features"].dtype == np.float32 and np.isnan(got["coverage"]).all()
    # neighbours by brute force: within sqrt 2 steps
    distance = np.linalg.norm(coords[order][:, None] - coords[order][None], axis=2)
    expected = [
        {*np.flatnonzero((d <= 512 * np.sqrt(2) + 1e-6) & (np.arange(15) != i))} for i, d in enumerate(distance)
    ]
    assert [{j for j in found if j >= 0} for found in got["neighbors"].tolist()] == expected
    facts = read_feature_attrs(tmp_path / "out/features/clam_resnet50/store", row.bag_id)
    assert facts.weights_sha256 == "unknown" and "P-1234" not in (tmp_path / "out/bags.csv").read_text()


@pytest.mark.parametrize("changes", [{}, {"patch_size_level0": None}, {"overlap": 64}])
def test_tridents_own_files_are_read(tmp_path, changes):
    step = 512 - 2 * changes.get("overlap", 0)
    coords = lattice(20, step)
    trident_slide(tmp_path / "job", "s1", coords[::-1], learnable(20, 0, 1)[::-1], **changes)
    labels = table(tmp_path / "l.csv", "wsi,label,split", "s1.svs,0,train")
    assert run_import("trident", tmp_path / "job", tmp_path / "out", "uni_v1", "--labels", str(labels)) == 0
    got, attrs = both(tmp_path / "out", "uni_v1", "s1"), read_instance_attrs(tmp_path / "out/instances/store", "s1")
    assert (attrs.l0_footprint_px, attrs.l0_step_px, attrs.target_magnification) == (512, step, 20)
    np.testing.assert_array_equal(got["coords"], coords)
    np.testing.assert_array_equal(got["features"], learnable(20, 0, 1))
    np.testing.assert_array_equal(got["neighbors"], grid_neighbors(got["grid"]))
    assert (got["coverage"] == 0).all()  # a negative slide has no lesion


def test_torchmils_own_tree_is_read(tmp_path):
    root = tmp_path / "Camelyon16_MIL"
    for i in range(3):
        torchmil_slide(root, f"w{i}", lattice(7 + i) + 3, learnable(7 + i, i % 2, i), i % 2, np.arange(7 + i) < i)
    # the published lists repeat lines and name slides that are not extracted
    table(root / "splits.csv", "bag_name,split", "w0,train", "w0,train", "w1,train", "w2,test", "gone,test")
    assert run_import("torchmil", root, tmp_path / "out", "uni", "--features-name", "UNI") == 0
    rows = read_bags(tmp_path / "out/bags.csv")
    assert [(r.bag_id, r.label, r.split) for r in rows] == [("w0", 0, "train"), ("w1", 1, "train"), ("w2", 0, "test")]
    got = both(tmp_path / "out", "uni", "w1")
    np.testing.assert_array_equal(got["coverage"], (np.arange(8) < 1).astype(np.float32))
    assert (got["neighbors"] >= 0).sum() == (grid_neighbors(got["grid"]) >= 0).sum() > 0


def test_a_second_import_redoes_nothing_and_a_changed_file_only_itself(tmp_path):
    source, out = small_clam(tmp_path / "clam"), tmp_path / "out"
    assert run_import("clam", source, out, "x", "--bags-per-shard", "4") == 0
    assert sorted(p.name for p in (out / "features/x/shards").iterdir()) == ["0000.json", "0001.json", "0002.json"]
    before = {p: p.stat().st_mtime_ns for p in (out / "instances/store").glob("*/zarr.json")}
    clam_slide(source, "s3", lattice(4), learnable(4, 1, 99))
    assert run_import("clam", source, out, "x", "--bags-per-shard", "4") == 0
    after = {p: p.stat().st_mtime_ns for p in (out / "instances/store").glob("*/zarr.json")}
    assert [p.parent.name for p in before if before[p] != after[p]] == ["s3"]
    np.testing.assert_array_equal(both(out, "x", "s3")["features"], learnable(4, 1, 99))


def test_imported_bags_are_trained_and_predicted_by_the_usual_commands(tmp_path):
    out = tmp_path / "results/theirs"
    assert run_import("clam", small_clam(tmp_path / "clam"), out, "clam_resnet50") == 0
    source = [
        *("--bags", str(out / "bags.csv"), "--instances", str(out / "instances")),
        *("--features", str(out / "features/clam_resnet50")),
        *("--manifests", str(out / "features/clam_resnet50/shards/0000.json")),
    ]
    runs = out / "runs/clam_resnet50/smap_early"
    config = {"epochs": 15, "splits": [1], "learning_rates": [0.01], "val_share": 0.25, "device": "cpu", "threads": 1}
    argv = ["--dataset", "theirs", "--encoder", "clam_resnet50", "--method", "smap_early", *source]
    argv += ["--config-json", json.dumps({**config, "batch_size": 4}), "--out", str(runs)]
    assert train.main([*argv, "--done", str(runs / "runs.json")]) == 0
    folder = out / "predictions/clam_resnet50/smap_early"
    argv = ["--runs", str(runs / "runs.json"), *source, "--out", str(folder), "--index", str(folder / "index.json")]
    assert predict([*argv, "--device", "cpu", "--threads", "1"]) == 0
    test = load_predictions(next(folder.glob("*.npz"))).part("test")
    assert test["bag_id"].tolist() == ["s8", "s9"] and test["bag_logit"][1] > test["bag_logit"][0]


def test_the_workflow_goes_on_from_an_import(tmp_path, monkeypatch):
    """Snakemake finds the imported stages finished and plans training on them; the contact sheet can be drawn."""
    monkeypatch.chdir(tmp_path)
    small_clam(tmp_path / "clam")
    out = tmp_path / "results/theirs"
    assert run_import("clam", tmp_path / "clam", out, "uni_v1", "--bags-per-shard", "4") == 0
    jobs = planned(tmp_path, "metrics", "--configfile", "results/theirs/config.yaml")
    assert jobs["train_runs"] > 0
    assert not {"list_bags", "cut_instances", "extract_features", "fetch_weights"} & set(jobs)
    argv = ["--dataset", "theirs", "--bags", str(out / "bags.csv"), "--report", str(out / "bags.report.json")]
    argv += ["--instances", str(out / "instances"), "--manifests", *map(str, (out / "instances/shards").iterdir())]
    assert draw_sheet([*argv, "--out", str(out / "qc")]) == 0
    assert "s3" in (out / "qc/index.html").read_text()
