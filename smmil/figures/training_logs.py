"""Figures of one dataset from the logs of its runs: learning curves, and time and memory of every method.

Learning curves show the runs that validation chose. Each method has a panel of training and validation loss and one of
the validation AUROC of bags and instances over epochs: a thin line per split, their mean, and a dot at the epoch whose
weights were kept. Splits whose validation bags do not define a quantity (instances of a single class) have no line and
are not in the mean; panel and notes count the others.

Time and memory: a ring is one run (median over its epochs, including validation), the line the median of the runs.
Memory is the largest resident memory of a process that trained the method, including the dataset; a third panel shows
GPU memory where a GPU was used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smmil.artifacts.records import LogRow, RunsFile
from smmil.artifacts.runs import read_log
from smmil.config.methods import marked_name
from smmil.figures.job import Job, PictureText, in_order, picture
from smmil.figures.plotting import NEGATIVE, NEUTRAL, POSITIVE, look_of
from smmil.tables.resources import numbers

PANELS_PER_ROW = 5
# (field of a row, label, colour); a colour means the same in both panels
LOSSES = (("loss", "training", "#4a5158"), ("val_loss", "validation", NEGATIVE))
AREAS = (("val_bag_auroc", "bags", NEGATIVE), ("val_instance_auroc", "instances", POSITIVE))
MEMORY = {"memory_mib": "peak memory, MiB", "device_memory_mib": "peak GPU memory, MiB"}
# run -> rows of its log
Logs = dict[str, list[LogRow]]


def read_logs(job: Job, *, chosen_only: bool) -> dict[str, Logs]:
    """Read the logs of the layout's single dataset: method -> run -> rows; {} for a method without runs."""
    dataset = job.layout.single()
    logs: dict[str, Logs] = {method: {} for method in in_order(dataset.methods)}
    for path in job.runs:
        summary = RunsFile.read(path)
        if (summary.dataset, summary.encoder) != (dataset.name, dataset.encoder) or summary.method not in logs:
            continue
        for run in summary.chosen if chosen_only else summary.runs:
            log = path.parent / run.run / "log.jsonl"
            logs[summary.method][run.run] = read_log(log)
            if not logs[summary.method][run.run]:
                raise ValueError(f"{log}: no epoch in it; train the run again")
    return logs


def _runs(job: Job, logs: Mapping[str, Logs]) -> list[str]:
    dataset = job.layout.single()
    return [f"{dataset.name}/{dataset.encoder}/{method}/{run}" for method, runs in logs.items() for run in runs]


def draw_curves(job: Job) -> PictureText:
    """Draw the learning curves of the layout's single dataset."""
    logs = read_logs(job, chosen_only=True)
    methods, title = list(logs), f"{job.layout.single().title}: learning curves"
    blocks, few = max(1, -(-len(methods) // PANELS_PER_ROW)), []
    columns = max(1, -(-len(methods) // blocks))
    with picture(job, max(4.5, 2.6 * columns), 3.9 * blocks + 0.4) as figure:
        axes = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True)
        for i in range(blocks * columns):
            pair = [axes[2 * (i // columns) + half, i % columns] for half in (0, 1)]
            if i < len(methods):
                partial = _pair(pair, methods[i], logs[methods[i]], first=i % columns == 0)
                few += [f"{marked_name(methods[i])}: {text}" for text in partial]
            else:
                for ax in pair:
                    ax.set_axis_off()
    caption = (
        "Learning curves of the runs that validation chose: thin lines are splits, thick lines their mean, dots the "
        "epochs whose weights were kept."
    )
    notes = [f"Means over fewer splits than were trained: {'; '.join(few)}."] if few else []
    return PictureText(title, caption, notes, _runs(job, logs))


def _pair(axes: Sequence[Any], method: str, logs: Logs, *, first: bool) -> list[str]:
    """Draw both panels of a method; return the means over fewer splits than there are."""
    top, bottom = axes
    top.set_title(marked_name(method))
    bottom.set_xlabel("epoch")
    if not logs:
        top.text(0.5, 0.5, "no run", ha="center", transform=top.transAxes, color=NEUTRAL)
        return []
    few = []
    for ax, series in ((top, LOSSES), (bottom, AREAS)):
        partial = _curves(ax, logs, series)
        if partial:
            ax.text(0.02, 0.02, "\n".join(partial), fontsize=6.5, color=NEUTRAL, transform=ax.transAxes, va="bottom")
        few += partial
    top.set_ylim(bottom=0)
    bottom.set_ylim(-0.03, 1.03)
    if first:
        top.set_ylabel("loss")
        bottom.set_ylabel("validation AUROC")
        top.legend(fontsize=7)
        bottom.legend(fontsize=7, loc="lower right")
    return few


def _curves(ax: Any, logs: Logs, series: Sequence[tuple[str, str, str]]) -> list[str]:
    """Draw two quantities, (field of a row, label, colour), of all runs and their means over the runs that define them.

    Return a text for each quantity that some runs never define, e.g. `instances in 1 of 2 splits`.
    """
    few = []
    for name, label, colour in series:
        lines: list[dict[int, float]] = []
        for rows in logs.values():
            line = {row.epoch: float(value) for row in rows if (value := getattr(row, name)) is not None}
            ax.plot(list(line), list(line.values()), color=colour, linewidth=0.7, alpha=0.45)
            kept = max((row.epoch for row in rows if row.kept), default=None)
            if kept in line:
                ax.plot(kept, line[kept], "o", color=colour, markersize=2.8, alpha=0.8)
            lines += [line] if line else []
        if len(lines) < len(logs):
            few.append(f"{label} in {len(lines)} of {len(logs)} splits")
        # a mean over other splits from epoch to epoch would jump where a run ends early
        common = sorted(set.intersection(*map(set, lines))) if lines else []
        mean = [float(np.mean([line[epoch] for line in lines])) for epoch in common]
        ax.plot(common, mean, color=colour, linewidth=1.7, label=label)
    return few


def draw_resources(job: Job) -> PictureText:
    """Draw time and memory of the layout's single dataset."""
    logs = read_logs(job, chosen_only=False)
    methods, title = list(logs), f"{job.layout.single().title}: time and memory of training"
    epochs = {m: [float(np.median(seconds)) for rows in runs.values() if (seconds := numbers(rows, "seconds"))]
              for m, runs in logs.items()}  # fmt: skip
    peaks: dict[str, dict[str, list[float]]] = {
        name: {
            m: [max(values)] if (values := numbers(sum(runs.values(), []), name)) else [] for m, runs in logs.items()
        }
        for name in MEMORY
    }
    measured = [name for name in MEMORY if name == "memory_mib" or any(peaks[name].values())]
    with picture(job, 3.5 + 3 * len(measured), 0.3 * max(3, len(methods)) + 1) as figure:
        left, *others = figure.subplots(1, 1 + len(measured), sharey=True)
        _dots(left, {m: [value for value in epochs[m] if value > 0] for m in methods}, "no run", log_scale=True)
        left.set_xlabel("seconds per epoch")
        for panel, name in zip(others, measured, strict=True):
            _dots(panel, peaks[name], "not measured", log_scale=False)
            panel.set_xlabel(MEMORY[name])
        left.set_yticks(range(len(methods)), labels=[marked_name(method) for method in methods])
        left.invert_yaxis()
    caption = (
        "Left: seconds per training epoch with its validation; a ring is a run (median of its epochs), the line their "
        "median. Beside it: largest resident memory of a process that trained the method, its dataset included, and "
        "the most that its tensors took on a GPU, if there was one. Times are on a logarithmic axis."
    )
    notes = ["Times are of the machine that trained; compare them inside one picture only."]
    return PictureText(title, caption, notes, _runs(job, logs))


def _dots(ax: Any, values: Mapping[str, Sequence[float]], nothing: str, *, log_scale: bool) -> None:
    """Draw a ring for every run of a method and a line at their median; linear axes start at 0."""
    every = [value for row in values.values() for value in row]
    ax.grid(axis="y", visible=True)
    if not every:
        ax.text(0.5, 0.5, nothing, ha="center", va="center", color=NEUTRAL, transform=ax.transAxes)
        ax.set_xticks([])
        return
    if log_scale:
        ax.set_xscale("log")
    low, high = (min(every) / 2, max(every) * 2.5) if log_scale else (0.0, max(every) * 1.25)
    ax.set_xlim(low, high)
    ax.set_ylim(-0.6, len(values) - 0.4)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    for i, (method, row) in enumerate(values.items()):
        if not row:
            ax.text(low * 1.05 if log_scale else high * 0.01, i, nothing, va="center", color=NEUTRAL, fontsize=7)
            continue
        middle, (colour, marker) = float(np.median(row)), look_of(method)
        ax.plot(row, [i] * len(row), marker, color=colour, fillstyle="none", markersize=5)
        ax.plot([middle, middle], [i - 0.3, i + 0.3], color=colour, linewidth=2)
        text = f"{middle:,.0f}" if middle >= 100 else f"{middle:.2g}"
        ax.annotate(text, (max(row), i), xytext=(7, 0), textcoords="offset points", va="center", fontsize=7)
