"""Progress of a training job, TensorBoard event files, and stop signals.

A terminal shows one line that is rewritten; a log gets a few lines per run, and at least one every 30 s.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from smmil.artifacts.records import LogRow

log = logging.getLogger(__name__)

LINES_PER_RUN = 5
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_UPDATES = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Progress:
    """Progress of the runs of one job, on a line of `stream` (stderr), or in the log if that is no terminal."""

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
            self._show(f"{self._where(row.epoch)}  {self._figures(row)}  left {self._remaining(row.epoch)}")
        if row.epoch == self.epochs and self.is_terminal:
            self.stream.write("\n")

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Report a finished step. It does not read the loss, which would synchronise with the GPU."""
        self.part = step / steps
        silent = time.monotonic() - self.last_output
        if silent >= (SECONDS_BETWEEN_UPDATES if self.is_terminal else SECONDS_BETWEEN_LINES):
            self._show(f"{self._where(epoch)} step {step}/{steps}{self.last}  left {self._remaining(epoch - 1)}")

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

    def _where(self, epoch: int) -> str:
        return f"{self.run} ({self.number}/{self.runs})  epoch {epoch}/{self.epochs}"

    def _figures(self, row: LogRow) -> str:
        auroc = "undefined" if row.val_bag_auroc is None else f"{row.val_bag_auroc:.4f}"
        best = f"  best {self.best[0]:+.4f} at {self.best[1]}" if self.best else ""
        return f"loss {row.loss:.4f}  val loss {row.val_loss:.4f}  val AUROC {auroc}{best}"

    def _remaining(self, epoch: int) -> str:
        """Estimate the time left for the whole job after `epoch` epochs of this run, h:mm:ss."""
        done = self.epochs_done + self.part
        epochs = (self.runs - self.number) * self.epochs + self.epochs - epoch - self.part
        seconds = round((time.monotonic() - self.started) / (done or 1) * epochs)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


@contextmanager
def reporting(progress: Progress, folder: Path, *, tensorboard: bool) -> Iterator[Callable[[LogRow], None]]:
    """Return the function that reports every epoch of a run, also to TensorBoard event files in `folder` if enabled."""
    writers: list[Any] = []

    def report(row: LogRow) -> None:
        progress(row)
        if not tensorboard:
            return
        if not writers:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run repeats epochs that its last session may have written.
            writers.append(SummaryWriter(str(folder), purge_step=row.epoch))
        for name, value in row.as_json().items():
            if name != "epoch" and value is not None:
                writers[0].add_scalar(name, float(value), row.epoch)
        writers[0].flush()

    try:
        yield report
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect the signals SIGTERM and SIGUSR1, which request a stop instead of ending the process."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda signum, _: received.append(signum)) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
