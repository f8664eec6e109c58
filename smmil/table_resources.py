"""Time and memory of a training job, from what training leaves behind; nothing is measured here.

- seconds of a run: the sum of `seconds` over the epochs in its `log.jsonl`, training and validation, over all sittings
  (a resumed run keeps the epochs it had); reading features and starting the job are not in it.
- peak memory: the largest resident memory of a process that trained runs of the method, MiB, the loaded features
  included; peak GPU memory: the most that its tensors took on the device. Both from the logs, too.

Any may be missing (a trimmed folder, a log from before memory was noted): the cell is empty then.
"""

from pathlib import Path
from typing import Any

from smmil.results import read_json
from smmil.runs import numbers, read_log

# columns of a log
MEMORY = ("memory_mib", "device_memory_mib")


def read_resources(path: Path) -> dict[str, Any]:
    """What the runs of one pairing cost, in the shape of a metrics object.

    Args:
        path: runs.json of the pairing, the run folders beside it.

    Returns:
        dataset, encoder, method, protocol, quirks (where told), random_weights, `splits` (one entry per run, every
        learning rate: seed, lr, run, test.train_seconds) and `job` {memory_mib, device_memory_mib: number or None}.

    Raises:
        ValueError: no such file, or not a runs.json.
    """
    runs = read_json(path)
    missing = [key for key in ("dataset", "encoder", "method", "runs") if key not in runs]
    if missing:
        raise ValueError(f"{path}: not a runs.json, missing {missing}")
    splits, logs = [], {run["run"]: read_log(path.parent / run["run"] / "log.jsonl") for run in runs["runs"]}
    for run in runs["runs"]:
        seconds = sum(found) if (found := numbers(logs[run["run"]], "seconds")) else None
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
