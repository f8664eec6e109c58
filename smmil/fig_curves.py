"""Learning curves of every method on one dataset, from the logs of the runs that validation chose.

Per method the training and validation loss (top) and the validation AUROC of bags and instances (bottom) over epochs,
one thin line per split, the mean on top; a dot marks the epoch whose weights were kept. A split whose validation bags
never define a quantity (instances of one class only) has no line and is not in the mean; how many have one is written
in the panel and in the notes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smmil.fig_job import Drawn, Job, in_order, missing_runs, missing_text
from smmil.plotting import NEGATIVE, NEUTRAL, POSITIVE, headline, new_figure, save, shown_name, style

PANELS_PER_ROW = 5
LOSSES = (("loss", "training"), ("val_loss", "validation"))
AREAS = (("val_bag_auroc", "bags"), ("val_instance_auroc", "instances"))
Rows = list[dict[str, Any]]


def read_logs(runs_json: Path, *, chosen_only: bool = True) -> tuple[dict[str, Any], dict[str, Rows]]:
    """The summary of a method's runs and their logs.

    Args:
        runs_json: written by training; the run directories lie beside it.
        chosen_only: only the runs that validation chose.

    Returns:
        The summary, and rows of `log.jsonl` per run name.

    Raises:
        ValueError: not such a file, or a run without a log.
    """
    from smmil.results import read_json
    from smmil.runs import read_log

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


def logs_of(job: Job, dataset: Mapping[str, Any], *, chosen_only: bool = True) -> dict[str, dict[str, Rows]]:
    """Logs per method of a dataset of the layout, method -> run -> rows; methods without runs are absent."""
    found = {}
    for path in job.runs:
        summary, logs = read_logs(path, chosen_only=chosen_only)
        if (summary["dataset"], summary["encoder"]) == (dataset["name"], dataset["encoder"]):
            found[summary["method"]] = logs
    return found


def logged_rows(job: Job, *, chosen_only: bool = True) -> tuple[str, dict[str, Any], dict[str, dict[str, Rows]]]:
    """The one dataset of a layout: its title, itself, and the logs of all its methods in order ({} = no run).

    Raises:
        ValueError: a layout of other than one dataset.
    """
    if len(job.datasets) != 1:
        raise ValueError(f"--layout: found {len(job.datasets)} datasets, expected one; draw one picture each")
    dataset = job.datasets[0]
    found = logs_of(job, dataset, chosen_only=chosen_only)
    logs = {method: found.get(method, {}) for method in in_order(dataset["methods"])}
    return str(dataset.get("title", dataset["name"])), dataset, logs


def runs_behind(dataset: Mapping[str, Any], logs: Mapping[str, Mapping[str, Rows]]) -> list[str]:
    """The runs whose logs were read, as dataset/encoder/method/run."""
    return [f"{dataset['name']}/{dataset['encoder']}/{method}/{run}" for method, runs in logs.items() for run in runs]


def draw(job: Job) -> Drawn:
    """Draws the learning curves of the layout's one dataset.

    Raises:
        ValueError: a layout of other than one dataset.
    """
    name, dataset, logs = logged_rows(job)
    methods, title = list(logs), f"{name}: learning curves"
    blocks, few = max(1, -(-len(methods) // PANELS_PER_ROW)), []
    columns = max(1, -(-len(methods) // blocks))
    with style():
        figure = new_figure(max(4.5, 2.7 * columns), 3.9 * blocks + 0.6)
        axes = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True)
        for i in range(blocks * columns):
            pair = [axes[2 * (i // columns) + half, i % columns] for half in (0, 1)]
            if i < len(methods):
                told = _pair(pair, methods[i], logs[methods[i]], first=i % columns == 0)
                few += [f"{shown_name(methods[i])}: {text}" for text in told]
            else:
                for ax in pair:
                    ax.set_axis_off()
        headline(figure, title, missing_text(missing_runs(job)), random=job.random_weights)
        save(figure, job.out)
    caption = (
        "Learning curves of the runs that validation chose: thin lines are splits, thick lines their mean, dots the "
        "epochs whose weights were kept."
    )
    notes = [f"Means over fewer splits than were trained: {'; '.join(few)}."] if few else []
    return Drawn(title, caption, notes, runs_behind(dataset, logs))


def _pair(axes: Sequence[Any], method: str, logs: Mapping[str, Rows], *, first: bool) -> list[str]:
    """Both panels of a method; returns which means are over fewer splits than there are."""
    top, bottom = axes
    top.set_title(shown_name(method))
    bottom.set_xlabel("epoch")
    if not logs:
        top.text(0.5, 0.5, "no run", ha="center", transform=top.transAxes, color=NEUTRAL)
        return []
    few = []
    for ax, series in ((top, LOSSES), (bottom, AREAS)):
        told = curves(ax, logs, series)
        if told:
            ax.text(0.02, 0.02, "\n".join(told), fontsize=6.5, color=NEUTRAL, transform=ax.transAxes, va="bottom")
        few += told
    top.set_ylim(bottom=0)
    bottom.set_ylim(-0.03, 1.03)
    if first:
        top.set_ylabel("loss")
        bottom.set_ylabel("validation AUROC")
        top.legend(fontsize=7)
        bottom.legend(fontsize=7, loc="lower right")
    return few


def curves(ax: Any, logs: Mapping[str, Rows], series: Sequence[tuple[str, str]]) -> list[str]:
    """Draws two quantities of all runs, on top their means over the runs that define them.

    Args:
        ax: the axes.
        logs: run -> rows of its log.
        series: (key of a row, label) of both quantities.

    Returns:
        A text per quantity that some of the runs never define, e.g. `instances in 1 of 2 splits`.
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
    """Epochs and values of one quantity; epochs where it is undefined are left out."""
    pairs = [(int(row["epoch"]), float(row[key])) for row in rows if row.get(key) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
