"""A training job and the world around it: what a person watching sees, and how a scheduler asks it to stop.

On a terminal one line moves; in a log there are a few plain lines per run, and another one whenever nothing was said
for 30 s, within an epoch too.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

log = logging.getLogger(__name__)

LINES_PER_RUN = 5
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_MOVES = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Progress:
    """Progress of the runs of one job.

    Args:
        runs: how many runs the job has to do.
        epochs: of each run.
        stream: where the moving line goes; it moves only if this is a terminal.
    """

    def __init__(self, runs: int, epochs: int, stream: TextIO | None = None) -> None:
        self.runs, self.epochs = runs, epochs
        self.stream = sys.stderr if stream is None else stream
        self.moving = self.stream.isatty()
        self.run, self.number = "", 0
        self.best: tuple[float, int] | None = None
        self.last = ""
        # epochs of this sitting, and the part of the one under way
        self.seen, self.part, self.started = 0, 0.0, time.monotonic()
        self.told = self.started

    def start(self, run: str) -> None:
        """The next run begins."""
        self.run, self.number, self.best = run, self.number + 1, None
        self.last, self.part = "", 0.0

    def __call__(self, row: dict[str, Any]) -> None:
        """One epoch is done; `row` is its log row."""
        self.seen, self.part = self.seen + 1, 0.0
        if row["kept"]:
            self.best = (row["selection"], row["epoch"])
        self.last = f"  (epoch {row['epoch']}: {self._figures(row)})"
        if self.moving or self._is_due(row["epoch"]):
            self._tell(self.line(row))
        if row["epoch"] == self.epochs and self.moving:
            self.stream.write("\n")

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Step `step` of `steps` of an epoch is done. Losses are not read here: on a GPU that would wait for it."""
        self.part += 1 / steps
        silent = time.monotonic() - self.told
        if silent >= (SECONDS_BETWEEN_MOVES if self.moving else SECONDS_BETWEEN_LINES):
            self._tell(f"{self._where(epoch)} step {step}/{steps}{self.last}  left {self.remaining(epoch - 1)}")

    def _tell(self, line: str) -> None:
        if self.moving:
            self.stream.write(f"\r{line[:200]}\x1b[K")
            self.stream.flush()
        else:
            log.info("%s", line)
        self.told = time.monotonic()

    def _is_due(self, epoch: int) -> bool:
        """Whether a log gets a line: first and last epoch, a few between, and when it has been silent for long."""
        planned = epoch in (1, self.epochs) or epoch % max(1, self.epochs // LINES_PER_RUN) == 0
        return planned or time.monotonic() - self.told >= SECONDS_BETWEEN_LINES

    def line(self, row: dict[str, Any]) -> str:
        """Run, epoch, losses, validation AUROC, best epoch seen in this sitting, time left."""
        return f"{self._where(row['epoch'])}  {self._figures(row)}  left {self.remaining(row['epoch'])}"

    def _where(self, epoch: int) -> str:
        return f"{self.run} ({self.number}/{self.runs})  epoch {epoch}/{self.epochs}"

    def _figures(self, row: dict[str, Any]) -> str:
        auroc = "undefined" if row["val_bag_auroc"] is None else f"{row['val_bag_auroc']:.4f}"
        best = f"  best {self.best[0]:+.4f} at {self.best[1]}" if self.best else ""
        return f"loss {row['loss']:.4f}  val loss {row['val_loss']:.4f}  val AUROC {auroc}{best}"

    def remaining(self, epoch: int) -> str:
        """Time left for the whole job after `epoch` epochs of this run, at the pace so far, h:mm:ss."""
        done = self.seen + self.part
        epochs = (self.runs - self.number) * self.epochs + self.epochs - epoch - self.part
        seconds = round((time.monotonic() - self.started) / (done or 1) * epochs)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


class EventLog:
    """TensorBoard event files of one run, beside its `log.jsonl`: every number of a log row against the epoch.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def __call__(self, row: dict[str, Any]) -> None:
        """One epoch is done; `row` is its log row."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # a resumed run repeats epochs that its last sitting may have written: they count no more
            self.writer = SummaryWriter(str(self.folder), purge_step=row["epoch"])
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name, float(value), row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """The run ended or was stopped."""
        if self.writer is not None:
            self.writer.close()


@contextmanager
def reporting(progress: Progress, folder: Path, *, tensorboard: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What hears of every epoch of a run: the moving line, and TensorBoard if wanted.

    Args:
        progress: of the job.
        folder: of the run.
        tensorboard: whether event files are written.
    """
    if not tensorboard:
        yield progress
        return
    events = EventLog(folder)

    def both(row: dict[str, Any]) -> None:
        progress(row)
        events(row)

    try:
        yield both
    finally:
        events.close()


def check_tensorboard() -> None:
    """Stops before anything is trained if event files are asked for and cannot be written.

    Raises:
        ValueError: the package is missing.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "training.tensorboard: found true, but the package tensorboard is not installed; install it, or leave the"
            " key false (log.jsonl and the learning curves of the report hold the same numbers)"
        )


class StopRequest:
    """Context in which SIGTERM and SIGUSR1 ask for a stop instead of ending the process; calling it asks back."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self.signum is not None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
