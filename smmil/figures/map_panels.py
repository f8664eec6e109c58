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
from smmil.figures.plotting import CONTINUOUS, NEUTRAL, POSITIVE, min_max, new_figure, percentile_rank, save, style

Array = npt.NDArray[Any]
METHODS_PER_ROW = 6
TRUTH = "Reds"


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
    """Scores of one map.

    Attributes:
        title: heading.
        scores: (N,) scores; None = no run.
        text: text under the map.
        name: short name, for the legend of a montage.
        colour: colour of a curve.
        threshold: threshold from validation.
        quantity: what the scores are.
    """

    title: str
    scores: Array | None
    text: str = ""
    name: str = ""
    colour: str = NEUTRAL
    threshold: float | None = None
    quantity: str = "raw score"


def read_map_bag(instances: Path, bag_id: str) -> MapBag:
    """Read a bag from a folder of the instances stage.

    Raises:
        ValueError: a damaged bag.
    """
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

    Args:
        coords: (N,2) top-left corners (x, y), picture px.
        side: side of a tile, picture px.
        values: (N,), NaN tiles are skipped.
        shape: (h, w) of the picture.

    Returns:
        (h,w) float64.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    known = ~np.isnan(values)
    for (x, y), value in zip(coords[known], values[known], strict=True):
        x0, y0 = max(0, round(x)), max(0, round(y))
        x1, y1 = max(x0 + 1, round(x + side)), max(y0 + 1, round(y + side))
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    painted: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return painted


def draw_thumbnail(ax: Any, bag: MapBag, size: float = 9) -> None:
    """Draw a slide with its lesions outlined; `size` is the font size of the title."""
    ax.imshow(bag.picture)
    lesions = bag.outlines.get("lesion", [])
    for ring in lesions:
        ax.plot(*(np.array(ring) / bag.outlines["downsample"]).T, color=POSITIVE, linewidth=1)
    ax.set_title("Slide, lesion outlined" if lesions else "Slide", fontsize=size)


def draw_map(
    ax: Any, bag: MapBag, values: Array | None, limits: tuple[float, float] = (0, 1), colours: str = CONTINUOUS
) -> Any:
    """Paint values (N,) of the tiles of a slide over its pale grey thumbnail; None = only the thumbnail.

    `limits` are the values of the first and last colour. Return the image of the tiles, for a colour bar.
    """
    grey = bag.picture[..., :3].mean(axis=2) / (255 if bag.picture.dtype == np.uint8 else 1)
    ax.imshow(0.55 + 0.45 * grey, cmap="gray", vmin=0, vmax=1)
    if values is None:
        return None
    downsample = float(bag.outlines["downsample"])
    side = bag.attrs.l0_footprint_px / downsample
    painted = paint(bag.coords / downsample, side, values.astype(np.float64), grey.shape)
    return ax.imshow(painted, cmap=colours, vmin=limits[0], vmax=limits[1], alpha=0.85, interpolation="nearest")


def draw_slide(
    bag: MapBag, panels: Sequence[Panel], title: str, out: Path, *, max_cell: float = 2.6, caption: Sequence[str] = ()
) -> None:
    """Draw the thumbnail and every panel's scores; with the truth below, if it is known, and ranks within the bag.

    Args:
        bag: a slide.
        panels: one per method, with scores.
        title: heading of the picture.
        out: PNG to write.
        max_cell: largest width of a map, inches.
        caption: lines below the maps, wrapped to the picture.
    """
    height = 1 if bag.coverage is None else 2
    blocks = -(-len(panels) // METHODS_PER_ROW)
    per_row = -(-len(panels) // blocks)
    columns = 1 + per_row
    aspect = bag.picture.shape[0] / bag.picture.shape[1]
    cell = min(max_cell, 13.4 / columns)
    with style(grid=False):
        rows = blocks * height * (cell * min(max(aspect, 0.3), 1.3) + 0.6)
        figure = new_figure(cell * columns + 0.2, rows + 0.5)
        _caption(figure, caption)
        axes = figure.subplots(height * blocks, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        draw_thumbnail(axes[0, 0], bag)
        if bag.coverage is not None:
            image = draw_map(axes[1, 0], bag, bag.coverage, colours=TRUTH)
            if np.isnan(bag.coverage).all():
                axes[1, 0].set_title("Ground truth: not annotated")
            else:
                axes[1, 0].set_title("Ground truth", fontsize=8)
            _colour_bar(figure, image, "lesion share of the tile", (0, 1))
        for i, panel in enumerate(panels):
            assert panel.scores is not None
            ax, rank_ax = axes[height * (i // per_row) :, 1 + i % per_row][[0, height - 1]]
            low, high = float(panel.scores.min()), float(panel.scores.max())
            image = draw_map(ax, bag, panel.scores, (low, high) if high > low else (low - 0.5, low + 0.5))
            ax.set_title(panel.title, fontsize=8)
            bar = _colour_bar(figure, image, f"{panel.quantity},\nmin to max of this bag", (low, high))
            if panel.threshold is not None and low < panel.threshold < high:
                bar.ax.axvline(panel.threshold, color=POSITIVE, linewidth=1.6)
            if bag.coverage is not None:
                image = draw_map(rank_ax, bag, percentile_rank(panel.scores))
                rank_ax.set_title("", fontsize=8)
                _colour_bar(figure, image, "rank within this bag, 1 = highest", (0, 1))
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


def _colour_bar(figure: Any, image: Any, label: str, limits: tuple[float, float]) -> Any:
    bar = figure.colorbar(image, ax=image.axes, orientation="horizontal", fraction=0.05, pad=0.02, aspect=28)
    bar.set_ticks(image.get_clim(), labels=[f"{limit:.3g}" for limit in limits])
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label(label, fontsize=7, labelpad=1)
    bar.outline.set_linewidth(0.4)
    return bar


def _caption(figure: Any, lines: Sequence[str]) -> None:
    """Write lines below the maps of a figure, which grows by their height."""
    width, height = figure.get_size_inches()
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(15 * width))]
    if wrapped:
        figure.set_size_inches(width, height + 0.16 * len(wrapped))
        figure.supxlabel("\n".join(wrapped), x=0.01, ha="left", fontsize=8, color=POSITIVE)


def draw_scan(bag: MapBag, panels: Sequence[Panel], title: str, out: Path, *, caption: Sequence[str] = ()) -> None:
    """Draw every panel's scores over the slices, and the montage with a bar per panel. Arguments as `draw_slide`."""
    with style(grid=False):
        figure = new_figure(13.2, max(4.6, 0.95 * len(panels) + 1.2))
        _caption(figure, caption)
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
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


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
    lines = [f"{quantity}, min to max of this scan", *textwrap.wrap(names, 100, break_on_hyphens=False)]
    bar.set_label("\n".join(lines), fontsize=7.5)


def montage_with_bars(picture: Array, layout: Mapping[str, Any], colours: Array) -> npt.NDArray[np.uint8]:
    """Add a bar per method below every slice of a montage.

    Args:
        picture: (h,w,3) uint8 montage.
        layout: `columns`, `cell_px`, `slices` (index of the slice in each cell, row by row).
        colours: (K,N,3) in [0,1], per method and slice.

    Returns:
        (h',w,3) uint8, the montage with taller cells.
    """
    cell, columns, slices = layout["cell_px"], layout["columns"], layout["slices"]
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
