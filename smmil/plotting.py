"""What all figures share: one quiet style, one colour per method, deterministic PNG files, small numeric helpers."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.methods_table import METHODS, display_name

DPI = 110
MAX_PX = 1500
POSITIVE, NEGATIVE, NEUTRAL = "#c8401f", "#2f6db3", "#8a9199"
CONTINUOUS = "viridis"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4fa6", "#8c6d31")

STYLE: dict[str, Any] = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a9199",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7ea",
    "grid.linewidth": 0.7,
    "xtick.color": "#4a5158",
    "ytick.color": "#4a5158",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def new_figure(width: float, height: float) -> Any:
    """An empty figure of at most 1500 px per side (inches in); no pyplot, so no screen and no state."""
    from matplotlib.figure import Figure

    limit = MAX_PX / DPI
    return Figure(figsize=(min(width, limit), min(height, limit)), layout="constrained")


def style(*, grid: bool = True) -> Any:
    """Context in which figures are made and saved, so that nothing outside changes; `grid=False` draws no grid."""
    import matplotlib

    changed: Any = {**STYLE, "axes.grid": grid}
    return matplotlib.rc_context(changed)


def save(figure: Any, path: Path) -> None:
    """Writes a PNG whole or not at all; equal figures give equal bytes (no software tag, no date)."""
    import os

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    os.replace(temporary, path)


def colour_of(method: str) -> str:
    """The colour of a method in every figure."""
    keys = list(METHODS)
    return _COLOURS[(keys.index(method) if method in keys else len(keys)) % len(_COLOURS)]


def shown_name(method: str) -> str:
    """Display name, proposed methods marked as in the tables."""
    return display_name(method) + (" ◆" if method in METHODS and METHODS[method][2] else "")


def min_max(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values scaled to [0, 1] between their own minimum and maximum; 0.5 where all are equal."""
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)


def percentile_rank(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Share of the other values below each value, ties counting one half: 0 = lowest, 1 = highest, 0.5 = all equal."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.full(values.shape, 0.5)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1
    return below / (2.0 * (len(values) - 1))
