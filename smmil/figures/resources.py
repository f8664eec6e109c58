"""Time and memory of every method on one dataset: seconds per epoch and peak memory, from the logs of the runs.

A dot is one run (median over its epochs, including validation), the bar the median of the runs. Memory is the largest
resident memory of a process that trained the method, including the dataset; a third panel shows GPU memory where a GPU
was used.
"""

from itertools import chain
from typing import Any

import numpy as np

from smmil.artifacts.hashes import numbers
from smmil.config.methods import marked_name
from smmil.figures.curves import Rows, logged_runs, logs_of
from smmil.figures.job import Drawn, Job, missing_runs
from smmil.figures.plotting import NEUTRAL, colour_of, headline, new_figure, save, style

MEMORY = {"memory_mib": "peak memory, MiB", "device_memory_mib": "peak GPU memory, MiB"}


def epoch_seconds(logs: dict[str, Rows]) -> list[float]:
    """Return the median seconds of an epoch for every run whose log has times."""
    return [float(np.median(seconds)) for rows in logs.values() if (seconds := numbers(rows, "seconds"))]


def peak(logs: dict[str, Rows], name: str) -> list[float]:
    """Return the largest value of a key in the logs of a method, [] if no row has it."""
    values = numbers(chain.from_iterable(logs.values()), name)
    return [max(values)] if values else []


def draw(job: Job) -> Drawn:
    """Draw time and memory of the layout's single dataset.

    Raises:
        ValueError: a layout of several datasets.
    """
    logs = logs_of(job, chosen_only=False)
    methods, title = list(logs), f"{job.layout.single().title}: time and memory of training"
    seconds = {method: epoch_seconds(rows) for method, rows in logs.items()}
    memory = {name: {method: peak(rows, name) for method, rows in logs.items()} for name in MEMORY}
    measured = [name for name in MEMORY if name == "memory_mib" or any(memory[name].values())]
    with style():
        figure = new_figure(5.5 + 4 * len(measured), 0.3 * max(3, len(methods)) + 1.5)
        left, *others = figure.subplots(1, 1 + len(measured), sharey=True)
        _bars(left, methods, {m: [v for v in seconds[m] if v > 0] for m in methods}, "no run", log_scale=True)
        left.set_xlabel("seconds per epoch")
        for panel, name in zip(others, measured, strict=True):
            _bars(panel, methods, memory[name], "not measured", log_scale=False)
            panel.set_xlabel(MEMORY[name])
        left.set_yticks(range(len(methods)), labels=[marked_name(method) for method in methods])
        left.invert_yaxis()
        headline(figure, title, missing_runs(job).text, random=job.random_weights)
        save(figure, job.out)
    caption = (
        "Left: seconds per training epoch with its validation; a dot is a run (median of its epochs), the bar their "
        "median. Beside it: largest resident memory of a process that trained the method, its dataset included, and "
        "the most that its tensors took on a GPU, if there was one. Times are on a logarithmic axis."
    )
    notes = ["Times are of the machine that trained; compare them inside one picture only."]
    return Drawn(title, caption, notes, logged_runs(job, logs))


def _bars(ax: Any, methods: list[str], values: dict[str, list[float]], nothing: str, *, log_scale: bool) -> None:
    """Draw a bar from the left edge to the median of every method, and a dot for every run."""
    every = [value for row in values.values() for value in row]
    ax.grid(axis="y", visible=False)
    if not every:
        ax.text(0.5, 0.5, nothing, ha="center", va="center", color=NEUTRAL, transform=ax.transAxes)
        ax.set_xticks([])
        return
    if log_scale:
        ax.set_xscale("log")
    low, high = (min(every) / 2, max(every) * 2.5) if log_scale else (0.0, max(every) * 1.25)
    ax.set_xlim(low, high)
    ax.set_ylim(-0.6, len(methods) - 0.4)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    left = (low * 1.05) if log_scale else high * 0.01
    for i, method in enumerate(methods):
        if not values[method]:
            ax.text(left, i, nothing, va="center", color=NEUTRAL, fontsize=7)
            continue
        middle = float(np.median(values[method]))
        ax.barh(i, middle - low, left=low, height=0.62, color=colour_of(method), alpha=0.55)
        ax.plot(values[method], [i] * len(values[method]), ".", color=colour_of(method), markersize=5)
        text = f"{middle:,.0f}" if middle >= 100 else f"{middle:.2g}"
        ax.text(max(values[method]) * 1.06, i, text, va="center", fontsize=7)
