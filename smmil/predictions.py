"""Predictions of finished runs: every validation and test bag, every instance, one code path for all later pictures.

Run alone:
    python -m smmil.predictions --runs results/D/runs/E/M/runs.json --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --out results/D/predictions/E/M --index results/D/predictions/E/M/index.json
    python -m smmil.predictions --run results/D/runs/E/M/split1_lr0.0001 --score-bags own.npz --bags ... (own data)

A run is rebuilt from its `config.json` and `best.safetensors`; bags are scored one by one, in eval mode. All runs are
predicted; `index.json` marks the learning rate that validation chose. Arrays of a file (B bags, M instances):
`bag_id` (B,), `split` (B,) val | test | score, `y` (B,) float32 (NaN = unlabelled), `bag_logit` (B,) float64,
`offsets` (B+1,) int64, `instance_score` (M,) float32 (higher = more positive, ungated), `coverage` (M,) float32,
`y_inst` (M,) int8, `meta` a JSON string. Equal content gives equal bytes.
"""

import argparse
import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing.cli import guard, write_json
from smmil.runs import hash_file, hash_json, load_weights, whole_file

if TYPE_CHECKING:
    import torch

    from smmil.batches import BagCache
    from smmil.data import Bag
    from smmil.models.base import MILModel
    from smmil.sources import Source

log = logging.getLogger(__name__)

PREDICTIONS_STAGE_VERSION = 1
Arrays = dict[str, npt.NDArray[Any]]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from smmil.sources import add_source_arguments

    parser = argparse.ArgumentParser(prog="python -m smmil.predictions", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="runs.json: predict validation and test bags of all its runs")
    parser.add_argument("--out", type=Path, help="with --runs: folder of the npz files")
    parser.add_argument("--index", type=Path, help="with --runs: index.json, written last")
    parser.add_argument("--run", type=Path, help="directory of one finished run: score all usable bags with it")
    parser.add_argument("--score-bags", type=Path, metavar="NPZ", help="with --run: the file to write")
    add_source_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, help="torch threads")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts the runs of a `runs.json`, or scores other bags with one run; see the top of this file."""
    arguments = build_parser().parse_args(argv)
    from smmil.devices import choose_device, numerics

    device = choose_device(arguments.device)
    with numerics(device, threads=arguments.threads):
        if arguments.runs and arguments.out and arguments.index and not (arguments.run or arguments.score_bags):
            return _predict_runs(arguments, device)
        if arguments.run and arguments.score_bags and not (arguments.runs or arguments.out or arguments.index):
            return _score_bags(arguments, device)
    raise ValueError("expected --runs, --out and --index together, or --run and --score-bags")


def _predict_runs(arguments: argparse.Namespace, device: "torch.device") -> int:
    from smmil.batches import BagCache
    from smmil.loading import DataOptions
    from smmil.results import read_json
    from smmil.sources import open_source
    from smmil.splits import read_splits

    listed = read_json(arguments.runs)
    source = open_source(arguments, _data_options(listed, DataOptions))
    if source.inputs != listed["inputs"] or source.data != listed["data"]:
        raise ValueError(f"{arguments.runs}: its runs were trained on other bags than given here; train again")
    splits = read_splits(arguments.runs.parent / "splits.csv")
    wanted = {bag_id for split in splits.values() for bag_id, part in split.items() if part in ("val", "test")}
    entries = [_entry(listed, run, source) for run in listed["runs"]]
    thresholds: dict[str, float] = {}
    pending = [entry for entry in entries if not is_current(arguments.out / entry["file"], entry["meta"])]
    if pending:
        bags, thresholds = source.load(sorted(wanted))
        cache = BagCache(bags, device)
        for entry in pending:
            meta = entry["meta"]
            model, _ = load_run(arguments.runs.parent / meta["run"], device)
            parts = splits[meta["seed"]]
            chosen = sorted(
                (i for i, bag in enumerate(bags) if parts[bag.bag_id] in ("val", "test")),
                key=lambda i: (parts[bags[i].bag_id] != "val", bags[i].bag_id),
            )
            arrays = predict_bags(model, cache, bags, chosen, [parts[bags[i].bag_id] for i in chosen])
            write_predictions(arguments.out / entry["file"], arrays, {**meta, "label_thresholds": thresholds})
            log.info("%s: %d bags, %d instances", meta["run"], len(chosen), len(arrays["y_inst"]))
    write_json(arguments.index, _index(listed, entries, arguments.out, arguments.index))
    return 0


def _entry(listed: Mapping[str, Any], run: Mapping[str, Any], source: "Source") -> dict[str, Any]:
    """File name and meta of one run's predictions; the key names everything the numbers depend on."""
    meta = {name: listed[name] for name in ("dataset", "encoder", "method", "protocol", "random_weights")}
    meta |= {name: run[name] for name in ("run", "seed", "lr", "selection_score", "best_epoch", "chosen")}
    decides = [PREDICTIONS_STAGE_VERSION, meta, run["key"], run["weights_sha256"], source.inputs, source.data]
    return {"file": f"{run['run']}.npz", "meta": {**meta, "key": hash_json(decides)}}


def _index(listed: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], out: Path, index: Path) -> dict[str, Any]:
    shared = {name: listed[name] for name in ("dataset", "encoder", "method", "protocol", "random_weights")}
    folder = Path(os.path.relpath(out, index.parent))
    names = ("run", "seed", "lr", "selection_score", "best_epoch", "chosen")
    runs = [
        {
            **{name: entry["meta"][name] for name in names},
            "file": (folder / entry["file"]).as_posix(),
            "sha256": hash_file(out / entry["file"]),
        }
        for entry in entries
    ]
    return {**shared, "runs": runs}


def _data_options(record: Mapping[str, Any], kind: Any) -> Any:
    """The loading options a run was trained with; a table has none."""
    known = {name: value for name, value in record["data"].items() if name != "graph"}
    return kind(**known)


def _score_bags(arguments: argparse.Namespace, device: "torch.device") -> int:
    from smmil.batches import BagCache
    from smmil.loading import DataOptions
    from smmil.sources import open_source

    model, config = load_run(arguments.run, device)
    source = open_source(arguments, _data_options(config, DataOptions))
    check_features(config, source.facts, str(arguments.features or arguments.table))
    bags, thresholds = source.load()
    arrays = predict_bags(model, BagCache(bags, device), bags, range(len(bags)), ["score"] * len(bags))
    meta = {name: config[name] for name in ("dataset", "encoder", "method", "random_weights", "seed")}
    meta |= {
        "run": arguments.run.resolve().name,
        "lr": config["learning_rate"],
        "protocol": config["training"]["protocol"],
        "selection_score": config["done"]["selection_score"],
        "random_weights": bool(config["random_weights"] or source.random_weights),
        "label_thresholds": thresholds,
        "excluded": source.listing.excluded,
    }
    write_predictions(arguments.score_bags, arrays, meta)
    log.info("%d bags, %d instances scored with %s", len(bags), len(arrays["y_inst"]), meta["run"])
    return 0


def check_features(config: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> None:
    """Refuses to score features of another encoder, other weights or another resize policy than the run's.

    Raises:
        ValueError: naming what differs.
    """
    trained = config["features"]
    differs = [f"{name}: {facts.get(name)!r} here, {trained[name]!r} trained" for name in sorted(trained)]
    differs = [text for name, text in zip(sorted(trained), differs, strict=True) if facts.get(name) != trained[name]]
    if differs:
        raise ValueError(f"{where}: not the features that the run learned from ({'; '.join(differs)})")


def load_run(folder: Path | str, device: "torch.device") -> "tuple[MILModel, dict[str, Any]]":
    """Rebuilds the model of a finished run.

    Args:
        folder: the run directory.
        device: where the model goes.

    Returns:
        The model in eval mode, and the run's `config.json` with its `done.json` under `done`.

    Raises:
        ValueError: the run is not finished, or its files do not belong together.
    """
    from smmil.models import build_model
    from smmil.results import read_json

    folder = Path(folder)
    config, done = read_json(folder / "config.json"), read_json(folder / "done.json")
    weights = folder / "best.safetensors"
    if config.get("key") != done.get("key") or hash_file(weights) != done["weights_sha256"]:
        raise ValueError(f"{folder}: config, weights and done.json are of different runs; train this run again")
    model = build_model(
        config["method"], config["in_features"], pos_weight=config["pos_weight"], **config["method_options"]
    )
    load_weights(model, weights)
    return model.to(device).eval(), {**config, "done": done}


def predict_bags(
    model: "MILModel", cache: "BagCache", bags: "Sequence[Bag]", index: Sequence[int], splits: Sequence[str]
) -> Arrays:
    """Scores bags one by one (so that a bag's numbers never depend on its neighbours in a batch), in float32.

    Args:
        model: on the device of the cache; put in eval mode here.
        cache: holds the bags' features.
        bags: the same bags in the same order, for labels and names.
        index: which of them, in which order.
        splits: a word for each of those.

    Returns:
        The arrays at the top of this file, without `meta`.

    Raises:
        ValueError: a score or logit is not finite, or the number of scores is not that of the instances.
    """
    import torch

    from smmil.training import forward

    model.eval()
    logits, scores = [], []
    with torch.no_grad():
        for i, batch in zip(index, cache.batches([[i] for i in index]), strict=True):
            output = forward(model, batch, "float32")
            score = output.instance_score.float().cpu().numpy()
            logits.append(float(output.bag_logit.double()[0]))
            if len(score) != len(bags[i]) or not np.isfinite(score).all() or not math.isfinite(logits[-1]):
                raise ValueError(f"bag {bags[i].bag_id}: expected {len(bags[i])} finite scores and a finite logit")
            scores.append(score)
    chosen = [bags[i] for i in index]
    return {
        "bag_id": np.array([bag.bag_id for bag in chosen]),
        "split": np.array(list(splits)),
        "y": np.array([bag.y for bag in chosen], np.float32),
        "bag_logit": np.array(logits, np.float64),
        "offsets": np.cumsum([0, *(len(score) for score in scores)]).astype(np.int64),
        "instance_score": np.concatenate(scores),
        "coverage": np.concatenate([bag.coverage.numpy() for bag in chosen]).astype(np.float32),
        "y_inst": np.concatenate([bag.y_inst.numpy() for bag in chosen]).astype(np.int8),
    }


def write_predictions(path: Path | str, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Writes an npz atomically: no pickles, no time stamps, so that equal content gives equal bytes."""
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted({**arrays, "meta": np.array(text)}.items()):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), stream.getvalue())


def is_current(path: Path, meta: Mapping[str, Any]) -> bool:
    """Whether a predictions file exists and was made for exactly this meta (its key included)."""
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as archive:
        return bool(json.loads(str(archive["meta"])).get("key") == meta["key"])


if __name__ == "__main__":
    raise SystemExit(main())
