"""Time and memory of a training job, from what training leaves behind; nothing is measured here.

- seconds of a run: the sum of `seconds` over the epochs in its `log.jsonl`, training and validation, over all sittings
  (a resumed run keeps the epochs it had); reading features and starting the job are not in it.
- peak memory: the largest resident memory of the job that Snakemake's benchmark file saw, MB; it includes the loaded
  features and is that of the job's last start. Memory of a GPU is not in it.

Either may be missing (an old or trimmed folder, a job run by hand): the cell is empty then.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

from smmil.results import read_json


def read_resources(path: Path, benchmarks: Path | None = None) -> dict[str, Any]:
    """What the runs of one pairing cost, in the shape of a metrics object.

    Args:
        path: runs.json of the pairing, the run folders beside it.
        benchmarks: folder of `{dataset}/{encoder}/{method}.tsv`, or None.

    Returns:
        dataset, encoder, method, protocol, random_weights, `splits` (one entry per run, every learning rate: seed, lr,
        run, test.train_seconds) and `job` {peak_memory_mb: float or None}.

    Raises:
        ValueError: no such file, or not a runs.json.
    """
    runs = read_json(path)
    missing = [key for key in ("dataset", "encoder", "method", "runs") if key not in runs]
    if missing:
        raise ValueError(f"{path}: not a runs.json, missing {missing}")
    splits = []
    for run in runs["runs"]:
        seconds = run_seconds(path.parent / run["run"] / "log.jsonl")
        test = {"train_seconds": seconds, "undefined": {} if seconds is not None else {"train_seconds": "no log"}}
        splits.append({"seed": run["seed"], "lr": run["lr"], "run": run["run"], "test": test})
    shared = {key: runs[key] for key in ("dataset", "encoder", "method")}
    file = benchmarks / runs["dataset"] / runs["encoder"] / f"{runs['method']}.tsv" if benchmarks else None
    return {
        **shared,
        "protocol": runs.get("protocol", "unknown"),
        "random_weights": bool(runs.get("random_weights")),
        "splits": splits,
        "job": {"peak_memory_mb": peak_memory(file) if file else None},
    }


def run_seconds(log: Path) -> float | None:
    """Sum of the epochs' seconds in a log, None without a log or where no epoch has them."""
    if not log.is_file():
        return None
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            # the line a crash cut off; the epoch is trained and written again
            continue
        if isinstance(row, dict) and isinstance(row.get("seconds"), int | float):
            found.append(float(row["seconds"]))
    return sum(found) if found else None


def peak_memory(benchmark: Path) -> float | None:
    """`max_rss` of a Snakemake benchmark file, MB; the largest where it has several rows, None where it has none."""
    if not benchmark.is_file():
        return None
    with benchmark.open(encoding="utf-8", newline="") as stream:
        texts = [row.get("max_rss") or "" for row in csv.DictReader(stream, delimiter="\t")]
    values = [value for text in texts if (value := _number(text)) is not None]
    return max(values, default=None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        # "NA" and "-": the job was too short to be looked at
        return None
    return value if math.isfinite(value) and value > 0 else None
