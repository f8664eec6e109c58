"""One preprocessing job: a shard of bags, each with its own outcome, and the shard's manifest.

Here, and only here, an error of one bag is caught: it is recorded with its reason, its traceback goes to the log, and
the next bag is tried. What is no fault of one bag ends the job: `MemoryError`, `KeyboardInterrupt`, `Abort`, a full
disk.

Two files come out:
* the manifest (JSON, the job's declared output): bags, states, sizes, hashes; no times and no order of events, so equal
  results give equal bytes. It is written only if no more bags failed than allowed.
* the status (JSONL, not declared, appended): one line per bag tried, with seconds and the time. A workflow engine
  deletes the declared outputs of a failed job; the status is where failures survive. While a bag is worked on, a file
  `{shard}.working` beside it names it: what is left of one tells which bag a killed job (out of memory, out of time)
  was at.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from preprocessing.bags import BagRow
from preprocessing.cli import DISK_ERRORS, naming, write_json
from preprocessing.cli import Abort as Abort

log = logging.getLogger(__name__)

State = Literal["ok", "empty", "skipped", "failed"]
STATES: tuple[str, ...] = ("ok", "empty", "skipped", "failed")
_MAKE_ROOM = "make room, then run the same command again: finished bags are kept"
_REASON_CHARACTERS = 500
_LOCK_REPORT_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of one bag.

    Attributes:
        state: "ok", "empty" (no instances: an outcome, not an error), "skipped" (as somebody decided) or "failed".
        n: number of instances.
        hash: content hash of the stored bag.
        reason: one line for all but "ok".
        redone: False if the bag was found finished.
        counted: False for a failure that an earlier stage has already reported and allowed.
        bad_tiles: unreadable places of the image that were replaced by white.
    """

    state: State
    n: int = 0
    hash: str = ""
    reason: str = ""
    redone: bool = True
    counted: bool = True
    bad_tiles: int = 0

    def facts(self) -> dict[str, Any]:
        """What a manifest and a status line both say; `bad_tiles` only where there are any."""
        facts = {"state": self.state, "n": self.n, "reason": self.reason}
        return {**facts, "bad_tiles": self.bad_tiles} if self.bad_tiles else facts


@dataclass(frozen=True)
class Shard:
    """Names of a job: they head its manifest."""

    dataset: str
    stage: str
    stage_version: int
    shard: int

    @property
    def name(self) -> str:
        """Shard number as file names have it, e.g. "0003"."""
        return f"{self.shard:04d}"


Work = Callable[[BagRow], Outcome]


def run_shard(
    rows: Sequence[BagRow],
    work: Work,
    manifest_path: Path | str,
    allowed_failures: int,
    status_path: Path | str,
    *,
    shard: Shard,
) -> int:
    """Tries every bag and writes the manifest.

    Args:
        rows: the shard's bags; none is fine (a shard beyond the last bag).
        work: turns a row into its outcome; may raise.
        manifest_path: the declared output.
        allowed_failures: failed bags up to which the job still succeeds.
        status_path: JSONL to append to.
        shard: what heads the manifest.

    Returns:
        Exit code: 0, or 1 if more bags failed than allowed (there is no manifest then).

    Raises:
        Abort: the disk is full or read-only; also whatever else is no fault of one bag.
    """
    entries: list[dict[str, Any]] = []
    failures: list[str] = []
    Path(status_path).parent.mkdir(parents=True, exist_ok=True)
    with open(status_path, "a", encoding="utf-8") as status, _working(Path(status_path)) as mark:
        _end_line(status, Path(status_path))
        for number, row in enumerate(rows, start=1):
            started = time.monotonic()
            mark(row.bag_id)
            try:
                outcome = _try(row, work)
            except (MemoryError, Abort) as error:
                # the job ends; the table of states still has to know at which bag and why
                with contextlib.suppress(OSError):
                    _record(status, row, Outcome("failed", reason=one_line(error)), time.monotonic() - started)
                raise
            _record(status, row, outcome, time.monotonic() - started)
            log.info("%s %s: %d/%d %s", shard.stage, shard.name, number, len(rows), _line(row, outcome))
            if outcome.state == "failed" and outcome.counted:
                failures.append(f"{row.bag_id}: {outcome.reason}")
            entries.append({"bag_id": row.bag_id, "hash": outcome.hash, **outcome.facts()})
    if len(failures) > allowed_failures:
        Path(manifest_path).unlink(missing_ok=True)
        log.error(
            "%s %s: %d of %d bags failed, %d allowed; reasons in %s\n  %s",
            *(shard.stage, shard.name, len(failures), len(rows), allowed_failures, status_path),
            "\n  ".join(failures),
        )
        return 1
    head = {"dataset": shard.dataset, "stage": shard.stage, "stage_version": shard.stage_version}
    write_json(manifest_path, {**head, "shard": shard.name, "bags": sorted(entries, key=lambda e: e["bag_id"])})
    return 0


def _try(row: BagRow, work: Work) -> Outcome:
    try:
        return work(row)
    except (MemoryError, Abort):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise Abort(f"bag {row.bag_id}: cannot write: {error}; {_MAKE_ROOM}") from error
        log.exception("bag %s failed", row.bag_id)
        return Outcome("failed", reason=one_line(error))


@contextlib.contextmanager
def _working(status_path: Path) -> Iterator[Callable[[str], None]]:
    """The file that names the bag under way; only a process that cannot clean up any more leaves it behind."""
    path = status_path.with_suffix(".working")

    def mark(bag_id: str) -> None:
        with contextlib.suppress(OSError):
            path.write_text(bag_id + "\n", encoding="utf-8")

    try:
        yield mark
    finally:
        path.unlink(missing_ok=True)


def one_line(error: BaseException) -> str:
    """The reason of a failure as one line; the type is named unless it is a message for the user."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:_REASON_CHARACTERS]


def _record(status: Any, row: BagRow, outcome: Outcome, seconds: float) -> None:
    line = {
        "bag_id": row.bag_id,
        **outcome.facts(),
        "seconds": round(seconds, 3),
        "redone": outcome.redone,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with naming(status.name):
        status.write(json.dumps(line, sort_keys=True) + "\n")
        status.flush()


def _end_line(status: Any, path: Path) -> None:
    """Ends the half line that a job left whose disk was full; the next line must not grow onto it."""
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) and stream.seek(-1, os.SEEK_END) is not None and stream.read(1) != b"\n":
            status.write("\n")


def _line(row: BagRow, outcome: Outcome) -> str:
    state = outcome.state if outcome.redone else f"{outcome.state}, found finished"
    return f"{row.bag_id} {state}, {outcome.n} instances" + (f" ({outcome.reason})" if outcome.reason else "")


def read_manifest(path: Path | str) -> dict[str, dict[str, Any]]:
    """Bags of a shard manifest, by id.

    Raises:
        ValueError: no such file, or not a manifest.
    """
    try:
        bags = json.loads(Path(path).read_text(encoding="utf-8"))["bags"]
        entries = {str(bag["bag_id"]): dict(bag) for bag in bags}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such manifest; run the stage that writes it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a shard manifest ({error!r})") from error
    broken = [bag for bag, entry in entries.items() if entry.get("state") not in STATES]
    if broken:
        raise ValueError(f"{path}: bags {broken[:5]} have no valid state, expected one of {STATES}")
    return entries


@contextlib.contextmanager
def shard_lock(path: Path | str) -> Iterator[None]:
    """Holds the lock of one shard; a second job waits, then finds the bags finished.

    The lock goes with the process, so a killed job leaves none behind. Where the file system has no locks the job
    goes on with a warning: two jobs on one shard do the work twice, but bags are written whole in any case.

    Args:
        path: lock file; stays behind, empty of meaning.
    """
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as stream:
        reported = -_LOCK_REPORT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - reported >= _LOCK_REPORT_S:
                    reported = time.monotonic()
                    stream.seek(0)
                    log.info("waiting: %s works on this shard (%s)", stream.read().strip() or "another job", path)
                time.sleep(0.2)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                log.warning("%s: this file system has no locks (%s); going on without", path, error)
                break
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
