"""How far a running job is, read from the last lines of its log, and durations for people."""

import os
import re
from pathlib import Path
from typing import NamedTuple

# some dozens of lines: the log of a long training has megabytes, and the live view reads it several times a second
TAIL_BYTES = 8192
_BAGS = re.compile(r": (\d+)/(\d+) \S+ (?:ok|empty|skipped|failed)\b")
_TILES = re.compile(r"(\d+)/(\d+) tiles, +(\S+) tiles/s, left (\S+)")
_EPOCHS = re.compile(r" \((\d+)/(\d+)\) +epoch (\d+)/(\d+) .*left (\S+)")
# how the stages report a fault: a line of the log, of `preprocessing.common.cli.guard`, or the end of a traceback
_FAULT = re.compile(
    r"^(?:error: |\S+ \S+ ERROR (?:smmil|preprocessing)\S*: |(?=[\w.]+(?:Error|Exception|Abort)\b))(.+(?:\n[ \t].+)*)",
    re.MULTILINE,
)


class JobProgress(NamedTuple):
    """How far a job is: bags, tiles or epochs, all runs of a training together, and a text for people."""

    done: int
    total: int
    text: str


def tail(log: Path) -> str:
    """Return the last lines of a log, "" as long as there is none."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def read_progress(text: str) -> JobProgress | None:
    """Find the progress of a job in the end of its log, None if it reports none."""
    if epochs := [*_EPOCHS.finditer(text)]:
        run, runs, epoch, last = map(int, epochs[-1].groups()[:4])
        done = (run - 1) * last + epoch
        return JobProgress(done, runs * last, f"run {run} of {runs}, epoch {epoch} of {last}, left {epochs[-1][5]}")
    bags, tiles = [*_BAGS.finditer(text)], [*_TILES.finditer(text)]
    parts = [f"bag {bags[-1][1]} of {bags[-1][2]}"] if bags else []
    if tiles:
        parts.append("tile {} of {}, {} tiles/s, left {}".format(*tiles[-1].groups()))
    if not parts:
        return None
    source = tiles[-1] if tiles else bags[-1]
    return JobProgress(int(source[1]), int(source[2]), ", ".join(parts))


def fault(text: str) -> str:
    """Return the last lines of a log that say why a job failed, "" if none do."""
    matches = _FAULT.findall(text)
    return str(matches[-1]).strip() if matches else ""


def as_duration(seconds: float) -> str:
    """Format a duration as a person would say it: 40 s, 12 min, 3.5 h, 2 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
