"""Predictions of finished runs for every validation and test bag.

Run alone:
    python -m smmil.predictions --runs results/D/runs/E/M/runs.json --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --out results/D/predictions/E/M --index results/D/predictions/E/M/index.json

A run is rebuilt from its `config.json` and `best.safetensors`; bags are scored one by one in eval mode. All runs are
predicted; `index.json` marks the learning rate that validation chose. `smmil.score` scores other bags. Arrays of a file
(B bags, M instances; equal content gives equal bytes):

| array | shape, type | meaning |
|---|---|---|
| `bag_id`, `split` | (B,) text | name; val, test or score |
| `y`, `bag_logit` | (B,) float32, float64 | label (NaN = unlabelled); logit |
| `offsets` | (B+1,) int64 | rows of bag b are `offsets[b]:offsets[b + 1]` |
| `instance_score` | (M,) float32 | the method's own score f, higher = more positive, ungated |
| `signed_score` | (M,) float32 | sign-aware score (`smmil.predictions.signed`) |
| `signed_sm_score` | (M,) float32 | the same after ten steps of Sm with alpha 0.5 (`smmil.predictions.one_bag`) |
| `coverage`, `y_inst` | (M,) float32, int8 | lesion share of the tile (NaN = not annotated); label in {0, 1, -1} |
| `grid` | (M,2) int32 | lattice cell (row, col) within the bag |
| `energy` | (B,2) float64 | Dirichlet energy of f: f^T L f, and f^T L f / f^T f (0 for f = 0) |
| `meta` | JSON string | run, seed, lr, dataset, encoder, method, protocol, selection score, ... |

L = I - D^-1/2 A D^-1/2 of the bag's neighbours with weight 1, without edge weights and self loops, whatever graph the
method used: methods and protocols are compared on one graph. It also smooths `signed_sm_score`. The first energy is
the paper's. It grows with the scale of f, which is arbitrary, so the second is normalised to [0, 2].
"""

import io
import json
import logging
import math
import os
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from preprocessing.common.files import whole_file
from smmil.artifacts.hashes import hash_file, hash_json, zip_damage
from smmil.artifacts.records import (
    FeatureFacts,
    IndexEntry,
    Json,
    PredictionIndex,
    PredictionMeta,
    RunConfig,
    RunDone,
    RunEntry,
    RunsFile,
)
from smmil.artifacts.results import Arrays
from smmil.artifacts.runs import load_weights
from smmil.compute.devices import choose_device, numerics
from smmil.config import stage_versions
from smmil.config.training_options import DataOptions
from smmil.data.batch import Bag
from smmil.data.cache import BagCache
from smmil.data.sources import Source
from smmil.data.splits import read_splits
from smmil.data.stored import labels_key
from smmil.models import build_model
from smmil.models.base import MILModel
from smmil.predictions.memory import each_bag
from smmil.predictions.one_bag import score_bag
from smmil.predictions.signed import Direction, find_direction

log = logging.getLogger(__name__)


def predict_runs(
    runs: Path,
    source: Source,
    out: Path,
    index: Path,
    *,
    instances: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> PredictionIndex:
    """Predict the validation and test bags of all runs of a method; files that are current are left alone.

    Args:
        runs: `runs.json` of the training, beside `splits.csv` and the run directories.
        source: the bags that the runs were trained on.
        out: folder of the npz files.
        index: `index.json`, written last.
        instances: folder whose store holds the instance labels; None for a table.
        device: auto, cpu or cuda.
        threads: of torch.

    Raises:
        ValueError: other bags than those of the training, or an unfinished run.
        OutOfMemory: a bag fits neither on the device nor on the CPU.
    """
    listed = RunsFile.read(runs)
    if source.inputs != listed.inputs or source.data != listed.data:
        raise ValueError(f"{runs}: its runs were trained on other bags than those given; train again")
    splits = read_splits(runs.parent / "splits.csv")
    wanted = {bag_id for split in splits.values() for bag_id, part in split.items() if part in ("val", "test")}
    labels = labels_key(instances, wanted) if instances else ""
    metas = [_meta(listed, run, labels) for run in listed.runs]
    pending = [meta for meta in metas if not is_current(out / f"{meta.run}.npz", meta.key)]
    torch_device = choose_device(device)
    with numerics(torch_device, threads=threads):
        if pending:
            bags, thresholds = source.load(sorted(wanted))
            cache = BagCache(bags, torch_device)
        for meta in pending:
            parts = [splits[meta.seed][bag.bag_id] for bag in bags]
            # A table may be loaded in another order than that of the ids as text.
            order = sorted(range(len(bags)), key=lambda i: bags[i].bag_id)
            val, test = ([i for i in order if parts[i] == name] for name in ("val", "test"))
            model, _, _ = load_run(runs.parent / meta.run, torch_device)
            direction = find_direction(model, cache, val)
            names = ["val"] * len(val) + ["test"] * len(test)
            arrays = predict_bags(model, cache, bags, [*val, *test], names, direction)
            computed = {"label_thresholds": thresholds, "signed_agreement": direction.agreement}
            write_predictions(out / f"{meta.run}.npz", arrays, meta.model_copy(update=computed))
            log.info("%s: %d bags, %d instances", meta.run, len(names), len(arrays["y_inst"]))
    folder = Path(os.path.relpath(out, index.parent))
    entries = [
        run.common(IndexEntry)
        | {"file": (folder / f"{run.run}.npz").as_posix(), "sha256": hash_file(out / f"{run.run}.npz")}
        for run in listed.runs
    ]
    content = PredictionIndex.model_validate(listed.common(PredictionIndex) | {"runs": entries})
    content.write(index)
    return content


def _meta(listed: RunsFile, run: RunEntry, labels: str) -> PredictionMeta:
    """Return the meta of a run's predictions; `key` covers everything the numbers depend on."""
    # The run's own key is one of many parts of that of its predictions.
    fields = {**listed.common(PredictionMeta), **run.common(PredictionMeta)}
    meta = PredictionMeta.model_validate({name: value for name, value in fields.items() if name != "key"})
    trained = (run.key, run.weights_sha256, listed.inputs, listed.data)
    return meta.model_copy(update={"key": hash_json([stage_versions.PREDICTIONS, meta.as_json(), *trained, labels])})


def data_options(record: Json) -> DataOptions:
    """Return the recorded loading options; the graph of a table is an argument, not a loading option."""
    return DataOptions.model_validate({name: value for name, value in record.items() if name != "graph"})


def check_features(trained: FeatureFacts, features: FeatureFacts, where: str) -> None:
    """Raise a `ValueError` that names what differs if features are not those of a run."""
    facts = features.as_json()
    differs = [
        f"{name}: found {facts.get(name)!r}, expected {value!r}"
        for name, value in sorted(trained.as_json().items())
        if facts.get(name) != value
    ]
    if differs:
        raise ValueError(f"{where}: not the features that the run was trained on ({'; '.join(differs)})")


def load_run(folder: Path, device: torch.device) -> tuple[MILModel, RunConfig, RunDone]:
    """Rebuild the model of a finished run, in eval mode, and read its `config.json` and `done.json`.

    Raises:
        ValueError: the run is not finished, its files belong to different runs, or other code trained it.
    """
    config, done = RunConfig.read(folder / "config.json"), RunDone.read(folder / "done.json")
    weights = folder / "best.safetensors"
    if config.key != done.key or hash_file(weights) != done.weights_sha256:
        raise ValueError(
            f"{folder}: config, weights and done.json are of different runs; delete {folder.parent / 'runs.json'}"
            " and run the workflow again: it trains this run again, and no other"
        )
    if config.stage_version != stage_versions.RUNS:
        raise ValueError(
            f"{folder / 'config.json'}: found stage_version {config.stage_version}, expected {stage_versions.RUNS}:"
            " this code may compute other numbers from the same weights; train the run again or use its own version"
        )
    model = build_model(config.method, config.in_features, pos_weight=config.pos_weight, **config.method_options)
    load_weights(model, weights)
    return model.to(device).eval(), config, done


def predict_bags(
    model: MILModel,
    cache: BagCache,
    bags: Sequence[Bag],
    index: Sequence[int],
    splits: Sequence[str],
    direction: Direction | None = None,
) -> Arrays:
    """Score bags in float32, one by one, so that a bag's numbers do not depend on a batch.

    Args:
        model: on the device of the cache; set to eval mode.
        cache: holds the features (N,P) of the bags.
        bags: the same bags in the same order, for labels and names.
        index: positions of the bags to score, in order.
        splits: the split of each of these bags.
        direction: for the sign-aware score; None = no signed scores.

    Returns:
        The arrays of the module docstring, without `meta`.

    Raises:
        ValueError: a score or logit is not finite, or a bag has another number of scores than instances.
        OutOfMemory: a bag fits neither on the device nor on the CPU.
    """
    model.eval()
    results = []
    with torch.no_grad():
        scored = each_bag(model, cache, index, partial(score_bag, direction=direction))
        for i, result in zip(index, scored, strict=True):
            score = result.score
            if len(score) != len(bags[i]) or not np.isfinite(score).all() or not math.isfinite(result.logit):
                raise ValueError(f"bag {bags[i].bag_id}: expected {len(bags[i])} finite scores and a finite logit")
            results.append(result)
    chosen = [bags[i] for i in index]
    arrays = {
        "bag_id": np.array([bag.bag_id for bag in chosen]),
        "split": np.array(list(splits)),
        "y": np.array([bag.y for bag in chosen], np.float32),
        "bag_logit": np.array([result.logit for result in results], np.float64),
        "offsets": np.cumsum([0, *(len(result.score) for result in results)]).astype(np.int64),
        "instance_score": np.concatenate([result.score for result in results]),
        "coverage": np.concatenate([bag.coverage.numpy() for bag in chosen]).astype(np.float32),
        "y_inst": np.concatenate([bag.y_inst.numpy() for bag in chosen]).astype(np.int8),
        "grid": np.concatenate([bag.grid.numpy() for bag in chosen]).astype(np.int32),
        "energy": np.array([result.energy for result in results], np.float64).reshape(-1, 2),
    }
    for name in ("signed", "signed_sm") if direction is not None else ():
        arrays[f"{name}_score"] = np.concatenate([getattr(result, name) for result in results])
    return arrays


def write_predictions(path: Path, arrays: Arrays, meta: PredictionMeta) -> None:
    """Write the arrays of the module docstring as npz, without pickles and time stamps: equal content, equal bytes."""
    text = json.dumps(meta.as_json(), sort_keys=True, allow_nan=False)
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted({**arrays, "meta": np.array(text)}.items()):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), stream.getvalue())


def is_current(path: Path, key: str) -> bool:
    """Return whether a predictions file exists, is intact, and has this key."""
    if not path.exists():
        return False
    if damage := zip_damage(path):
        log.warning("%s: damaged (%s); predicted again", path, damage)
        return False
    with np.load(path, allow_pickle=False) as archive:
        try:
            return PredictionMeta.parse(str(archive["meta"]), path).key == key
        except ValueError as error:
            log.warning("%s; predicted again", error)
            return False
