"""What every command line of the project shares: one error line for user errors, plain logs, atomic JSON."""

import functools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Main(Protocol):
    """A command line: `main(argv) -> exit code`; argv None = the process's own arguments."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Runs it."""


def setup_logging(level: int = logging.INFO) -> None:
    """Sends plain log lines to stderr; a second call changes nothing."""
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def guard(main: Main) -> Main:
    """Turns a `ValueError` of a command line into one line on stderr and exit code 2.

    Every other exception is a fault of the program and keeps its traceback.

    Args:
        main: `main(argv) -> exit code`.

    Returns:
        The same callable, with user errors reported in one line.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        setup_logging()
        try:
            return main(argv)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return guarded


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it into place after the block (fsync first); never half a file.

    A crash leaves at most a hidden `.tmp` file behind, which nothing reads.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file whole or not at all (temporary name, fsync, rename)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; results are meant to be shared like any other output
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
