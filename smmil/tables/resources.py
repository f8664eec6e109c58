"""Time and memory of training, from the logs of the runs.

- Seconds of a run: sum of `seconds` over the epochs in its `log.jsonl`, training and validation, including those before
  an interruption; loading features and starting the job are not included.
- Peak memory: largest resident memory in MiB of a process that trained runs of the method, including the loaded
  features; peak GPU memory: most memory that its tensors took on the device.

A cell without a record is empty.
"""

from pathlib import Path
from typing import Any

from smmil.artifacts.hashes import numbers, read_json
from smmil.artifacts.runs import read_log

# columns of a log
MEMORY = ("memory_mib", "device_memory_mib")


def read_resources(path: Path) -> dict[str, Any]:
    """Read time and memory of the runs of one pairing, as a metrics object.

    Args:
        path: runs.json of the pairing, beside the folders of its runs.

    Returns:
        dataset, encoder, method, protocol, quirks (if recorded), random_weights, `splits` (an entry for every run, that
        is split and learning rate: seed, lr, run, test.train_seconds) and `job` {memory_mib, device_memory_mib: number
        or None}.

    Raises:
        ValueError: no such file, or not a runs.json.
    """
    runs = read_json(path)
    missing = [key for key in ("dataset", "encoder", "method", "runs") if key not in runs]
    if missing:
        raise ValueError(f"{path}: not a runs.json, missing {missing}")
    splits, logs = [], {run["run"]: read_log(path.parent / run["run"] / "log.jsonl") for run in runs["runs"]}
    for run in runs["runs"]:
        epochs = numbers(logs[run["run"]], "seconds")
        seconds = sum(epochs) if epochs else None
        test = {"train_seconds": seconds, "undefined": {} if seconds is not None else {"train_seconds": "no log"}}
        splits.append({"seed": run["seed"], "lr": run["lr"], "run": run["run"], "test": test})
    shared = {key: runs[key] for key in ("dataset", "encoder", "method")}
    every = [row for rows in logs.values() for row in rows]
    return {
        **shared,
        "protocol": runs.get("protocol", "unknown"),
        **({"quirks": runs["quirks"]} if "quirks" in runs else {}),
        "random_weights": bool(runs.get("random_weights")),
        "splits": splits,
        "job": {name: max(numbers(every, name), default=None) for name in MEMORY},
    }
