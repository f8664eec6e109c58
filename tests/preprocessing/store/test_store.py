"""The bag store: what was written comes back, also through Zarr; all or nothing under kill and contention; damage."""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.common.options import WsiOptions
from preprocessing.instances.graph import chain_neighbors, grid_neighbors
from preprocessing.store import files as store_files
from preprocessing.store.bags import (
    CorruptBag,
    FeatureAttrs,
    InstanceAttrs,
    as_stored,
    bag_path,
    check_pairing,
    clean_temporary,
    coords_hash,
    finished_attrs,
    read_arrays,
    read_instance_attrs,
    validate_bag,
    write_bag,
)
from tests.faults.damage import flip


def wsi_arrays(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A valid instances bag of n tiles."""
    rng = np.random.default_rng(seed)
    grid = np.stack([np.arange(n) // 7, np.arange(n) % 7], axis=1).astype(np.int32)
    coverage = rng.random(n, dtype=np.float32)
    coverage[::3] = np.nan
    return {"coords": grid[:, ::-1] * 512, "grid": grid, "neighbors": grid_neighbors(grid), "coverage": coverage}


def ct_arrays(n: int) -> dict[str, np.ndarray]:
    index = np.arange(n, dtype=np.int32)
    return {
        "coords": index[:, None].astype(np.float32) * 5,
        "grid": np.stack([index, 0 * index], axis=1),
        "neighbors": chain_neighbors(n),
        "coverage": np.zeros(n, np.float32),
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in a
    )


@pytest.mark.parametrize("n", [0, 1, 40])
@pytest.mark.parametrize("make", [wsi_arrays, ct_arrays])
def test_a_bag_gives_back_what_was_written_and_plain_zarr_opens_it(tmp_path, make, n):
    import zarr

    arrays = make(n)
    write_bag(tmp_path, "bag", arrays, InstanceAttrs(dataset="d", mpp=0.5, dimensions=(1, 4)))
    assert same(read_arrays(tmp_path, "bag", verify=True), arrays)
    assert validate_bag(tmp_path, "bag", schema="instances").dataset == "d"
    group = zarr.open(tmp_path / "bag", mode="r")
    assert group.attrs["mpp"] == 0.5 and group.attrs["dimensions"] == [1, 4]
    assert same({name: group[name][...] for name in group.array_keys()}, arrays)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 30), st.integers(1, 9), st.sampled_from(["float16", "float32"]), st.integers(0, 99))
def test_any_feature_matrix_survives(tmp_path_factory, n, p, dtype, seed):
    x = np.random.default_rng(seed).standard_normal((n, p)).astype(dtype)
    store = tmp_path_factory.mktemp("features")
    write_bag(store, "b", {"features": x[::-1]}, FeatureAttrs(coords_hash="c"))
    back = read_arrays(store, "b")["features"]
    assert back.dtype == x.dtype and np.array_equal(back, x[::-1])


def test_the_metadata_is_what_zarr_itself_would_write(tmp_path):
    import zarr

    x = np.ones((4, 3), np.float32)
    write_bag(tmp_path, "ours", {"features": x}, FeatureAttrs(coords_hash="c"))
    zarr.create_array(
        tmp_path / "theirs",
        data=x,
        chunks=x.shape,
        compressors=None,
        fill_value=np.nan,
        chunk_key_encoding={"name": "default", "separator": "."},
    )
    ours = json.loads((tmp_path / "ours/features/zarr.json").read_text())
    assert ours == json.loads((tmp_path / "theirs/zarr.json").read_text())
    assert (tmp_path / "ours/features/c.0.0").read_bytes() == (tmp_path / "theirs/c.0.0").read_bytes()


def test_the_content_hash_follows_content_and_nothing_else(tmp_path):
    def write(name, arrays, **attrs):
        return write_bag(tmp_path, name, arrays, InstanceAttrs(**attrs))

    first = write("a", wsi_arrays(9), label=1, software={"numpy": "2"})
    assert write("b", wsi_arrays(9), software={"numpy": "3"}, label=1) == first
    assert write("b", wsi_arrays(9, seed=1), label=1) != first
    assert write("b", wsi_arrays(9), label=0) != first
    assert read_instance_attrs(tmp_path, "a").software == {"numpy": "2"}


def test_finished_means_same_key_and_whole_chunks(tmp_path):
    def finished(key: str) -> bool:
        return finished_attrs(tmp_path, "bag", key, InstanceAttrs) is not None

    assert not finished("k")
    write_bag(tmp_path, "bag", wsi_arrays(9), InstanceAttrs(), key="k")
    assert finished("k") and not finished("other")
    chunk = tmp_path / "bag/grid/c.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert not finished("k")
    (tmp_path / "bag/zarr.json").write_text("{")
    assert not finished("k")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda bag: flip(bag / "coverage/c.0"), "coverage/c.0: the bytes differ"),
        (lambda bag: (bag / "grid/c.0.0").unlink(), "grid/c.0.0: 0 bytes, expected 72"),
        (lambda bag: (bag / "neighbors/zarr.json").unlink(), "neighbors/zarr.json"),
        (lambda bag: (bag / "zarr.json").write_text("{"), "zarr.json: not JSON"),
        (lambda bag: (bag / "zarr.json").write_text('{"attributes": {}}'), "not a bag of this store"),
    ],
)
def test_damage_is_found_and_named_and_the_bag_can_be_rebuilt(tmp_path, damage, named):
    write_bag(tmp_path, "bag", wsi_arrays(9), InstanceAttrs())
    damage(tmp_path / "bag")
    with pytest.raises(CorruptBag, match=named):
        validate_bag(tmp_path, "bag", schema="instances")
    write_bag(tmp_path, "bag", wsi_arrays(9), InstanceAttrs())
    validate_bag(tmp_path, "bag", schema="instances")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"grid": np.zeros((9, 2), np.int64)}, "grid is int64"),
        ({"grid": np.zeros((8, 2), np.int32)}, "grid is int32.8, 2., expected shape .* with N = 9"),
        ({"grid": np.zeros((9, 3), np.int32)}, "with 2 = 2"),
        ({"coverage": np.full(9, 1.5, np.float32)}, "coverage spans"),
        ({"coords": np.zeros((9, 3), np.int32)}, "expected 2 columns"),
        ({"neighbors": np.zeros((9, 8), np.int32)}, "neighbors has a row"),
        ({"extra": np.zeros(9, np.float32)}, "found arrays"),
    ],
)
def test_the_schema_refuses_other_arrays_and_writes_nothing(tmp_path, change, what):
    with pytest.raises(ValueError, match=f"bag x.*{what}"):
        write_bag(tmp_path, "x", {**wsi_arrays(9), **change}, InstanceAttrs())
    assert not (tmp_path / "x").exists()


def test_attributes_are_known_and_finite(tmp_path):
    with pytest.raises(ValueError, match="an attribute is infinite or NaN"):
        write_bag(tmp_path, "x", wsi_arrays(2), InstanceAttrs(mpp=float("nan")))
    write_bag(tmp_path, "x", wsi_arrays(2), InstanceAttrs())
    path = tmp_path / "x/zarr.json"
    path.write_text(path.read_text().replace('"attributes": {', '"attributes": {"colour": 1,'))
    with pytest.raises(CorruptBag, match=r"x/zarr\.json: attributes: colour: Extra inputs"):
        read_instance_attrs(tmp_path, "x")


def test_attributes_that_are_read_are_written_back_unchanged(tmp_path):
    given = InstanceAttrs(mpp=1, tile_mpp=1.0, label=None, windows=((40, 80.0),), instance_options=WsiOptions())
    first = write_bag(tmp_path, "a", wsi_arrays(9), given)
    read = read_instance_attrs(tmp_path, "a")
    assert write_bag(tmp_path, "b", wsi_arrays(9), read) == first and read.instance_options == WsiOptions()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_a_bag_id_must_be_a_plain_name(tmp_path, name):
    with pytest.raises(ValueError, match="bag id"):
        bag_path(tmp_path, name)


def test_features_of_other_coordinates_are_refused(tmp_path):
    arrays = wsi_arrays(9)
    write_bag(tmp_path / "i", "bag", arrays, InstanceAttrs())
    ours = read_instance_attrs(tmp_path / "i", "bag")
    assert ours.coords_hash == coords_hash(arrays["coords"], arrays["grid"])
    check_pairing(ours, FeatureAttrs(coords_hash=ours.coords_hash), "bag")
    moved = coords_hash(arrays["coords"] + 1, arrays["grid"])
    with pytest.raises(ValueError, match="bag bag: the features .resnet18. belong to other coordinates"):
        check_pairing(ours, FeatureAttrs(coords_hash=moved, encoder="resnet18"), "bag")
    with pytest.raises(ValueError, match="coords_hash is missing"):
        write_bag(tmp_path / "f", "bag", {"features": np.zeros((9, 4), np.float32)}, FeatureAttrs())


def test_values_beyond_float16_are_refused_not_clipped(tmp_path):
    x = np.array([[1.0, 65504.0]], np.float32)
    assert as_stored(x, "float16").dtype == np.float16
    with pytest.raises(ValueError, match="70000.*float32"):
        as_stored(np.array([[70000.0]], np.float32), "float16")
    assert as_stored(np.array([[70000.0]], np.float32), "float32").dtype == np.float32
    with pytest.raises(ValueError, match="NaN or infinity"):
        write_bag(tmp_path, "b", {"features": x * np.inf}, FeatureAttrs(coords_hash="c"))


_WRITER = """
import sys, numpy as np
from preprocessing.store.bags import FeatureAttrs, write_bag
store, kind = sys.argv[1:3]
print("ready", flush=True)
n = 0
while True:
    n += 1
    x = np.full((4000, 64), n % 1000, np.float32)
    name = "same" if kind == "same" else f"bag{n % 7}"
    write_bag(store, name, {"features": x}, FeatureAttrs(coords_hash="c"))
    print("wrote", flush=True)
"""


def _start_writer(store: Path, kind: str, repository: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(store), kind], stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def _assert_whole(store: Path) -> int:
    bags = [path.name for path in store.iterdir() if path.name != store_files.TEMPORARY] if store.exists() else []
    for bag in bags:
        validate_bag(store, bag, schema="features")
        x = read_arrays(store, bag)["features"]
        assert x.shape == (4000, 64) and (x == x[0, 0]).all()
    return len(bags)


def test_a_killed_writer_leaves_whole_bags_or_none(tmp_path, repository):
    rng = random.Random(7)
    for trial in range(6):
        process = _start_writer(tmp_path, "same" if trial % 2 else "different", repository)
        assert process.stdout is not None
        for _ in range(rng.randrange(4)):  # written bags are counted: a busy machine writes late
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.wait()
        process.stdout.close()
        _assert_whole(tmp_path)
    assert _assert_whole(tmp_path) > 0


def test_a_crash_between_the_two_renames_leaves_no_bag_and_the_next_write_heals(tmp_path, monkeypatch):
    write_bag(tmp_path, "bag", wsi_arrays(3), InstanceAttrs(), key="old")
    rename = os.rename

    def crash(source, target):
        if Path(target).name == "bag" and not Path(target).exists():
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        write_bag(tmp_path, "bag", wsi_arrays(4), InstanceAttrs(), key="new")
    monkeypatch.undo()
    assert finished_attrs(tmp_path, "bag", "new", InstanceAttrs) is None
    write_bag(tmp_path, "bag", wsi_arrays(4), InstanceAttrs(), key="new")
    validate_bag(tmp_path, "bag", schema="instances")


def _write_many(store: str, name: str, value: int, times: int) -> None:
    x = np.full((2000, 16), value, np.float32)
    for _ in range(times):
        write_bag(store, name, {"features": x}, FeatureAttrs(coords_hash="c", stage_version=value))


def test_parallel_writers_of_one_bag_and_of_many(tmp_path):
    with ProcessPoolExecutor(3) as pool:
        jobs = [pool.submit(_write_many, str(tmp_path), "one", value, 15) for value in range(3)]
        jobs += [pool.submit(_write_many, str(tmp_path), f"bag{value}", value, 5) for value in range(3)]
        for job in jobs:
            job.result()
    for bag in ("one", "bag0", "bag1", "bag2"):
        attrs = validate_bag(tmp_path, bag, schema="features")
        assert (read_arrays(tmp_path, bag)["features"] == attrs.stage_version).all()
    assert not list((tmp_path / store_files.TEMPORARY).iterdir())


def test_only_leftovers_of_dead_or_long_gone_writers_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, now = store_files._host(), time.time()
    ages = {
        f"bag.{host}.{dead.pid}.aa": 3600.0,
        f"bag.{host}.{dead.pid}.bb": 5.0,
        f"bag.{host}.{os.getpid()}.cc": 3600.0,
        "bag.elsewhere.1.dd": 3600.0,
        "bag.elsewhere.1.ee": 1e6,
        # a file from the future may belong to a live writer on a machine whose clock is ahead
        "bag.elsewhere.1.ff": -1e9,
    }
    for name, age in ages.items():
        path = tmp_path / store_files.TEMPORARY / name
        path.mkdir(parents=True)
        os.utime(path, (now - age, now - age))
    assert clean_temporary(tmp_path) == 2
    left = {path.name[-2:] for path in (tmp_path / store_files.TEMPORARY).iterdir()}
    assert left == {"bb", "cc", "dd", "ff"}
    assert clean_temporary(tmp_path / "absent") == 0
