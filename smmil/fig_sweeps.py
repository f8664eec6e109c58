"""Figures 6a, 6b and 7: the four metrics against one argument of Sm, mean and standard deviation over splits.

Paper, Section 5.3.2 and Appendix B.3. One row of panels per dataset, one column per metric. Small rings are single
runs, so that spread and inverted runs show; a dashed line with its band is ABMIL (alpha = 0), a dotted one the
trainable alpha; thin lines are means of the sign-aware score, which the notes list, too. A point without runs is a gap
with "no run", a point with fewer splits says how many.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from smmil.fig_job import Drawn, Job, Metrics, in_order, inverted_note, missing_runs, missing_text
from smmil.fig_variants import Value, is_variant_of, value_of
from smmil.plotting import NEUTRAL, headline, look_of, new_figure, save, shown_name, style
from smmil.variants import SEPARATOR

METRICS = (
    ("instance_auroc", "instance AUROC"),
    ("instance_f1", "instance F1"),
    ("bag_auroc", "bag AUROC"),
    ("bag_f1", "bag F1"),
)
BASELINE = "abmil"
# series of one family share a colour; marker and line tell them apart
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
COMMON = (
    "Points: mean ± standard deviation (n − 1) over splits; small rings: single runs. Dashed line and band: ABMIL. "
    "All splits share one test set."
)
SIGN_AWARE = "thin: sign-aware score (means)"


@dataclass(frozen=True)
class Point:
    """One value of the swept argument: the row behind it and its metrics (None = no run)."""

    method: str
    value: Value
    metrics: Metrics | None

    def values(self, metric: str) -> list[float]:
        """Test values of the splits that define a metric."""
        splits = (self.metrics or {"splits": ()})["splits"]
        return [v for split in splits if (v := split["test"].get(metric)) is not None]


def mean_std(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1), 0 for one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def series(job: Job, dataset: dict[str, Any], argument: str) -> dict[str, list[Point]]:
    """The points of every swept method: its variants and the method as it is, numbers ascending, words last."""
    found: dict[str, list[Point]] = {}
    methods = in_order(dataset["methods"])
    for base in [m for m in methods if SEPARATOR not in m]:
        rows = [base, *(m for m in methods if is_variant_of(m, base))]
        if len(rows) == 1:
            continue
        points = [
            Point(
                row,
                value_of(row, argument, job.of(dataset, row), released=job.quirk("sm_spectral_norm")),
                job.of(dataset, row),
            )
            for row in rows
        ]
        # the method as it is may stand in the sweep as well: one point, whichever has runs
        unique: dict[Value, Point] = {}
        for point in points:
            if point.value not in unique or unique[point.value].metrics is None:
                unique[point.value] = point
        found[base] = sorted(unique.values(), key=lambda p: (isinstance(p.value, str), _number(p.value)))
    return found


def _number(value: Value) -> float:
    return 0.0 if isinstance(value, str) else float(value)


def draw_alpha(job: Job) -> Drawn:
    """Figure 6a: the trade-off alpha."""
    swapped = job.quirk("sm_alpha_rule")
    rule = (
        f"Protocol {job.protocol}: a fixed α runs as 1 − α, so the lower axis, the α given, is mirrored; the upper "
        "axis is the α in effect (Eq. 8)."
        if swapped
        else f"Protocol {job.protocol}: a fixed α is used as in Eq. 8; the released code would call the same run 1 − α "
        "(upper axis), its figure may be mirrored."
    )
    notes = [rule, "α = 0 is ABMIL (dashed); dotted: α trained from 0.5, to which that rule does not apply."]
    title = "Figure 6a. The trade-off α"
    return _draw(job, "alpha", title, rule, notes, _numeric_axis(swapped), words_as_lines=True)


def draw_spectral_norm(job: Job) -> Drawn:
    """Figure 6b: spectral normalisation on and off."""
    notes = ["With: the layers right after Sm are spectrally normalised; without: not. ABMIL has no Sm."]
    if job.quirk("sm_spectral_norm"):
        notes = ["Released code (sm_spectral_norm): nothing is spectrally normalised, whatever is asked for."]
    title = "Figure 6b. Spectral normalisation"
    return _draw(job, "spectral_norm", title, "", notes, _category_axis("spectral normalisation"), words_as_lines=False)


def draw_steps(job: Job) -> Drawn:
    """Figure 7: number of steps of the approximation, the exact solution last."""
    notes = ["Number of steps T of Eq. 8, not to scale; exact: Eq. 7 solved, where the configuration asks for it."]
    title = "Figure 7. Number of steps T"
    return _draw(job, "T", title, "", notes, _category_axis("steps T"), words_as_lines=False)


Axis = Callable[[Any, list[Value]], Callable[[Value], float]]


def _numeric_axis(swapped: bool) -> Axis:
    """Numbers at their place, and 1 - alpha on top."""

    def axis(ax: Any, values: list[Value]) -> Callable[[Value], float]:
        ticks = [float(value) for value in values if not isinstance(value, str)]
        ax.set_xlim(-0.03, 1.03)
        ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        ax.set_xlabel("α given (runs as 1 − α)" if swapped else "α (Eq. 8, as written)")
        top = ax.secondary_xaxis("top", functions=(lambda x: 1 - x, lambda x: 1 - x))
        top.set_xticks([1 - tick for tick in ticks], labels=[f"{1 - tick:g}" for tick in ticks])
        top.tick_params(labelsize=6.5, colors=NEUTRAL, length=2)
        top.set_xlabel("α in effect" if swapped else "1 − α (name in the released code)", fontsize=7, color=NEUTRAL)
        return float

    return axis


def _category_axis(label: str) -> Axis:
    """Values one step apart, in order."""

    def axis(ax: Any, values: list[Value]) -> Callable[[Value], float]:
        words = {True: "with", False: "without"}
        texts = [words[v] if isinstance(v, bool) else v if isinstance(v, str) else f"{v:g}" for v in values]
        ax.set_xticks(range(len(values)), labels=texts)
        ax.set_xlim(-0.5, len(values) - 0.5)
        ax.set_xlabel(label)
        return lambda value: float(values.index(value))

    return axis


def _draw(
    job: Job, argument: str, title: str, rule: str, notes: list[str], axis: Axis, *, words_as_lines: bool
) -> Drawn:
    datasets = [(d, found) for d in job.datasets if (found := series(job, d, argument))]
    with style():
        figure = new_figure(13.2, 3.1 * max(1, len(datasets)) + 0.9)
        axes = figure.subplots(max(1, len(datasets)), len(METRICS), squeeze=False)
        for row, (dataset, found) in zip(axes, datasets, strict=False):
            baseline = Point(BASELINE, 0.0, job.of(dataset, BASELINE))
            for ax, (metric, label) in zip(row, METRICS, strict=True):
                _panel(ax, job, found, baseline, metric, axis, words_as_lines=words_as_lines)
                ax.set_ylabel(label)
            row[0].set_title(dataset.get("title", dataset["name"]), loc="left", fontweight="bold")
        if datasets:
            handles: dict[str, Any] = {}
            for ax in axes[:, 0]:
                handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8)
        else:
            for ax in axes.flat:
                ax.set_axis_off()
            axes[0, 0].text(0, 0.5, f"No run: the configuration sweeps {argument} of no method on these datasets.")
        headline(figure, title, rule, missing_text(missing_runs(job)), random=job.random_weights)
        save(figure, job.out)
    return Drawn(title, COMMON, [*notes, *inverted_note(job), *signed_note(job)])


def signed_note(job: Job) -> list[str]:
    """Mean instance AUROC of every row with its own and with the sign-aware score, a line per dataset that has any."""
    lines = []
    for dataset in job.datasets:
        points = [Point(method, "", job.of(dataset, method)) for method in in_order(dataset["methods"])]
        texts = [
            f"{shown_name(point.method)} {_mean(point.values('instance_auroc'))} / {_mean(signed)}"
            for point in points
            if (signed := point.values("signed_instance_auroc"))
        ]
        if texts:
            title = dataset.get("title", dataset["name"])
            lines.append(f"Instance AUROC, own / sign-aware score, means over splits, {title}: {'; '.join(texts)}.")
    return lines


def _mean(values: list[float]) -> str:
    return f"{mean_std(values)[0]:.2f}" if values else "–"


def _panel(
    ax: Any,
    job: Job,
    found: dict[str, list[Point]],
    baseline: Point,
    metric: str,
    axis: Axis,
    *,
    words_as_lines: bool,
) -> None:
    points = [point for one in found.values() for point in one]
    lines = [p for p in points if words_as_lines and isinstance(p.value, str)]
    values = sorted({p.value for p in points if p not in lines}, key=lambda v: (isinstance(v, str), _number(v)))
    place = axis(ax, values)
    _line(ax, baseline, metric, "--", f"{shown_name(BASELINE)} (no Sm)")
    for point in lines:
        _line(ax, point, metric, ":", f"{shown_name(point.method)}, α {point.value}")
    unit = 0.012 if words_as_lines else 0.12
    for i, (base, own) in enumerate(found.items()):
        shift = unit * (i - (len(found) - 1) / 2)
        drawn = [(place(p.value) + shift, p) for p in own if p not in lines]
        _errorbars(ax, job, base, drawn, metric, DASHES[i % len(DASHES)])
    if any(point.values(f"signed_{metric}") for point in (baseline, *points)):
        ax.plot([], [], color=NEUTRAL, linewidth=0.7, label=SIGN_AWARE)
    # a bar of one standard deviation may leave the range of every metric here
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.03), min(high, 1.03))


def _line(ax: Any, point: Point, metric: str, dashes: str, label: str) -> None:
    """A row that is no point of the sweep, as a line with its band."""
    values, colour = point.values(metric), look_of(point.method)[0]
    if not values:
        ax.plot([], [], dashes, color=colour, label=f"{label}: no run")
        return
    mean, std = mean_std(values)
    ax.axhline(mean, color=colour, linestyle=dashes, linewidth=1.3, label=label)
    ax.axhspan(mean - std, mean + std, color=colour, alpha=0.09, linewidth=0)
    if signed := point.values(f"signed_{metric}"):
        ax.axhline(mean_std(signed)[0], color=colour, linestyle=dashes, linewidth=0.7)


def _errorbars(ax: Any, job: Job, base: str, drawn: list[tuple[float, Point]], metric: str, dashes: Any) -> None:
    colour, marker = look_of(base)
    xs: list[float] = []
    means: list[float] = []
    stds: list[float] = []
    for x, point in drawn:
        values = point.values(metric)
        if not values:
            reason = "no run" if point.metrics is None else "undefined"
            ax.text(x, 0.03, reason, rotation=90, ha="center", va="bottom", color=NEUTRAL, fontsize=7,
                    transform=ax.get_xaxis_transform())  # fmt: skip
            continue
        mean, std = mean_std(values)
        xs, means, stds = [*xs, x], [*means, mean], [*stds, std]
        ax.plot([x] * len(values), values, "o", color=colour, fillstyle="none", markersize=3.5, markeredgewidth=0.8)
        n = job.n_splits()
        if len(values) < n:
            ax.annotate(f"{len(values)}/{n}", (x, mean), xytext=(5, 3), textcoords="offset points", fontsize=6.5)
    ax.errorbar(
        xs,
        means,
        yerr=stds,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        linestyle=dashes,
        elinewidth=1,
        capsize=2.5,
        label=shown_name(base),
    )
    aware = [(x, mean_std(signed)[0]) for x, p in drawn if (signed := p.values(f"signed_{metric}"))]
    if aware:
        ax.plot(*zip(*aware, strict=True), color=colour, marker=marker, markersize=2.5, linewidth=0.7, linestyle=dashes)
