"""Maps of one bag's scores: slides as painted tiles; scans as curves or strips over slices, and as a montage."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.store.attrs import InstanceAttrs
from smmil.data.stored import read_geometry
from smmil.figures.plotting import CONTINUOUS, MAX_WIDTH, NEUTRAL, POSITIVE, min_max, new_figure, save, style

Array = npt.NDArray[Any]
TRUTH = "Reds"
INK = "#1c1f23"
# narrowest map with room for its title, inches
MIN_CELL = 2.05
# of the tiles, so that the tissue stays visible
OPACITY = 0.55
BAR: dict[str, float] = {"shrink": 0.3, "aspect": 40, "pad": 0.02}


@dataclass(frozen=True)
class MapBag:
    """One bag to draw.

    Attributes:
        bag_id: name of the bag.
        attrs: attributes of its stored instances.
        coords: (N,2) level-0 px of tiles, or (N,1) mm of slices.
        coverage: (N,) lesion share in [0, 1], NaN = unknown; None = the truth is not drawn.
        picture: (h,w,3) thumbnail of a slide or montage of a scan.
        outlines: JSON beside the picture: `downsample` and `lesion` outlines of a slide, `montage` of a scan.
    """

    bag_id: str
    attrs: InstanceAttrs
    coords: Array
    coverage: Array | None
    picture: Array
    outlines: Mapping[str, Any]

    @property
    def n(self) -> int:
        """Number of instances."""
        return len(self.coords)

    @property
    def is_scan(self) -> bool:
        """Whether the bag is a CT scan."""
        return self.attrs.modality == "ct"


@dataclass(frozen=True)
class Panel:
    """Scores (N,) of one map, None = no run; `text` stands under it, `name` in the legend of a montage."""

    title: str
    scores: Array | None
    text: str = ""
    name: str = ""
    colour: str = NEUTRAL
    threshold: float | None = None
    quantity: str = "raw score"


def read_map_bag(instances: Path, bag_id: str) -> MapBag:
    """Read a bag from a folder of the instances stage."""
    attrs, arrays = read_geometry(instances, bag_id, ["coords", "coverage"])
    picture, outlines = read_thumbnail(instances / "thumbnails", bag_id, attrs)
    return MapBag(bag_id, attrs, arrays["coords"], arrays["coverage"], picture, outlines)


def read_thumbnail(folder: Path, bag_id: str, attrs: InstanceAttrs) -> tuple[Array, dict[str, Any]]:
    """Read a thumbnail (h,w,3) and its outlines; a slide without one, whose file is damaged, gets a white picture."""
    from matplotlib.image import imread

    outlines = json.loads((folder / f"{bag_id}.json").read_text(encoding="utf-8"))
    file = folder / f"{bag_id}.jpg"
    if file.is_file():
        return np.asarray(imread(file)), outlines
    width, height = attrs.dimensions or (1, 1)
    downsample = max(1.0, max(width, height) / 1024)
    shape = (round(height / downsample), round(width / downsample), 3)
    return np.full(shape, 255, np.uint8), {**outlines, "downsample": downsample}


def paint(coords: Array, side: float, values: Array, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Paint square tiles into a picture; overlapping tiles are averaged, the rest is NaN.

    Top-left corners (N,2) (x, y), side and the shape (h, w) are in px of the picture; NaN among values (N,) is skipped.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    known = ~np.isnan(values)
    # rounding both ends leaves neither gaps nor overlaps between neighbours, whatever the downsample
    for (x, y), value in zip(coords[known], values[known], strict=True):
        x0, y0 = max(0, round(x)), max(0, round(y))
        x1, y1 = max(x0 + 1, round(x + side)), max(y0 + 1, round(y + side))
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    painted: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return painted


def _draw_tiles(ax: Any, bag: MapBag, values: Array | None, colours: str = CONTINUOUS) -> None:
    """Lay values (N,) in [0, 1] of the tiles of a slide over its grey thumbnail; None = only the thumbnail."""
    grey = bag.picture[..., :3].mean(axis=2) / (255 if bag.picture.dtype == np.uint8 else 1)
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1)
    if values is not None:
        downsample = float(bag.outlines["downsample"])
        side = bag.attrs.l0_footprint_px / downsample
        painted = paint(bag.coords / downsample, side, values.astype(np.float64), grey.shape)
        ax.imshow(painted, cmap=colours, vmin=0, vmax=1, alpha=OPACITY, interpolation="nearest")


def view_of(bag: MapBag) -> tuple[float, float, float, float]:
    """Return the part of a slide's thumbnail to show, (left, top, right, bottom) in px: its tiles with a margin."""
    downsample = float(bag.outlines["downsample"])
    low, high = bag.coords.min(axis=0) / downsample, (bag.coords.max(axis=0) + bag.attrs.l0_footprint_px) / downsample
    margin = 0.05 * float(max(high - low))
    height, width = bag.picture.shape[:2]
    left, top = (max(0.0, float(end) - margin) for end in low)
    right, bottom = (min(float(size), float(end) + margin) for end, size in zip(high, (width, height), strict=True))
    return left, top, right, bottom


def scale_bar(bag: MapBag, width: float) -> tuple[float, str] | None:
    """Return length in thumbnail px and text of a scale bar of at most a quarter of `width`; None without a scale."""
    if not bag.attrs.mpp:
        return None
    mm_per_px = float(bag.attrs.mpp) * float(bag.outlines["downsample"]) / 1000
    longest = width * mm_per_px / 4
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    return length / mm_per_px, f"{length:g} mm" if length >= 0.1 else f"{1000 * length:g} µm"


def cells_of_slide(bag: MapBag, n: int, max_cell: float) -> tuple[float, float, int]:
    """Return width and height in inches of n maps of a slide, and how many stand in a row.

    Maps have about the area of a square of `max_cell`, whatever their shape, and room for their titles.
    """
    left, top, right, bottom = view_of(bag)
    # a strip of tissue would otherwise give maps that are as wide as the page or as high as three others
    aspect = min(max((bottom - top) / (right - left), 0.2), 4.0)
    width = max(MIN_CELL, max_cell / aspect**0.5)
    rows = -(-n // max(1, int(MAX_WIDTH / width)))
    per_row = -(-n // rows)
    width = min(width, MAX_WIDTH / per_row)
    return width, min(width * aspect, 1.7 * max_cell), per_row


def fill_slide(figure: Any, bag: MapBag, panels: Sequence[Panel], max_cell: float) -> None:
    """Draw a slide, the truth if it is known, and a map per panel into a figure or subfigure, on one scale of colours.

    Colours run from the lowest to the highest score of each panel; both ends stand below it.
    """
    from matplotlib.cm import ScalarMappable

    truth = [] if bag.coverage is None else [bag.coverage]
    n = 1 + len(truth) + len(panels)
    per_row = cells_of_slide(bag, n, max_cell)[2]
    axes = figure.subplots(-(-n // per_row), per_row, squeeze=False).ravel()
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    lesions = bag.outlines.get("lesion", [])
    axes[0].imshow(bag.picture)
    for ring in lesions:
        axes[0].plot(*(np.array(ring) / bag.outlines["downsample"]).T, color=POSITIVE, linewidth=1)
    axes[0].set_title("Slide, lesion outlined" if lesions else "Slide", fontsize=8.5)
    for ax, coverage in zip(axes[1:], truth, strict=False):
        _draw_tiles(ax, bag, coverage, TRUTH)
        ax.set_title("Not annotated" if np.isnan(coverage).all() else "Ground truth", fontsize=8.5)
        ax.set_xlabel("darker: more lesion", fontsize=7.5)
    for ax, panel in zip(axes[1 + len(truth) :], panels, strict=False):
        _draw_tiles(ax, bag, None if panel.scores is None else min_max(panel.scores))
        ax.set_title(panel.title, fontsize=8.5)
        ax.set_xlabel(panel.text or _range_of(panel), fontsize=7.5, color=NEUTRAL if panel.scores is None else INK)
    left, top, right, bottom = view_of(bag)
    for ax in axes[:n]:
        ax.set_xlim(left, right)
        ax.set_ylim(bottom, top)
    if bar := scale_bar(bag, right - left):
        x, y = left + 0.03 * (right - left), bottom - 0.03 * (bottom - top)
        axes[0].plot([x, x + bar[0]], [y, y], color="black", linewidth=2.5, solid_capstyle="butt")
        axes[0].text(x, y - 0.015 * (bottom - top), bar[1], va="bottom", fontsize=7)
    for ax in axes[n:]:
        ax.set_axis_off()
    if any(panel.scores is not None for panel in panels):
        colours = figure.colorbar(ScalarMappable(cmap=CONTINUOUS), ax=list(axes), location="bottom", **BAR)
        colours.set_ticks([0, 1], labels=["lowest", "highest score of each map"])
        colours.ax.tick_params(labelsize=7.5, length=0)
        colours.outline.set_visible(False)
        _mark_threshold(colours, panels)


def _range_of(panel: Panel) -> str:
    """Return the range of a panel's scores and how many are above the threshold, "no run" without scores."""
    if panel.scores is None:
        return "no run"
    text = f"{panel.scores.min():.3g} to {panel.scores.max():.3g}"
    if panel.threshold is None:
        return text
    return f"{text}\n{int((panel.scores > panel.threshold).sum())} of {len(panel.scores)} above threshold"


def _mark_threshold(bar: Any, panels: Sequence[Panel]) -> None:
    """Mark the threshold on the colour bar of a single map."""
    # one bar serves all maps, so that a mark would belong to none of several
    (panel, *others) = [panel for panel in panels if panel.scores is not None]
    if not others and panel.scores is not None and panel.threshold is not None:
        low, high = float(panel.scores.min()), float(panel.scores.max())
        if low < panel.threshold < high:
            bar.ax.axvline((panel.threshold - low) / (high - low), color=POSITIVE, linewidth=1.6)


def draw_map(
    bag: MapBag, panels: Sequence[Panel], title: str, out: Path, *, max_cell: float = 2.0, caption: Sequence[str] = ()
) -> None:
    """Draw the scores of every panel: over the tissue beside slide and truth, or over the slices beside a montage.

    Maps of slides have the area of a square of `max_cell` inches; the lines of `caption` are wrapped below the maps.
    """
    with style(grid=False):
        if bag.is_scan:
            figure = new_figure(MAX_WIDTH, max(4.2, 0.9 * len(panels) + 1))
        else:
            n = 1 + (bag.coverage is not None) + len(panels)
            width, height, per_row = cells_of_slide(bag, n, max_cell)
            figure = new_figure(max(5.0, width * per_row + 0.1), -(-n // per_row) * (height + 0.85) + 0.7)
        _caption(figure, caption)
        if bag.is_scan:
            _fill_scan(figure, bag, panels)
        else:
            fill_slide(figure, bag, panels, max_cell)
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


def _caption(figure: Any, lines: Sequence[str]) -> None:
    """Write lines below the maps of a figure, which grows by their height."""
    width, height = figure.get_size_inches()
    # 15 characters an inch of DejaVu Sans at 8 pt
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(15 * width))]
    if wrapped:
        figure.set_size_inches(width, height + 0.16 * len(wrapped))
        figure.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=8, color=POSITIVE)


def _fill_scan(figure: Any, bag: MapBag, panels: Sequence[Panel]) -> None:
    """Draw every panel's scores over the slices, and the montage with a bar per panel."""
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    axes = left.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    truth = np.zeros(bag.n) if bag.coverage is None else bag.coverage
    for ax, panel in zip(axes, panels, strict=True):
        for mask, colour in ((truth > 0, POSITIVE), (np.isnan(truth), NEUTRAL)):
            for i in np.flatnonzero(mask):
                ax.axvspan(i - 0.5, i + 0.5, color=colour, alpha=0.16, linewidth=0)
        ax.plot(np.arange(bag.n), panel.scores, color=panel.colour, marker="o", markersize=2.6, linewidth=1.2)
        if panel.threshold is not None:
            ax.axhline(panel.threshold, color=NEUTRAL, linewidth=0.9, linestyle="--")
        ax.set_title(panel.title.replace("\n", "   "), loc="left")
        ax.set_ylabel("score")
    legend = "" if bag.coverage is None else "; red: positive, grey: unknown"
    axes[-1].set_xlabel(f"slice in anatomical order{legend}; dashed: validation threshold")
    axes[-1].set_xlim(-0.5, bag.n - 0.5)
    _montage(right, bag, panels)


def _montage(figure: Any, bag: MapBag, panels: Sequence[Panel]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable

    ax = figure.subplots()
    scores = np.stack([min_max(panel.scores) for panel in panels if panel.scores is not None])
    ax.imshow(montage_with_bars(bag.picture, bag.outlines["montage"], colormaps[CONTINUOUS](scores)[..., :3]))
    ax.set_axis_off()
    ax.set_anchor("N")
    ax.set_title("Slices" if bag.coverage is None else "Slices; red frame = positive", loc="left")
    bar = figure.colorbar(ScalarMappable(cmap=CONTINUOUS), ax=ax, orientation="horizontal", fraction=0.025, pad=0.01)
    bar.set_ticks([0, 1], labels=["lowest", "highest"])
    quantities = {panel.quantity for panel in panels}
    quantity = quantities.pop() if len(quantities) == 1 else "scores"
    names = "bars below a slice, from the top: " + ", ".join(panel.name for panel in panels)
    lines = [f"{quantity}, min to max of this scan", *textwrap.wrap(names, 80, break_on_hyphens=False)]
    bar.set_label("\n".join(lines), fontsize=7.5)


def montage_with_bars(picture: Array, layout: Mapping[str, Any], colours: Array) -> npt.NDArray[np.uint8]:
    """Add a bar per method below every slice of a montage.

    The layout of the montage (h,w,3) has `columns`, `cell_px` and the index of the slice in each cell, row by row;
    colours (K,N,3) in [0,1] are per method and slice. Return the montage (h',w,3) with taller cells.
    """
    cell, columns, slices = layout["cell_px"], layout["columns"], layout["slices"]
    # bars of many methods get thinner, or they would take more room than the slices
    thick = max(3, min(8, 48 // len(colours)))
    tall = cell + thick * len(colours) + 8
    wide = np.full((-(-len(slices) // columns) * tall, columns * cell, 3), 255, np.uint8)
    for k, index in enumerate(slices):
        top, x = k // columns * tall, k % columns * cell
        wide[top : top + cell, x : x + cell] = montage_cell(picture, layout, k)
        for i, colour in enumerate(colours[:, index]):
            y = top + cell + 2 + i * thick
            wide[y : y + thick - 1, x + 2 : x + cell - 2] = np.round(255 * colour)
    return wide


def montage_cell(picture: Array, layout: Mapping[str, Any], k: int) -> Array:
    """Return slice `k` (h,w,3) of a montage."""
    cell, columns = layout["cell_px"], layout["columns"]
    y, x = k // columns * cell, k % columns * cell
    return picture[y : y + cell, x : x + cell, :3]
