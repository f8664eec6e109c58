"""Draw the pictures of docs/concepts: `python docs/images/draw.py`."""

from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from sklearn.metrics import roc_auc_score

from smmil import Sm, normalise_adjacency

HERE = Path(__file__).resolve().parent
STYLE = {"font.family": "DejaVu Sans", "font.size": 11}
TISSUE, LESION, TILE, INK = "#e8bfd3", "#a83273", "#4a6fa5", "#333333"
SIDE = 16


def blob(seed: int, centre: tuple[float, float], radius: float, rough: float = 0.18) -> np.ndarray:
    """Return the outline of a round region with an uneven edge, (180,2)."""
    rng, angle = np.random.default_rng(seed), np.linspace(0, 2 * np.pi, 180, endpoint=False)
    waves = sum(rng.normal(0, 1 / k) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 6))
    radii = radius * (1 + rough * waves / 1.5)
    return np.stack([centre[0] + radii * np.cos(angle), centre[1] + radii * np.sin(angle)], axis=1)


OUTLINE, NODULE = blob(3, (8, 8), 6.4), blob(5, (10.2, 6.4), 2.3)


def share(outline: np.ndarray) -> np.ndarray:
    """Return which cells of the grid have their centre inside an outline, (SIDE,SIDE) bool."""
    from matplotlib.path import Path as Outline

    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    return Outline(outline).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(SIDE, SIDE)


INSIDE, POSITIVE = share(OUTLINE), share(NODULE)


def frame(ax: Axes, title: str, below: str = "") -> None:
    """Prepare a square panel with a title above and a line below."""
    ax.set(xlim=(0, SIDE), ylim=(SIDE, 0), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=11, color=INK, pad=6)
    ax.set_xlabel(below, fontsize=10, color=INK, labelpad=6)
    for spine in ax.spines.values():
        spine.set_visible(False)


def tissue(ax: Axes, lesion: bool = True) -> None:
    """Draw the slide."""
    ax.add_patch(Polygon(OUTLINE, color=TISSUE, lw=0))
    if lesion:
        ax.add_patch(Polygon(NODULE, color=LESION, alpha=0.55, lw=0))


def heat(ax: Axes, scores: np.ndarray) -> None:
    """Draw scores of the cells inside the tissue."""
    ax.imshow(np.where(INSIDE, scores, np.nan), extent=(0, SIDE, SIDE, 0), cmap="viridis", interpolation="nearest")
    ax.add_patch(Polygon(NODULE, fill=False, edgecolor="#ff5a36", lw=1.4))


def noisy(seed: int, noise: float) -> np.ndarray:
    """Return scores that are higher in the lesion, with noise."""
    return POSITIVE + np.random.default_rng(seed).normal(0, noise, (SIDE, SIDE))


def draw_bag(figure: Figure) -> None:
    """Draw a slide, its tiles, their features and their scores."""
    axes = figure.subplots(1, 4, gridspec_kw={"width_ratios": [1, 1, 0.62, 1]})
    frame(axes[0], "slide", "label: positive; place unknown")
    tissue(axes[0])
    frame(axes[1], f"tiles = instances ({int(INSIDE.sum())})", "one bag")
    tissue(axes[1])
    for row, column in zip(*np.nonzero(INSIDE), strict=True):
        axes[1].add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=TILE, lw=0.7))
    frame(axes[2], "features", "one row per tile")
    rows = np.random.default_rng(0).normal(size=(26, 14))
    axes[2].imshow(rows, cmap="Greys", extent=(0, SIDE, SIDE, 0), aspect="auto", interpolation="nearest")
    axes[2].set_aspect(1.6)
    frame(axes[3], "score of each tile", "bag: probability 0.93")
    heat(axes[3], noisy(1, 0.18))
    for left, right in zip(axes, axes[1:], strict=False):
        start, end = left.get_position(), right.get_position()
        where = [(start.x1 + 0.006, 0.5), (end.x0 - 0.006, 0.5)]
        figure.add_artist(FancyArrowPatch(*where, arrowstyle="-|>", mutation_scale=14, color=INK))


def draw_resolution(figure: Figure) -> None:
    """Draw a tile of 512 px at three resolutions, around the same spot."""
    rng = np.random.default_rng(2)
    cells, radii = rng.uniform(0, 512, (420, 2)), rng.choice([3.5, 5.0, 6.5], 420)
    for ax, mpp in zip(figure.subplots(1, 3), (0.25, 0.5, 1.0), strict=True):
        side = 512 * mpp
        low, high = 256 - side / 2, 256 + side / 2
        frame(ax, f"{mpp:g} µm/px", f"512 px = {side:g} µm")
        ax.set(xlim=(low, high), ylim=(low, high))
        ax.add_patch(Rectangle((low, low), side, side, color="#f6e3ec", lw=0))
        near = np.all(np.abs(cells - 256) < side / 2, axis=1)
        points = 72 * figure.get_figwidth() * ax.get_position().width / side
        for radius in np.unique(radii):
            some = cells[near & (radii == radius)]
            ax.plot(*some.T, "o", color="#6b3f8f", markersize=2 * radius * points, markeredgewidth=0)
        ax.add_patch(Rectangle((low, low), side * 0.2 + 50, side * 0.16, color="white", lw=0, zorder=3))
        ax.plot([low + side * 0.04, low + side * 0.04 + 50], [low + side * 0.04] * 2, color=INK, lw=3, zorder=4)
        ax.text(low + side * 0.04, low + side * 0.07, "50 µm", fontsize=9, color=INK, zorder=4)


def neighbours() -> torch.Tensor:
    """Return the neighbour table of the cells inside the tissue, (N,8) padded with -1."""
    number = np.full((SIDE + 2, SIDE + 2), -1)
    number[1:-1, 1:-1][INSIDE] = np.arange(INSIDE.sum())
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    rows, columns = np.nonzero(INSIDE)
    return torch.tensor(np.stack([number[rows + 1 + a, columns + 1 + b] for a, b in steps], axis=1))


def smooth(scores: np.ndarray, alpha: float, steps: int) -> np.ndarray:
    """Apply Sm to the scores of the cells inside the tissue."""
    values = torch.tensor(scores[INSIDE], dtype=torch.float32)[:, None]
    result = np.zeros_like(scores)
    offsets = torch.tensor([0, len(values)])
    result[INSIDE] = Sm(alpha=alpha, T=steps)(values, normalise_adjacency(neighbours()), offsets)[:, 0].detach().numpy()
    return result


def draw_sm(figure: Figure) -> None:
    """Draw noisy scores before and after Sm."""
    scores = noisy(4, 0.55)
    panels: list[tuple[str, np.ndarray]] = [("scores without Sm", scores)]
    panels += [(f"Sm, α = {a:g}, T = {t}", smooth(scores, a, t)) for a, t in ((0.5, 1), (0.5, 10), (0.9, 10))]
    for ax, (title, values) in zip(figure.subplots(1, 4), panels, strict=True):
        frame(ax, title, f"AUROC {roc_auc_score(POSITIVE[INSIDE], values[INSIDE]):.2f}")
        heat(ax, values)


def draw_sign(figure: Figure) -> None:
    """Draw two attention maps of opposite sign that classify equally well."""
    scores = noisy(7, 0.25)
    panels = (("run A: high in the lesion", scores), ("run B: high elsewhere", 1 - scores))
    for ax, (title, values) in zip(figure.subplots(1, 2), panels, strict=True):
        auroc = roc_auc_score(POSITIVE[INSIDE], values[INSIDE])
        frame(ax, title, f"bag AUROC 0.98, instance AUROC {auroc:.2f}")
        heat(ax, values)


PICTURES: dict[str, tuple[Callable[[Figure], None], tuple[float, float]]] = {
    "concept-bag": (draw_bag, (10, 2.9)),
    "concept-resolution": (draw_resolution, (8, 3.1)),
    "concept-sm": (draw_sm, (10, 2.9)),
    "concept-sign": (draw_sign, (6.4, 3.4)),
}


def main() -> None:
    """Write every picture."""
    plt.rcParams.update(STYLE)
    for name, (draw, size) in PICTURES.items():
        figure = plt.figure(figsize=size, facecolor="white")
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.12, top=0.88, wspace=0.12)
        draw(figure)
        figure.savefig(HERE / f"{name}.webp", dpi=200, pil_kwargs={"lossless": True})
        plt.close(figure)


if __name__ == "__main__":
    main()
