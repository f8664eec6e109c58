"""Other tools' files that are damaged, hostile or do not fit: one reason each, and nothing half imported."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing.bags.manifests import ShardManifest
from preprocessing.exchange.__main__ import main
from preprocessing.exchange.files import read_npy
from preprocessing.exchange.geometry import slide_geometry
from preprocessing.exchange.tables import read_lines
from preprocessing.instances.graph import grid_neighbors
from preprocessing.store.attrs import InstanceAttrs
from tests.faults.damage import cut
from tests.helpers.exchange_files import (
    both,
    clam_slide,
    lattice,
    learnable,
    reason,
    run_import,
    save_like_clam,
    small_clam,
    table,
    torchmil_slide,
    trident_slide,
)


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
    states = {entry.bag_id: entry.state for entry in ShardManifest.read(out / "features/x/shards/0000.json").bags}
    assert states.pop("s2") == "failed" and set(states.values()) == {"ok"}


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("features/features_UNI", np.array([{"a": 1}], dtype=object), "pickled objects are not loaded"),
        ("coords", lattice(3), "rows of features for 3 coordinates"),
        ("patch_labels", np.zeros(9), "expected 8 labels"),
        ("patch_labels", np.full(8, 7), "expected 8 labels"),
        ("features/features_UNI", b"\x93NUMPY\x01\x00", "not a plain npy file"),
        ("features/features_UNI", "truncated", "not a plain npy file"),
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
    elif isinstance(content, str):
        # refused before memory is taken
        data = path.read_bytes()
        path.write_bytes(data.replace(b"(8, 6)", b"(8, 600000000000)")[: len(data)])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    assert run_import("torchmil", tmp_path / "tree", tmp_path / "out", "UNI") == 1
    assert message in reason(tmp_path / "out", "w1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "attribute 'smmil' is damaged"),
        ('{"attrs": [], "facts": {}}', "attribute 'smmil' is damaged"),
        ('{"attrs": {"l0_step_px": 0}, "facts": {}}', "l0_step_px is 0"),
        ('{"attrs": {"l0_footprint_px": 99}, "facts": {}}', "says tiles of 99 px at level 0"),
        ('{"attrs": {"grid_origin_l0": "here"}, "facts": {}}', "grid_origin_l0 is 'here'"),
        ('{"attrs": {"modality": "ct"}, "facts": {}}', "carried as ct"),
        ('{"attrs": {}, "facts": {"dtype": "int8"}}', "expected 'float16' or 'float32'"),
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
        assert ShardManifest.read(tmp_path / "out" / stage / "shards/0000.json").by_id["s2"].state == "empty"


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


def test_an_export_without_bags_or_with_unknown_ones_is_an_error(slides, tmp_path, capsys):
    argv = ["export", "--format", "clam", "--out", str(tmp_path / "x")]
    assert main([*argv, *slides.arguments(), "--bag-id", "nobody"]) == 2
    assert main([*argv, *slides.arguments()[:4]]) == 2
    errors = capsys.readouterr().err
    assert "no bags ['nobody'] among 6" in errors and "--features: clam holds features" in errors


def test_lattice_cells_come_back_from_a_padded_origin():
    coords = lattice(9, 100, x0=-30, y0=-70, width=3).astype(np.int32)
    grid, neighbors = slide_geometry(coords, InstanceAttrs(l0_step_px=100, grid_origin_l0=(-30, -70)))
    assert grid.tolist() == [[i, j] for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(neighbors, grid_neighbors(grid))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"(2, 3), }", b"(2, 1%s), }" % (b"0" * 22), "not a plain npy file"),
        (b"(2, 3), }", b"(True,), }", "not a plain npy file"),
        (b"{'descr'", b"((((((((", "not a plain npy file"),
        (b"(2, 3), }", b"(2, 2), }", "8 bytes more than the header says"),
        (b"(2, 3), }", b"(0, 3), }", "24 bytes more than the header says"),
    ],
)
def test_a_header_that_does_not_fit_an_npy_file_is_refused(tmp_path, old, new, message):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    data = path.read_bytes()
    path.write_bytes(data[:10] + data[10:127].replace(old, new)[:117].ljust(117) + data[127:])
    with pytest.raises(ValueError, match=message):
        read_npy(path)
