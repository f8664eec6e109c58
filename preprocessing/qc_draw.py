"""Pictures of the quality-control sheet: a bag's thumbnail with what was made of it, and the contact sheet.

Colours (RGB, told apart without red-green vision): tissue blue, holes violet, kept tiles as thin amber squares, lesion
vermilion (a bar at the foot of a tile where only a mask is known); CT montages come with positive slices framed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.qc_facts import ODD, BagFacts

Picture = npt.NDArray[np.uint8]

COLOURS = {"tissue": (0, 114, 178), "holes": (136, 60, 180), "tiles": (230, 159, 0), "lesion": (213, 60, 20)}
CELL_PX, CAPTION_PX, TITLE_PX, COLUMNS = 228, 58, 34, 6
ALERT = (179, 38, 30)
SHEET_BAGS = 48


def draw_bag(instances: Path, bag: BagFacts, max_px: int) -> Picture | None:
    """The thumbnail of a bag with contours, holes, kept tiles and lesion drawn on it.

    Args:
        instances: folder with `store/` and `thumbnails/`.
        bag: which one.
        max_px: longer side of the result, px.

    Returns:
        (h,w,3) uint8, or None if there is no thumbnail.

    Raises:
        ValueError: the thumbnail cannot be decoded.
    """
    import json

    from PIL import Image

    path = instances / "thumbnails" / f"{bag.bag_id}.jpg"
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
            small = np.array(image.convert("RGB"))
    except OSError as error:  # also what is no picture at all, or a cut one
        raise ValueError(f"{path}: not a picture; delete it and run the instances stage again") from error
    outlines_path = path.with_suffix(".json")
    outlines = json.loads(outlines_path.read_text(encoding="utf-8")) if outlines_path.is_file() else {}
    if bag.modality == "wsi" and "downsample" in outlines:
        scale = small.shape[1] / (width * float(outlines["downsample"]))
        _draw_tiles(small, instances / "store", bag, scale, mark_lesion=not outlines.get("lesion"))
        draw_outlines(small, outlines, scale)
    return small


def draw_outlines(picture: Picture, outlines: Mapping[str, Any], scale: float) -> None:
    """Draws tissue, holes and lesion (level-0 polygons) in place; `scale` = picture px per level-0 px."""
    import cv2

    width = 2 if max(picture.shape) > 300 else 1
    for name in ("tissue", "holes", "lesion"):
        # 4 fractional bits: outlines stay smooth at any scale
        shapes = [np.round(np.array(ring, np.float64) * scale * 16).astype(np.int32) for ring in outlines.get(name, [])]
        shapes = [shape for shape in shapes if len(shape)]
        if shapes:
            cv2.polylines(picture, shapes, True, COLOURS[name], width, cv2.LINE_AA, 4)


def _draw_tiles(picture: Picture, store: Path, bag: BagFacts, scale: float, *, mark_lesion: bool) -> None:
    import cv2

    from preprocessing.check import read_stored
    from preprocessing.store import read_arrays, read_attrs

    if bag.state != "ok":
        return
    side = float(read_stored(read_attrs, store, bag.bag_id)["l0_footprint_px"]) * scale
    arrays = read_stored(read_arrays, store, bag.bag_id, ["coords", "coverage"], verify=True)
    corners = arrays["coords"] * scale
    tint = picture.copy()
    for x, y in corners:
        low, high = (round(x), round(y)), (round(x + side), round(y + side))
        cv2.rectangle(tint, low, high, COLOURS["tiles"], -1 if side < 5 else 1)
    picture[:] = cv2.addWeighted(tint, 0.55, picture, 0.45, 0)
    # a mask has no outline: a bar at the foot of the tile, as long as the lesion's share of it
    for (x, y), share in zip(corners, arrays["coverage"], strict=True):
        if mark_lesion and share > 0:
            foot = min(y + side, picture.shape[0])
            low = (round(x), round(foot - max(2.0, 0.06 * side)))
            high = (round(x + max(2.0, side * float(share))), round(foot))
            cv2.rectangle(picture, low, high, COLOURS["lesion"], -1)


def contact_sheet(instances: Path, bags: Sequence[BagFacts], title: str) -> Picture:
    """One picture of the first 48 bags, six in a row, captions below; 1368 px wide.

    Args:
        instances: folder with `store/` and `thumbnails/`.
        bags: in the order to show.
        title: line on top.

    Returns:
        (h,w,3) uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = bags[:SHEET_BAGS]
    tiles = [draw_bag(instances, bag, CELL_PX - 10) if bag.state in ("ok", "empty") else None for bag in shown]
    heights = [140 if tile is None else tile.shape[0] for tile in tiles]
    rows = [max(heights[i : i + COLUMNS]) for i in range(0, len(shown), COLUMNS)]
    tops = np.cumsum([TITLE_PX, *(height + CAPTION_PX + 8 for height in rows)])
    sheet = Image.new("RGB", (COLUMNS * CELL_PX, int(tops[-1])), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 7), title, fill="black", font=ImageFont.load_default(17))
    if any(bag.modality == "wsi" for bag in shown):
        _legend(draw)
    for i, (bag, tile) in enumerate(zip(shown, tiles, strict=True)):
        x, y, height = i % COLUMNS * CELL_PX, int(tops[i // COLUMNS]), rows[i // COLUMNS]
        if tile is None:
            draw.rectangle((x + 5, y, x + CELL_PX - 5, y + height), fill=(253, 236, 234))
            lines = _wrapped(bag.reason or "no thumbnail", 30)[: height // 16 - 1]
            draw.multiline_text((x + 12, y + 8), "\n".join(lines), fill=ALERT, font=ImageFont.load_default(12))
        else:
            left = x + (CELL_PX - tile.shape[1]) // 2
            sheet.paste(Image.fromarray(tile), (left, y + (height - tile.shape[0]) // 2))
        _caption(draw, bag, x + 7, y + height + 5)
    return np.array(sheet)


def _legend(draw: Any) -> None:
    from PIL import ImageFont

    for i, (name, word) in enumerate(zip(COLOURS, ("tissue", "hole", "kept tile", "lesion"), strict=True)):
        left = COLUMNS * CELL_PX - 330 + 82 * i
        draw.rectangle((left, 11, left + 14, 21), outline=COLOURS[name], width=2)
        draw.text((left + 20, 8), word, fill="black", font=ImageFont.load_default(13))


def _caption(draw: Any, bag: BagFacts, x: int, y: int) -> None:
    from PIL import ImageFont

    odd = bag.state != "ok" or bag.oddness >= ODD or bag.warnings
    draw.text((x, y), _cut(bag.bag_id, 28), fill=(154, 75, 0) if odd else "black", font=ImageFont.load_default(13))
    for j, line in enumerate(short_caption(bag)):
        draw.text((x, y + 17 + 15 * j), _cut(line, 36), fill=(90, 96, 104), font=ImageFont.load_default(12))


def short_caption(bag: BagFacts) -> tuple[str, str]:
    """Two short lines: label, split, size; shares or what is wrong."""
    label = {0: "negative", 1: "positive", None: "unlabelled"}[bag.label]
    unit = "slices" if bag.modality == "ct" else "tiles"
    first = " · ".join(part for part in (label, bag.split, f"{bag.n:,} {unit}") if part)
    if bag.state != "ok":
        return first, bag.state.upper()
    shares = [f"{name} {100 * share:.3g} %" for name, share in _shares(bag)]
    if bag.oddness >= ODD:
        shares.append(f"odd (z {bag.oddness:.1f})")
    return first, " · ".join(shares or bag.facts[:1])


def _shares(bag: BagFacts) -> list[tuple[str, float]]:
    pairs = (("tissue", bag.tissue_share), ("positive" if bag.modality == "ct" else "lesion", bag.lesion_share))
    return [(name, share) for name, share in pairs if share is not None]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def jpeg(picture: Picture, quality: int = 78) -> bytes:
    """(h,w,3) uint8 as JPEG bytes, deterministic."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()
