"""Shared parts of all figures: style, colours and markers of the methods, deterministic PNG and PDF files."""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.common.files import write_bytes
from smmil.config.methods import METHODS, WITH_GLOBAL, WITHOUT_GLOBAL
from smmil.config.variants import base_method

# twice the 100 px per inch at which a page shows the pictures
DPI = 200
# inches; the width of a text column, so that fonts keep their size
MAX_WIDTH, MAX_HEIGHT = 11.0, 22.0
RANDOM_MARK = "† RANDOM ENCODER WEIGHTS"
POSITIVE, NEGATIVE, NEUTRAL = "#c8401f", "#2f6db3", "#8a9199"
CONTINUOUS = "viridis"
_OTHER = "#6b7280"
# Okabe and Ito's palette, distinguishable by colour-blind readers. Each group assigns it to its families in the order
# of the tables; methods of one family and group differ in their marker.
_PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b4fa6")
_MARKERS = {WITHOUT_GLOBAL: "o^vDP", WITH_GLOBAL: "sX*dp"}

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
    """Return an empty figure of at most 11 x 22 inches; without pyplot, hence without global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(min(width, MAX_WIDTH), min(height, MAX_HEIGHT)), layout="constrained")


def style(*, grid: bool = True) -> Any:
    """Return the context in which figures are made and saved; matplotlib's settings are restored after it."""
    import matplotlib

    changed: Any = {**STYLE, "axes.grid": grid}
    return matplotlib.rc_context(changed)


def headline(figure: Any, *lines: str, random: bool = False) -> None:
    """Write lines on top of a figure, wrapped to its width, random encoder weights first; nothing without any line."""
    marked = [*([RANDOM_MARK] if random else []), *filter(None, lines)]
    if not marked:
        return
    # 13 characters an inch of DejaVu Sans at 9.5 pt
    columns = max(30, int(13 * figure.get_figwidth()))
    text = "\n".join(part for line in marked for part in textwrap.wrap(line, columns))
    figure.suptitle(text, fontsize=9, x=0.01, ha="left", color=POSITIVE)


def save(figure: Any, path: Path) -> None:
    """Save a figure as PNG at `path` and PDF beside it, without dates, so that equal figures give equal bytes."""
    stamps = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    for kind, metadata in stamps.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
        write_bytes(path.with_suffix(f".{kind}"), stream.getbuffer())


def look_of(method: str) -> tuple[str, str]:
    """Return colour and marker of a method or variant, the same in every figure."""
    method = base_method(method)
    if method not in METHODS:
        return _OTHER, "."
    group = METHODS[method].group
    families = {name: entry.family for name, entry in METHODS.items() if entry.group == group}
    colours = dict(zip(dict.fromkeys(families.values()), _PALETTE, strict=False))
    looks = {name: colours.get(family, _OTHER) for name, family in families.items()}
    same = [name for name, colour in looks.items() if colour == looks[method]]
    return looks[method], _MARKERS[group][same.index(method) % len(_MARKERS[group])]


def colour_of(method: str) -> str:
    """Return the colour of a method in every figure."""
    return look_of(method)[0]


def min_max(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Scale values of any shape to [0, 1] by their minimum and maximum; 0.5 if all are equal."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return values
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)


def percentile_rank(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return for each of (N,) values the share of the others below it: 0 = lowest, 1 = highest; ties count one half."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.full(values.shape, 0.5)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1
    return below / (2.0 * (len(values) - 1))
