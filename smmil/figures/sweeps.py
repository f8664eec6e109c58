"""Figures 6a, 6b and 7: the four metrics against one argument of Sm, mean and standard deviation over splits.

See the paper, Section 5.3.2 and Appendix B.3. Rows of panels are datasets, columns are metrics. Small rings are single
runs; a dashed line with its band is ABMIL (alpha = 0), a dotted one the trainable alpha; thin lines are means of the
sign-aware score. A point without runs is marked "no run", a point with missing splits gives their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smmil.artifacts.records import Metrics
from smmil.artifacts.results import split_values
from smmil.config.layouts import FigureDataset
from smmil.config.methods import marked_name
from smmil.config.variants import SEPARATOR, Value, base_method, value_of
from smmil.figures.job import Job, PictureText, in_order, inverted_note, picture
from smmil.figures.plotting import NEUTRAL, look_of

METRICS = (
    ("instance_auroc", "instance AUROC"),
    ("instance_f1", "instance F1"),
    ("bag_auroc", "bag AUROC"),
    ("bag_f1", "bag F1"),
)
BASELINE = "abmil"
AXES = {"spectral_norm": "spectral normalisation", "T": "steps T"}
# series of one family share a colour and differ in marker and line
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
COMMON = (
    "Points: mean ± standard deviation (n − 1) over splits; small rings: single runs. Dashed line and band: ABMIL. "
    "All splits share one test set."
)
SIGN_AWARE = "thin: sign-aware score (means)"


@dataclass(frozen=True)
class Point:
    """One value of the swept argument: its method or variant and the metrics (None = no run)."""

    method: str
    value: Value
    metrics: Metrics | None

    def values(self, metric: str) -> list[float]:
        """Return a test metric, one value for each split that defines it."""
        return [value for _, value in split_values(self.metrics, metric)]


def mean_std(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (n - 1), which is 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def series(job: Job, dataset: FigureDataset, argument: str) -> dict[str, list[Point]]:
    """Return the points of every swept method: its variants and the method itself, numbers ascending, names last."""
    curves: dict[str, list[Point]] = {}
    released = job.quirk("sm_spectral_norm")
    methods = in_order(dataset.methods)
    for base in [method for method in methods if SEPARATOR not in method]:
        rows = [method for method in methods if base_method(method) == base]
        # the method itself may be one of the sweep's values: of two equal points, the one with runs is kept
        points: dict[Value, Point] = {}
        for row in rows:
            metrics = job.metrics_of(dataset, row)
            value = value_of(row, argument, released=released)
            if value not in points or points[value].metrics is None:
                points[value] = Point(row, value, metrics)
        if len(rows) > 1:
            curves[base] = sorted(points.values(), key=lambda point: _ascending(point.value))
    return curves


def _ascending(value: Value) -> tuple[bool, float]:
    """Return the sort key of a value: numbers ascending, then names."""
    return (True, 0.0) if isinstance(value, str) else (False, float(value))


def draw_alpha(job: Job) -> PictureText:
    """Draw figure 6a: the trade-off alpha."""
    swapped = job.quirk("sm_alpha_rule")
    rule = (
        f"Protocol {job.protocol}: a fixed α runs as 1 − α, so the lower axis, the α given, is mirrored; the upper "
        "axis is the α in effect (Eq. 8)."
        if swapped
        else f"Protocol {job.protocol}: a fixed α is used as in Eq. 8; the released code would call the same run 1 − α "
        "(upper axis), its figure may be mirrored."
    )
    notes = [rule, "α = 0 is ABMIL (dashed); dotted: α trained from 0.5, to which that rule does not apply."]
    return _draw(job, "alpha", "Figure 6a. The trade-off α", rule, notes)


def draw_spectral_norm(job: Job) -> PictureText:
    """Draw figure 6b: spectral normalisation on and off."""
    notes = ["With: the layers right after Sm are spectrally normalised; without: not. ABMIL has no Sm."]
    if job.quirk("sm_spectral_norm"):
        notes = ["Released code (sm_spectral_norm): nothing is spectrally normalised, whatever is asked for."]
    return _draw(job, "spectral_norm", "Figure 6b. Spectral normalisation", "", notes)


def draw_steps(job: Job) -> PictureText:
    """Draw figure 7: the number of steps of the approximation, the exact solution last."""
    notes = ["Number of steps T of Eq. 8, not to scale; exact: Eq. 7 solved, where the configuration asks for it."]
    return _draw(job, "T", "Figure 7. Number of steps T", "", notes)


def _axis(ax: Any, argument: str, values: list[Value], swapped: bool) -> dict[Value, float]:
    """Draw the axis of an argument: alpha to scale with 1 - alpha on top, others equidistant; return the places."""
    if argument != "alpha":
        flags = {True: "with", False: "without"}
        texts = [flags[v] if isinstance(v, bool) else v if isinstance(v, str) else f"{v:g}" for v in values]
        ax.set_xticks(range(len(values)), labels=texts)
        ax.set_xlim(-0.5, len(values) - 0.5)
        ax.set_xlabel(AXES[argument])
        return {value: float(place) for place, value in enumerate(values)}
    ticks = [float(value) for value in values]
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.set_xlabel("α given (runs as 1 − α)" if swapped else "α (Eq. 8, as written)")
    top = ax.secondary_xaxis("top", functions=(lambda x: 1 - x, lambda x: 1 - x))
    top.set_xticks([1 - tick for tick in ticks], labels=[f"{1 - tick:g}" for tick in ticks])
    top.tick_params(labelsize=6.5, colors=NEUTRAL, length=2)
    top.set_xlabel("α in effect" if swapped else "1 − α (name in the released code)", fontsize=7, color=NEUTRAL)
    return dict(zip(values, ticks, strict=True))


def _draw(job: Job, argument: str, title: str, rule: str, notes: list[str]) -> PictureText:
    datasets = [(dataset, curves) for dataset in job.layout.datasets if (curves := series(job, dataset, argument))]
    with picture(job, 11, 2.7 * max(1, len(datasets)) + 0.8, rule) as figure:
        axes = figure.subplots(max(1, len(datasets)), len(METRICS), squeeze=False)
        for row, (dataset, curves) in zip(axes, datasets, strict=False):
            baseline = Point(BASELINE, 0.0, job.metrics_of(dataset, BASELINE))
            for ax, (metric, label) in zip(row, METRICS, strict=True):
                _panel(ax, job, argument, curves, baseline, metric)
                ax.set_ylabel(label)
            row[0].set_title(dataset.title, loc="left", fontweight="bold")
        if datasets:
            handles: dict[str, Any] = {}
            for ax in axes[:, 0]:
                handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8)
        else:
            for ax in axes.flat:
                ax.set_axis_off()
            axes[0, 0].text(0, 0.5, f"No run: the configuration sweeps {argument} of no method on these datasets.")
    return PictureText(title, COMMON, [*notes, *inverted_note(job), *signed_note(job)])


def signed_note(job: Job) -> list[str]:
    """Return the mean instance AUROC of every row with its score and the sign-aware one, a line per dataset."""
    lines = []
    for dataset in job.layout.datasets:
        texts = [
            f"{marked_name(method)} {_mean(job.values(dataset, method, 'instance_auroc'))} / {_mean(signed)}"
            for method in in_order(dataset.methods)
            if (signed := job.values(dataset, method, "signed_instance_auroc"))
        ]
        scores = f"Instance AUROC, own / sign-aware score, means over splits, {dataset.title}"
        lines += [f"{scores}: {'; '.join(texts)}."] if texts else []
    return lines


def _mean(values: list[float]) -> str:
    return f"{mean_std(values)[0]:.2f}" if values else "–"


def _panel(
    ax: Any, job: Job, argument: str, curves: Mapping[str, Sequence[Point]], baseline: Point, metric: str
) -> None:
    points = [point for curve in curves.values() for point in curve]
    lines = [point for point in points if point.value == "trainable"]
    values = sorted({point.value for point in points if point not in lines}, key=_ascending)
    places = _axis(ax, argument, values, job.quirk("sm_alpha_rule"))
    _line(ax, baseline, metric, "--", f"{marked_name(BASELINE)} (no Sm)")
    for point in lines:
        _line(ax, point, metric, ":", f"{marked_name(point.method)}, α {point.value}")
    # curves are shifted against one another; values of alpha are closer than categories
    unit = 0.012 if argument == "alpha" else 0.12
    for i, (base, curve) in enumerate(curves.items()):
        shift = unit * (i - (len(curves) - 1) / 2)
        placed = [(places[p.value] + shift, p) for p in curve if p not in lines]
        _errorbars(ax, job, base, placed, metric, DASHES[i % len(DASHES)])
    if any(point.values(f"signed_{metric}") for point in (baseline, *points)):
        ax.plot([], [], color=NEUTRAL, linewidth=0.7, label=SIGN_AWARE)
    # bars of one standard deviation may leave [0, 1], the range of all these metrics
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.03), min(high, 1.03))


def _line(ax: Any, point: Point, metric: str, dashes: str, label: str) -> None:
    """Draw a row that is no point of the sweep, as a line with its band."""
    values, colour = point.values(metric), look_of(point.method)[0]
    if not values:
        ax.plot([], [], dashes, color=colour, label=f"{label}: no run")
        return
    mean, std = mean_std(values)
    ax.axhline(mean, color=colour, linestyle=dashes, linewidth=1.3, label=label)
    ax.axhspan(mean - std, mean + std, color=colour, alpha=0.09, linewidth=0)
    if signed := point.values(f"signed_{metric}"):
        ax.axhline(mean_std(signed)[0], color=colour, linestyle=dashes, linewidth=0.7)


def _errorbars(ax: Any, job: Job, base: str, placed: Sequence[tuple[float, Point]], metric: str, dashes: Any) -> None:
    colour, marker = look_of(base)
    xs, means, stds = list[float](), list[float](), list[float]()
    for x, point in placed:
        values = point.values(metric)
        if not values:
            reason = "no run" if point.metrics is None else "undefined"
            ax.text(x, 0.03, reason, rotation=90, ha="center", va="bottom", color=NEUTRAL, fontsize=7,
                    transform=ax.get_xaxis_transform())  # fmt: skip
            continue
        mean, std = mean_std(values)
        xs, means, stds = [*xs, x], [*means, mean], [*stds, std]
        ax.plot([x] * len(values), values, "o", color=colour, fillstyle="none", markersize=3.5, markeredgewidth=0.8)
        if len(values) < job.n_splits:
            ax.annotate(
                f"{len(values)}/{job.n_splits}", (x, mean), xytext=(5, 3), textcoords="offset points", fontsize=6.5
            )
    look = {"color": colour, "marker": marker, "linestyle": dashes}
    bars = {"markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2.5, **look}
    ax.errorbar(xs, means, stds, label=marked_name(base), **bars)
    aware = [(x, mean_std(signed)[0]) for x, p in placed if (signed := p.values(f"signed_{metric}"))]
    if aware:
        ax.plot(*zip(*aware, strict=True), markersize=2.5, linewidth=0.7, **look)
