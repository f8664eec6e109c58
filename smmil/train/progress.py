"""Progress of a training job, TensorBoard event files, and stop signals.

A terminal shows one line that is rewritten; a log gets a few lines per run, and at least one every 30 s.
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

from smmil.artifacts.records import LogRow

log = logging.getLogger(__name__)

LINES_PER_RUN = 5
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_UPDATES = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Progress:
    """Progress of the runs of one job.

    Args:
        runs: number of runs of the job.
        epochs: epochs per run.
        stream: stream of the progress line (default stderr); if it is no terminal, lines go to the log instead.
    """

    def __init__(self, runs: int, epochs: int, stream: TextIO | None = None) -> None:
        self.runs, self.epochs = runs, epochs
        self.stream = sys.stderr if stream is None else stream
        self.is_terminal = self.stream.isatty()
        self.run, self.number = "", 0
        self.best: tuple[float, int] | None = None
        self.last = ""
        # Finished epochs of this session, and the finished fraction of the current one.
        self.epochs_done, self.part, self.started = 0, 0.0, time.monotonic()
        self.last_output = self.started

    def start(self, run: str) -> None:
        """Start the next run."""
        self.run, self.number, self.best = run, self.number + 1, None
        self.last, self.part = "", 0.0

    def __call__(self, row: LogRow) -> None:
        """Report a finished epoch."""
        self.epochs_done, self.part = self.epochs_done + 1, 0.0
        if row.kept:
            self.best = (row.selection, row.epoch)
        self.last = f"  (epoch {row.epoch}: {self._figures(row)})"
        if self.is_terminal or self._is_due(row.epoch):
            self._show(self.line(row))
        if row.epoch == self.epochs and self.is_terminal:
            self.stream.write("\n")

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Report a finished step. It does not read the loss, which would synchronise with the GPU."""
        self.part = step / steps
        silent = time.monotonic() - self.last_output
        if silent >= (SECONDS_BETWEEN_UPDATES if self.is_terminal else SECONDS_BETWEEN_LINES):
            self._show(f"{self._where(epoch)} step {step}/{steps}{self.last}  left {self.remaining(epoch - 1)}")

    def _show(self, line: str) -> None:
        if self.is_terminal:
            self.stream.write(f"\r{line[:200]}\x1b[K")
            self.stream.flush()
        else:
            log.info("%s", line)
        self.last_output = time.monotonic()

    def _is_due(self, epoch: int) -> bool:
        """Return whether an epoch is logged: the first, the last, a few in between, and after a long silence."""
        planned = epoch in (1, self.epochs) or epoch % max(1, self.epochs // LINES_PER_RUN) == 0
        return planned or time.monotonic() - self.last_output >= SECONDS_BETWEEN_LINES

    def line(self, row: LogRow) -> str:
        """Format run, epoch, losses, validation AUROC, best epoch of this session and time left."""
        return f"{self._where(row.epoch)}  {self._figures(row)}  left {self.remaining(row.epoch)}"

    def _where(self, epoch: int) -> str:
        return f"{self.run} ({self.number}/{self.runs})  epoch {epoch}/{self.epochs}"

    def _figures(self, row: LogRow) -> str:
        auroc = "undefined" if row.val_bag_auroc is None else f"{row.val_bag_auroc:.4f}"
        best = f"  best {self.best[0]:+.4f} at {self.best[1]}" if self.best else ""
        return f"loss {row.loss:.4f}  val loss {row.val_loss:.4f}  val AUROC {auroc}{best}"

    def remaining(self, epoch: int) -> str:
        """Estimate the time left for the whole job after `epoch` epochs of this run, h:mm:ss."""
        done = self.epochs_done + self.part
        epochs = (self.runs - self.number) * self.epochs + self.epochs - epoch - self.part
        seconds = round((time.monotonic() - self.started) / (done or 1) * epochs)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


class EventLog:
    """TensorBoard event files of one run: every number of its log rows by epoch.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def __call__(self, row: LogRow) -> None:
        """Report a finished epoch."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run repeats epochs that its last session may have written.
            self.writer = SummaryWriter(str(self.folder), purge_step=row.epoch)
        for name, value in row.as_json().items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name, float(value), row.epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self.writer is not None:
            self.writer.close()


@contextmanager
def reporting(progress: Progress, folder: Path, *, tensorboard: bool) -> Iterator[Callable[[LogRow], None]]:
    """Return the function that reports every epoch of a run, to TensorBoard too if enabled.

    Args:
        progress: progress of the job.
        folder: the run directory.
        tensorboard: whether to write event files.
    """
    if not tensorboard:
        yield progress
        return
    events = EventLog(folder)

    def both(row: LogRow) -> None:
        progress(row)
        events(row)

    try:
        yield both
    finally:
        events.close()


def check_tensorboard() -> None:
    """Raise before training if event files are enabled but cannot be written.

    Raises:
        ValueError: the package is missing.
    """
    if find_spec("tensorboard") is None:
        raise ValueError(
            "training.tensorboard: found true, but the package tensorboard is not installed; install it, or leave the"
            " key false (log.jsonl and the learning curves of the report hold the same numbers)"
        )


class StopRequest:
    """Context in which SIGTERM and SIGUSR1 request a stop instead of ending the process."""

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
        """Return whether a stop was requested."""
        return self.signum is not None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
