"""Tables and lines on the screen: coloured on a terminal, plain elsewhere."""

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smmil.cli.doctor import Check

STYLES = {"ok": "green", "warning": "yellow", "missing": "bold red"}
PLAIN_WIDTH = 160


def console() -> Console:
    """Return a console for stdout; without a terminal, lines are not wrapped at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def table(*columns: str) -> Table:
    """Return an empty table; columns whose name starts with `>` hold numbers."""
    result = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for name in columns:
        result.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return result


def print_checks(checks: Iterable[Check]) -> int:
    """Print each check as soon as it is made.

    Returns:
        1 if something is missing, else 0.
    """
    screen, missing = console(), 0
    for check in checks:
        missing += check.state == "missing"
        line = Text.assemble((f"{check.state:<8}", STYLES[check.state]), f" {check.name}: {check.text}")
        screen.print(line, soft_wrap=True)
        if check.remedy and check.state != "ok":
            screen.print(Text(f"{'':<8} -> {check.remedy}", style="bold"), soft_wrap=True)
    return 1 if missing else 0
