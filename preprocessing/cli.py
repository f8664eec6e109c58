"""What every command line of the project shares: one error line for what its user can mend, plain logs, whole files."""

import errno
import functools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

# no room, over the quota, over the file size limit, read-only: no work's own fault, and all that follows fails alike
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Abort(Exception):
    """An error that is not one bag's (a device that fails, a lost encoder): ends the job instead of one bag."""


class Main(Protocol):
    """A command line: `main(argv) -> exit code`; argv None = the process's own arguments."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Runs it."""


def setup_logging(level: int = logging.INFO) -> None:
    """Sends plain log lines to stderr; a second call changes nothing."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def guard(main: Main) -> Main:
    """Turns what the user of a command line can mend into one line on stderr.

    That is a `ValueError` (exit code 2), and a disk that is full, read-only or forbidden (exit code 1). Every other
    exception is a fault of the program and keeps its traceback.

    Args:
        main: `main(argv) -> exit code`.

    Returns:
        The same callable, with such errors reported in one line.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        setup_logging()
        try:
            return main(argv)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except (OSError, Abort) as error:
            told = disk_trouble(error)
            if told is None:
                raise
            print(f"error: {told}", file=sys.stderr)
            return 1

    return guarded


def leave(status: int) -> NoReturn:
    """Ends the process at once, with what it has said flushed: for a command line's last line.

    The interpreter's own farewell takes a library of torch's size apart, piece by piece, before the memory goes back to
    the system anyway: 0.6 s after a training job.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def disk_trouble(error: OSError | Abort) -> str | None:
    """What a full, read-only or forbidden disk asks its user to do, in one line; None for every other error."""
    if isinstance(error, Abort):
        return str(error) if isinstance(error.__cause__, OSError) and disk_trouble(error.__cause__) else None
    file, reason = error.filename or "a file", error.strerror or str(error)
    # without a file it is no matter of files: a process that may not be signalled, say
    if error.errno in _FORBIDDEN and error.filename:
        advice = "see that you may write there (read, if it is an input), or name another folder"
        return f"cannot open or write {file}: {reason}; {advice}, then run the same command again"
    if error.errno in DISK_ERRORS:
        advice = "make room there, then run the same command again: what is finished is kept"
        return f"cannot write {file}: {reason}; {advice}"
    return None


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Says of which file a disk error is: a failing write does not know, and a temporary name tells nobody anything."""
    try:
        yield
    except OSError as error:
        if error.errno in (*DISK_ERRORS, *_FORBIDDEN):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it into place after the block (fsync first); never half a file.

    A crash leaves at most a hidden `.tmp` file behind, which nothing reads.

    Raises:
        OSError: a full, read-only or forbidden disk, naming `path`.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            # mkstemp makes files private; results are meant to be shared like any other output
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path | str, data: bytes | memoryview) -> None:
    """Writes a file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Writes JSON atomically with sorted keys, so that equal content gives equal bytes.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
