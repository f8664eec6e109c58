"""The features stage: one pass for all encoders, nothing redone, failures kept apart, bytes free of timing."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.files import write_json
from preprocessing.features import __main__ as features
from preprocessing.features import extraction
from preprocessing.features import stage as feature_stage
from preprocessing.features.encoder_model import load_encoder
from preprocessing.features.encoders import ENCODERS
from preprocessing.features.extraction import BLOCK_TILES, LANES, Abort, BagPlan, Extraction, decoded
from preprocessing.features.transforms import Resize, resized
from preprocessing.instances.graph import grid_neighbors
from preprocessing.store.bags import (
    InstanceAttrs,
    read_arrays,
    read_feature_attrs,
    read_instance_attrs,
    validate_bag,
    write_bag,
)

SIDE = 40


def tiny(channels: int) -> nn.Module:
    """A small convolutional encoder with pooled output."""
    layers = [nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten())


def tile(bag: str, index: int) -> np.ndarray:
    """A tile that only this bag has at this place."""
    seed = [index, *bag.encode()]
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


class Cohort:
    """Bags whose tiles are made up; `decoded` lists every tile that was read."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.out = folder, folder / "results/features"
        self.instances = folder / "results/instances"
        self.decoded: list[tuple[str, int]] = []
        self.broken: dict[str, int] = {}
        self.rows: list[BagRow] = []
        self.entries: list[dict[str, object]] = []
        monkeypatch.setattr(feature_stage, "_tiles_of", self.tiles_of)
        # the statistics of random weights take longer than the tiny encoders
        monkeypatch.setattr("preprocessing.features.random_weights.CALIBRATION_TILES", 2)
        for name, channels in (("small", 12), ("wide", 20), ("third", 4)):
            entry = replace(ENCODERS["resnet18"], name=name, dim=channels, build=lambda c=channels: tiny(c))
            monkeypatch.setitem(ENCODERS, name, replace(entry, cut=lambda model: model))

    def add(self, name: str, n: int, state: str = "ok") -> None:
        (self.folder / f"{name}.tif").touch()
        self.rows.append(BagRow(name, "wsi", (f"{name}.tif",), 1, "train"))
        content = ""
        if state == "ok":
            grid = np.stack([np.arange(n), np.zeros(n)], axis=1).astype(np.int32)
            arrays = {"coords": grid[:, ::-1] * 64, "grid": grid, "neighbors": grid_neighbors(grid)}
            arrays["coverage"] = np.zeros(n, np.float32)
            attrs = {"pixels_key": f"pixels of {name}", "tile_px": SIDE, "stage_version": 1}
            content = write_bag(self.instances / "store", name, arrays, InstanceAttrs(**attrs))
        reason = {"ok": "", "empty": "no tissue found", "failed": "no mpp"}[state]
        self.entries.append({"bag_id": name, "state": state, "n": n, "hash": content, "reason": reason})

    def tiles_of(self, bag: feature_stage._Bag, root: Path, instances: Path):
        name = bag.row.bag_id

        def tiles(start: int, stop: int) -> Iterator[np.ndarray]:
            for index in range(start, stop):
                if self.broken.get(name) == index:
                    raise ValueError(f"{name}.tif: tile {index} cannot be decoded")
                self.decoded.append((name, index))
                yield tile(name, index)

        return tiles

    def argv(self, encoder: str, *more: str) -> list[str]:
        bags, manifest = self.folder / "bags.csv", self.instances / "shards/0000.json"
        write_bags(bags, self.rows)
        write_json(manifest, {"bags": self.entries})
        return [
            *("--dataset", "demo", "--bags", str(bags), "--root", str(self.folder), "--shard", "0000"),
            *("--bags-per-shard", "99", "--instances", str(self.instances), "--instances-manifest", str(manifest)),
            *("--encoder", encoder, "--weights-mode", "random", "--resize-policy", "resize32", "--device", "cpu"),
            *("--batch-size", "7", "--out", str(self.out), "--manifest", str(self.manifest(encoder)), *more),
        ]

    def run(self, encoder: str, *more: str) -> int:
        self.decoded.clear()
        return features.main(self.argv(encoder, *more))

    def manifest(self, encoder: str) -> Path:
        return self.out / encoder / "shards/0000.json"

    def features(self, encoder: str, bag: str) -> np.ndarray:
        return read_arrays(self.out / encoder / "store", bag, verify=True)["features"]


@pytest.fixture
def cohort(tmp_path, monkeypatch) -> Cohort:
    made = Cohort(tmp_path, monkeypatch)
    for name, n in (("a", 5), ("b", 1), ("c", 30), ("d", 11)):
        made.add(name, n)
    return made


def test_features_are_those_of_each_tile_in_the_order_of_the_bag(cohort):
    cohort.add("nothing", 0, "empty")
    assert cohort.run("small", "--dtype", "float32") == 0
    encoder = load_encoder("small", mode="random", policy="resize32")
    for row in cohort.rows[:4]:
        ours = cohort.features("small", row.bag_id)
        one_by_one = [encoder(torch.from_numpy(tile(row.bag_id, i))[None])[0].numpy() for i in range(len(ours))]
        assert ours.shape == (len(one_by_one), 12) and np.allclose(ours, one_by_one, atol=1e-5)
        attrs = validate_bag(cohort.out / "small/store", row.bag_id, schema="features")
        assert attrs.encoder == "small@random-0" and attrs.random_weights is True
        assert attrs.coords_hash == read_instance_attrs(cohort.instances / "store", row.bag_id).coords_hash
    entries = ShardManifest.read(cohort.manifest("small")).by_id
    assert entries["nothing"] == ManifestEntry(bag_id="nothing", state="empty", reason="no tissue found")
    assert entries["c"].n == 30 and entries["c"].hash


def test_one_pass_serves_all_encoders_and_later_ones_leave_finished_bags_alone(cohort):
    assert cohort.run("small") == 0
    before = {p: p.stat().st_mtime_ns for p in (cohort.out / "small/store").rglob("*") if p.is_file()}
    assert cohort.run("wide", "--also", "small,third") == 0
    sizes = {"a": 5, "b": 1, "c": 30, "d": 11}
    assert sorted(cohort.decoded) == [(name, i) for name, n in sizes.items() for i in range(n)]
    assert {p: p.stat().st_mtime_ns for p in before} == before and not cohort.manifest("third").exists()
    assert cohort.run("third", "--also", "small,wide") == 0
    assert cohort.decoded == [] and cohort.features("third", "c").shape == (30, 4)
    assert ShardManifest.read(cohort.manifest("third")).by_id.keys() == sizes.keys()


def test_bytes_do_not_depend_on_threads_interruption_or_company(tmp_path_factory, monkeypatch):
    """A job of several threads that stops half-way and is resumed gives the bytes of one undisturbed run."""
    manifests = []
    for disturbed in (False, True):
        made = Cohort(tmp_path_factory.mktemp("cohort"), monkeypatch)
        for name, n in (("a", 60), ("b", 23), ("c", 9)):
            made.add(name, n)
        if disturbed:
            made.broken = {"b": 20}
            assert made.run("small", "--also", "wide", "--workers", "4") == 1
            made.broken = {}
        assert made.run("small", "--workers", "4" if disturbed else "1") == 0
        manifests.append(made.manifest("small").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_bag_that_fails_to_decode_leaves_the_others_whole(cohort):
    cohort.broken = {"c": 17}
    assert cohort.run("small", "--also", "wide") == 1
    assert not cohort.manifest("small").exists() and not (cohort.out / "small/store/c").exists()
    lines = (cohort.out.parent / "status/features/small/0000.jsonl").read_text().splitlines()
    states = {line["bag_id"]: line for line in map(json.loads, lines)}
    assert [states[n]["state"] for n in "abcd"] == ["ok", "ok", "failed", "ok"]
    assert states["c"]["reason"] == "c.tif: tile 17 cannot be decoded"
    assert cohort.run("small", "--allowed-failures", "1") == 0 and {bag for bag, _ in cohort.decoded} == {"c"}
    cohort.broken = {}
    assert cohort.run("small") == 0
    assert {bag for bag, _ in cohort.decoded} == {"c"} and cohort.features("small", "c").shape == (30, 12)


def test_what_redoes_features_and_what_does_not(cohort):
    cohort.run("small")
    cohort.rows = [replace(row, label=0, split="test") for row in cohort.rows]
    cohort.run("small")
    assert cohort.decoded == []
    os.utime(cohort.folder / "b.tif", (1, 1))
    cohort.run("small")
    assert {name for name, _ in cohort.decoded} == {"b"}
    for change in (("--resize-policy", "resize24"), ("--dtype", "float32"), ("--precision", "bf16")):
        cohort.run("small", *change)
        assert len(cohort.decoded) == 47
    assert cohort.features("small", "a").dtype == np.float16


def test_changed_instances_fail_and_failures_of_their_stage_are_passed_on_uncounted(cohort):
    cohort.entries[0]["hash"] = "of an older run"
    cohort.add("broken", 0, "failed")
    assert cohort.run("small", "--allowed-failures", "1") == 0
    entries = ShardManifest.read(cohort.manifest("small")).by_id
    assert "run the instances stage again" in entries["a"].reason
    assert entries["broken"].reason == "no instances: no mpp"


def test_a_manifest_of_another_shard_is_refused(cohort, capsys):
    cohort.rows.append(BagRow("stranger", "wsi", ("s.tif",), 0, "train"))
    assert cohort.run("small") == 2
    assert "stranger" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (RuntimeError("device lost"), Abort, "device lost"),
        (torch.OutOfMemoryError("too much"), MemoryError, "batch of 7 tiles.*batch_size"),
    ],
)
def test_an_encoder_that_fails_ends_the_job_not_one_bag(cohort, monkeypatch, fault, error, message):
    def fail(*args: object) -> torch.Tensor:
        raise fault

    monkeypatch.setattr("preprocessing.features.encoder_model.normalised", fail)
    with pytest.raises(error, match=message):
        cohort.run("small", "--allowed-failures", "99")
    assert not cohort.manifest("small").exists()


def test_values_beyond_float16_fail_with_the_cure(cohort, monkeypatch):
    def huge() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), _Scale())

    monkeypatch.setitem(ENCODERS, "small", replace(ENCODERS["small"], dim=3, build=huge))
    # random weights would be standardised, whatever their scale
    monkeypatch.setattr("preprocessing.features.encoder_model.randomise", lambda module, seed, side: module)
    assert cohort.run("small") == 1
    status = (cohort.out.parent / "status/features/small/0000.jsonl").read_text()
    assert "store this encoder as float32" in status
    assert cohort.run("small", "--dtype", "float32") == 0


class _Scale(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs() * 1e7


def test_unreadable_tiles_are_counted_over_the_whole_bag(cohort, monkeypatch):
    """Segments of one bag are read by different threads; the limit holds for their sum."""
    whole = cohort.tiles_of

    def with_bad(bag, root, instances):
        bag.attrs = bag.attrs.updated(max_bad_tiles=2)
        bag.bad_tiles.extend({"c": [3, 9, 1], "a": [4]}.get(bag.row.bag_id, []))
        return whole(bag, root, instances)

    monkeypatch.setattr(feature_stage, "_tiles_of", with_bad)
    assert cohort.run("small", "--allowed-failures", "1") == 0
    assert "3 unreadable tiles, 2 allowed" in ShardManifest.read(cohort.manifest("small")).by_id["c"].reason
    assert read_feature_attrs(cohort.out / "small/store", "a").unreadable_tiles == (4,)


def test_finished_shards_do_not_import_torch(cohort, monkeypatch, repository):
    # a process of its own does not know the tiny encoders, and computes nothing that would need the real one
    monkeypatch.setitem(ENCODERS, "resnet18", replace(ENCODERS["small"], name="resnet18"))
    argv = cohort.argv("resnet18")
    assert features.main(argv) == 0
    cohort.manifest("resnet18").unlink()
    program = """import sys
from preprocessing.features.__main__ import main
print(main(sys.argv[1:]), "torch" in sys.modules)"""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", program, *argv], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "0 False"), done.stderr
    assert cohort.manifest("resnet18").exists()


def test_missing_weights_are_one_line(cohort, capsys):
    argv = [word if word != "random" else "pretrained" for word in cohort.argv("resnet50")]
    assert features.main([*argv, "--weights", str(cohort.folder)]) == 2
    assert "snakemake weights" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert feature_stage.choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="finds no GPU"):
        feature_stage.choose_device("cuda")


def plans(sizes: list[int], tiles) -> list[BagPlan]:
    return [BagPlan(f"bag{number}", n, tiles, frozenset()) for number, n in enumerate(sizes)]


def numbered(start: int, stop: int) -> Iterator[np.ndarray]:
    """Tiles that hold their number, of which some take longer."""
    for index in range(start, stop):
        if index < 20:
            time.sleep(0.0001 * (index % 3))
        yield np.full((2, 2, 3), index % 251, np.uint8)


def test_every_tile_comes_once_in_an_order_that_does_not_depend_on_the_threads():
    sizes = [1, 8, 300, 7, 9000]
    orders = []
    for workers in (1, 3, 8):
        blocks = list(decoded(plans(sizes, numbered), workers))
        orders.append([(plan.bag_id, start, len(tiles)) for plan, start, tiles in blocks])
        assert all((tiles[:, 0, 0, 0] == (np.arange(len(tiles)) + start) % 251).all() for _, start, tiles in blocks)
    assert orders[0] == orders[1] == orders[2]
    positions = [(bag, start + i) for bag, start, count in orders[0] for i in range(count)]
    assert sorted(positions) == [(f"bag{number}", i) for number, n in enumerate(sizes) for i in range(n)]


def test_an_image_with_fewer_tiles_than_the_bag_fails_its_bag_alone():
    two = [BagPlan("short", 30, lambda start, stop: numbered(start, stop - 2), frozenset()), *plans([9], numbered)]
    assert {plan.bag_id: start + len(tiles) for plan, start, tiles in decoded(two, 2)} == {"short": 24, "bag0": 9}
    assert "end after 28 of 30 tiles" in str(two[0].error)


def test_decoding_runs_ahead_but_not_without_bound():
    seen, lock = [], threading.Lock()

    def tiles(start: int, stop: int) -> Iterator[np.ndarray]:
        for index in range(start, stop):
            with lock:
                seen.append(index)
            yield np.zeros((2, 2, 3), np.uint8)

    with contextlib.closing(decoded(plans([50] * 100, tiles), 4)) as blocks:
        next(blocks)
        time.sleep(0.2)
        assert BLOCK_TILES < len(seen) <= (LANES + 1) * BLOCK_TILES


def test_slides_are_closed_when_a_pass_ends_early():
    closed = []

    def tiles(start: int, stop: int) -> Iterator[np.ndarray]:
        try:
            while True:
                yield np.zeros((2, 2, 3), np.uint8)
        finally:
            closed.append(start)

    with contextlib.closing(decoded(plans([1000], tiles), 2)) as blocks:
        for _ in range(5):
            next(blocks)
    assert sorted(closed) == [0, 256, 512, 768]


@pytest.mark.parametrize("fatal", [MemoryError, SystemExit])
def test_what_is_no_fault_of_a_bag_ends_the_pass(fatal):
    def tiles(start: int, stop: int) -> Iterator[np.ndarray]:
        raise fatal("x")
        yield

    with pytest.raises(fatal):
        list(decoded(plans([3], tiles), 2))


def test_no_thread_to_decode_with_ends_the_job(monkeypatch):
    def submit(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(extraction.ThreadPoolExecutor, "submit", submit)
    with pytest.raises(Abort, match=r"features\.workers"):
        list(decoded(plans([20], numbered), 2))


class Watched:
    """An encoder that keeps what it gets."""

    device = torch.device("cpu")

    def __init__(self, side: int) -> None:
        self.resize = Resize(side)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.clone())
        return x.float().mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("sides", [(28,), (28, 28), (28, 20)])
def test_every_encoder_sees_its_resize_wherever_it_is_done(kind, sides):
    """Decoding threads resize if all encoders need the same, else every batch is resized."""
    pictures = np.random.default_rng(0).integers(0, 256, (19, 60, 60, 3), np.uint8).astype(kind)
    encoders = {f"e{number}": Watched(side) for number, side in enumerate(sides)}
    plan = BagPlan("a", 19, lambda start, stop: iter(pictures[start:stop]), frozenset(encoders))
    with Extraction([plan], encoders, 5, 2) as extraction:
        features = extraction.result("a")
    for name, encoder in encoders.items():
        expected = resized(torch.from_numpy(pictures), encoder.resize)
        assert torch.equal(torch.cat(encoder.seen)[:19], expected)
        np.testing.assert_array_equal(features[name][:, 0], expected.float().mean(dim=(1, 2, 3)).numpy())
