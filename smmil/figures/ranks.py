"""Critical-difference diagrams: mean ranks of all methods; bars join those that Nemenyi's test cannot separate.

There is one diagram for the instance AUROC, one for that of the sign-aware score if it was measured, and one for the
bag AUROC. A column of the test is one split of one dataset (`smmil.evaluate.ranks`). Since splits share their test set,
the picture carries a warning.
"""

import textwrap
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from smmil.artifacts.results import split_values
from smmil.config.methods import marked_name
from smmil.evaluate.ranks import RankTest, rank_test
from smmil.figures.job import Job, PictureText, in_order, inverted_note, picture
from smmil.figures.plotting import NEUTRAL, look_of

METRICS = (
    ("instance_auroc", "Localisation: instance AUROC"),
    ("signed_instance_auroc", "Localisation: instance AUROC of the sign-aware score"),
    ("bag_auroc", "Classification: bag AUROC"),
)
INK = "#1c1f23"
WARNING = "Splits share one test set and most training bags: differences look surer than they are."


def test_of(job: Job, metric: str) -> tuple[RankTest, list[str]]:
    """Return the rank test over splits and datasets, and the methods without any value, which are left out."""
    rows = in_order([method for dataset in job.layout.datasets for method in dataset.methods])
    columns = []
    for dataset in job.layout.datasets:
        values = {method: dict(split_values(job.metrics_of(dataset, method), metric)) for method in rows}
        seeds = sorted({seed for row in values.values() for seed in row})
        columns += [[values[method].get(seed) for method in rows] for seed in seeds]
    kept = [j for j in range(len(rows)) if any(column[j] is not None for column in columns)]
    out = [rows[j] for j in range(len(rows)) if j not in kept]
    return rank_test([rows[j] for j in kept], [[column[j] for j in kept] for column in columns]), out


def draw(job: Job) -> PictureText:
    """Draw all diagrams."""
    tests = [
        (label, test, out)
        for metric, label in METRICS
        for test, out in [test_of(job, metric)]
        if test.names or not metric.startswith("signed_")
    ]
    ranked = [entry for entry in tests if entry[1].statistic is not None]
    empty = "" if ranked or not job.metrics else "no test: it needs two methods that share a split"
    # a level without any test says nothing beside one that has it
    tests = ranked or tests
    tallest = max((len(test.names) for _, test, _ in tests), default=0)
    notes, height = [tests[0][1].warning], len(tests) * (1.5 + 0.13 * max(4, tallest)) + 0.8
    with picture(job, 9.0, height, WARNING, grid=False) as figure:
        axes = figure.subplots(len(tests), 1, squeeze=False)[:, 0]
        for ax, (label, test, out) in zip(axes, tests, strict=True):
            _diagram(ax, label, test, out)
            notes.append(_note(label, test, out))
    caption = (
        "Mean rank of every method over splits and datasets, 1 = best. Methods joined by a bar are closer than the "
        "critical difference (CD, Nemenyi, 95 %). The sign-aware score is not the paper's."
    )
    return PictureText("Critical difference of mean ranks", caption, [*notes, *inverted_note(job)], empty=empty)


def _note(label: str, test: RankTest, out: list[str]) -> str:
    if test.statistic is None or test.p is None or test.critical_difference is None:
        text = f"{label}: no test; it needs two methods that share a split."
    else:
        text = (
            f"{label}: Friedman χ² = {test.statistic:.2f}, p = {test.p:.2g}, {test.columns} columns (dataset × split), "
            f"CD = {test.critical_difference:.2f}."
        )
    if test.dropped:
        text += f" {test.dropped} columns are left out, as a method has no value there."
    if out:
        text += f" Left out, without any run: {', '.join(marked_name(method) for method in out)}."
    return text


def _diagram(ax: Any, label: str, test: RankTest, out: list[str]) -> None:
    """Draw ranks on a line, names on both sides, groups as bars below the line, the critical difference above it."""
    ax.set_title(label, loc="left", fontweight="bold")
    ax.set_axis_off()
    if out:
        names = textwrap.fill(f"no run: {', '.join(marked_name(method) for method in out)}", 110)
        ax.text(0, 0, names, color=NEUTRAL, fontsize=7.5, transform=ax.transAxes, va="top")
    n = len(test.names)
    if test.critical_difference is None or test.p is None or not test.mean_ranks:
        ax.text(0.02, 0.5, "no test: two methods with runs on the same split are needed", color=NEUTRAL)
        return
    half = -(-n // 2)
    # room between the axis and the first name: one line per group
    first = 0.4 + 0.22 * len(test.groups)
    ax.set_xlim(1 - 0.45 * (n - 1) - 0.2, n + 0.45 * (n - 1) + 0.2)
    ax.set_ylim(-first - 0.45 * half - 0.2, 1.1)
    ax.plot([1, n], [0, 0], color=INK, linewidth=1)
    for tick in range(1, n + 1):
        ax.plot([tick, tick], [0, 0.1], color=INK, linewidth=0.8)
        ax.text(tick, 0.16, str(tick), ha="center", va="bottom", fontsize=7.5)
    # the bar is measured on the axis below it and ends with it
    wide = min(test.critical_difference, n - 1)
    more = "" if wide == test.critical_difference else ", longer than the axis"
    ax.plot([1, 1 + wide], [0.62, 0.62], "|-", color=INK, linewidth=1.6, markersize=6, clip_on=False)
    ax.text(1 + wide / 2, 0.7, f"CD = {test.critical_difference:.2f}{more}", ha="center", va="bottom", fontsize=7.5)
    dropped = f", {test.dropped} left out for a missing run" if test.dropped else ""
    ax.set_title(f"Friedman p = {test.p:.2g}, {test.columns} columns{dropped}", loc="right", fontsize=7.5)
    order = sorted(range(n), key=lambda j: (test.mean_ranks[j], j))
    for i, group in enumerate(test.groups):
        ranks = [test.mean_ranks[test.names.index(name)] for name in group]
        y = -0.25 - 0.22 * i
        ax.plot([min(ranks) - 0.03, max(ranks) + 0.03], [y, y], color=NEUTRAL, linewidth=3, solid_capstyle="butt")
    places = _apart([test.mean_ranks[j] for j in order], 0.035 * (n - 1))
    for place, j in enumerate(order):
        left = place < half
        level = place if left else n - 1 - place
        _name(ax, test.names[j], test.mean_ranks[j], places[place], -first - 0.45 * level, n, left=left)


def _apart(ranks: list[float], gap: float) -> list[float]:
    """Move sorted ranks that are closer than `gap` apart, so that no mark hides another.

    The exact rank stands beside the name. Clusters keep their mean, as neighbours pooled by isotonic regression do.
    """
    steps = gap * np.arange(len(ranks))
    places: list[float] = (isotonic_regression(np.array(ranks) - steps).x + steps).tolist()
    return places


def _name(ax: Any, method: str, rank: float, place: float, y: float, n: int, *, left: bool) -> None:
    colour, marker = look_of(method)
    end = 0.9 - 0.04 * n if left else n + 0.1 + 0.04 * n
    ax.plot([place, place, end], [0, y, y], color=colour, linewidth=1)
    ax.plot(place, 0, marker, color=colour, markersize=5, clip_on=False)
    text = f"{marked_name(method)}  {rank:.2f}" if left else f"{rank:.2f}  {marked_name(method)}"
    gap = -0.02 * n if left else 0.02 * n
    ax.text(end + gap, y, text, ha="right" if left else "left", va="center", fontsize=8)
