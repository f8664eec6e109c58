"""Self-contained web pages: one file, inline style, pictures as data URIs, no request to anywhere.

Used by the quality-control sheet and the report. Readable on a phone, in light and dark, and on paper. Everything that
is not markup made here goes through `html.escape`.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

MAX_PICTURE_PX = 1500

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1c1f23;--soft:#5d6670;--line:#dde1e5;--accent:#0b6bcb;
--warn:#9a4b00;--warnbg:#fff3e0;--bad:#b3261e;--badbg:#fdecea;--good:#1b6e3c;--best:#e3f0fc}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1d2125;--ink:#e6e8ea;--soft:#a0a8b0;--line:#343a40;
--accent:#7ab8f5;--warn:#ffb86b;--warnbg:#33270f;--bad:#ff8a80;--badbg:#3b1a18;--good:#7fd39f;--best:#173450}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,footer{max-width:78rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.6rem}
footer{padding-bottom:3rem;color:var(--soft);font-size:.85rem}
h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0 .6rem}
h2{font-size:1.3rem;margin:2.4rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
p{margin:.5rem 0;max-width:48rem}
a{color:var(--accent)}
code,pre{font:.85em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;
overflow-x:auto;margin:.4rem 0}
small{color:var(--soft);font-weight:400}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;padding:0;margin:.6rem 0}
.warning{background:var(--warnbg);color:var(--warn);border-left:4px solid var(--warn);border-radius:4px;
padding:.6rem .9rem;margin:.7rem 0;font-weight:600}
.warning.bad{background:var(--badbg);color:var(--bad);border-color:var(--bad)}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;background:var(--card);font-size:.92rem}
th,td{padding:.34rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n,table.results td{text-align:right;white-space:nowrap}
table.results thead th{text-align:center;border-bottom:2px solid var(--line);vertical-align:bottom}
table.results thead th small{display:block}
table.results th[scope=row]{white-space:nowrap;font-weight:500}
table.results thead th:first-child{text-align:left}
tr.group th{text-align:left;color:var(--soft);padding-top:.9rem;font-size:.85rem;text-transform:none}
td.best{font-weight:700;background:var(--best)}
td.second{text-decoration:underline;text-underline-offset:3px}
td.second small{text-decoration:none}
td.empty{color:var(--soft);text-align:center!important}
.proposed{color:var(--accent)}
ul.notes{color:var(--soft);font-size:.85rem;max-width:60rem;padding-left:1.2rem}
figure{margin:1rem 0}
figure div.scroll{margin:0}
figure img{display:block;max-width:100%;height:auto;background:#fff;border:1px solid var(--line);border-radius:6px}
figcaption{font-size:.88rem;color:var(--soft);margin-top:.4rem;max-width:60rem}
details{margin:.4rem 0}
summary{cursor:pointer;color:var(--accent);font-size:.88rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(15.5rem,1fr));gap:.9rem;margin:1rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:.85rem}
.card.odd{border-color:var(--warn)}
.card.failed,.card.empty{border-color:var(--bad)}
.card img{display:block;width:100%;height:14rem;object-fit:contain;background:#f4f4f4}
.card.ct img{background:#000}
.card .none{height:14rem;display:flex;align-items:center;justify-content:center;padding:1rem;text-align:center;
background:var(--badbg);color:var(--bad);overflow-wrap:anywhere}
.card div.text{padding:.5rem .7rem .7rem}
.card b{overflow-wrap:anywhere}
.card p{margin:.15rem 0}
.chip{display:inline-block;border:1px solid var(--line);border-radius:1rem;padding:0 .5rem;margin:.1rem .2rem .1rem 0}
.chip.pos{border-color:var(--bad);color:var(--bad)}
.alert{color:var(--warn)}
.key i{display:inline-block;width:1.1em;height:.8em;border:2px solid;margin:0 .35em 0 .9em;vertical-align:-.05em}
@media (max-width:40rem){body{font-size:15px}th,td{padding:.3rem .45rem}.cards{grid-template-columns:1fr 1fr;gap:.5rem}
.card img,.card .none{height:10rem}figure div.scroll img{max-width:none;width:52rem}table{font-size:.82rem}}
@media print{.card{break-inside:avoid}nav{display:none}}
"""


def page(title: str, body: str, *, header: str = "", footer: str = "") -> str:
    """A whole document; `body`, `header` and `footer` are markup, `title` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><header><h1>{escape(title)}</h1>{header}</header>\n"
        f"<main>{body}</main>\n<footer>{footer}</footer></body></html>\n"
    )


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a picture ("png" or "jpeg") as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def picture(path: Path | str, alt: str) -> str:
    """An `img` with a PNG or JPEG file inside, scaled down to at most 1500 px.

    Raises:
        ValueError: the file is missing or is no picture.
    """
    import io

    from PIL import Image, UnidentifiedImageError

    data = _read(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "PNG").lower()
            if max(image.size) > MAX_PICTURE_PX:
                image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                image.save(stream, format=kind.upper(), **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
                data = stream.getvalue()
            width, height = image.size
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture, expected PNG or JPEG") from error
    source = data_uri(data, kind)
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}" loading="lazy">'


def _read(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such picture") from error


def figure(image: str, caption: str, *, command: str = "", runs: Sequence[str] = ()) -> str:
    """A picture (markup of `picture`) with its caption, the command that drew it and the runs behind it (texts)."""
    behind = f"<p>Runs: {', '.join(f'<code>{escape(run)}</code>' for run in runs)}</p>" if runs else ""
    made = f"<pre>{escape(command)}</pre>" if command else ""
    more = f"<details><summary>How this was made</summary>{made}{behind}</details>" if made or behind else ""
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(caption)}</figcaption>{more}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain table of texts and numbers; numbers are aligned right."""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def warning(text: str, *, bad: bool = False) -> str:
    """A line nobody should miss."""
    return f'<p class="warning{" bad" if bad else ""}">{escape(text)}</p>'


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="n">{value:,}</td>'
    if isinstance(value, float):
        return f'<td class="n">{value:.3g}</td>'
    return f"<td>{escape('' if value is None else str(value))}</td>"
