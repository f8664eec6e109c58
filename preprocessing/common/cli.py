"""Shared by all command lines: one-line errors for what the user can fix, plain logs, atomic writes."""

import difflib
import functools
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from preprocessing.common.files import _FORBIDDEN, DISK_ERRORS

if TYPE_CHECKING:
    from pydantic import ValidationError

T = TypeVar("T")
MAX_PROBLEMS = 20
# The command as the user called it, where a verb of `smmil` passes its arguments on.
PROGRAM: ContextVar[str] = ContextVar("PROGRAM")


class Abort(Exception):
    """An error that concerns the whole job, not one bag, such as a failing device."""


# a command line: `main(argv) -> exit code`; without argv, the arguments are those of the process
Main = Callable[..., int]


def guard(main: Main) -> Main:
    """Send log lines to stderr, and report errors that the user can fix in one line there.

    These are a `ValueError` (exit code 2), and a disk that is full, read-only or forbidden (exit code 1). Every other
    exception is a bug and keeps its traceback.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=line)
        try:
            return main(argv)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except (OSError, Abort) as error:
            message = disk_trouble(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1

    return guarded


def disk_trouble(error: OSError | Abort) -> str | None:
    """Return what to do about a full, read-only or forbidden disk, in one line; None for every other error."""
    if isinstance(error, Abort):
        return str(error) if isinstance(error.__cause__, OSError) and disk_trouble(error.__cause__) else None
    file, reason = error.filename or "a file", error.strerror or str(error)
    # permission errors without a file have other causes, such as a process that may not be signalled
    if error.errno in _FORBIDDEN and error.filename:
        advice = "see that you may write there (read, if it is an input), or name another folder"
        return f"cannot open or write {file}: {reason}; {advice}, then run the same command again"
    if error.errno in DISK_ERRORS:
        advice = "make room there, then run the same command again: what is finished is kept"
        return f"cannot write {file}: {reason}; {advice}"
    return None


def program(module: str) -> str:
    """Return the name of a command for its help and errors: the verb that was called, or `python -m MODULE`."""
    return PROGRAM.get(f"python -m {module}")


def raise_all(problems: Sequence[str], source: str) -> None:
    """Raise one `ValueError` that lists the problems of one source, if there are any."""
    if not problems:
        return
    lines = list(problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"... and {len(problems) - MAX_PROBLEMS} more")
    plural = "" if len(problems) == 1 else "s"
    raise ValueError(f"{source}: {len(problems)} problem{plural}:\n  " + "\n  ".join(lines))


def nearest(name: str, names: Collection[str]) -> str:
    """Return " (did you mean 'label'?)" for the most similar name whatever the case, "" if none is similar."""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def validation_problems(error: "ValidationError") -> str:
    """Return the first five problems of a record in one line, each with its key, and how many more there are."""
    texts = [f"{'.'.join(map(str, e['loc'])) or 'content'}: {e['msg']}" for e in error.errors()]
    return "; ".join([*texts[:5], *([f"and {len(texts) - 5} more"] if len(texts) > 5 else [])])


def read_record(record: type[T], path: Path | str) -> T:
    """Read a JSON object into a dataclass, keys without a field ignored; raise `ValueError` if it does not fit."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(record).validate_json(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {validation_problems(error)}; wrong kind of file?") from error
