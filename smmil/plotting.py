"""What all figures share: one quiet style, one look per method, deterministic PNG and PDF files, small helpers."""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.cli import write_bytes
from smmil.fig_variants import parse_variant, value_text
from smmil.methods_table import METHODS, WITH_GLOBAL, display_name
from smmil.variants import SEPARATOR, base_method

DPI = 110
MAX_WIDTH_PX, MAX_HEIGHT_PX = 1500, 2400
RANDOM_MARK = "† RANDOM ENCODER WEIGHTS"
POSITIVE, NEGATIVE, NEUTRAL = "#c8401f", "#2f6db3", "#8a9199"
CONTINUOUS = "viridis"
_OTHER = "#6b7280"
# Okabe and Ito's colours, which colour-blind readers can tell apart; a family of methods shares one and differs in its
# marker, and so do the paper's two groups: circles (and their like) without, squares (and theirs) with a transformer
_FAMILIES: dict[str, tuple[str, ...]] = {
    "#0072b2": ("smap_early", "smap_mid", "smap_late", "smtap", "smt_ap", "t_smap"),
    "#d55e00": ("abmil", "abmil_gated", "abmil_penalty", "t_ap", "t_penalty"),
    "#009e73": ("clam", "clam_mb", "smclam", "transmil"),
    "#cc79a7": ("dsmil", "smdsmil", "setmil"),
    "#e69f00": ("dftd", "dftd_maxmin", "dftd_max", "smdftd", "gtp"),
    "#56b4e9": ("deepgraphsurv", "camil"),
    "#7b4fa6": ("pathgcn", "iibmil"),
    _OTHER: ("mean_pool", "max_pool"),
}
_MARKERS = {False: "o^vDP", True: "sX*dp"}

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
    """An empty figure of at most 1500 x 2400 px (inches in); no pyplot, so no screen and no state."""
    from matplotlib.figure import Figure

    size = (min(width, MAX_WIDTH_PX / DPI), min(height, MAX_HEIGHT_PX / DPI))
    return Figure(figsize=size, layout="constrained")


def style(*, grid: bool = True) -> Any:
    """Context in which figures are made and saved, so that nothing outside changes; `grid=False` draws no grid."""
    import matplotlib

    changed: Any = {**STYLE, "axes.grid": grid}
    return matplotlib.rc_context(changed)


def headline(figure: Any, *lines: str, random: bool = False) -> None:
    """Lines on top of a figure, wrapped to its width; random encoder weights are marked after the first one."""
    first, *rest = lines
    wrapped = [first + (f"   {RANDOM_MARK}" if random else ""), *rest]
    # 13 characters an inch of DejaVu Sans at 9.5 pt
    columns = max(30, int(13 * figure.get_figwidth()))
    text = "\n".join(part for line in wrapped if line for part in textwrap.wrap(line, columns))
    figure.suptitle(text, fontsize=9.5, x=0.01, ha="left")


def save(figure: Any, path: Path) -> None:
    """Writes `path` (PNG) and the PDF beside it, each whole or not at all; equal figures give equal bytes (no dates).

    Args:
        figure: of `new_figure`, inside `style`.
        path: ends in .png.
    """
    stamps = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    for kind, metadata in stamps.items():
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
        write_bytes(path.with_suffix(f".{kind}"), stream.getbuffer())


def look_of(method: str) -> tuple[str, str]:
    """Colour and marker of a method or variant, the same in every figure; no two methods share both."""
    method = base_method(method)
    for colour, family in _FAMILIES.items():
        if method in family:
            group = METHODS[method][1] == WITH_GLOBAL
            same = [one for one in family if (METHODS[one][1] == WITH_GLOBAL) == group]
            return colour, _MARKERS[group][same.index(method)]
    return _OTHER, "."


def colour_of(method: str) -> str:
    """The colour of a method in every figure."""
    return look_of(method)[0]


def shown_name(method: str) -> str:
    """Display name, proposed methods marked as in the tables; a variant says which argument differs."""
    base = base_method(method)
    name = display_name(base) + (" ◆" if base in METHODS and METHODS[base][2] else "")
    if SEPARATOR in method:
        argument, value = parse_variant(method)
        name += f", {value_text(argument, value)}"
    return name


def min_max(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Values scaled to [0, 1] between their own minimum and maximum; 0.5 where all are equal."""
    values = np.asarray(values, np.float64)
    if not values.size:
        return values
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
