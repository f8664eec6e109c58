"""Score the bags of another data set with the chosen runs of a training (one per split), or with one run.

In: `runs.json` of a finished training (`--runs`) or the directory of one run (`--run`), and the bag store of another
data set with the same encoder.
Out: `{run}.npz` per chosen run (arrays as in `smmil.predictions.runs`), and `scores.csv`, one line per bag of
`bags.csv`:

| column | meaning |
|---|---|
| `state` | ok, empty or failed; only ok bags have scores |
| `probability` | mean over runs of sigmoid(bag logit) |
| `probability_sd` | its standard deviation over runs (ddof 1; empty with one run) |
| `predicted` | 1 if the mean probability is above 0.5 |

Run alone:
    python -m smmil.score --runs results/camelyon16/runs/resnet18/smap_early/runs.json --bags results/mine/bags.csv \
        --instances results/mine/instances --features results/mine/features/resnet18 \
        --manifests results/mine/features/resnet18/shards/*.json --out results/mine/scores/smap_early
"""

import argparse
import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing.common.cli import guard
from preprocessing.common.files import write_json, write_text

if TYPE_CHECKING:
    import torch

    from smmil.data.batch import Bag

log = logging.getLogger(__name__)
COLUMNS = ("bag_id", "state", "label", "instances", "probability", "probability_sd", "predicted", "runs")


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Score the usable bags of a dataset with every chosen run of a training."""
    from smmil.data.sources import add_source_arguments

    parser = argparse.ArgumentParser(prog="python -m smmil.score", description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", type=Path, help="runs.json of the training: all its chosen runs")
    what.add_argument("--run", type=Path, help="directory of one finished run: that alone")
    parser.add_argument("--out", type=Path, required=True, help="folder of the npz files, scores.csv and index.json")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, help="torch threads")
    add_source_arguments(parser)
    arguments = parser.parse_args(argv)
    from smmil.artifacts.hashes import hash_file
    from smmil.compute.devices import choose_device, numerics
    from smmil.predictions.runs import write_predictions

    facts, data, folders = _read_runs(arguments)
    device = choose_device(arguments.device)
    with numerics(device, threads=arguments.threads):
        scorer = Scorer(arguments, data, device)
        entries, logits = [], []
        for folder in folders:
            arrays, meta = scorer.score(folder, facts["method"])
            path = arguments.out / f"{meta['run']}.npz"
            write_predictions(path, arrays, meta)
            random = meta["random_weights"]
            entries.append({"run": meta["run"], "file": path.name, "sha256": hash_file(path), "random_weights": random})
            logits.append(arrays["bag_logit"])
    table = scores_csv(scorer.bags, np.stack(logits), scorer.source.listing.excluded)
    write_text(arguments.out / "scores.csv", table)
    write_json(arguments.out / "index.json", {**facts, "runs": entries})
    return 0


def _read_runs(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    """Return what the runs share (dataset, encoder, method, protocol), their loading options and directories."""
    from smmil.artifacts.hashes import read_json

    if arguments.run is not None:
        config = read_json(arguments.run / "config.json")
        facts = {"dataset": config["dataset"], "encoder": config["encoder"], "method": config["name"]}
        return {**facts, "protocol": config["training"]["protocol"]}, config["data"], [arguments.run]
    listed = read_json(arguments.runs)
    facts = {name: listed[name] for name in ("dataset", "encoder", "method", "protocol")}
    return facts, listed["data"], [arguments.runs.parent / run["run"] for run in listed["runs"] if run["chosen"]]


class Scorer:
    """The bags of a data set, loaded once, to be scored by runs with the same features.

    Args:
        arguments: parsed arguments with those of `smmil.data.sources.add_source_arguments`.
        data: loading options of the training, from its `runs.json` or `config.json`.
        device: device of the model.

    Raises:
        ValueError: no usable bag.
    """

    def __init__(self, arguments: argparse.Namespace, data: Mapping[str, Any], device: "torch.device") -> None:
        from smmil.data.cache import BagCache
        from smmil.data.sources import open_source
        from smmil.predictions.runs import data_options

        self.device = device
        self.source = open_source(arguments, data_options(data))
        self.where = str(arguments.features or arguments.table)
        self.bags, self.thresholds = self.source.load()
        if not self.bags:
            raise ValueError(
                f"{self.where}: found no bag to score: all are empty or failed; see the QC page of the instances stage"
            )
        self.cache = BagCache(self.bags, device)

    def score(self, folder: Path, method: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return arrays (see `smmil.predictions.runs`) and meta of all bags under one finished run.

        Args:
            folder: the run directory.
            method: name of the method or variant.

        Raises:
            ValueError: an unfinished run, or features that it was not trained on.
        """
        from smmil.predictions.runs import check_features, load_run, predict_bags
        from smmil.predictions.signed import read_direction

        model, config = load_run(folder, self.device)
        check_features(config, self.source.facts, self.where)
        direction = read_direction(folder, config["done"]["weights_sha256"])
        splits = ["score"] * len(self.bags)
        arrays = predict_bags(model, self.cache, self.bags, range(len(self.bags)), splits, direction)
        meta = {name: config[name] for name in ("dataset", "encoder", "seed")}
        meta |= {
            "method": method,
            "run": folder.resolve().name,
            "lr": config["learning_rate"],
            "protocol": config["training"]["protocol"],
            "selection_score": config["done"]["selection_score"],
            "random_weights": bool(config["random_weights"] or self.source.random_weights),
            "label_thresholds": dict(self.thresholds),
            **({} if direction is None else {"signed_agreement": direction.agreement}),
        }
        log.info("%d bags, %d instances scored with %s", len(self.bags), len(arrays["y_inst"]), meta["run"])
        return arrays, meta


def scores_csv(bags: "Sequence[Bag]", logits: npt.NDArray[np.float64], excluded: Mapping[str, Sequence[str]]) -> str:
    """Return the table of all bags, scored or not, sorted by id.

    Args:
        bags: the scored bags.
        logits: (R,B), one row per run.
        excluded: reason -> ids of bags that could not be scored.
    """
    rows: list[dict[str, Any]] = [
        {"bag_id": bag_id, "state": state} for state, bag_ids in excluded.items() for bag_id in bag_ids
    ]
    for bag, probability in zip(bags, sigmoid(logits).T, strict=True):
        rows.append(
            {
                "bag_id": bag.bag_id,
                "state": "ok",
                "label": "" if math.isnan(bag.y) else int(bag.y),
                "instances": len(bag),
                "probability": f"{probability.mean():.4f}",
                "probability_sd": f"{probability.std(ddof=1):.4f}" if len(probability) > 1 else "",
                "predicted": int(probability.mean() > 0.5),
                "runs": len(probability),
            }
        )
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: str(row["bag_id"])))
    return stream.getvalue()


def sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute 1 / (1 + exp(-logit)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -logit))


if __name__ == "__main__":
    raise SystemExit(main())
