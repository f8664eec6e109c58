"""Predictions of finished runs: every validation and test bag, every instance, one code path for all later pictures.

Run alone:
    python -m smmil.predictions --runs results/D/runs/E/M/runs.json --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --out results/D/predictions/E/M --index results/D/predictions/E/M/index.json

A run is rebuilt from its `config.json` and `best.safetensors`; bags are scored one by one, in eval mode. All runs are
predicted; `index.json` marks the learning rate that validation chose. Other bags are scored by `smmil.score`. Arrays of
a file (B bags, M instances), equal content, equal bytes:

| array | shape, type | meaning |
|---|---|---|
| `bag_id`, `split` | (B,) text | name; val, test or score |
| `y`, `bag_logit` | (B,) float32, float64 | label (NaN = unlabelled); logit |
| `offsets` | (B+1,) int64 | rows of bag b are `offsets[b]:offsets[b + 1]` |
| `instance_score` | (M,) float32 | the method's own score f, higher = more positive, ungated |
| `signed_score` | (M,) float32 | sign-aware score (`smmil.signed`); of `smmil.score` if the run kept its direction |
| `coverage`, `y_inst` | (M,) float32, int8 | lesion share of the tile (NaN = not annotated); label in {0, 1, -1} |
| `grid` | (M,2) int32 | lattice cell (row, col) within the bag |
| `energy` | (B,2) float64 | Dirichlet energy of f: f^T L f, and f^T L f / f^T f (0 for f = 0) |
| `meta` | JSON string | run, seed, lr, dataset, encoder, method, protocol, selection score, ... |

L = I - D^-1/2 A D^-1/2 of the bag's neighbours with weight 1, whatever graph the method itself used (no edge weights,
no self loops), so that methods and protocols are compared on one graph. The first number is the paper's; it grows with
the scale of f, which a method is free to choose, hence the second, in [0, 2]. (The released script halves both.)
"""

import argparse
import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing.cli import guard, whole_file, write_json
from smmil.runs import hash_file, hash_json, load_weights, zip_damage

if TYPE_CHECKING:
    import torch

    from smmil.batches import BagCache
    from smmil.data import Bag
    from smmil.models.base import MILModel
    from smmil.signed import Direction
    from smmil.sources import Source

log = logging.getLogger(__name__)

PREDICTIONS_STAGE_VERSION = 2
Arrays = dict[str, npt.NDArray[Any]]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    from smmil.sources import add_source_arguments

    parser = argparse.ArgumentParser(prog="python -m smmil.predictions", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="runs.json: validation and test bags of all its runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--index", type=Path, required=True, help="index.json, written last")
    add_source_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, help="torch threads")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts the runs of a `runs.json`; see the top of this file."""
    arguments = build_parser().parse_args(argv)
    from smmil.devices import choose_device, numerics

    device = choose_device(arguments.device)
    with numerics(device, threads=arguments.threads):
        return _predict_runs(arguments, device)


def _predict_runs(arguments: argparse.Namespace, device: "torch.device") -> int:
    from smmil.batches import BagCache
    from smmil.loading import DataOptions
    from smmil.results import read_json
    from smmil.signed import find_direction
    from smmil.sources import open_source
    from smmil.splits import read_splits
    from smmil.stored import labels_key

    listed = read_json(arguments.runs)
    source = open_source(arguments, _data_options(listed, DataOptions))
    if source.inputs != listed["inputs"] or source.data != listed["data"]:
        raise ValueError(f"{arguments.runs}: its runs were trained on other bags than given here; train again")
    splits = read_splits(arguments.runs.parent / "splits.csv")
    wanted = {bag_id for split in splits.values() for bag_id, part in split.items() if part in ("val", "test")}
    labels = labels_key(arguments.instances, wanted) if arguments.instances else ""
    entries = [_entry(listed, run, source, labels) for run in listed["runs"]]
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
            direction = find_direction(model, cache, [i for i in chosen if parts[bags[i].bag_id] == "val"])
            arrays = predict_bags(model, cache, bags, chosen, [parts[bags[i].bag_id] for i in chosen], direction)
            found = {"label_thresholds": thresholds, "signed_agreement": direction.agreement}
            write_predictions(arguments.out / entry["file"], arrays, {**meta, **found})
            log.info("%s: %d bags, %d instances", meta["run"], len(chosen), len(arrays["y_inst"]))
    write_json(arguments.index, _index(listed, entries, arguments.out, arguments.index))
    return 0


def _entry(listed: Mapping[str, Any], run: Mapping[str, Any], source: "Source", labels: str) -> dict[str, Any]:
    """File name and meta of one run's predictions; key and `instances` name everything the numbers depend on."""
    meta = {name: listed[name] for name in ("dataset", "encoder", "method", "protocol", "random_weights")}
    # of a run that has none the meta, hence the key, is that of older files
    meta |= {"quirks": listed["quirks"]} if listed.get("quirks") else {}
    meta |= {name: run[name] for name in ("run", "seed", "lr", "selection_score", "best_epoch", "chosen")}
    decides = [PREDICTIONS_STAGE_VERSION, meta, run["key"], run["weights_sha256"], source.inputs, source.data]
    # beside the key, which older files without it share
    told = {"key": hash_json(decides), **({"instances": labels} if labels else {})}
    return {"file": f"{run['run']}.npz", "meta": {**meta, **told}}


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
        raise ValueError(
            f"{folder}: config, weights and done.json are of different runs; delete {folder.parent / 'runs.json'}"
            " and run the workflow again: it trains this run again, and no other"
        )
    model = build_model(
        config["method"], config["in_features"], pos_weight=config["pos_weight"], **config["method_options"]
    )
    load_weights(model, weights)
    return model.to(device).eval(), {**config, "done": done}


def predict_bags(
    model: "MILModel",
    cache: "BagCache",
    bags: "Sequence[Bag]",
    index: Sequence[int],
    splits: Sequence[str],
    direction: "Direction | None" = None,
) -> Arrays:
    """Scores bags one by one (so that a bag's numbers never depend on its neighbours in a batch), in float32.

    Args:
        model: on the device of the cache; put in eval mode here.
        cache: holds the bags' features.
        bags: the same bags in the same order, for labels and names.
        index: which of them, in which order.
        splits: a word for each of those.
        direction: of the sign-aware score (`smmil.signed.find_direction`); None = no `signed_score`.

    Returns:
        The arrays at the top of this file, without `meta`.

    Raises:
        ValueError: a score or logit is not finite, or the number of scores is not that of the instances; or neither
            the device nor the CPU has the memory for a bag.
    """
    import torch

    from smmil.bag_scores import score_bag
    from smmil.each_bag import each_bag

    model.eval()
    logits, scores, energies, signed = [], [], [], []
    with torch.no_grad():
        for i, found in zip(index, each_bag(model, cache, index, partial(score_bag, direction=direction)), strict=True):
            logit, score, energy, sign = found
            if len(score) != len(bags[i]) or not np.isfinite(score).all() or not math.isfinite(logit):
                raise ValueError(f"bag {bags[i].bag_id}: expected {len(bags[i])} finite scores and a finite logit")
            logits.append(logit)
            scores.append(score)
            energies.append(energy)
            signed += [] if sign is None else [sign]
    chosen = [bags[i] for i in index]
    arrays = {
        "bag_id": np.array([bag.bag_id for bag in chosen]),
        "split": np.array(list(splits)),
        "y": np.array([bag.y for bag in chosen], np.float32),
        "bag_logit": np.array(logits, np.float64),
        "offsets": np.cumsum([0, *(len(score) for score in scores)]).astype(np.int64),
        "instance_score": np.concatenate(scores),
        "coverage": np.concatenate([bag.coverage.numpy() for bag in chosen]).astype(np.float32),
        "y_inst": np.concatenate([bag.y_inst.numpy() for bag in chosen]).astype(np.int8),
        "grid": np.concatenate([bag.grid.numpy() for bag in chosen]).astype(np.int32),
        "energy": np.array(energies, np.float64).reshape(-1, 2),
    }
    return arrays | ({"signed_score": np.concatenate(signed)} if signed else {})


def write_predictions(path: Path | str, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Writes an npz atomically: no pickles, no time stamps, so that equal content gives equal bytes."""
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted({**arrays, "meta": np.array(text)}.items()):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), stream.getvalue())


def is_current(path: Path, meta: Mapping[str, Any]) -> bool:
    """Whether a predictions file exists, is whole, and was made for this meta's key and, if it knows, its instances."""
    if not path.exists():
        return False
    if damage := zip_damage(path):
        log.warning("%s: damaged (%s); it is made again", path, damage)
        return False
    with np.load(path, allow_pickle=False) as archive:
        found = json.loads(str(archive["meta"]))
    return bool(found.get("key") == meta["key"]) and found.get("instances", "") in ("", meta.get("instances", ""))


if __name__ == "__main__":
    raise SystemExit(main())
