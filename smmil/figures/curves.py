"""Learning curves of every method on one dataset, from the logs of the runs that validation chose.

Each method has a panel of training and validation loss and one of the validation AUROC of bags and instances over
epochs: a thin line per split, their mean, and a dot at the epoch whose weights were kept. Splits whose validation bags
do not define a quantity (instances of a single class) have no line and are not in the mean; panel and notes count the
others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smmil.artifacts.hashes import read_json
from smmil.artifacts.runs import read_log
from smmil.config.methods import marked_name
from smmil.figures.job import Drawn, Job, in_order, missing_runs
from smmil.figures.plotting import NEGATIVE, NEUTRAL, POSITIVE, headline, new_figure, save, style

PANELS_PER_ROW = 5
LOSSES = (("loss", "training"), ("val_loss", "validation"))
AREAS = (("val_bag_auroc", "bags"), ("val_instance_auroc", "instances"))
Rows = list[dict[str, Any]]


def read_logs(runs_json: Path, *, chosen_only: bool = True) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Read the summary of a method's runs and their logs.

    Args:
        runs_json: file written by training, beside the folders of the runs.
        chosen_only: only the runs that validation chose.

    Returns:
        The summary, and the rows of `log.jsonl` by run.

    Raises:
        ValueError: not such a file, or a run without a log.
    """
    summary = read_json(runs_json)
    if not {"dataset", "encoder", "method", "runs"} <= set(summary):
        raise ValueError(f"{runs_json}: found the keys {sorted(summary)}, expected dataset, encoder, method and runs")
    logs = {}
    for run in summary["runs"]:
        if run.get("chosen") or not chosen_only:
            path = runs_json.parent / run["run"] / "log.jsonl"
            logs[run["run"]] = read_log(path)
            if not logs[run["run"]]:
                raise ValueError(f"{path}: no epoch in it; train the run again")
    return summary, logs


def logs_of(job: Job, *, chosen_only: bool = True) -> dict[str, dict[str, Rows]]:
    """Read the logs of the layout's single dataset: method -> run -> rows; {} for a method without runs.

    Raises:
        ValueError: a layout of several datasets.
    """
    dataset = job.layout.single()
    logs: dict[str, dict[str, Rows]] = {method: {} for method in in_order(dataset.methods)}
    for path in job.runs:
        summary, rows = read_logs(path, chosen_only=chosen_only)
        if (summary["dataset"], summary["encoder"]) == (dataset.name, dataset.encoder) and summary["method"] in logs:
            logs[summary["method"]] = rows
    return logs


def logged_runs(job: Job, logs: Mapping[str, Mapping[str, Rows]]) -> list[str]:
    """Return the runs whose logs were read, as dataset/encoder/method/run."""
    dataset = job.layout.single()
    return [f"{dataset.name}/{dataset.encoder}/{method}/{run}" for method, runs in logs.items() for run in runs]


def draw(job: Job) -> Drawn:
    """Draw the learning curves of the layout's single dataset.

    Raises:
        ValueError: a layout of several datasets.
    """
    logs = logs_of(job)
    methods, title = list(logs), f"{job.layout.single().title}: learning curves"
    blocks, few = max(1, -(-len(methods) // PANELS_PER_ROW)), []
    columns = max(1, -(-len(methods) // blocks))
    with style():
        figure = new_figure(max(4.5, 2.7 * columns), 3.9 * blocks + 0.6)
        axes = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True)
        for i in range(blocks * columns):
            pair = [axes[2 * (i // columns) + half, i % columns] for half in (0, 1)]
            if i < len(methods):
                partial = _pair(pair, methods[i], logs[methods[i]], first=i % columns == 0)
                few += [f"{marked_name(methods[i])}: {text}" for text in partial]
            else:
                for ax in pair:
                    ax.set_axis_off()
        headline(figure, title, missing_runs(job).text, random=job.random_weights)
        save(figure, job.out)
    caption = (
        "Learning curves of the runs that validation chose: thin lines are splits, thick lines their mean, dots the "
        "epochs whose weights were kept."
    )
    notes = [f"Means over fewer splits than were trained: {'; '.join(few)}."] if few else []
    return Drawn(title, caption, notes, logged_runs(job, logs))


def _pair(axes: Sequence[Any], method: str, logs: Mapping[str, Rows], *, first: bool) -> list[str]:
    """Draw both panels of a method; return the means over fewer splits than there are."""
    top, bottom = axes
    top.set_title(marked_name(method))
    bottom.set_xlabel("epoch")
    if not logs:
        top.text(0.5, 0.5, "no run", ha="center", transform=top.transAxes, color=NEUTRAL)
        return []
    few = []
    for ax, series in ((top, LOSSES), (bottom, AREAS)):
        partial = curves(ax, logs, series)
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


def curves(ax: Any, logs: Mapping[str, Rows], series: Sequence[tuple[str, str]]) -> list[str]:
    """Draw two quantities of all runs and their means over the runs that define them.

    Args:
        ax: axes to draw into.
        logs: run -> rows of its log.
        series: (key of a row, label) of both quantities.

    Returns:
        A text for each quantity that some runs never define, e.g. `instances in 1 of 2 splits`.
    """
    few = []
    for (key, label), colour in zip(series, (NEGATIVE, POSITIVE), strict=True):
        lines = []
        for rows in logs.values():
            epochs, values = _series(rows, key)
            ax.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.45)
            kept = max((row["epoch"] for row in rows if row.get("kept")), default=None)
            if kept in epochs:
                ax.plot(kept, values[epochs.index(kept)], "o", color=colour, markersize=2.8, alpha=0.8)
            lines += [dict(zip(epochs, values, strict=True))] if epochs else []
        if len(lines) < len(logs):
            few.append(f"{label} in {len(lines)} of {len(logs)} splits")
        common = sorted(set.intersection(*map(set, lines))) if lines else []
        mean = [float(np.mean([line[epoch] for line in lines])) for epoch in common]
        ax.plot(common, mean, color=colour, linewidth=1.7, label=label)
    return few


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return the epochs that define a quantity, and its values."""
    pairs = [(int(row["epoch"]), float(row[key])) for row in rows if row.get(key) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
