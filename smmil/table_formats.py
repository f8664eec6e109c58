"""Writes a `smmil.tables.Table` as CSV (every number, one row per method), Markdown and HTML (as read by people)."""

import csv
import io
from html import escape

from smmil.methods_table import METHODS, display_name
from smmil.tables import Cell, Row, Table

PROPOSED = "◆"


def cell_text(cell: Cell, n_splits: int) -> str:
    """`0.912 ± 0.010`; "-" for the deviation of one split; `[3]` where splits are missing; "" for an empty cell."""
    if cell.mean is None:
        return ""
    spread = "-" if cell.std is None else f"{cell.std:.3f}"
    few = f" [{len(cell.values)}]" if len(cell.values) < n_splits else ""
    return f"{cell.mean:.3f} ± {spread}{few}"


def rank_text(row: Row) -> str:
    """Mean rank with three decimals, "" where there is none."""
    return "" if row.rank is None else f"{row.rank:.3f}"


def to_csv(table: Table) -> str:
    """One row per method; per column mean, std, splits and bootstrap interval in full precision, empty = missing."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ["group", "method", "name", "proposed", "protocol"]
    for column in table.columns:
        prefix = f"{column.dataset}.{column.encoder}.{column.metric}"
        header += [f"{prefix}.{part}" for part in ("mean", "std", "n_splits", "ci95_low", "ci95_high")]
    writer.writerow([*header, "rank"])
    for group, rows in table.groups.items():
        for row in rows:
            name, _, proposed = METHODS[row.method]
            line: list[object] = [group, row.method, name, int(proposed), table.protocol]
            for cell in row.cells:
                low, high = cell.ci or (None, None)
                line += [_number(v) for v in (cell.mean, cell.std)] + [len(cell.values), _number(low), _number(high)]
            writer.writerow([*line, _number(row.rank)])
    return stream.getvalue()


def to_markdown(table: Table) -> str:
    """A GitHub table: groups as bold rows, best bold, second underlined, notes as a list."""
    heads = [f"{column.title}{_dagger(table, column.dataset)}<br>{column.label}" for column in table.columns]
    lines = [f"## {table.title}", "", _line(["Method", *heads, "Rank"]), _line(["---"] + ["---:"] * (len(heads) + 1))]
    for group, rows in table.groups.items():
        lines.append(_line([f"**{group}**", *[""] * (len(heads) + 1)]))
        for row in rows:
            name = display_name(row.method) + (f" {PROPOSED}" if METHODS[row.method][2] else "")
            cells = [
                _mark(cell_text(cell, table.n_splits), place) for cell, place in zip(row.cells, row.places, strict=True)
            ]
            lines.append(_line([name, *cells, _mark(rank_text(row), row.rank_place)]))
    return "\n".join([*lines, "", *[f"- {note}" for note in table.notes], ""])


def to_html(table: Table) -> str:
    """The same as an HTML table whose cells carry interval and runs as a tooltip; notes as a list."""
    heads, datasets = [], list(dict.fromkeys((c.dataset, c.encoder, c.title) for c in table.columns))
    for dataset, encoder, title in datasets:
        span = sum((c.dataset, c.encoder) == (dataset, encoder) for c in table.columns)
        name = f"{escape(title)}{_dagger(table, dataset)}<small>{escape(encoder)}</small>"
        heads.append(f'<th colspan="{span}" scope="colgroup">{name}</th>')
    labels = "".join(f'<th scope="col">{escape(column.label)}</th>' for column in table.columns)
    body, width = [], len(table.columns) + 2
    for group, rows in table.groups.items():
        body.append(f'<tr class="group"><th colspan="{width}" scope="rowgroup"><span>{escape(group)}</span></th></tr>')
        body += [_html_row(table, row) for row in rows]
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        '<div class="scroll"><table class="results"><thead><tr><th rowspan="2" scope="col">Method</th>'
        f'{"".join(heads)}<th rowspan="2" scope="col">Rank</th></tr><tr>{labels}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div><ul class="notes">{notes}</ul>'
    )


def _html_row(table: Table, row: Row) -> str:
    mark = f' <span class="proposed">{PROPOSED}</span>' if METHODS[row.method][2] else ""
    name = escape(display_name(row.method)) + mark
    cells = []
    for cell, place in zip(row.cells, row.places, strict=True):
        text, tip = cell_text(cell, table.n_splits), _tip(cell)
        number, _, spread = text.partition(" ± ")
        inner = f"{number}<small> ± {spread}</small>" if text else "·"
        cells.append(f'<td class="{_place_class(place, bool(text))}" title="{escape(tip, quote=True)}">{inner}</td>')
    rank = f'<td class="{_place_class(row.rank_place, True)}">{rank_text(row) or "·"}</td>'
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}{rank}</tr>'


def _tip(cell: Cell) -> str:
    if cell.mean is None:
        return cell.note
    interval = f"95 % bootstrap over test bags {cell.ci[0]:.3f} to {cell.ci[1]:.3f}; " if cell.ci else ""
    return f"{interval}runs: {', '.join(cell.runs)}"


def _place_class(place: int | None, filled: bool) -> str:
    return {1: "best", 2: "second"}.get(place or 0, "" if filled else "empty")


def _mark(text: str, place: int | None) -> str:
    return f"**{text}**" if place == 1 else f"<u>{text}</u>" if place == 2 else text


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _dagger(table: Table, dataset: str) -> str:
    return "†" if dataset in table.random_datasets else ""
