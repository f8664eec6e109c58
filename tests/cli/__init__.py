"""Tests of `smmil.cli`."""

from smmil.cli.app import main


def code_of(*arguments: str) -> int:
    """Return the exit code of `smmil` in this process."""
    try:
        return main([*arguments])
    except SystemExit as end:
        return int(end.code or 0)
