"""The blocks of figures 5 and 12: one bag's maps side by side, a slide as painted tiles or a scan as strips."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.map_panels import paint
from smmil.plotting import CONTINUOUS, NEUTRAL, POSITIVE, min_max

Array = npt.NDArray[Any]
Panels = Sequence[tuple[str, dict[str, Any] | None]]
TRUTH = "Reds"
SLICES_SHOWN = 10


def check_sizes(bag: Mapping[str, Any], panels: Panels) -> None:
    """Refuses scores that do not fit the stored bag.

    Raises:
        ValueError: naming the predictions file.
    """
    for _, panel in panels:
        if panel is not None and len(panel["score"]) != bag["n"]:
            raise ValueError(
                f"{panel['path']}: {len(panel['score'])} scores of bag {bag['bag_id']}, the store holds {bag['n']} "
                "instances; extract features and train again"
            )


def slide_block(part: Any, bag: Mapping[str, Any], panels: Panels, per_row: int) -> None:
    """Thumbnail, truth, and one map per panel.

    Args:
        part: subfigure to draw into.
        bag: bag_id, folder, attrs, coords (N,2), coverage (N,), n.
        panels: (title, {"score": (N,), "text", "path"} or None) each.
        per_row: panels in a row.
    """
    from matplotlib.image import imread

    check_sizes(bag, panels)
    thumbnails = bag["folder"] / "thumbnails"
    picture = imread(thumbnails / f"{bag['bag_id']}.jpg")
    outlines = json.loads((thumbnails / f"{bag['bag_id']}.json").read_text(encoding="utf-8"))
    downsample = outlines["downsample"]
    corners, side = bag["coords"] / downsample, float(bag["attrs"]["l0_footprint_px"]) / downsample
    grey = picture[..., :3].mean(axis=2) / (255 if picture.dtype == np.uint8 else 1)
    # pale, so that only the tiles carry colour
    backdrop = 0.55 + 0.45 * grey
    axes = part.subplots(-(-(len(panels) + 2) // per_row), per_row, squeeze=False).ravel()
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    for ax in axes[len(panels) + 2 :]:
        ax.set_axis_off()
    axes[0].imshow(picture)
    for ring in outlines.get("lesion", []):
        axes[0].plot(*(np.array(ring) / downsample).T, color=POSITIVE, linewidth=1)
    axes[0].set_title("Slide, lesion outlined" if outlines.get("lesion") else "Slide", fontsize=8.5)
    known = not np.isnan(bag["coverage"]).all()
    _map(axes[1], backdrop, corners, side, bag["coverage"], TRUTH)
    axes[1].set_title("Ground truth" if known else "Not annotated", fontsize=8.5)
    axes[1].set_xlabel("lesion share of the tile, 0 to 1", fontsize=7.5)
    for ax, (title, panel) in zip(axes[2:], panels, strict=False):
        ax.set_title(title, fontsize=8.5)
        if panel is None:
            ax.imshow(backdrop, cmap="gray", vmin=0, vmax=1)
            ax.set_xlabel("no run", fontsize=7.5, color=NEUTRAL)
            continue
        _map(ax, backdrop, corners, side, min_max(panel["score"]), CONTINUOUS)
        ax.set_xlabel(panel["text"], fontsize=7.5)


def _map(ax: Any, backdrop: Array, corners: Array, side: float, values: Array, colours: str) -> None:
    ax.imshow(backdrop, cmap="gray", vmin=0, vmax=1)
    painted = paint(corners, side, values.astype(np.float64), backdrop.shape[:2])
    ax.imshow(painted, cmap=colours, vmin=0, vmax=1, alpha=0.85, interpolation="nearest")


def scan_block(part: Any, bag: Mapping[str, Any], panels: Panels, per_row: int) -> None:
    """Some slices on top; below, the truth and one strip per panel over all slices. Arguments as `slide_block`."""
    from matplotlib.image import imread

    check_sizes(bag, panels)
    thumbnails = bag["folder"] / "thumbnails"
    picture = imread(thumbnails / f"{bag['bag_id']}.jpg")
    layout = json.loads((thumbnails / f"{bag['bag_id']}.json").read_text(encoding="utf-8"))["montage"]
    top, bottom = part.subplots(2, 1, height_ratios=[1.7, 0.27 * (len(panels) + 1)])
    top.set_axis_off()
    cells, shown = _cells(picture, layout)
    top.imshow(np.concatenate(cells, axis=1))
    top.set_title(f"slices {', '.join(map(str, shown))}; red frame: positive", fontsize=8.5)
    strips = strips_of(bag["coverage"], panels)
    bottom.imshow(strips, aspect="auto", interpolation="nearest")
    bottom.set_yticks(range(len(panels) + 1), labels=["Ground truth", *(title for title, _ in panels)], fontsize=8)
    texts = ["", *("no run" if panel is None else panel["text"] for _, panel in panels)]
    right = bottom.secondary_yaxis("right")
    right.set_yticks(range(len(panels) + 1), labels=texts, fontsize=7.5)
    for axis in (bottom, right):
        axis.tick_params(axis="y", length=0)
    for y in np.arange(0.5, len(panels) + 0.5):
        bottom.axhline(y, color="white", linewidth=2)
    bottom.set_xlabel("slice in anatomical order (truth: red positive, grey unknown)")


def strips_of(coverage: Array, panels: Panels) -> npt.NDArray[np.float64]:
    """The truth and every panel's scores as rows of colours.

    Args:
        coverage: (N,) > 0 = positive, NaN = unknown.
        panels: as in `slide_block`.

    Returns:
        (1 + panels, N, 3) in [0, 1]; a panel without a run is white.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    rows = np.ones((1 + len(panels), len(coverage), 3))
    rows[0] = np.where((coverage > 0)[:, None], to_rgb(POSITIVE), to_rgb("#eef0f2"))
    rows[0, np.isnan(coverage)] = to_rgb(NEUTRAL)
    for i, (_, panel) in enumerate(panels, start=1):
        if panel is not None:
            rows[i] = colormaps[CONTINUOUS](min_max(panel["score"]))[:, :3]
    return rows


def _cells(picture: Array, layout: Mapping[str, Any]) -> tuple[list[Array], list[int]]:
    """Evenly spaced cells of a montage and the indices of their slices."""
    cell, columns, slices = layout["cell_px"], layout["columns"], layout["slices"]
    places = np.unique(np.linspace(0, len(slices) - 1, min(SLICES_SHOWN, len(slices))).round().astype(int))
    cells = []
    for k in places:
        y, x = k // columns * cell, k % columns * cell
        cells.append(picture[y : y + cell, x : x + cell, :3])
    return cells, [slices[k] for k in places]
