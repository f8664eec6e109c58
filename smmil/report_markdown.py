"""Turns the Markdown that `smmil.tables` writes into HTML: headings, pipe tables, lists, paragraphs, bold, <u>, <br>.

Nothing else of Markdown is known; every other character is shown as it stands, markup included, so a name from a
manifest cannot become markup of the page.
"""

import re
from html import escape

_KEPT = ((r"&lt;(/?)(u|b|sub|sup|small)&gt;", r"<\1\2>"), (r"&lt;br ?/?&gt;", "<br>"))
_CODE = re.compile(r"(`[^`]+`)")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_CELLS = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r":?-{3,}:?")


def to_html(text: str, *, top: int = 2) -> str:
    """HTML of a Markdown text.

    Args:
        text: as `smmil.tables` writes it.
        top: heading level that a single # or ## becomes; deeper ones follow.

    Returns:
        Markup.
    """
    lines, body, i = text.splitlines(), [], 0
    while i < len(lines):
        line = lines[i].strip()
        if not line:
            i += 1
        elif line.startswith("#"):
            level = min(6, top + max(0, len(line) - len(line.lstrip("#")) - 2))
            body.append(f"<h{level}>{inline(line.lstrip('# '))}</h{level}>")
            i += 1
        elif line.startswith("|"):
            block = _while(lines, i, "|")
            body.append(_table(block))
            i += len(block)
        elif line.startswith("- "):
            block = _while(lines, i, "- ")
            body.append('<ul class="notes">' + "".join(f"<li>{inline(one[2:])}</li>" for one in block) + "</ul>")
            i += len(block)
        else:
            body.append(f"<p>{inline(line)}</p>")
            i += 1
    return "".join(body)


def heading(text: str) -> str:
    """The first heading, "" without one."""
    return next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")), "")


def inline(text: str) -> str:
    """Escaped text with bold, code, underline and line breaks."""
    parts = []
    for part in _CODE.split(text.replace("\\|", "|")):
        if _CODE.fullmatch(part):
            parts.append(f"<code>{escape(part[1:-1])}</code>")
            continue
        part = escape(part)
        for pattern, kept in _KEPT:
            part = re.sub(pattern, kept, part)
        parts.append(_BOLD.sub(r"<strong>\1</strong>", part))
    return "".join(parts)


def _while(lines: list[str], start: int, mark: str) -> list[str]:
    block = []
    for line in lines[start:]:
        if not line.strip().startswith(mark):
            break
        block.append(line.strip())
    return block


def _table(block: list[str]) -> str:
    """A pipe table; one bold cell and empty ones are a group, a bold cell is the best, an underlined one the second."""
    rows = [[cell.strip() for cell in _CELLS.split(line)[1:-1]] for line in block]
    ruled = len(rows) > 1 and all(_RULE.fullmatch(cell) for cell in rows[1])
    head, body = (rows[0], rows[2:]) if ruled else (None, rows)
    text = ""
    if head is not None:
        heads = "".join(f'<th scope="col">{inline(cell)}</th>' for cell in head)
        text = f"<thead><tr>{heads}</tr></thead>"
    marked = "".join(_row(cells) for cells in body)
    return f'<div class="scroll"><table class="results">{text}<tbody>{marked}</tbody></table></div>'


def _row(cells: list[str]) -> str:
    first, rest = (cells[0], cells[1:]) if cells else ("", [])
    if _BOLD.fullmatch(first) and not any(rest):
        return f'<tr class="group"><th colspan="{len(cells)}" scope="rowgroup"><span>{inline(first)}</span></th></tr>'
    marked = []
    for cell in rest:
        kind = "best" if _BOLD.fullmatch(cell) else "second" if cell.startswith("<u>") else "" if cell else "empty"
        shown = inline(cell) if kind != "second" else inline(re.sub(r"</?u>", "", cell))
        number, mark, spread = shown.partition(" ± ")
        shown = f"{number}<small>{mark}{spread}</small>" if mark and kind != "best" else shown
        marked.append(f'<td class="{kind}">{shown or "·"}</td>')
    return f'<tr><th scope="row">{inline(first)}</th>{"".join(marked)}</tr>'
