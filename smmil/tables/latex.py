r"""Writes tables as LaTeX for `\usepackage{booktabs}`.

Every section is a float; wide sections are split between headings into panels that fit an upright page. The best value
is bold, the second underlined; notes follow the floats.
"""

import re
from collections.abc import Iterator, Sequence

from smmil.tables.records import Column, Row, Section, Table
from smmil.tables.text import heads, parts, row_name

# in points: a text width of 5.5 inches, a character of \footnotesize and of \tiny, the space between columns
PAGE, CHARACTER, TINY, GAP = 397.0, 4.5, 3.1, 6.0

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # after \\ and \item, a bracket would start an optional argument
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": r"$-$",
    "–": "--",
    "†": r"$\dagger$",
    "◆": r"$\diamond$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "µ": r"$\mu$",
}


def escape(text: str) -> str:
    """Escape special characters and symbols of any text; line ends become spaces."""
    return "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """Return the table as floats, with the notes after them."""
    lines = ["% needs \\usepackage{booktabs}; notes (definitions, missing runs, protocol) follow the floats"]
    for section in table.sections:
        lines += _float(table, section)
    lines += [r"\begin{small}", r"\sloppy", r"\begin{itemize}"]
    lines += [rf"\item {escape(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{itemize}", r"\end{small}", ""])


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


def _widths(table: Table, section: Section) -> tuple[list[float], float]:
    """Return the estimated width of every column and the room for all of them, in points."""
    widths = [len(column.label) * CHARACTER for column in section.columns]
    for row in section.rows:
        for i, column in enumerate(section.columns):
            number, *small = parts(column, row.cells[i], table.n_splits)
            widths[i] = max(widths[i], len(number) * CHARACTER + len("".join(small)) * TINY)
    widths = [width + GAP for width in widths]
    start = 0
    for text, span in heads(table, section.columns):
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
    for text, span in heads(table, columns):
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
            yield _row([escape(row_name(row)), *(_cell(table, section, row, i) for i in panel)])
    yield r"\bottomrule"
    yield r"\end{tabular}"


def _cell(table: Table, section: Section, row: Row, i: int) -> str:
    number, deviation, few = parts(section.columns[i], row.cells[i], table.n_splits)
    if not number:
        return ""
    main = f"$-${number[1:]}" if number.startswith("-") else escape(number)
    main = {1: rf"\textbf{{{main}}}", 2: rf"\underline{{{main}}}"}.get(row.places[i] or 0, main)
    # columns are narrow: "±0.010"
    small = escape(re.sub(r"-(?=\d)", "−", deviation.replace("± ", "±"))) + (rf"\,{escape(few)}" if few else "")
    return f"{main}{{\\tiny{small}}}" if small else main


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
