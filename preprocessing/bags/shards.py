"""One preprocessing job: process a shard of bags, record the outcome of each, write the shard's manifest.

Errors of single bags are caught here and nowhere else: the reason is recorded, the traceback goes to the log, and the
next bag is processed. Errors that concern the whole job end it: `MemoryError`, `KeyboardInterrupt`, `Abort`, a full
disk.

Outputs:
* the manifest (JSON, the job's declared output): bags, states, sizes, hashes; no times, and sorted, so equal results
  give equal bytes. It is written only if no more bags failed than allowed.
* the status (JSONL, not declared, appended): one line per processed bag, with duration and time. A workflow engine
  deletes the declared outputs of a failed job, so failures are kept here. The file `{shard}.working` in the same folder
  names the current bag; after a kill (out of memory, out of time) it tells at which bag the job was.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from preprocessing.bags.identity import Compare
from preprocessing.bags.manifests import ManifestEntry, ShardManifest, State, StatusLine
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import read_bags, shard_rows
from preprocessing.common.cli import Abort
from preprocessing.common.files import DISK_ERRORS, name_in_errors

log = logging.getLogger(__name__)

_MAKE_ROOM = "make room, then run the same command again: finished bags are kept"
_REASON_CHARACTERS = 500


@dataclass(frozen=True)
class Outcome:
    """Outcome of one bag, as `ManifestEntry` and `StatusLine` record it.

    Attributes:
        counted: False for a failure that an earlier stage has already reported and allowed.
    """

    state: State
    n: int = 0
    hash: str = ""
    reason: str = ""
    redone: bool = True
    counted: bool = True
    bad_tiles: int = 0
    unused_outlines: int = 0
    warnings: tuple[str, ...] = ()

    def entry(self, bag_id: str) -> ManifestEntry:
        """Return the entry of the manifest."""
        return ManifestEntry(bag_id=bag_id, **{k: v for k, v in vars(self).items() if k in ManifestEntry.model_fields})


@dataclass(frozen=True)
class Shard:
    """Identity of a job, the head of its manifest."""

    dataset: str
    stage: str
    stage_version: int
    shard: int

    @property
    def name(self) -> str:
        """Shard number as in file names, e.g. "0003"."""
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
    """Process every bag with `work`, which may raise, append to the status, and write the manifest.

    Returns:
        Exit code: 0, or 1 without a manifest if more bags failed than allowed.

    Raises:
        Abort: the disk is full or read-only, or `work` raised it.
    """
    entries: list[ManifestEntry] = []
    failures: list[str] = []
    Path(status_path).parent.mkdir(parents=True, exist_ok=True)
    with open(status_path, "a", encoding="utf-8") as status, _working(Path(status_path)) as mark:
        _end_line(status, Path(status_path))
        for number, row in enumerate(rows, start=1):
            started = time.monotonic()
            mark(row.bag_id)
            try:
                outcome = attempt(row, work)
            except (MemoryError, Abort) as error:
                # the status records at which bag and why the job ended
                with contextlib.suppress(OSError):
                    _record(status, row, Outcome("failed", reason=one_line(error)), started)
                raise
            _record(status, row, outcome, started)
            state = outcome.state if outcome.redone else f"{outcome.state}, found finished"
            text = f"{row.bag_id} {state}, {outcome.n} instances" + (f" ({outcome.reason})" if outcome.reason else "")
            log.info("%s %s: %d/%d %s", shard.stage, shard.name, number, len(rows), text)
            if outcome.state == "failed" and outcome.counted:
                failures.append(f"{row.bag_id}: {outcome.reason}")
            entries.append(outcome.entry(row.bag_id))
    if len(failures) > allowed_failures:
        # the manifest of an earlier run would pass for the result of this one
        Path(manifest_path).unlink(missing_ok=True)
        counts = f"{len(failures)} of {len(rows)} bags failed, {allowed_failures} allowed; reasons in {status_path}"
        log.error("%s %s: %s\n  %s", shard.stage, shard.name, counts, "\n  ".join(failures))
        return 1
    bags = tuple(sorted(entries, key=lambda entry: entry.bag_id))
    ShardManifest(**vars(shard) | {"shard": shard.name, "bags": bags}).write(manifest_path)
    return 0


def attempt(row: BagRow, work: Work, *, quiet: bool = False) -> Outcome:
    """Work on one bag; the only place where an error of any kind becomes the outcome "failed" of a bag.

    The log has one line for a `ValueError` of this project, whose message is for the user (none with `quiet`), and the
    traceback of any other error.

    Raises:
        Abort: the disk is full or read-only, so that every other bag would fail, too.
        MemoryError: out of memory.
    """
    try:
        return work(row)
    except (MemoryError, Abort):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise Abort(f"bag {row.bag_id}: cannot write: {error}; {_MAKE_ROOM}") from error
        expected = isinstance(error, ValueError) and _is_raised_here(error)
        if not (expected and quiet):
            log.error("bag %s failed: %s", row.bag_id, one_line(error), exc_info=None if expected else error)
        return Outcome("failed", reason=one_line(error))


def _is_raised_here(error: BaseException) -> bool:
    """Return whether a line of this project raised an error, rather than a library that it called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


@contextlib.contextmanager
def _working(status_path: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes the current bag into a file, which remains only if the process is killed."""
    path = status_path.with_suffix(".working")

    def mark(bag_id: str) -> None:
        # a mark is a courtesy: without it the job goes on
        with contextlib.suppress(OSError):
            path.write_text(bag_id + "\n", encoding="utf-8")

    try:
        yield mark
    finally:
        path.unlink(missing_ok=True)


def one_line(error: BaseException) -> str:
    """Return an error as one line, with its type unless it is a `ValueError`, whose message is for the user."""
    text = " ".join(str(error).split())
    if not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:_REASON_CHARACTERS]


def _record(status: TextIO, row: BagRow, outcome: Outcome, started: float) -> None:
    facts = {name: value for name, value in vars(outcome).items() if name in StatusLine.model_fields}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = StatusLine(bag_id=row.bag_id, **facts, seconds=round(time.monotonic() - started, 3), time=now)
    with name_in_errors(status.name):
        status.write(json.dumps(line.model_dump(), sort_keys=True) + "\n")
        status.flush()


def _end_line(status: TextIO, path: Path) -> None:
    """Terminate the incomplete last line of a job whose disk was full, before new lines are appended."""
    with path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 1))
        if stream.read() not in (b"", b"\n"):
            status.write("\n")


@contextlib.contextmanager
def shard_lock(path: Path | str) -> Iterator[None]:
    """Hold the lock of one shard, a file; a second job waits for it and then skips the finished bags.

    A killed job releases its lock. On a file system without locks the job goes on with a warning: two jobs on one shard
    then do the work twice, but bags are written atomically in any case.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, poll_interval=0.2, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting: another job works on this shard (%s)", path)
            lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        log.warning("%s: this file system has no locks (%s); going on without", path, error)
    try:
        yield
    finally:
        lock.release()


def add_shard_arguments(parser: argparse.ArgumentParser, stage_version: int) -> None:
    """Add the arguments of every stage over shards of bags."""
    parser.add_argument("--dataset", required=True, help="name of the dataset in the config")
    parser.add_argument("--bags", required=True, type=Path, help="bags.csv")
    parser.add_argument("--root", required=True, type=Path, help="folder with the raw data")
    parser.add_argument("--shard", required=True, type=int, help="number of the shard, from 0")
    parser.add_argument("--bags-per-shard", required=True, type=int, help="bags per shard")
    parser.add_argument("--options", default="{}", help='JSON: {"wsi": {...}, "ct": {...}}')
    parser.add_argument("--out", required=True, type=Path, help="folder of the stage")
    parser.add_argument("--manifest", required=True, type=Path, help="JSON to write: bags, states, hashes")
    parser.add_argument("--status", type=Path, help="JSONL to append to: outcomes with times (default beside --out)")
    parser.add_argument(
        "--compare-files", choices=("time", "content"), default="time", help="how changed raw files are recognised"
    )
    parser.add_argument("--allowed-failures", type=int, default=0, help="failed bags up to which the job succeeds")
    parser.add_argument("--stage-version", type=int, help=f"version the caller expects (this is {stage_version})")


@dataclass(frozen=True)
class ShardJob:
    """What the command lines of all stages over shards have in common; `add_shard_arguments` describes the fields."""

    dataset: str
    rows: Sequence[BagRow]
    root: Path
    out: Path
    shard: int
    manifest: Path
    status: Path | None = None
    allowed_failures: int = 0
    compare: Compare = "time"

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, stage_version: int) -> ShardJob:
        """Read the bags named by the arguments of `add_shard_arguments`; warn if another version is expected."""
        if args.stage_version not in (None, stage_version):
            log.warning(
                "--stage-version %d, but this program is version %d, which counts", args.stage_version, stage_version
            )
        rows = shard_rows(read_bags(args.bags), args.shard, args.bags_per_shard)
        return cls(
            *(args.dataset, rows, args.root, args.out, args.shard, args.manifest, args.status, args.allowed_failures),
            compare=args.compare_files,
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the shard."""
        with shard_lock(self.out / ".locks" / f"{self.shard:04d}.lock"):
            yield

    def run(self, stage: str, stage_version: int, work: Work) -> int:
        """Process the bags and write the manifest; see `run_shard`."""
        head = Shard(self.dataset, stage, stage_version, self.shard)
        status = self.status or self.out.parent / "status" / stage / f"{head.name}.jsonl"
        return run_shard(self.rows, work, self.manifest, self.allowed_failures, status, shard=head)
