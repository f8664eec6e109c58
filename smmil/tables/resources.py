"""Time and memory of training, from the logs of the runs.

- Seconds of a run: sum of `seconds` over the epochs in its `log.jsonl`, training and validation, including those before
  an interruption; loading features and starting the job are not included.
- Peak memory: largest resident memory in MiB of a process that trained runs of the method, including the loaded
  features; peak GPU memory: most memory that its tensors took on the device.

A cell without a record is empty.
"""

from collections.abc import Iterable
from pathlib import Path

from smmil.artifacts.records import LogRow, Metrics, PartMetrics, RunsFile, SplitMetrics
from smmil.artifacts.runs import read_log

# fields of a log row
MEMORY = ("memory_mib", "device_memory_mib")


def numbers(rows: Iterable[LogRow], name: str) -> list[float]:
    """Return the values of a field in the log rows that have one."""
    return [float(value) for row in rows if (value := getattr(row, name)) is not None]


def read_resources(path: Path) -> Metrics:
    """Read time and memory of the runs of one pairing.

    Args:
        path: runs.json of the pairing, beside the folders of its runs.

    Returns:
        Metrics with a split for every run, that is split and learning rate, with the test metric `train_seconds`; `job`
        holds `memory_mib` and `device_memory_mib`, None where they were not recorded.

    Raises:
        ValueError: no such file, or not a runs.json.
    """
    summary = RunsFile.read(path)
    splits, every = [], list[LogRow]()
    for run in summary.runs:
        rows = read_log(path.parent / run.run / "log.jsonl")
        seconds, every = numbers(rows, "seconds"), every + rows
        undefined = {} if seconds else {"train_seconds": "no log"}
        test = PartMetrics.model_validate({"train_seconds": sum(seconds) if seconds else None, "undefined": undefined})
        splits.append(SplitMetrics(seed=run.seed, lr=run.lr, run=run.run, test=test))
    job = {name: max(numbers(every, name), default=None) for name in MEMORY}
    return Metrics.model_validate(summary.common(Metrics) | {"splits": splits, "job": job})
