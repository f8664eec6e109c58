"""Pictures of the report: a small WebP inside the page, links to the full PNG and PDF beside it.

The report stays readable on a phone and small enough to mail: a picture inside is at most 1000 px wide and a few tens
of kB; the files that the paper would print lie where they were drawn, and the page links to them.
"""

import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from preprocessing.webpage import data_uri

WIDTH_PX, HEIGHT_PX, QUALITY = 1000, 1800, 62


def thumbnail(path: Path, alt: str) -> str:
    """An `img` with a small WebP copy of a picture inside.

    Args:
        path: PNG or JPEG.
        alt: text for those who do not see it.

    Raises:
        ValueError: the file is missing or is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such picture; draw it again") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture, expected PNG or JPEG") from error
    small.thumbnail((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, format="WEBP", quality=QUALITY, method=6)
    source = data_uri(stream.getvalue(), "webp")
    width, height = small.size
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt, quote=True)}" loading="lazy">'


def links(files: Sequence[Path], page: Path) -> str:
    """Links to files beside the page, relative to it; files that are not there are left out."""
    shown = []
    for path in files:
        if path.is_file():
            target = quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())
            shown.append(f'<a href="{escape(target, quote=True)}">{escape(path.suffix[1:].upper())}</a>')
    return f'<small class="files">{" · ".join(shown)}</small>' if shown else ""


def figure(folder: Path, entry: Mapping[str, Any], page: Path, *, command: str = "") -> str:
    """A drawn figure: picture, links, caption, notes, and folded away the command and the runs behind it.

    Args:
        folder: where its files lie.
        entry: the JSON object beside it; `files` (or `file`), caption, and as there are notes, runs, command, protocol.
        page: the HTML file, for the links.
        command: where the entry has none.
    """
    files = [folder / name for name in entry.get("files", [entry.get("file", "")])]
    caption = entry["caption"]
    notes = "".join(f"<li>{escape(note)}</li>" for note in entry.get("notes", ()))
    listed = f'<ul class="notes">{notes}</ul>' if notes else ""
    text = f"<figcaption>{escape(caption)} {links(files, page)}</figcaption>"
    details = behind(entry.get("command") or command, entry.get("runs", ()), entry.get("protocol"))
    image = thumbnail(files[0], entry.get("title") or caption)
    return f'<figure><div class="scroll">{image}</div>{text}{listed}{details}</figure>'


def behind(command: str, runs: Sequence[str], protocol: str | None = None) -> str:
    """The exact command and the runs of a figure, folded away."""
    if not command and not runs:
        return ""
    facts = f"<p>Protocol: {escape(protocol)}.</p>" if protocol else ""
    made = f"<pre>{escape(command)}</pre>" if command else ""
    listed = ", ".join(f"<code>{escape(run)}</code>" for run in runs)
    count, listing = (f" ({len(runs)} runs)", f"<p>Runs: {listed}</p>") if runs else ("", "")
    return f"<details><summary>How this was made{count}</summary>{made}{facts}{listing}</details>"
