"""Web pages from templates: each page is one file with style and pictures inside that opens offline.

Templates are jinja2 files (`NAME.html.j2`) with autoescape. Those that pages share, with the one stylesheet
`style.css`, are in `preprocessing/common/templates`.
"""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SHARED = Path(__file__).parent / "templates"


def render(name: str, folder: Path = SHARED, **values: object) -> str:
    """Return a template of a folder rendered with all of its variables; it may extend and import the shared ones."""
    environment = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(values)


def data_uri(data: bytes, kind: str) -> str:
    """Return the bytes of a picture ("webp" or "jpeg") as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def thumbnail(path: Path, box: tuple[int, int] = (2200, 4400)) -> tuple[str, int, int]:
    """Return a WebP copy of a PNG or JPEG, at most as large as `box`, as (data URI, width, height) in px.

    It is lossless if that is smaller, as in drawings.

    Raises:
        ValueError: The file is missing or is not a picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such picture; draw it again") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture, expected PNG or JPEG") from error
    small.thumbnail(box, Image.Resampling.LANCZOS)
    copies = []
    for lossless, quality in ((True, 60), (False, 76)):
        stream = io.BytesIO()
        small.save(stream, format="WEBP", lossless=lossless, quality=quality, method=4)
        copies.append(stream.getvalue())
    return data_uri(min(copies, key=len), "webp"), *small.size
