"""How a cell reads, whatever the file: a number, its small print, and how many splits it lacks."""

from typing import TYPE_CHECKING

from smmil.methods_table import METHODS
from smmil.table_cells import Cell, Column
from smmil.table_specs import INSTANCE, SIGNED, style

if TYPE_CHECKING:
    from smmil.tables import Row, Table

PROPOSED = "◆"
DAGGER = "†"
NOT_APPLICABLE = "–"


def parts(column: Column, cell: Cell, n_splits: int) -> tuple[str, str, str]:
    """Number, deviation and missing splits, e.g. `("0.912", "± 0.010", "[3]")`; all "" for an empty cell.

    The deviation of a single split is "± -"; ranks, counts and spreads have none, and a paired difference has its
    interval there, too. What a rank lacks is what the value behind it with the fewest splits lacks.
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
    """A number in the format of its metric, "-" for none; "#.3g" keeps zeros (2.00), and a point where none follow.

    Up to a million an exponent (1.41e+03 ± 187) reads worse than a whole number.
    """
    if value is None:
        return "-"
    text = format(value, form)
    if "e+" in text and abs(value) < 1e6:
        text = format(value, f"{'+' if form.startswith('+') else ''}.0f")
    return text.rstrip(".")


def cell_text(column: Column, cell: Cell, n_splits: int) -> str:
    """`0.912 ± 0.010`; `[3]` where splits are missing; "" for an empty cell, "–" where the column means nothing."""
    return " ".join(part for part in parts(column, cell, n_splits) if part)


def dagger(table: "Table", column: Column) -> str:
    """A mark where an untrained encoder stands behind a column."""
    return DAGGER if table.random_keys & set(column.keys) else ""


def row_name(row: "Row") -> str:
    """The row's name, marked where the paper proposes the method."""
    return row.name + (f" {PROPOSED}" if METHODS[row.method][2] else "")


def heads(table: "Table", columns: tuple[Column, ...]) -> list[tuple[str, int]]:
    """Headings over the columns with how many they cover, neighbours of one heading together."""
    found: list[tuple[str, int]] = []
    for column in columns:
        text = column.head + dagger(table, column) if column.head else ""
        if found and found[-1][0] == text:
            found[-1] = (text, found[-1][1] + 1)
        else:
            found.append((text, 1))
    return found
