"""Other tools' files: export and import give the same bags back, their own files are read, bad ones are refused."""

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing.bags import read_bags
from preprocessing.exchange import FORMATS, get_format
from preprocessing.exchange.__main__ import main
from preprocessing.exchange.geometry import slide_geometry
from preprocessing.exchange.tables import read_lines
from preprocessing.graph import grid_neighbors
from preprocessing.shards import read_manifest
from preprocessing.store import read_arrays, read_attrs, validate_bag
from smmil import train
from smmil.predictions import main as predict
from smmil.results import load_predictions
from tests.exchange_files import (
    Store,
    clam_slide,
    lattice,
    learnable,
    read_table,
    save_like_clam,
    table,
    torchmil_slide,
    trident_slide,
)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.ERROR)


def run_import(kind: str, source: Path, out: Path, encoder: str, *more: str) -> int:
    argv = ["import", "--format", kind, "--source", str(source), "--dataset", "theirs", "--encoder", encoder]
    return main([*argv, "--out", str(out), *more])


def reason(out: Path, bag: str) -> str:
    """Why a bag failed, from the status that outlives the manifest."""
    lines = (out / "status/instances/0000.jsonl").read_text().splitlines()
    return next(entry["reason"] for entry in map(json.loads, reversed(lines)) if entry["bag_id"] == bag)


def both(folder: Path, encoder: str, bag: str) -> dict[str, np.ndarray]:
    """All arrays of a bag."""
    return {
        **read_arrays(folder / "instances/store", bag, verify=True),
        **read_arrays(folder / "features" / encoder / "store", bag, verify=True),
    }


def test_every_format_is_registered_and_an_unknown_one_named():
    assert [*FORMATS] == ["clam", "trident", "torchmil", "qupath"]
    with pytest.raises(ValueError, match="clam, trident, torchmil, qupath"):
        get_format("stamp")


@pytest.mark.parametrize("scans", [False, True])
@pytest.mark.parametrize("kind", ["clam", "trident", "torchmil"])
def test_export_and_import_give_the_same_bags_back(tmp_path, kind, scans, capsys):
    store = Store(tmp_path / "ours", scans=scans)
    code = main(["export", "--format", kind, *store.arguments(), "--out", str(tmp_path / "theirs")])
    if scans and kind != "torchmil":
        assert code == 2 and "export scans as torchmil" in capsys.readouterr().err
        return
    assert code == 0
    assert run_import(kind, tmp_path / "theirs", tmp_path / "back", "resnet18") == 0
    got = {row.bag_id: row for row in read_bags(tmp_path / "back/bags.csv")}
    for row in store.rows:
        back = got[row.bag_id]
        assert (back.label, back.split, back.group, back.modality) == (row.label, row.split, row.group, row.modality)
        before, after = (both(folder, "resnet18", row.bag_id) for folder in (store.folder, tmp_path / "back"))
        if kind == "torchmil":
            share = before["coverage"]
            before["coverage"] = np.where(np.isnan(share), share, share > 0.5).astype(np.float32)
        assert before.keys() == after.keys()
        for name, array in before.items():
            assert after[name].dtype == array.dtype, name
            np.testing.assert_array_equal(after[name], array, err_msg=f"{row.bag_id} {name}")
        stores = (store.folder, tmp_path / "back")
        attrs = [read_attrs(folder / "instances/store", row.bag_id) for folder in stores]
        assert attrs[0]["coords_hash"] == attrs[1]["coords_hash"]
        for name in ("l0_footprint_px", "l0_step_px", "tile_px", "mpp", "mpp_source", "read_level", "slice_px"):
            assert attrs[0].get(name) == attrs[1].get(name)
        facts = [read_attrs(folder / "features/resnet18/store", row.bag_id) for folder in stores]
        for name in ("encoder", "weights_sha256", "random_weights", "resize_policy"):
            assert facts[0][name] == facts[1][name]
        validate_bag(tmp_path / "back/instances/store", row.bag_id, schema="instances")


def test_exports_have_equal_bytes(tmp_path):
    store = Store(tmp_path / "ours")
    for kind in FORMATS:
        for name in ("a", "b"):
            assert main(["export", "--format", kind, *store.arguments(), "--out", str(tmp_path / kind / name)]) == 0
        files = sorted(p.relative_to(tmp_path / kind / "a") for p in (tmp_path / kind / "a").rglob("*") if p.is_file())
        assert files and not [p for p in files if p.name.startswith(".")]
        for file in files:
            assert (tmp_path / kind / "a" / file).read_bytes() == (tmp_path / kind / "b" / file).read_bytes(), file


def test_clam_reads_our_export_in_its_own_order(tmp_path):
    import torch

    store = Store(tmp_path / "ours")
    main(["export", "--format", "clam", *store.arguments(), "--out", str(tmp_path / "clam")])
    ours = both(store.folder, "resnet18", "bag2")
    contour = np.array(read_attrs(store.folder / "instances/store", "bag2")["contour_of_tile"])
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


def test_trident_names_its_folder_by_magnification_and_overlap(tmp_path):
    store = Store(tmp_path / "ours")
    main(["export", "--format", "trident", *store.arguments(), "--out", str(tmp_path / "job")])
    path = tmp_path / "job/20x_256px_128px_overlap"
    with h5py.File(path / "patches/bag1_patches.h5") as file:
        attrs = dict(file["coords"].attrs)
        assert file["coords"].dtype == np.int64
    expected = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    assert {name: int(attrs[name]) for name in expected} == expected and attrs["overlap"] == 128
    with h5py.File(path / "features_resnet18/bag1.h5") as file:
        assert file["features"].attrs["encoder"] == "resnet18" and file["features"].dtype == np.float32


def test_clams_own_files_are_read(tmp_path):
    # two contours, the second beside the first and off its lattice, in CLAM's order (x-major)
    coords = np.concatenate([lattice(12, 512)[np.lexsort(lattice(12, 512).T[::-1])], lattice(3, 512, x0=2600, y0=100)])
    features = learnable(15, 1, 0)
    clam_slide(tmp_path / "clam", "TCGA 01 (a)", coords, features)
    labels = table(tmp_path / "classes.csv", "case_id,slide_id,label,mpp", "P-1234,TCGA 01 (a).svs,1,0.25")
    assert run_import("clam", tmp_path / "clam", tmp_path / "out", "clam_resnet50", "--labels", str(labels)) == 0
    row = read_bags(tmp_path / "out/bags.csv")[0]
    assert (row.bag_id, row.label, row.split, row.group) == ("TCGA_01__a_", 1, "", "g00000")
    attrs = read_attrs(tmp_path / "out/instances/store", row.bag_id)
    assert (attrs["l0_footprint_px"], attrs["l0_step_px"], attrs["tile_px"], attrs["read_level"]) == (512, 512, 256, 1)
    assert (attrs["mpp"], attrs["mpp_source"], attrs["tile_mpp"]) == (0.25, "manifest", 0.5)
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
    facts = read_attrs(tmp_path / "out/features/clam_resnet50/store", row.bag_id)
    assert facts["weights_sha256"] == "unknown" and "P-1234" not in (tmp_path / "out/bags.csv").read_text()


@pytest.mark.parametrize("changes", [{}, {"patch_size_level0": None}, {"overlap": 64}])
def test_tridents_own_files_are_read(tmp_path, changes):
    step = 512 - 2 * changes.get("overlap", 0)
    coords = lattice(20, step)
    trident_slide(tmp_path / "job", "s1", coords[::-1], learnable(20, 0, 1)[::-1], **changes)
    labels = table(tmp_path / "l.csv", "wsi,label,split", "s1.svs,0,train")
    assert run_import("trident", tmp_path / "job", tmp_path / "out", "uni_v1", "--labels", str(labels)) == 0
    got, attrs = both(tmp_path / "out", "uni_v1", "s1"), read_attrs(tmp_path / "out/instances/store", "s1")
    assert (attrs["l0_footprint_px"], attrs["l0_step_px"], attrs["target_magnification"]) == (512, step, 20)
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


def small_clam(folder: Path) -> Path:
    for i in range(10):
        n = 4 + i % 3
        clam_slide(folder, f"s{i}", lattice(n), learnable(n, i % 2, i))
    table(folder / "dataset.csv", "case_id,slide_id,label", *(f"c{i},s{i},{i % 2}" for i in range(10)))
    lines = [f"{i},s{i},,{f's{i + 8}' if i < 2 else ''}" for i in range(8)]
    table(folder / "splits/splits_0.csv", ",train,val,test", *lines)
    return folder


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


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def rewrite(**arrays: np.ndarray | None):
    def change(path: Path) -> None:
        with h5py.File(path, "a") as file:
            for name, array in arrays.items():
                del file[name]
                if array is not None:
                    file.create_dataset(name, data=array)

    return change


def declare_huge(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_dataset("features", shape=(6, 1 << 40), dtype="f4", chunks=(1, 1 << 10))


def link_out(path: Path) -> None:
    save_like_clam(path.with_name("secret.hdf"), {"features": learnable(6, 0, 0)}, {})
    with h5py.File(path, "a") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink("secret.hdf", "features")


def patch_size(value: object):
    def change(path: Path) -> None:
        with h5py.File(path.parent.parent / "patches/s2.h5", "a") as file:
            file["coords"].attrs["patch_size"] = value

    return change


NAN = np.where(np.arange(36).reshape(6, 6) == 20, np.nan, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "not a readable HDF5 file"),
        (lambda path: path.write_text("no h5"), "not a readable HDF5 file"),
        (rewrite(features=None), "no dataset 'features', found ['coords']"),
        (rewrite(coords=None), "no dataset 'coords', found ['features']"),
        (rewrite(features=learnable(5, 0, 0)), "5 rows of features for 6 coordinates"),
        (rewrite(features=NAN), "features of 1 rows hold NaN or infinity (first: row 3)"),
        (rewrite(features=np.arange(36).reshape(6, 6)), "expected floats of shape (N, P)"),
        (rewrite(features=np.array([b"x"] * 6)), "expected numbers"),
        (rewrite(features=learnable(6, 0, 0)[:, :3]), "3 features, other bags have 6"),
        (rewrite(coords=lattice(6) + 1), "belong to another patching"),
        (rewrite(coords=lattice(6) + 0.5), "expected whole level-0 pixels"),
        (rewrite(coords=lattice(6) + 2**40), "expected 32-bit pixels"),
        (rewrite(coords=np.arange(6)), "expected (N, 2)"),
        (declare_huge, "was it written to the end?"),
        (link_out, "no dataset 'features'"),
        (patch_size("big"), "attribute 'patch_size' is 'big'"),
        (patch_size(0), "attribute 'patch_size' is 0"),
    ],
)
def test_a_bad_file_is_that_bags_failure_with_one_reason(tmp_path, change, message):
    source, out = tmp_path / "clam", tmp_path / "out"
    for i in range(3):
        clam_slide(source, f"s{i}", lattice(4 + i), learnable(4 + i, 0, i))
    change(source / "h5_files/s2.h5")
    assert run_import("clam", source, out, "x") == 1
    assert not (out / "instances/shards/0000.json").exists()
    assert message in reason(out, "s2")
    assert run_import("clam", source, out, "x", "--allowed-failures", "1") == 0
    states = {name: entry["state"] for name, entry in read_manifest(out / "features/x/shards/0000.json").items()}
    assert states.pop("s2") == "failed" and set(states.values()) == {"ok"}


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("features/features_UNI", np.array([{"a": 1}], dtype=object), "pickled objects are not loaded"),
        ("coords", lattice(3), "rows of features for 3 coordinates"),
        ("patch_labels", np.zeros(9), "expected 8 labels"),
        ("patch_labels", np.full(8, 7), "expected 8 labels"),
        ("features/features_UNI", b"\x93NUMPY\x01\x00", "not a plain npy file"),
        ("coords", b"PK\x03\x04 an archive", "not a plain npy file"),
        ("coords", None, "no such file"),
    ],
)
def test_a_bad_npy_is_that_bags_failure(tmp_path, part, content, message):
    for i in range(2):
        torchmil_slide(tmp_path / "tree", f"w{i}", lattice(8), learnable(8, i, i), i, np.zeros(8))
    path = tmp_path / "tree/patches_512" / part / "w1.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    assert run_import("torchmil", tmp_path / "tree", tmp_path / "out", "UNI") == 1
    assert message in reason(tmp_path / "out", "w1")


def test_a_truncated_npy_is_refused_before_memory_is_taken(tmp_path):
    torchmil_slide(tmp_path / "tree", "w0", lattice(8), learnable(8, 0, 0), 0, np.zeros(8))
    path = tmp_path / "tree/patches_512/features/features_UNI/w0.npy"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"(8, 6)", b"(8, 600000000000)")[: len(data)])
    assert run_import("torchmil", tmp_path / "tree", tmp_path / "out", "UNI") == 1
    assert "w0.npy" in reason(tmp_path / "out", "w0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "attribute 'smmil' is damaged"),
        ('{"attrs": [], "facts": {}}', "attribute 'smmil' is damaged"),
        ('{"attrs": {"l0_step_px": 0}, "facts": {}}', "l0_step_px is 0"),
        ('{"attrs": {"l0_footprint_px": 99}, "facts": {}}', "says tiles of 99 px at level 0"),
        ('{"attrs": {"grid_origin_l0": "here"}, "facts": {}}', "grid_origin_l0 is 'here'"),
        ('{"attrs": {"modality": "ct"}, "facts": {}}', "carried as ct"),
        ('{"attrs": {}, "facts": {"dtype": "int8"}}', "expected float16 or float32"),
    ],
)
def test_damaged_side_information_is_refused(tmp_path, text, message):
    clam_slide(tmp_path / "clam", "s0", lattice(4), learnable(4, 0, 0))
    with h5py.File(tmp_path / "clam/h5_files/s0.h5", "a") as file:
        file["coords"].attrs["smmil"] = text
    assert run_import("clam", tmp_path / "clam", tmp_path / "out", "x") == 1
    assert message in reason(tmp_path / "out", "s0")


def test_overlapping_tiles_need_their_step(tmp_path):
    clam_slide(tmp_path / "clam", "s0", lattice(40, 256, width=10), learnable(40, 0, 0))
    assert run_import("clam", tmp_path / "clam", tmp_path / "out", "x") == 1
    assert "give --step-px 256" in reason(tmp_path / "out", "s0")
    assert run_import("clam", tmp_path / "clam", tmp_path / "out", "x", "--step-px", "256") == 0
    assert (both(tmp_path / "out", "x", "s0")["neighbors"] >= 0).sum(axis=1).max() == 8


def test_an_empty_bag_is_an_outcome(tmp_path):
    source = small_clam(tmp_path / "clam")
    clam_slide(source, "s2", np.empty((0, 2)), np.empty((0, 6)))
    assert run_import("clam", source, tmp_path / "out", "x") == 0
    for stage in ("instances", "features/x"):
        assert read_manifest(tmp_path / "out" / stage / "shards/0000.json")["s2"]["state"] == "empty"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["slide_id,label", "s0,tumor"], "write the classes of CLAM as 0 and 1"),
        (["slide_id,label", "s0,1", "s0,0"], "'s0' occurs twice"),
        (["case,label", "s0,1"], "none of the columns"),
        (["slide_id,label", "gone,1"], "the tables name 1 bags without a file, e.g. gone"),
        (["slide_id,label,split", "s0,,train"], "label: empty, but split is train"),
    ],
)
def test_bad_tables_stop_before_anything_is_written(tmp_path, capsys, lines, message):
    clam_slide(tmp_path / "clam", "s0", lattice(4), learnable(4, 0, 0))
    labels = table(tmp_path / "labels.csv", *lines)
    assert run_import("clam", tmp_path / "clam", tmp_path / "out", "x", "--labels", str(labels)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_wrong_folders_are_named(tmp_path, capsys):
    assert run_import("clam", tmp_path / "none", tmp_path / "out", "x") == 2
    trident_slide(tmp_path / "job", "s1", lattice(4), learnable(4, 0, 0))
    assert run_import("trident", tmp_path / "job", tmp_path / "out", "conch") == 2
    (tmp_path / "job/10x_256px_0px_overlap").mkdir()
    assert run_import("trident", tmp_path / "job", tmp_path / "out", "uni_v1") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "no such folder" in errors[0] and "features_conch: no such folder" in errors[1]
    assert "10x_256px_0px_overlap, 20x_256px_0px_overlap" in errors[2]


def test_a_split_named_twice_is_refused(tmp_path):
    path = table(tmp_path / "s.csv", "bag_name,split", "a,train", "a,test")
    with pytest.raises(ValueError, match="'a' is in two splits"):
        read_lines(None, path)


def test_lattice_cells_come_back_from_a_padded_origin():
    coords = lattice(9, 100, x0=-30, y0=-70, width=3).astype(np.int32)
    grid, neighbors = slide_geometry(coords, {"l0_step_px": 100, "grid_origin_l0": [-30, -70]})
    assert grid.tolist() == [[i, j] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(neighbors, grid_neighbors(grid))


def test_an_export_without_bags_or_with_unknown_ones_is_an_error(tmp_path, capsys):
    store = Store(tmp_path / "ours")
    argv = ["export", "--format", "clam", "--out", str(tmp_path / "x")]
    assert main([*argv, *store.arguments(), "--bag-id", "nobody"]) == 2
    assert main([*argv, *store.arguments()[:4]]) == 2
    errors = capsys.readouterr().err
    assert "no bags ['nobody'] among 6" in errors and "--features: clam holds features" in errors
