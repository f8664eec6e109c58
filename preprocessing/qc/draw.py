"""Pictures of the quality-control sheet: a bag's thumbnail with what was made of it, and the contact sheet.

Colours (RGB, told apart without red-green vision): tissue blue, holes violet, the border of the kept tiles amber,
lesion vermilion (a bar at the foot of a tile where only a mask is known), artefacts that are warned about hatched in
the colours of `ARTEFACTS`; CT montages come with positive slices framed.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from preprocessing.qc.facts import BagFacts
from preprocessing.store.bags import read_arrays, read_instance_attrs, read_stored
from preprocessing.store.outlines import Outlines
from preprocessing.tiling.artefacts import ARTEFACTS

Picture = npt.NDArray[np.uint8]

COLOURS = {"tissue": (0, 114, 178), "holes": (136, 60, 180), "tiles": (230, 159, 0), "lesion": (213, 60, 20)}
CELL_PX, CAPTION_PX, TITLE_PX, COLUMNS = 228, 88, 34, 6
# names of the colours in the legend
LEGEND = {"tissue": "tissue", "holes": "hole", "tiles": "kept tile", "lesion": "lesion"}
ALERT = (179, 38, 30)
SHEET_BAGS, HATCH_PX = 48, 7


def draw_bag(instances: Path, bag: BagFacts, max_px: int) -> Picture | None:
    """Draw contours, holes, kept tiles and lesion of a bag on its thumbnail, its longer side at most `max_px`.

    Returns:
        (h,w,3) uint8, or None if there is no thumbnail.
    """
    path = instances / "thumbnails" / f"{bag.bag_id}.jpg"
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            width, height = image.size
            image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
            small = np.array(image.convert("RGB"))
    except OSError as error:  # PIL raises it for truncated files and files of another type, too.
        raise ValueError(f"{path}: not a picture; delete it and run the instances stage again") from error
    outlines = Outlines.read(instances, bag.bag_id)
    if bag.modality == "wsi" and outlines.downsample:
        scale = small.shape[1] / (width * outlines.downsample)
        if bag.state == "ok":
            _draw_tiles(small, instances / "store", bag, scale, mark_lesion=not outlines.lesion)
        _draw_outlines(small, outlines, scale)
        _draw_artefacts(small, outlines, scale)
    return small


def _draw_outlines(picture: Picture, outlines: Outlines, scale: float) -> None:
    """Draw tissue, holes and lesion into a picture (h, w, 3); `scale` is in picture px per level-0 px."""
    width = 2 if max(picture.shape) > 300 else 1
    for name in ("tissue", "holes", "lesion"):
        # Four fractional bits keep outlines smooth at any scale.
        rings = getattr(outlines, name)
        shapes = [np.round(np.array(ring, np.float64) * scale * 16).astype(np.int32) for ring in rings]
        shapes = [shape for shape in shapes if len(shape)]
        if shapes:
            cv2.polylines(picture, shapes, True, COLOURS[name], width, cv2.LINE_AA, 4)


def _draw_artefacts(picture: Picture, outlines: Outlines, scale: float) -> None:
    """Hatch the artefacts that are warned about in a picture (h, w, 3); `scale` is in picture px per level-0 px."""
    stripes = np.add.outer(np.arange(picture.shape[0]), np.arange(picture.shape[1])) % HATCH_PX < 2
    for name, artefact in (outlines.artefacts or {}).items():
        if not ARTEFACTS[name].warning(artefact.share):
            continue
        colour = ARTEFACTS[name].colour
        mask = np.zeros(picture.shape[:2], np.uint8)
        for rings in artefact.areas:
            shapes = [np.round(np.array(ring, np.float64) * scale).astype(np.int32) for ring in rings]
            cv2.fillPoly(mask, shapes, 1)
            cv2.polylines(picture, shapes, True, colour, 2, cv2.LINE_AA)
        picture[(mask > 0) & stripes] = colour


def _draw_tiles(picture: Picture, store: Path, bag: BagFacts, scale: float, *, mark_lesion: bool) -> None:
    side = read_stored(read_instance_attrs, store, bag.bag_id).l0_footprint_px * scale
    arrays = read_stored(read_arrays, store, bag.bag_id, ["coords", "coverage"], verify=True)
    corners = arrays["coords"] * scale
    kept = np.zeros(picture.shape[:2], np.uint8)
    for x, y in corners:
        cv2.rectangle(kept, (round(x), round(y)), (round(x + side), round(y + side)), 1, -1)
    # The border of all tiles together: a lattice would hide the tissue.
    borders, _ = cv2.findContours(kept, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, borders, -1, COLOURS["tiles"], 1)
    # A mask has no outline: draw a bar at the foot of the tile, as long as the lesion's share of it.
    for (x, y), share in zip(corners, arrays["coverage"], strict=True):
        if mark_lesion and share > 0:
            foot = min(y + side, picture.shape[0])
            low = (round(x), round(foot - max(2.0, 0.06 * side)))
            high = (round(x + max(2.0, side * float(share))), round(foot))
            cv2.rectangle(picture, low, high, COLOURS["lesion"], -1)


def contact_sheet(instances: Path, bags: Sequence[BagFacts], title: str) -> Picture:
    """Draw the first 48 bags below a title, (h,w,3) uint8: six in a row with captions, 1368 px wide."""
    bags = bags[:SHEET_BAGS]
    tiles = [draw_bag(instances, bag, CELL_PX - 10) if bag.state in ("ok", "empty") else None for bag in bags]
    heights = [140 if tile is None else tile.shape[0] for tile in tiles]
    rows = [max(heights[i : i + COLUMNS]) for i in range(0, len(bags), COLUMNS)]
    tops = np.cumsum([TITLE_PX, *(height + CAPTION_PX + 8 for height in rows)])
    sheet = Image.new("RGB", (COLUMNS * CELL_PX, int(tops[-1])), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 7), title, fill="black", font=ImageFont.load_default(17))
    if any(bag.modality == "wsi" for bag in bags):
        kinds = [kind for name, kind in ARTEFACTS.items() if any(name in bag.artefact_warnings for bag in bags)]
        _legend(draw, {LEGEND[name]: COLOURS[name] for name in LEGEND} | {kind.title: kind.colour for kind in kinds})
    for i, (bag, tile) in enumerate(zip(bags, tiles, strict=True)):
        x, y, height = i % COLUMNS * CELL_PX, int(tops[i // COLUMNS]), rows[i // COLUMNS]
        if tile is None:
            draw.rectangle((x + 5, y, x + CELL_PX - 5, y + height), fill=(253, 236, 234))
            lines = textwrap.wrap(bag.reason or "no thumbnail", 30)[: height // 16 - 1]
            draw.multiline_text((x + 12, y + 8), "\n".join(lines), fill=ALERT, font=ImageFont.load_default(12))
        else:
            left = x + (CELL_PX - tile.shape[1]) // 2
            sheet.paste(Image.fromarray(tile), (left, y + (height - tile.shape[0]) // 2))
        _caption(draw, bag, x + 7, y + height + 5)
    return np.array(sheet)


def _legend(draw: ImageDraw.ImageDraw, entries: Mapping[str, tuple[int, int, int]]) -> None:
    for i, (text, colour) in enumerate(entries.items()):
        left = COLUMNS * CELL_PX - 98 * (len(entries) - i)
        draw.rectangle((left, 11, left + 14, 21), outline=colour, width=2)
        draw.text((left + 20, 8), text, fill="black", font=ImageFont.load_default(13))


def _caption(draw: ImageDraw.ImageDraw, bag: BagFacts, x: int, y: int) -> None:
    alert = bag.state != "ok" or bag.alerts
    draw.text((x, y), _cut(bag.bag_id, 28), fill=(154, 75, 0) if alert else "black", font=ImageFont.load_default(13))
    for j, line in enumerate((" · ".join(bag.chips), bag.summary)):
        draw.text((x, y + 17 + 15 * j), _cut(line, 36), fill=(90, 96, 104), font=ImageFont.load_default(12))
    for j, line in enumerate(textwrap.wrap(next(iter(bag.alerts), ""), 36, max_lines=2, placeholder="…")):
        draw.text((x, y + 47 + 15 * j), line, fill=(154, 75, 0), font=ImageFont.load_default(12))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def jpeg(picture: Picture, quality: int = 78) -> bytes:
    """Encode (h,w,3) uint8 as JPEG, deterministically."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()
