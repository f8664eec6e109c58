"""Text of a cell in every format: the number, its deviation, and the number of splits where some are missing."""

from collections.abc import Sequence
from itertools import groupby

from smmil.config.methods import METHODS, PROPOSED
from smmil.tables.records import Cell, Column, Row, Table
from smmil.tables.specs import INSTANCE, SIGNED, style

DAGGER = "†"
NOT_APPLICABLE = "–"


def parts(column: Column, cell: Cell, n_splits: int) -> tuple[str, str, str]:
    """Return number, deviation and number of splits, e.g. `("0.912", "± 0.010", "[3]")`; all "" for an empty cell.

    The deviation of a single split is "± -". Ranks, counts and spreads have no deviation; that of a paired difference
    includes its interval. The number of splits is "" where none is missing; for a rank it is that of the value with the
    fewest splits.
    """
    if not cell.applies:
        return NOT_APPLICABLE, "", ""
    if cell.mean is None:
        return "", "", ""
    splits = len(cell.values) if cell.fewest is None else cell.fewest
    few = f"[{splits}]" if splits < n_splits else ""
    form = style(column.metrics[0])[0]
    if column.kind == "rank":
        return f"{cell.mean:.3f}", "", few
    if column.kind == "inverted":
        return f"{cell.mean:.0f} / {cell.n_splits}", "", ""
    if column.kind == "job":
        return _number(cell.mean, form), "", ""
    if column.kind == "spread":
        count = f" / {cell.below_half}" if column.metrics[0] in (INSTANCE[0], SIGNED[0]) else ""
        return f"{_number(cell.median, form)} / {_number(cell.worst, form)}{count}", "", few
    sign = "+" if column.kind in ("difference", "paired") else ""
    deviation = f"± {_number(cell.std, form)}"
    if column.kind == "paired" and cell.ci is not None:
        deviation += " ({}, {})".format(*(_number(end, sign + form) for end in cell.ci))
    return _number(cell.mean, sign + form), deviation, few


def _number(value: float | None, form: str) -> str:
    """Format a number, "-" for None; without the trailing point that "#.3g" leaves (123.).

    Numbers up to a million are shown without an exponent.
    """
    if value is None:
        return "-"
    text = format(value, form)
    if "e+" in text and abs(value) < 1e6:
        text = format(value, f"{'+' if form.startswith('+') else ''}.0f")
    return text.rstrip(".")


def cell_text(column: Column, cell: Cell, n_splits: int) -> str:
    """Return the text of a cell: `0.912 ± 0.010 [3]`, "" for an empty cell, "–" where the column does not apply."""
    return " ".join(part for part in parts(column, cell, n_splits) if part)


def dagger(table: Table, column: Column) -> str:
    """Return a mark for columns with an untrained encoder, else ""."""
    return DAGGER if table.random_keys & set(column.keys) else ""


def row_name(row: Row) -> str:
    """Return the name of a row, marked where the paper proposes the method."""
    return row.name + (f" {PROPOSED}" if METHODS[row.method].proposed else "")


def heads(table: Table, columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return the headings over the columns with their spans; neighbours with the same heading share one."""
    texts = [column.head + dagger(table, column) if column.head else "" for column in columns]
    return [(text, len(list(group))) for text, group in groupby(texts)]
