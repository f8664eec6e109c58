"""A tiny trained dataset, from raw files to predictions by the command lines that the workflow runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.bags.__main__ import main as list_bags
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags
from preprocessing.features import __main__ as features
from preprocessing.instances import __main__ as instances
from preprocessing.synthetic.__main__ import main as synthesise
from smmil.artifacts.results import load_predictions
from smmil.predictions.__main__ import main as predict_main
from smmil.train import __main__ as train

RUN = "split1_lr0.001"
OPTIONS = {
    "camelyon16": {"wsi": {"preset": "paper", "tile_px": 96, "step_px": 80, "tissue": {"a_t": 0.0625, "a_h": 0.0625}}},
    "rsna": {"ct": {"preset": "sa_mil", "slice_px": 48}},
}


@dataclass
class House:
    """A tiny trained dataset: raw folder, results folder and one finished run."""

    raw: Path
    results: Path
    rows: list[BagRow]

    @property
    def run(self) -> Path:
        return self.results / "runs/resnet18/smap_early" / RUN

    def row(self, state: str = "test") -> BagRow:
        return next(row for row in self.rows if row.split == state and row.label == 1)

    def predictions(self):
        return load_predictions(self.results / "predictions/resnet18/smap_early" / f"{RUN}.npz")


def build(folder: Path, dataset: str, splits: Sequence[int] = (1,)) -> House:
    """Raw files to predictions by the command lines that the workflow runs."""
    size = ["--slides", "8", "--side", "512"] if dataset == "camelyon16" else ["--scans", "8", "--matrix", "64"]
    assert synthesise(["--out", str(folder / "raw"), "--size", "tiny", "--datasets", dataset, *size]) == 0
    raw, out = folder / "raw" / dataset, folder / "results" / dataset
    source = {"test_list": str(raw / "test_scans.csv"), "scans": 8} if dataset == "rsna" else {}
    argv = ["--dataset", dataset, "--kind", dataset, "--root", str(raw), "--options", json.dumps(source)]
    assert list_bags([*argv, "--out", str(out / "bags.csv")]) == 0
    shard = ["--dataset", dataset, "--bags", str(out / "bags.csv"), "--root", str(raw), "--shard", "0"]
    shard += ["--bags-per-shard", "9", "--options", json.dumps(OPTIONS[dataset])]
    cut, encoded = out / "instances/shards/0000.json", out / "features/resnet18/shards/0000.json"
    assert instances.main([*shard, "--out", str(out / "instances"), "--manifest", str(cut)]) == 0
    argv = ["--instances", str(out / "instances"), "--instances-manifest", str(cut), "--encoder", "resnet18"]
    argv += ["--weights-mode", "random", "--resize-policy", "resize32", "--device", "cpu", "--batch-size", "16"]
    argv += ["--workers", "1", "--out", str(out / "features"), "--manifest", str(encoded)]
    assert features.main([*shard, *argv]) == 0
    source = ["--bags", str(out / "bags.csv"), "--instances", str(out / "instances")]
    source += ["--features", str(out / "features/resnet18"), "--manifests", str(encoded)]
    config = {"epochs": 2, "splits": [*splits], "learning_rates": [1e-3], "val_share": 0.4}
    config |= {"device": "cpu", "threads": 1}
    runs = out / "runs/resnet18/smap_early"
    argv = ["--dataset", dataset, "--encoder", "resnet18", "--method", "smap_early", *source]
    argv += ["--config-json", json.dumps(config), "--out", str(runs), "--done", str(runs / "runs.json")]
    assert train.main(argv) == 0
    where = out / "predictions/resnet18/smap_early"
    argv = ["--runs", str(runs / "runs.json"), *source, "--out", str(where), "--index", str(where / "index.json")]
    assert predict_main([*argv, "--device", "cpu", "--threads", "1"]) == 0
    return House(raw, out, read_bags(out / "bags.csv"))
