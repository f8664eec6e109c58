"""Write tables as CSV (every number, one row per method), Markdown (one table per section) and HTML.

The HTML is a fragment that the report embeds. LaTeX: `smmil.tables.latex`.
"""

import csv
import io
from pathlib import Path
from statistics import median

from smmil.config.methods import METHODS
from smmil.tables.records import Cell, Column, Section, Table
from smmil.tables.text import NOT_APPLICABLE, cell_text, dagger, parts, row_name

MEAN = (".mean", ".std", ".n_splits", ".ci95_low", ".ci95_high", ".median", ".worst")
AGREEMENT = (".agreement_median", ".agreement_worst")
# endings of the names of columns that are no metric; median, worst and inverted runs stand beside the mean
OTHER_PARTS: dict[str, tuple[str, ...]] = {
    "spread": (),
    "rank": ("", "_n_splits"),
    "job": ("",),
    "inverted": ("", "_of"),
    "difference": MEAN[:3],
    "paired": MEAN[:5],
}


def to_csv(table: Table) -> str:
    """Return the table as CSV: one row per method, numbers in full precision, missing ones empty.

    A metric has mean, std, n_splits, bootstrap interval, median, worst and, for instance AUROCs, the number of inverted
    runs; a sign-aware one also the median and the lowest agreement of its runs (`smmil.predictions.signed`). A
    difference has mean,
    std and n_splits, and if paired its interval; a rank has its value and the fewest splits of a value behind it.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header = ["group", "method", "name", "proposed", "protocol"]
    header += [
        column.csv + part for section in table.sections for column in section.columns for part in _csv_parts(column)
    ]
    writer.writerow(header)
    for block, rows in table.sections[0].blocks.items():
        for i, row in enumerate(rows):
            line: list[object] = [block, row.method, row.name, int(METHODS[row.method].proposed), table.protocol]
            for section in table.sections:
                for column, cell in zip(section.columns, section.blocks[block][i].cells, strict=True):
                    line += _csv_values(column, cell)
            writer.writerow(line)
    return stream.getvalue()


def _csv_parts(column: Column) -> tuple[str, ...]:
    """Return the endings of a column's names in the CSV, which are the keys of `_csv_values`."""
    if column.kind in OTHER_PARTS:
        return OTHER_PARTS[column.kind]
    metric = column.metrics[0]
    counts = (".inverted",) if metric.endswith("instance_auroc") else ()
    return (*MEAN, *counts, *(AGREEMENT if metric.startswith("signed_") else ()))


def _csv_values(column: Column, cell: Cell) -> list[object]:
    low, high = cell.ci or (None, None)
    values: dict[str, object] = {
        "": _number(cell.mean),
        "_n_splits": "" if cell.fewest is None else cell.fewest,
        "_of": cell.n_splits,
        ".mean": _number(cell.mean),
        ".std": _number(cell.std),
        ".n_splits": len(cell.values),
        ".ci95_low": _number(low),
        ".ci95_high": _number(high),
        ".median": _number(cell.median),
        ".worst": _number(cell.worst),
        ".inverted": cell.below_half if cell.values else "",
        ".agreement_median": _number(median(cell.agreement) if cell.agreement else None),
        ".agreement_worst": _number(min(cell.agreement, default=None)),
    }
    return [values[part] if cell.applies else "" for part in _csv_parts(column)]


def to_markdown(table: Table) -> str:
    """Return the table as GitHub Markdown: best values bold, second-best underlined, notes as a list."""
    lines = [f"## {table.title}", ""]
    for section in table.sections:
        lines += [f"### {section.title}", ""] if section.title else []
        lines += [*_markdown_section(table, section), ""]
    return "\n".join([*lines, *[f"- {note}" for note in table.notes], ""])


def _markdown_section(table: Table, section: Section) -> list[str]:
    names = [
        "<br>".join(text for text in (_pipes(c.head) + dagger(table, c) if c.head else "", _pipes(c.label)) if text)
        for c in section.columns
    ]
    lines = [_line(["Method", *names]), _line(["---"] + ["---:"] * len(names))]
    for block, rows in section.blocks.items():
        lines.append(_line([f"**{_pipes(block)}**", *[""] * len(names)]))
        for row in rows:
            texts = [cell_text(c, cell, table.n_splits) for c, cell in zip(section.columns, row.cells, strict=True)]
            lines.append(_line([row_name(row), *map(_mark, texts, row.places)]))
    return lines


def _mark(text: str, place: int | None) -> str:
    if not text or text == NOT_APPLICABLE:
        return text
    return f"**{text}**" if place == 1 else f"<u>{text}</u>" if place == 2 else text


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pipes(text: str) -> str:
    return text.replace("|", "\\|")


def to_html(table: Table) -> str:
    """Return a fragment of HTML with the marks and notes of the Markdown."""
    from preprocessing.common.webpage import render

    templates = Path(__file__).parent / "templates"
    return render("table.html.j2", templates, table=table, dagger=dagger, parts=parts, row_name=row_name)


def _number(value: float | None) -> str:
    return "" if value is None else repr(float(value))
