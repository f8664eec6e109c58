"""The tiles or slices of a bag with the highest and the lowest scores: what a method looks at, and what it passes over.

Tiles are read from the slide as they were for the encoder, slices through the first window of the scan. Tiles that
overlap one that is already shown are passed over, so that a strip shows different places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.instances.scan_bag import read_slices
from preprocessing.slides.tile_reader import iter_tiles
from preprocessing.store.attrs import InstanceAttrs
from smmil.figures.plotting import RANDOM_MARK, new_figure, save, style

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TopTile:
    """An instance with its score, its rank (1 = highest, ties in stored order) and its picture (h,w,3) uint8."""

    index: int
    rank: int
    score: float
    picture: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TopTiles:
    """The highest scores, highest first, and the lowest, lowest first; no instance is in both."""

    highest: tuple[TopTile, ...]
    lowest: tuple[TopTile, ...]


def extremes(attrs: InstanceAttrs, coords: Array, scores: Array, n: int = 8) -> tuple[list[int], list[int]]:
    """Return the instances with the highest scores, highest first, and with the lowest, lowest first.

    No instance is in both; tiles do not overlap within a list. Arguments as in `read_top_tiles`.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    side = 0 if attrs.modality == "ct" else attrs.l0_footprint_px
    # the highest get the odd one of a small bag
    highest = _apart(order, coords, side, min(n, -(-len(order) // 2)))
    lowest = _apart([i for i in order[::-1] if i not in highest], coords, side, min(n, len(order) - len(highest)))
    return highest, lowest


def read_top_tiles(source: Path, attrs: InstanceAttrs, coords: Array, scores: Array, *, n: int = 8) -> TopTiles:
    """Read the tiles of a slide, or slices of a scan, with the highest and the lowest scores.

    Args:
        source: the slide, or the folder that the files of a scan (`attrs.files`) are relative to.
        attrs: attributes of the stored instances.
        coords: (N,2) level-0 px of tiles, or (N,1) mm of slices.
        scores: (N,).
        n: at most as many of each.

    Raises:
        ValueError: the file is not the slide the bag was made from, or cannot be read; another number of scores.
    """
    if len(scores) != len(coords):
        raise ValueError(f"{source}: {len(scores)} scores of {len(coords)} instances")
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranks = {int(index): rank for rank, index in enumerate(order, 1)}
    highest, lowest = extremes(attrs, coords, scores, n)
    chosen = [*highest, *lowest]
    if attrs.modality == "ct":
        slices = [next(read_slices(source, attrs, i, i + 1)) for i in chosen]
        pictures = [np.repeat(np.round(255 * s[..., :1]).astype(np.uint8), 3, axis=2) for s in slices]
    else:
        pictures = list(iter_tiles(source, attrs, coords[chosen]))
    tiles = [TopTile(i, ranks[i], float(scores[i]), picture) for i, picture in zip(chosen, pictures, strict=True)]
    return TopTiles(tuple(tiles[: len(highest)]), tuple(tiles[len(highest) :]))


def _apart(order: Sequence[int] | Array, coords: Array, side: float, n: int) -> list[int]:
    """Return the first n instances that do not overlap an earlier one; all kinds of bags with side 0."""
    chosen: list[int] = []
    for index in map(int, order):
        if len(chosen) == n:
            break
        gaps = np.abs(coords[chosen] - coords[index]).max(axis=1) if chosen else np.array([np.inf])
        if not side or float(gaps.min()) >= side:
            chosen.append(index)
    return chosen


def draw_top_tiles(tiles: TopTiles, attrs: InstanceAttrs, title: str, out: Path, *, random: bool = False) -> None:
    """Draw a strip of the highest and one of the lowest scores as PNG and PDF; `random` marks an untrained encoder."""
    what = "slices" if attrs.modality == "ct" else "tiles"
    columns = max(len(tiles.highest), len(tiles.lowest), 2)
    scale = f"; a tile is {attrs.tile_mpp * attrs.tile_px / 1000:.3g} mm wide" if attrs.tile_mpp else ""
    with style(grid=False):
        figure = new_figure(1.3 * columns + 0.3, 4.2)
        mark = f"   {RANDOM_MARK}" if random else ""
        figure.suptitle(f"{title}{scale}{mark}", fontsize=9.5, x=0.01, ha="left")
        axes = figure.subplots(2, columns, squeeze=False)
        for row, name, strip in zip(axes, ("highest", "lowest"), (tiles.highest, tiles.lowest), strict=True):
            for ax in row:
                ax.set_axis_off()
            for ax, tile in zip(row, strip, strict=False):
                ax.imshow(tile.picture)
                ax.set_title(f"{tile.score:.3g}", fontsize=7.5)
                ax.text(0.5, -0.04, f"rank {tile.rank}", fontsize=6.5, transform=ax.transAxes, ha="center", va="top")
            place = {"transform": row[0].transAxes, "rotation": 90, "ha": "right", "va": "center"}
            row[0].text(-0.08, 0.5, f"{name} {what}", fontsize=8.5, **place)
        save(figure, out)
