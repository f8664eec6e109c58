"""Pictures of an analysis as SVG, one per kind and group of methods, in the colours of the tables' groups.

Text stays text, so that pages can restyle it; equal analyses give equal bytes.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from preprocessing.common.files import write_bytes
from smmil.analysis.records import Analysis, Chart, Confusion, Curve, MethodAnalysis
from smmil.config.methods import GROUPS, display_name, group_of
from smmil.evaluate.calibration import n_bins
from smmil.figures.plotting import NEGATIVE, NEUTRAL, POSITIVE, RANDOM_MARK, look_of, new_figure, style

WIDTH = 3.9
DOTTED: Any = {"color": NEUTRAL, "linewidth": 0.8, "linestyle": ":"}
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
# equal salts give equal ids, hence equal bytes; without paths for letters, a page can restyle the text
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "smmil", "font.family": ["DejaVu Sans", "sans-serif"]}
# bands of more methods would hide one another
MOST_BANDS = 4


def draw_charts(analysis: Analysis, folder: Path) -> tuple[Chart, ...]:
    """Draw every chart that the analysis has numbers for, and delete those of an earlier one that it has none for."""
    from matplotlib import rc_context

    charts = []
    for number, group in enumerate(GROUPS, start=1):
        methods = [method for method in analysis.methods if group_of(method.method) == group]
        for kind, (title, draw) in KINDS.items():
            name = f"{kind}-{number}.svg"
            (folder / name).unlink(missing_ok=True)
            with style():
                figure = draw(analysis, methods) if methods else None
                if figure is None:
                    continue
                mark = f" {RANDOM_MARK}" if analysis.random_weights else ""
                figure.suptitle(title + mark, fontsize=9, x=0.02, ha="left")
                stream = io.BytesIO()
                with rc_context(SVG):
                    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
                write_bytes(folder / name, stream.getbuffer())
                charts.append(Chart(kind=kind, group=group, title=title, file=name))
    return tuple(charts)


def _looks(methods: Sequence[MethodAnalysis]) -> Iterator[tuple[MethodAnalysis, dict[str, Any]]]:
    """Yield each method with its colour, and a dash that tells it from others of that colour."""
    used: dict[str, int] = {}
    for method in methods:
        colour, _ = look_of(method.method)
        dash = DASHES[used.get(colour, 0) % len(DASHES)]
        used[colour] = used.get(colour, 0) + 1
        yield method, {"color": colour, "linestyle": dash, "linewidth": 1.5}


def _square(x: str, y: str, rows: int) -> tuple[Any, Any]:
    """Return a figure with square axes from 0 to 1 and room for a legend of `rows` rows below."""
    figure = new_figure(WIDTH, WIDTH + 0.17 * rows)
    axes = figure.add_subplot(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    return figure, axes


def _legend(figure: Any, rows: int) -> None:
    figure.legend(loc="outside lower center", ncols=2 if rows > 1 else 1, fontsize=7.5, handlelength=2.4)


def _curves(
    methods: Sequence[MethodAnalysis],
    curve_of: Callable[[MethodAnalysis], Curve | None],
    area_of: Callable[[MethodAnalysis], Sequence[float]],
    labels: tuple[str, str],
    chance: float | None,
) -> Any:
    """Draw a curve per method and the line of chance, at a height or (None) on the diagonal; None without curves."""
    curves = [(method, curve, look) for method, look in _looks(methods) if (curve := curve_of(method))]
    if not curves:
        return None
    rows = -(-len(curves) // 2)
    figure, axes = _square(*labels, rows)
    for method, curve, look in curves:
        label = f"{display_name(method.method)} {fmean(area_of(method)):.3f}"
        axes.plot(curve.x, curve.y, label=label, **look)
        if len(curves) <= MOST_BANDS:
            axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.14, linewidth=0)
    if chance is None:
        axes.plot([0, 1], [0, 1], **DOTTED)
    else:
        axes.axhline(chance, **DOTTED)
    _legend(figure, rows)
    return figure


def _roc(analysis: Analysis, methods: Sequence[MethodAnalysis]) -> Any:
    labels = ("false positive rate", "true positive rate")
    return _curves(methods, lambda method: method.roc, lambda method: method.auroc, labels, None)


def _precision_recall(analysis: Analysis, methods: Sequence[MethodAnalysis]) -> Any:
    share, labels = analysis.n_positive / analysis.n_bags, ("recall", "precision")
    return _curves(methods, lambda m: m.precision_recall, lambda m: m.average_precision, labels, share)


def _reliability(analysis: Analysis, methods: Sequence[MethodAnalysis]) -> Any:
    rows = -(-len(methods) // 2)
    figure, axes = _square("mean probability of a bin", "share of positive bags", rows)
    p = np.linspace(0, 1, 101)
    reach = 1.96 * np.sqrt(p * (1 - p) * n_bins(analysis.n_bags) / analysis.n_bags)
    axes.fill_between(p, np.clip(p - reach, 0, 1), np.clip(p + reach, 0, 1), color=NEUTRAL, alpha=0.18, linewidth=0)
    axes.plot([0, 1], [0, 1], **DOTTED)
    for method, look in _looks(methods):
        if method.calibration:
            bins, marker = method.calibration, look_of(method.method)[1]
            label = display_name(method.method)
            axes.plot(bins.probability, bins.share, label=label, marker=marker, markersize=4, **look)
    _legend(figure, rows)
    return figure


def _confusion(analysis: Analysis, methods: Sequence[MethodAnalysis]) -> Any:
    rows = -(-len(methods) // 2)
    figure = new_figure(WIDTH, 0.6 + 1.65 * rows)
    grid = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, method in zip(grid, methods, strict=False):
        _draw_matrix(axes, display_name(method.method), method.confusion)
    for axes in grid[len(methods) :]:
        axes.set_axis_off()
    return figure


def _draw_matrix(axes: Any, name: str, splits: Sequence[Confusion]) -> None:
    """Draw mean counts over the splits, each row (label) shaded by its shares."""
    for i, kinds in enumerate((("true_negative", "false_positive"), ("false_negative", "true_positive"))):
        counts = [fmean(getattr(split, kind) for split in splits) for kind in kinds]
        for j, count in enumerate(counts):
            share = count / (sum(counts) or 1)
            # see-through, so that the text is legible on light and dark pages
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=NEGATIVE, alpha=0.06 + 0.5 * share, linewidth=0)
            axes.text(j + 0.5, i + 0.5, f"{count:.4g}\n{100 * share:.0f} %", ha="center", va="center", fontsize=8)
    axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[0.5, 1.5], yticks=[0.5, 1.5], aspect="equal")
    axes.set_xticklabels(["called −", "called +"], fontsize=7.5)
    axes.set_yticklabels(["−", "+"], fontsize=9)
    axes.set_title(name, fontsize=8.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _distribution(analysis: Analysis, methods: Sequence[MethodAnalysis]) -> Any:
    figure = new_figure(WIDTH, 1.1 + 0.75 * len(methods))
    grid = figure.subplots(len(methods), 1, squeeze=False, sharex=True).ravel()
    top = 1.05 * max(max(counts) / max(sum(counts), 1) for m in methods for counts in (m.positive, m.negative))
    for axes, method in zip(grid, methods, strict=True):
        edges = np.linspace(0, 1, len(method.positive) + 1)
        for counts, colour, sign in ((method.positive, POSITIVE, 1), (method.negative, NEGATIVE, -1)):
            label = "positive bags (up)" if sign > 0 else "negative bags (down)"
            values = sign * np.array(counts) / max(sum(counts), 1)
            axes.stairs(values, edges, color=colour, fill=True, alpha=0.75, label=label)
        axes.axvline(0.5, **DOTTED)
        axes.axhline(0, color=NEUTRAL, linewidth=0.8)
        axes.set(xlim=(0, 1), ylim=(-top, top), yticks=[])
        axes.set_title(display_name(method.method), fontsize=8, loc="left", pad=2)
        axes.spines["left"].set_visible(False)
    grid[-1].set_xlabel("probability of being positive")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7.5)
    return figure


# kind -> title and drawing, in the order of the page
KINDS: Mapping[str, tuple[str, Callable[[Analysis, Sequence[MethodAnalysis]], Any]]] = {
    "roc": ("ROC curves", _roc),
    "precision-recall": ("Precision and recall", _precision_recall),
    "reliability": ("Reliability", _reliability),
    "confusion": ("Confusion at the threshold", _confusion),
    "distribution": ("Probabilities by label", _distribution),
}
