"""Hand-made prediction files for the tests of metrics, tables, maps and report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smmil.artifacts.hashes import hash_file
from smmil.artifacts.records import Metrics

# bag_id, split, y, logit, scores, labels
Bag = tuple[str, str, float, float, Sequence[float], Sequence[int]]

BAGS: list[Bag] = [
    ("v0", "val", 0, -1.0, [0.1, 0.2], [0, 0]),
    ("v1", "val", 1, 2.0, [0.9, 0.3, 0.6], [1, 0, 1]),
    ("t0", "test", 0, -0.5, [0.2, 0.7], [0, 0]),
    ("t1", "test", 1, 1.5, [0.8, 0.1, 0.95], [1, 0, 1]),
    ("t2", "test", 1, -0.2, [0.4, 0.65], [0, 1]),
]


def part(bags: Sequence[Bag], *, full: bool = False) -> dict[str, Any]:
    """Arrays as `Predictions.part` gives them; `full` adds the optional ones: a line of tiles, minus the score."""
    scores = [list(bag[4]) for bag in bags]
    arrays: dict[str, Any] = {
        "bag_id": np.array([bag[0] for bag in bags]),
        "y": np.array([bag[2] for bag in bags], np.float32),
        "bag_logit": np.array([bag[3] for bag in bags], np.float64),
        "offsets": np.append(0, np.cumsum([len(s) for s in scores])).astype(np.int64),
        "instance_score": np.array(sum(scores, []), np.float32),
        "y_inst": np.array(sum((list(bag[5]) for bag in bags), []), np.int8),
    }
    if full:
        places = [[0, column] for one in scores for column in range(len(one))]
        arrays |= {"grid": np.array(places, np.int32).reshape(-1, 2), "signed_score": -arrays["instance_score"]}
        arrays["signed_sm_score"] = arrays["signed_score"] / 2
        arrays["energy"] = np.array([[2.0 * i + 1, 0.5] for i in range(len(bags))]).reshape(-1, 2)
    return arrays


def write_run(folder: Path, bags: Sequence[Bag] = BAGS, *, full: bool = False, **meta: Any) -> Path:
    """Writes one predictions file; `full` as in `part`, `meta` overrides the defaults."""
    facts = {
        "dataset": "toy",
        "encoder": "resnet18",
        "method": "abmil",
        "protocol": "as_written",
        "seed": 1,
        "lr": 1e-4,
        "selection_score": 0.5,
        "random_weights": False,
        **meta,
    }
    facts.setdefault("run", f"split{facts['seed']}_lr{facts['lr']:g}")
    arrays = part(bags, full=full)
    arrays["split"] = np.array([bag[1] for bag in bags])
    arrays["coverage"] = np.where(arrays["y_inst"] < 0, np.nan, arrays["y_inst"]).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{facts['run']}.npz"
    np.savez(path, meta=np.array(json.dumps(facts)), **arrays)
    return path


def write_index(folder: Path, runs: Sequence[Path]) -> Path:
    """Writes the index of a predictions folder."""
    with np.load(runs[0]) as archive:
        meta = json.loads(str(archive["meta"]))
    path, shared = folder / "index.json", {key: meta[key] for key in ("dataset", "encoder", "method", "protocol")}
    entries = [{"run": run.stem, "file": run.name, "sha256": hash_file(run)} for run in runs]
    path.write_text(json.dumps({**shared, "runs": entries}))
    return path


def metrics_object(
    dataset: str, method: str, values: Mapping[str, Sequence[float | None]], **more: Any
) -> dict[str, Any]:
    """A metrics object with the given test metrics per split; metrics not given are 0.5."""
    names = ("instance_auroc", "instance_auroc_within", "instance_f1", "bag_auroc", "bag_f1")
    n = max((len(v) for v in values.values()), default=1)
    splits = []
    for i in range(n):
        test: dict[str, Any] = {name: (values[name][i] if name in values else 0.5) for name in names}
        area = test["instance_auroc"]
        test |= {"inverted": area is not None and area < 0.5, "undefined": {}}
        test["undefined"] = {name: "one class only" for name in names if test[name] is None}
        splits.append({"seed": i + 1, "lr": 1e-4, "run": f"split{i + 1}_lr0.0001", "test": test, "threshold": 0.5})
    return {
        "dataset": dataset,
        "encoder": "resnet18",
        "method": method,
        "protocol": "as_written",
        "random_weights": False,
        "splits": splits,
        "bootstrap": {
            **{"resamples": 10, "seed": 0, "level": 0.95, "over": "test bags"},
            "intervals": dict.fromkeys(names, [0.25, 0.75]),
        },
        **more,
    }


def metrics_record(*arguments: Any, **more: Any) -> Metrics:
    """The record of a `metrics_object`."""
    return Metrics.model_validate(metrics_object(*arguments, **more))


def runs_object(dataset: str, method: str, runs: Sequence[str], **more: Any) -> dict[str, Any]:
    """The content of a runs.json with chosen runs, one per seed."""
    entry = {"lr": 1e-3, "chosen": True, "best_epoch": 2, "selection_score": 0.5, "key": "k", "weights_sha256": "w"}
    entries = [{**entry, "run": run, "seed": seed} for seed, run in enumerate(runs, 1)]
    names = {"dataset": dataset, "encoder": "resnet18", "method": method, "protocol": "as_written"}
    return {**names, "runs": entries, **more}


def log_row(epoch: int, **values: float | None) -> dict[str, Any]:
    """A line of log.jsonl."""
    names = ("lr", "loss", "grad_norm", "val_loss", "val_selection_bce", "val_score_entropy", "selection")
    defined = {"val_bag_auroc": 0.5, "val_instance_auroc": None, "kept": False}
    return {"epoch": epoch, **dict.fromkeys(names, 0.5), **defined, **values}
