"""Where the wall time of a training job goes: the share that is not training steps (target: under 10 %).

A job is `smmil.train` in a process of its own, on the stored bags of a results folder, its runs written to a temporary
folder. Timed from the outside (start of the process to its end) and inside, each moment counted once:

| part | what |
|---|---|
| steps | forward, losses, backward, optimiser |
| packing | bags into a batch, for training |
| validation | the epoch's forward passes over the validation bags, and their metrics |
| state | resumable state and log of every epoch: copied, or waited for; copy of the best weights |
| loading | reading the bags, once per job |
| start | interpreter and imports |
| rest | splits, hashes of inputs, models, summaries, exit |

`--cpu` counts the process's CPU time instead (start to end, without the interpreter's last tidying): what to read on a
machine that is busy with other things, where waiting for a core counts as overhead otherwise. What the thread that
writes states computes while the steps go on counts as state there.

Validation is asked for by the protocol (it selects the epoch), so the share is told with and without it.

The defaults are a whole job: 5 splits, 2 learning rates, 50 epochs. Run alone:

    python -m bench.overhead --results demo/results --dataset rsna --encoder resnet18 --method smap_early
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from preprocessing.cli import guard, leave

PARTS = ("steps", "packing", "validation", "state", "loading", "start", "rest")
TARGET = 0.10


class Clock:
    """Seconds by part; a part inside another one is taken out of it."""

    def __init__(self, timer: Callable[[], float] = time.perf_counter) -> None:
        self.timer = timer
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.stack: list[float] = []

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time booked on `part`."""

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            started = self.timer()
            self.stack.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                whole = self.timer() - started
                self.seconds[part] += whole - self.stack.pop()
                if self.stack:
                    self.stack[-1] += whole

        return call


class Apart:
    """CPU time of the thread that writes, so that it is not booked on what the run computes meanwhile."""

    def __init__(self) -> None:
        # seconds of finished writes; clock of the one under way, and what it showed when that began
        self.told: tuple[float, int | None, float] = (0.0, None, 0.0)

    @property
    def seconds(self) -> float:
        """So far."""
        done, clock, began = self.told
        return done if clock is None else done + time.clock_gettime(clock) - began

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, to be called in that thread."""

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            clock = time.pthread_getcpuclockid(threading.get_ident())
            self.told = (self.told[0], clock, time.clock_gettime(clock))
            try:
                return function(*arguments)
            finally:
                self.told = (self.seconds, None, 0.0)

        return call


def work(command: Sequence[str], started: float | None, out: Path) -> NoReturn:
    """The job itself, in the process that is measured; writes the seconds by part. CPU time without `started`."""
    from smmil import background, batches, sources, train, training

    writing = Apart()
    clock = Clock(lambda: time.process_time() - writing.seconds) if started is None else Clock()
    clock.seconds["start"] = time.process_time() if started is None else time.time() - started
    fit: Any = training.Fit
    for owner, name, part in (
        (fit, "_step", "steps"),
        (batches.BagCache, "batch", "packing"),
        (training, "validate", "validation"),
        (fit, "_save", "state"),
        (background.Writer, "wait", "state"),
        (training, "_snapshot", "state"),
        (sources.Source, "load", "loading"),
    ):
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    # what validation packs is validation
    validating = training.validate

    def validate(*arguments: Any) -> Any:
        before = clock.seconds["packing"]
        row = validating(*arguments)
        packed = clock.seconds["packing"] - before
        clock.seconds["packing"] -= packed
        clock.seconds["validation"] += packed
        return row

    setattr(training, "validate", validate)  # noqa: B010 - a wrapper, not another definition
    setattr(training, "_write", writing.counted(training._write))  # noqa: B010
    status = train.main(command)
    if started is None:
        clock.seconds["state"] += writing.seconds
        clock.seconds["rest"] = time.process_time() - sum(clock.seconds.values())
    out.write_text(json.dumps(clock.seconds), encoding="utf-8")
    # as `python -m smmil.train` ends
    leave(status)


def measure(command: Sequence[str], folder: Path, *, cpu: bool = False) -> dict[str, float]:
    """Seconds by part of one job; they add up to its wall time (or CPU time).

    Args:
        command: arguments of `smmil.train`.
        folder: for the report of the job.
        cpu: CPU time instead of wall time.

    Raises:
        ValueError: the job failed.
    """
    report = folder / "seconds.json"
    started = time.time()
    worker = [sys.executable, "-m", "bench.overhead", "--work", json.dumps([*command]), str(report)]
    worker += [] if cpu else [str(started)]
    run = subprocess.run(worker, capture_output=True, text=True, check=False)
    wall = time.time() - started
    if run.returncode:
        raise ValueError(f"the job ended with {run.returncode}: {run.stderr[-800:]}")
    seconds: dict[str, float] = json.loads(report.read_text(encoding="utf-8"))
    return seconds if cpu else {**seconds, "rest": wall - sum(seconds.values())}


def job_command(arguments: argparse.Namespace, out: Path) -> list[str]:
    """The command line of `smmil.train` on the bags of a results folder."""
    folder = arguments.results / arguments.dataset
    features = folder / "features" / arguments.encoder
    manifests = sorted(map(str, (features / "shards").glob("*.json")))
    if not manifests:
        raise ValueError(f"{features / 'shards'}: no shard manifest found; extract the features first")
    config = {
        **{"epochs": arguments.epochs, "splits": arguments.splits, "learning_rates": arguments.learning_rates},
        **{"batch_size": arguments.batch_size, "threads": arguments.threads, "device": arguments.device},
        **{"checkpoint_every": arguments.checkpoint_every},
    }
    return [
        *("--dataset", arguments.dataset, "--encoder", arguments.encoder, "--method", arguments.method),
        *("--bags", str(folder / "bags.csv"), "--instances", str(folder / "instances")),
        *("--features", str(features), "--manifests", *manifests, "--config-json", json.dumps(config)),
        *("--out", str(out), "--done", str(out / "runs.json")),
    ]


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """Share of the wall time outside training steps, with validation counted as outside and as inside."""
    wall, steps = sum(seconds.values()), seconds["steps"]
    return {"outside": 1 - steps / wall, "outside_but_validation": 1 - (steps + seconds["validation"]) / wall}


def table(seconds: dict[str, float]) -> str:
    """Seconds and shares, one line per part."""
    wall = sum(seconds.values())
    lines = [f"{part:<12}{seconds[part]:>9.2f} s {seconds[part] / wall:>7.1%}" for part in PARTS]
    found = shares(seconds)
    verdict = "met" if found["outside_but_validation"] < TARGET else "missed"
    lines += [
        f"{'all':<12}{wall:>9.2f} s",
        f"outside training steps {found['outside']:.1%}; without validation {found['outside_but_validation']:.1%}"
        f" (target under {TARGET:.0%}: {verdict})",
    ]
    return "\n".join(lines)


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Measures the share of a training job's wall time that is not training steps."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--work"]:
        work(json.loads(arguments[1]), float(arguments[3]) if arguments[3:] else None, Path(arguments[2]))
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=main.__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder with stored bags, e.g. demo/results")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--method", default="smap_early")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-4])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--checkpoint-every", type=int, default=1, help="epochs between resumable states")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of wall time, for a busy machine")
    parser.add_argument("--json", action="store_true", help="print seconds and shares as JSON")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="smmil-overhead-") as folder:
        seconds = measure(job_command(chosen, Path(folder) / "runs"), Path(folder), cpu=chosen.cpu)
    print(json.dumps({"seconds": seconds, **shares(seconds)}, indent=1) if chosen.json else table(seconds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
