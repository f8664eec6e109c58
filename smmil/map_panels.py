"""The panels of one bag's map: slides as painted tiles, scans as curves over slices and a montage with bars."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smmil.metrics import auroc, labelled
from smmil.plotting import (
    CONTINUOUS,
    NEUTRAL,
    POSITIVE,
    colour_of,
    min_max,
    new_figure,
    percentile_rank,
    save,
    shown_name,
    style,
)

if TYPE_CHECKING:
    from smmil.chosen_runs import ChosenRun

Array = npt.NDArray[Any]
METHODS_PER_ROW = 6


@dataclass(frozen=True)
class Shown:
    """One bag with the runs whose scores are drawn.

    Attributes:
        thumbnails: folder with `{bag_id}.jpg` and `.json`.
        bag_id: its name.
        attrs: of its instances.
        arrays: `coords` and `coverage`.
        runs: one per method.
        parts: its predictions by each run.
        title: of the picture.
    """

    thumbnails: Path
    bag_id: str
    attrs: Mapping[str, Any]
    arrays: Mapping[str, Array]
    runs: "Sequence[ChosenRun]"
    parts: Sequence[Mapping[str, Array]]
    title: str

    def outlines(self) -> dict[str, Any]:
        """What lies beside the thumbnail: its downsample, outlines, and of a scan the layout of the montage."""
        found: dict[str, Any] = json.loads((self.thumbnails / f"{self.bag_id}.json").read_text(encoding="utf-8"))
        return found


def paint(coords: Array, side: float, values: Array, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Paints square tiles into a picture; overlapping tiles are averaged, nothing painted stays NaN.

    Args:
        coords: (N,2) top-left corners (x, y), picture px.
        side: of a tile, picture px.
        values: (N,), NaN tiles are skipped.
        shape: (h, w).

    Returns:
        (h,w) float64.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    for (x, y), value in zip(coords, values, strict=True):
        if np.isnan(value):
            continue
        x0, y0 = max(0, round(x)), max(0, round(y))
        x1, y1 = max(x0 + 1, round(x + side)), max(y0 + 1, round(y + side))
        total[y0:y1, x0:x1] += value
        count[y0:y1, x0:x1] += 1
    painted: npt.NDArray[np.float64] = np.full(shape, np.nan)
    return np.divide(total, count, out=painted, where=count > 0)


def panel_title(run: "ChosenRun", part: Mapping[str, Array]) -> str:
    """Name, bag logit, and instance AUROC inside this bag where it is defined."""
    area = auroc(*labelled(part["y_inst"], part["instance_score"]))
    inside = "" if area is None else f" · AUROC {area:.2f}"
    return f"{shown_name(run.method)}\nlogit {float(part['bag_logit'][0]):+.2f}{inside}"


def draw_slide(bag: Shown, out: Path) -> None:
    """Thumbnail over ground truth on the left; per method raw score over rank. See `smmil.maps.draw_bag`."""
    from matplotlib.image import imread

    picture, outlines = imread(bag.thumbnails / f"{bag.bag_id}.jpg"), bag.outlines()
    downsample, coverage = outlines["downsample"], bag.arrays["coverage"]
    corners, side = bag.arrays["coords"] / downsample, float(bag.attrs["l0_footprint_px"]) / downsample
    blocks = -(-len(bag.runs) // METHODS_PER_ROW)
    per_row = -(-len(bag.runs) // blocks)
    columns = 1 + per_row
    aspect = picture.shape[0] / picture.shape[1]
    cell = min(2.6, 13.4 / columns)
    with style(grid=False):
        figure = new_figure(cell * columns + 0.2, blocks * 2 * (cell * min(max(aspect, 0.3), 1.3) + 0.6) + 0.5)
        axes = figure.subplots(2 * blocks, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        canvas = _Canvas(figure, picture, corners, side)
        axes[0, 0].imshow(picture)
        for ring in outlines.get("lesion", []):
            axes[0, 0].plot(*(np.array(ring) / downsample).T, color=POSITIVE, linewidth=1)
        axes[0, 0].set_title("Slide, lesion outlined" if outlines.get("lesion") else "Slide")
        known = not np.isnan(coverage).all()
        canvas.panel(axes[1, 0], coverage, "Ground truth", "lesion share of the tile", (0, 1), "Reds")
        if not known:
            axes[1, 0].set_title("Ground truth: not annotated")
        for i, (run, part) in enumerate(zip(bag.runs, bag.parts, strict=True)):
            row, column = 2 * (i // per_row), 1 + i % per_row
            score = part["instance_score"].astype(np.float64)
            limits = (float(score.min()), float(score.max()))
            bar = canvas.panel(
                axes[row, column], score, panel_title(run, part), "raw score, min to max of this bag", limits
            )
            threshold = run.split.get("threshold")
            if threshold is not None and limits[0] < threshold < limits[1]:
                bar.ax.axvline(threshold, color=POSITIVE, linewidth=1.6)
            canvas.panel(axes[row + 1, column], percentile_rank(score), "", "rank within this bag, 1 = highest", (0, 1))
        note = "AUROC: instances of this bag only; red line on a bar: threshold from validation"
        figure.suptitle(f"{bag.title}\n{note}", fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


class _Canvas:
    """Draws maps of one slide over its grey thumbnail."""

    def __init__(self, figure: Any, picture: Array, corners: Array, side: float) -> None:
        self.figure, self.corners, self.side = figure, corners, side
        grey = picture[..., :3].mean(axis=2) / (255 if picture.dtype == np.uint8 else 1)
        # pale, so that only the tiles carry colour
        self.backdrop = 0.55 + 0.45 * grey

    def panel(
        self, ax: Any, values: Array, title: str, rule: str, limits: tuple[float, float], colours: str = CONTINUOUS
    ) -> Any:
        low, high = limits if limits[1] > limits[0] else (limits[0] - 0.5, limits[0] + 0.5)
        ax.imshow(self.backdrop, cmap="gray", vmin=0, vmax=1)
        painted = paint(self.corners, self.side, values.astype(np.float64), self.backdrop.shape)
        image = ax.imshow(painted, cmap=colours, vmin=low, vmax=high, alpha=0.85, interpolation="nearest")
        ax.set_title(title, fontsize=8)
        bar = self.figure.colorbar(image, ax=ax, orientation="horizontal", fraction=0.05, pad=0.02, aspect=28)
        bar.set_ticks([low, high], labels=[f"{limits[0]:.3g}", f"{limits[1]:.3g}"])
        bar.ax.tick_params(labelsize=7, length=2)
        bar.set_label(rule, fontsize=7, labelpad=1)
        bar.outline.set_linewidth(0.4)
        return bar


def draw_scan(bag: Shown, out: Path) -> None:
    """Curves of the raw score over slices on the left, montage with bars on the right. See `smmil.maps.draw_bag`."""
    coverage, n = bag.arrays["coverage"], len(bag.arrays["coverage"])
    rows = len(bag.runs)
    with style(grid=False):
        figure = new_figure(13.2, max(4.6, 0.95 * rows + 1.2))
        left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
        axes = left.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
        for ax, run, part in zip(axes, bag.runs, bag.parts, strict=True):
            score = part["instance_score"].astype(np.float64)
            for i in np.flatnonzero(coverage > 0):
                ax.axvspan(i - 0.5, i + 0.5, color=POSITIVE, alpha=0.16, linewidth=0)
            for i in np.flatnonzero(np.isnan(coverage)):
                ax.axvspan(i - 0.5, i + 0.5, color=NEUTRAL, alpha=0.16, linewidth=0)
            ax.plot(np.arange(n), score, color=colour_of(run.method), marker="o", markersize=2.6, linewidth=1.2)
            threshold = run.split.get("threshold")
            if threshold is not None:
                ax.axhline(threshold, color=NEUTRAL, linewidth=0.9, linestyle="--")
            ax.set_title(panel_title(run, part).replace("\n", "   "), loc="left")
            ax.set_ylabel("score")
        axes[-1].set_xlabel("slice in anatomical order; red: positive, grey: unknown; dashed: validation threshold")
        axes[-1].set_xlim(-0.5, n - 0.5)
        _montage(right, bag)
        figure.suptitle(bag.title, fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


def _montage(figure: Any, bag: Shown) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.image import imread

    layout, picture = bag.outlines()["montage"], imread(bag.thumbnails / f"{bag.bag_id}.jpg")
    ax = figure.subplots()
    scores = np.stack([min_max(part["instance_score"]) for part in bag.parts])
    ax.imshow(montage_with_bars(picture, layout, colormaps[CONTINUOUS](scores)[..., :3]))
    ax.set_axis_off()
    ax.set_anchor("N")
    ax.set_title("Slices; red frame = positive", loc="left")
    bar = figure.colorbar(ScalarMappable(cmap=CONTINUOUS), ax=ax, orientation="horizontal", fraction=0.025, pad=0.01)
    bar.set_ticks([0, 1], labels=["lowest", "highest"])
    names = ", ".join(shown_name(run.method) for run in bag.runs)
    bar.set_label(f"raw score, min to max of this scan\nbars below a slice, from the top: {names}", fontsize=7.5)


def montage_with_bars(picture: Array, layout: Mapping[str, Any], colours: Array) -> npt.NDArray[np.uint8]:
    """Adds one bar per method below every slice of a montage.

    Args:
        picture: (h,w,3) uint8 montage.
        layout: `columns`, `cell_px`, `slices` (index shown in each cell, row by row).
        colours: (K,N,3) in [0,1], per method and slice.

    Returns:
        The montage with taller cells, (h',w,3) uint8.
    """
    cell, columns, shown = layout["cell_px"], layout["columns"], layout["slices"]
    thick = max(3, min(8, 48 // len(colours)))
    tall = cell + thick * len(colours) + 8
    rows = -(-len(shown) // columns)
    wide = np.full((rows * tall, columns * cell, 3), 255, np.uint8)
    for k, index in enumerate(shown):
        row, x = k // columns, k % columns * cell
        wide[row * tall : row * tall + cell, x : x + cell] = picture[row * cell : (row + 1) * cell, x : x + cell]
        for i, colour in enumerate(colours[:, index]):
            y = row * tall + cell + 2 + i * thick
            wide[y : y + thick - 1, x + 2 : x + cell - 2] = np.round(255 * colour)
    return wide
