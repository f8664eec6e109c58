r"""Write tables as CSV (every number, one row per method), Markdown (one table per section), LaTeX and HTML.

The HTML is a fragment that the report embeds. LaTeX needs `\usepackage{booktabs}`: every section is a float; wide
sections are split between headings into panels that fit an upright page. The best value of a block is bold, the second
underlined (`smmil.tables.cells.clear_places`); notes follow the tables.
"""

import csv
import html
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from preprocessing.common.files import write_text
from preprocessing.common.webpage import render
from smmil.config.methods import METHODS, PROPOSED
from smmil.tables.cells import INVERTED, NO_CALL, Cell, Row, Section, Table, leaves_range
from smmil.tables.specs import Column, style

logger = logging.getLogger(__name__)

DAGGER = "†"
NOT_APPLICABLE = "–"
# in points: a text width of 5.5 inches, a character of \footnotesize and of \tiny, the space between columns
PAGE, CHARACTER, TINY, GAP = 397.0, 4.5, 3.1, 6.0
# LaTeX; after \\ and \item, a bracket would start an optional argument
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "–": "--"},
    **{"±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "†": r"$\dagger$", "◆": r"$\diamond$", "Δ": r"$\Delta$"},
    **{INVERTED: r"$\updownarrow$", NO_CALL: r"$\ddagger$"},
    **{"α": r"$\alpha$", "≥": r"$\geq$", "≤": r"$\leq$", "µ": r"$\mu$"},
}


def write_table(table: Table, files: Mapping[str, Path | None]) -> None:
    """Write a table; `files` are the paths by format, "csv", "md", "tex" and "html", None = not written.

    Raises:
        ValueError: no file.
    """
    formats = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_html}
    if not any(files.values()):
        raise ValueError("found no --out-csv, --out-md, --out-tex or --out-html, expected at least one")
    for kind, path in files.items():
        if path is not None:
            write_text(path, formats[kind](table))
            logger.info("%s: %d rows in %d sections", path, len(table.sections[0].rows), len(table.sections))


def parts(column: Column, cell: Cell, n_splits: int) -> tuple[str, str, str]:
    """Return number, deviation and number of splits, e.g. `("0.912", "± 0.010", "[3]")`; all "" for an empty cell.

    The deviation of a single split is "± -"; where it leaves the range of the metric, it is the range of the splits,
    "(0.041–0.963)". That of a paired difference includes its interval. The number of splits is "" where none is
    missing; for a rank it is that of the value with the fewest splits. Signs of `smmil.tables.cells` follow it.
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
        count = f" / {cell.below_half}" if "instance_auroc" in column.metrics[0] else ""
        return f"{_number(cell.median, form)} / {_number(cell.worst, form)}{count}", "", few
    sign = "+" if column.kind in ("difference", "paired") else ""
    deviation = f"± {_number(cell.std, form)}"
    if column.kind == "paired" and cell.ci is not None:
        deviation += " ({}, {})".format(*(_number(end, sign + form) for end in cell.ci))
    if leaves_range(column, cell):
        deviation = f"({_number(min(cell.values), form)}–{_number(max(cell.values), form)})"
    return _number(cell.mean, sign + form), deviation, " ".join(filter(None, (few, cell.signs)))


def _number(value: float | None, form: str) -> str:
    """Format a number, "-" for None; without an exponent up to a million."""
    if value is None:
        return "-"
    text = format(value, form)
    if "e+" in text and abs(value) < 1e6:
        text = format(value, f"{'+' if form.startswith('+') else ''}.0f")
    # "#.3g" leaves a point at the end of 123.
    return text.rstrip(".")


def cell_text(column: Column, cell: Cell, n_splits: int) -> str:
    """Return the text of a cell: `0.912 ± 0.010 [3]`, "" for an empty cell, "–" where the column does not apply."""
    return " ".join(part for part in parts(column, cell, n_splits) if part)


def interval(column: Column, cell: Cell) -> str:
    """Return the bootstrap interval of a cell as `0.812–0.955`, "" without one."""
    form = style(column.metrics[0])[0]
    return "" if cell.ci is None else "–".join(_number(end, form) for end in cell.ci)


def dagger(table: Table, column: Column) -> str:
    """Return a mark for columns with an untrained encoder, else ""."""
    return DAGGER if table.random_keys & set(column.keys) else ""


def row_name(row: Row) -> str:
    """Return the name of a row, marked where the paper proposes the method."""
    return row.name + (f" {PROPOSED}" if METHODS[row.method].proposed else "")


def to_csv(table: Table) -> str:
    """Return the table as CSV: one row per method, numbers in full precision, missing ones empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = [column for section in table.sections for column in section.columns]
    names = [column.csv + ending for column in columns for ending in _csv_values(column, Cell())]
    writer.writerow(["group", "method", "name", "proposed", "protocol", *names])
    rows = zip(*(section.rows for section in table.sections), strict=True)
    groups = [block for block, rows in table.sections[0].blocks.items() for _ in rows]
    for group, of_method in zip(groups, rows, strict=True):
        row = of_method[0]
        cells = (cell for row in of_method for cell in row.cells)
        numbers = [v for column, cell in zip(columns, cells, strict=True) for v in _csv_values(column, cell).values()]
        writer.writerow([group, row.method, row.name, int(METHODS[row.method].proposed), table.protocol, *numbers])
    return stream.getvalue()


def _csv_values(column: Column, cell: Cell) -> dict[str, float | int | None]:
    """Return the numbers of a cell by the endings of its columns' names; None where the column does not apply.

    The agreement of a sign-aware metric is that of its runs (`smmil.predictions.signed`). Spreads stand beside the
    means, and have no columns of their own.
    """
    kind, metric, (low, high) = column.kind, column.metrics[0], cell.ci or (None, None)
    values: dict[str, float | int | None] = {} if kind == "spread" else {"": cell.mean}
    if kind == "rank":
        values["_n_splits"] = cell.fewest
    if kind == "inverted":
        values["_of"] = cell.n_splits
    if kind in ("mean", "difference", "paired"):
        values = {".mean": cell.mean, ".std": cell.std, ".n_splits": len(cell.values)}
    if kind in ("mean", "paired"):
        values |= {".ci95_low": low, ".ci95_high": high}
    if kind == "mean":
        values |= {".median": cell.median, ".worst": cell.worst}
        values |= {".inverted": cell.below_half if cell.values else None} if "instance_auroc" in metric else {}
        if metric.startswith("signed_"):
            values[".agreement_median"] = median(cell.agreement) if cell.agreement else None
            values[".agreement_worst"] = min(cell.agreement, default=None)
    return values if cell.applies else dict.fromkeys(values)


def to_markdown(table: Table) -> str:
    """Return the table as GitHub Markdown: best values bold, second-best underlined, notes as a list."""
    lines = [f"## {table.title}", ""]
    marks = {None: "{}", 1: "**{}**", 2: "<u>{}</u>"}
    for section in table.sections:
        lines += [f"### {section.title}", ""] if section.title else []
        heads = [(c.head + dagger(table, c) if c.head else "", c.label) for c in section.columns]
        lines.append(_line(["Method", *("<br>".join(filter(None, pair)) for pair in heads)]))
        lines.append(_line(["---"] + ["---:"] * len(heads)))
        for block, rows in section.blocks.items():
            lines.append(_line([f"**{block}**", *[""] * len(heads)]))
            for row in rows:
                texts = [cell_text(c, cell, table.n_splits) for c, cell in zip(section.columns, row.cells, strict=True)]
                marked = [marks[place].format(text) for text, place in zip(texts, row.places, strict=True)]
                lines.append(_line([row_name(row), *marked]))
        lines.append("")
    return "\n".join([*lines, *[f"- {note}" for note in table.notes], ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


LEFT_OUT = '<p class="left-out">'


def left_out(fragment: str) -> str:
    """Return title and reason of a table that a fragment of `to_html` does not show, as text; "" where it shows one."""
    return html.unescape(fragment.removeprefix(LEFT_OUT).split("</p>")[0]) if fragment.startswith(LEFT_OUT) else ""


def to_html(table: Table) -> str:
    """Return a fragment of HTML with the marks and notes of the Markdown; one line for a table without any value."""
    if table.left_out:
        return f"{LEFT_OUT}{html.escape(f'{table.title}. No cell has a value: {table.left_out}.')}</p>\n"
    templates = Path(__file__).parent / "templates"
    functions = {"heads": _heads, "dagger": dagger, "parts": parts, "interval": interval, "row_name": row_name}
    return render("table.html.j2", templates, table=table, **functions)


def to_latex(table: Table) -> str:
    """Return the table as floats, with the notes after them."""
    lines = ["% needs \\usepackage{booktabs}; notes (definitions, missing runs, protocol) follow the floats"]
    for section in table.sections:
        lines += _float(table, section)
    lines += [r"\begin{small}", r"\sloppy", r"\begin{itemize}"]
    lines += [rf"\item {escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{itemize}", r"\end{small}", ""])


def escape(text: str) -> str:
    """Escape special characters and symbols of any text for LaTeX; line ends become spaces."""
    return "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))


def _float(table: Table, section: Section) -> Iterator[str]:
    # LaTeX numbers tables itself
    title = re.sub(r"^Table \d+\. ", "", table.title) + (f". {section.title}" if section.title else "")
    label = f"tab:{table.name}" + (f"-{section.key}" if section.key else "")
    yield from (r"\begin{table}[tbp]", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{3pt}")
    yield rf"\caption{{{escape(title)}. Protocol: {escape(table.protocol)}.}}"
    yield rf"\label{{{label}}}"
    for i, panel in enumerate(panels(section.columns, *_widths(table, section))):
        if i:
            yield r"\par\medskip"
        yield from _tabular(table, section, panel)
    yield r"\end{table}"


def _heads(table: Table, columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return the headings over the columns with their spans; neighbours with the same heading share one."""
    texts = [column.head + dagger(table, column) if column.head else "" for column in columns]
    return [(text, len(list(group))) for text, group in groupby(texts)]


def _widths(table: Table, section: Section) -> tuple[list[float], float]:
    """Return the estimated width of every column and the room for all of them, in points."""
    widths = [len(column.label) * CHARACTER for column in section.columns]
    for row in section.rows:
        for i, column in enumerate(section.columns):
            number, *small = parts(column, row.cells[i], table.n_splits)
            widths[i] = max(widths[i], len(number) * CHARACTER + len("".join(small)) * TINY)
    widths = [width + GAP for width in widths]
    start = 0
    for text, span in _heads(table, section.columns):
        widths[start] += max(0.0, len(text) * CHARACTER + GAP - sum(widths[start : start + span]))
        start += span
    return widths, PAGE - max((len(row_name(row)) for row in section.rows), default=0) * CHARACTER - GAP


def panels(columns: Sequence[Column], widths: Sequence[float], room: float) -> list[list[int]]:
    """Split columns into panels no wider than `room`, between headings where the columns of one heading fit."""
    groups: list[list[int]] = []
    for i, column in enumerate(columns):
        together = groups and columns[groups[-1][-1]].head == column.head
        if together and sum(widths[j] for j in groups[-1]) + widths[i] <= room:
            groups[-1].append(i)
        else:
            groups.append([i])
    result: list[list[int]] = []
    for group in groups:
        if result and sum(widths[j] for j in (*result[-1], *group)) <= room:
            result[-1] += group
        else:
            result.append(list(group))
    return result


def _tabular(table: Table, section: Section, panel: Sequence[int]) -> Iterator[str]:
    columns = tuple(section.columns[i] for i in panel)
    yield rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"
    yield r"\toprule"
    headings, rules, start = [], [], 2
    for text, span in _heads(table, columns):
        headings.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(text)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if text else []
        start += span
    if rules:
        yield _row(["", *headings])
        yield "".join(rules)
    yield _row(["Method", *(escape(column.label) for column in columns)])
    for block, rows in section.blocks.items():
        yield r"\midrule"
        yield rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{escape(block)}}}}} \\"
        for row in rows:
            cells = [_cell(*parts(section.columns[i], row.cells[i], table.n_splits), row.places[i]) for i in panel]
            yield _row([escape(row_name(row)), *cells])
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _cell(number: str, deviation: str, few: str, place: int | None) -> str:
    if not number:
        return ""
    text = f"$-${number[1:]}" if number.startswith("-") else escape(number)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(place or 0, text)
    # columns are narrow: "±0.010"
    small = escape(re.sub(r"-(?=\d)", "−", deviation.replace("± ", "±"))) + (rf"\,{escape(few)}" if few else "")
    return f"{text}{{\\tiny{small}}}" if small else text


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
