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
| `coverage`, `y_inst` | (M,) float32, int8 | lesion share of the tile (NaN = not annotated); label in {0, 1, -1} |
| `grid` | (M,2) int32 | lattice cell (row, col) within the bag |
| `energy` | (B,2) float64 | Dirichlet energy of f: f^T L f, and f^T L f / f^T f (0 for f = 0) |
| `meta` | JSON string | run, seed, lr, dataset, encoder, method, protocol, selection score, ... |

L = I - D^-1/2 A D^-1/2 of the bag's neighbours with weight 1, without edge weights and self loops, whatever graph the
method used: methods and protocols are compared on one graph. The first number is the paper's. It grows with the scale
of f, which is arbitrary, so the second is normalised to [0, 2]. (The released script halves both.)
"""

import io
import json
import logging
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing.common.files import whole_file
from smmil.artifacts.hashes import hash_file, zip_damage
from smmil.artifacts.runs import load_weights
from smmil.config.training_options import DataOptions

if TYPE_CHECKING:
    import torch

    from smmil.data.batch import Bag
    from smmil.data.cache import BagCache
    from smmil.models.base import MILModel
    from smmil.predictions.signed import Direction

log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]


def data_options(record: Mapping[str, Any]) -> DataOptions:
    """Return the recorded loading options; the graph of a table is an argument, not a loading option."""
    return DataOptions(**{name: value for name, value in record.items() if name != "graph"})


def check_features(config: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> None:
    """Raise if features have another encoder, other weights or another resize policy than those of a run.

    Raises:
        ValueError: the message names what differs.
    """
    differs = [
        f"{name}: found {facts.get(name)!r}, expected {value!r}"
        for name, value in sorted(config["features"].items())
        if facts.get(name) != value
    ]
    if differs:
        raise ValueError(f"{where}: not the features that the run was trained on ({'; '.join(differs)})")


def load_run(folder: Path | str, device: "torch.device") -> "tuple[MILModel, dict[str, Any]]":
    """Rebuild the model of a finished run.

    Args:
        folder: the run directory.
        device: device of the model.

    Returns:
        The model in eval mode, and the run's `config.json` with its `done.json` under `done`.

    Raises:
        ValueError: the run is not finished, or its files belong to different runs.
    """
    from smmil.artifacts.hashes import read_json
    from smmil.models import build_model

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
    """Score bags in float32, one by one, so that a bag's numbers do not depend on a batch.

    Args:
        model: on the device of the cache; set to eval mode.
        cache: holds the features of the bags.
        bags: the same bags in the same order, for labels and names.
        index: positions of the bags to score, in order.
        splits: the split of each of these bags.
        direction: for the sign-aware score (`smmil.predictions.signed.find_direction`); None = no `signed_score`.

    Returns:
        The arrays of the module docstring, without `meta`.

    Raises:
        ValueError: a score or logit is not finite, or a bag has another number of scores than instances.
        OutOfMemory: a bag fits neither on the device nor on the CPU.
    """
    import torch

    from smmil.predictions.memory import each_bag
    from smmil.predictions.one_bag import score_bag

    model.eval()
    logits, scores, energies, signed = [], [], [], []
    with torch.no_grad():
        results = each_bag(model, cache, index, partial(score_bag, direction=direction))
        for i, (logit, score, energy, sign) in zip(index, results, strict=True):
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
    """Write an npz atomically, without pickles and time stamps, so that equal content gives equal bytes."""
    text = json.dumps(dict(meta), sort_keys=True, allow_nan=False)
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted({**arrays, "meta": np.array(text)}.items()):
            stream = io.BytesIO()
            np.lib.format.write_array(stream, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), stream.getvalue())


def is_current(path: Path, meta: Mapping[str, Any]) -> bool:
    """Return whether a predictions file exists, is intact, and has the key of `meta`."""
    if not path.exists():
        return False
    if damage := zip_damage(path):
        log.warning("%s: damaged (%s); predicted again", path, damage)
        return False
    with np.load(path, allow_pickle=False) as archive:
        return bool(json.loads(str(archive["meta"])).get("key") == meta["key"])
