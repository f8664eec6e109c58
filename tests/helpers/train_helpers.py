"""A tiny bag store and a model with dropout, for the tests of loading, training and predictions."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.instances.graph import chain_neighbors
from preprocessing.store.bags import FeatureAttrs, InstanceAttrs, coords_hash, write_bag
from smmil.artifacts.runs import read_log
from smmil.config.methods import METHODS, WITHOUT_GLOBAL, Method
from smmil.models.abmil import ABMIL
from smmil.train.fit import Fit

FEATURES = 5
# states without bag01: 4 negative and 3 positive bags train in any split at val_share .34 (6 to 5 with those that
# validate, 8 to 7 with those that test)
UNBALANCED = {"bag01": "empty"}
FACTS = {"encoder": "tiny", "random_weights": True, "weights_sha256": "0" * 64, "resize_policy": "resize224"}


class Noisy(ABMIL):
    """ABMIL with dropout on the embedding: its training depends on the state of torch's generator."""

    def __init__(self, in_features: int, *, pos_weight: float | None = None) -> None:
        super().__init__(in_features, width=8, attention_dim=4, pos_weight=pos_weight)
        self.embed.append(nn.Dropout(0.3))


def register_noisy() -> None:
    """Register the method `noisy` in this process."""
    METHODS["noisy"] = Method("noisy", f"{__name__}:{Noisy.__name__}", "Noisy", WITHOUT_GLOBAL)


def make_dataset(
    folder: Path, *, n_train: int = 12, n_test: int = 4, states: dict[str, str] | None = None, shift: float = 1.5
) -> Path:
    """Writes bags.csv, manifests and both stores; odd bags are positive and hold one instance shifted by `shift`."""
    rng = np.random.default_rng(0)
    rows, states = [], states or {}
    for i in range(n_train + n_test):
        bag_id, label = f"bag{i:02d}", i % 2
        rows.append(BagRow(bag_id, "wsi", (f"{bag_id}.tif",), label, "train" if i < n_train else "test"))
        if states.get(bag_id, "ok") == "ok":
            write_one(folder, bag_id, label, int(rng.integers(1, 5)), rng, shift)
    write_bags(folder / "bags.csv", rows)
    for stage in ("instances", "features/tiny"):
        write_manifest(folder / stage / "shards" / "0000.json", {r.bag_id: states.get(r.bag_id, "ok") for r in rows})
    return folder


def write_one(folder: Path, bag_id: str, label: int, n: int, rng: np.random.Generator, shift: float = 1.5) -> None:
    """One bag in both stores: coverage .8 on the first instance of a positive bag, 0 elsewhere."""
    grid = np.stack([np.arange(n), np.zeros(n)], 1).astype(np.int32)
    coords = (grid[:, ::-1] * 512).astype(np.int32).copy()
    coverage = np.zeros(n, np.float32)
    features = rng.normal(size=(n, FEATURES))
    if label:
        coverage[0], features[0] = 0.8, features[0] + shift
    geometry = {"coords": coords, "grid": grid, "neighbors": chain_neighbors(n), "coverage": coverage}
    write_bag(folder / "instances" / "store", bag_id, geometry, InstanceAttrs(dataset="tiny"))
    write_bag(
        folder / "features" / "tiny" / "store",
        bag_id,
        {"features": features.astype(np.float16)},
        FeatureAttrs(**FACTS, coords_hash=coords_hash(coords, grid)),
    )


def write_manifest(path: Path, states: dict[str, str]) -> None:
    """A shard manifest with the given states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bags = [{"bag_id": name, "state": state, "n": 1, "hash": "", "reason": ""} for name, state in states.items()]
    path.write_text(json.dumps({"dataset": "tiny", "bags": bags}))


def source_arguments(folder: Path) -> list[str]:
    """The arguments that name the tiny bag store."""
    stages = ("instances", "features/tiny")
    return [
        *("--bags", str(folder / "bags.csv"), "--instances", str(folder / "instances")),
        *("--features", str(folder / "features" / "tiny"), "--manifests"),
        *(str(folder / stage / "shards" / "0000.json") for stage in stages),
    ]


def train_arguments(folder: Path, out: Path, method: str = "noisy", **training: Any) -> list[str]:
    """A whole command line of `smmil.train`: one split, one learning rate, 4 epochs unless told otherwise."""
    config = {
        **{"epochs": 4, "splits": [1], "learning_rates": [0.01], "val_share": 0.34, "batch_size": 3},
        **{"device": "cpu", "threads": 1, "warmup_epochs": 2, "checkpoint_seconds": 0},
        **training,
    }
    return [
        *("--dataset", "tiny", "--encoder", "tiny", "--method", method, *source_arguments(folder)),
        *("--config-json", json.dumps(config), "--out", str(out), "--done", str(out / "runs.json")),
    ]


def timeless(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's log without what a clock or the machine's memory said."""
    measured = ("seconds", "memory_mib", "device_memory_mib")
    return [{name: value for name, value in row.as_json().items() if name not in measured} for row in read_log(path)]


def signal_after(monkeypatch: pytest.MonkeyPatch, steps: int, signum: int) -> None:
    """From here on, over all runs of a job, the process sends itself a signal once, at the end of that step."""
    step, seen = Fit._step, []

    def step_and_signal(fit: Fit, batch: Any) -> None:
        step(fit, batch)
        seen.append(batch)
        if len(seen) == steps:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Fit, "_step", step_and_signal)
