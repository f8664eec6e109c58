"""Learning curves and score histograms of all methods on one dataset, from logs and saved predictions alone.

`curves.png`: per method the training and validation loss (top) and the validation AUROC of bags and instances (bottom)
over epochs, one thin line per split, the mean on top; only the runs that validation chose; a dot marks the epoch whose
weights were kept. `histograms.png` (paper figure 4): per method the raw instance scores of the test bags, positive and
negative instances apart, each class normalised to 1 in 20 bins between the smallest and the largest score; the first
split's chosen run. `figures.json` lists both with captions, runs and the command.

Run alone:
    python -m smmil.figures --dataset D --runs results/D/runs/E/M/runs.json ...
        --index results/D/predictions/E/M/index.json ... --metrics results/D/metrics/E/M.json ...
        --out results/D/figures/E
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing.cli import guard, write_json

if TYPE_CHECKING:
    from smmil.chosen_runs import ChosenRun

log = logging.getLogger(__name__)

STAGE_VERSION = 1
BINS = 20
PANELS_PER_ROW = 5
LOSSES = (("loss", "training"), ("val_loss", "validation"))
AREAS = (("val_bag_auroc", "bags"), ("val_instance_auroc", "instances"))


def chosen_logs(runs_json: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The summary of a method's runs and the logs of those that validation chose.

    Args:
        runs_json: written by training; the run directories lie beside it.

    Returns:
        The summary, and rows of `log.jsonl` per run name.

    Raises:
        ValueError: not such a file, or a chosen run without a log.
    """
    from smmil.results import read_json
    from smmil.runs import read_log

    summary = read_json(runs_json)
    if "method" not in summary or "runs" not in summary:
        raise ValueError(f"{runs_json}: found the keys {sorted(summary)}, expected method and runs")
    logs = {}
    for run in summary["runs"]:
        if run.get("chosen"):
            path = runs_json.parent / run["run"] / "log.jsonl"
            logs[run["run"]] = read_log(path)
            if not logs[run["run"]]:
                raise ValueError(f"{path}: no epoch in it; train the run again")
    return summary, logs


def draw_curves(methods: Sequence[tuple[str, Mapping[str, list[dict[str, Any]]]]], title: str, out: Path) -> None:
    """Draws the learning curves.

    Args:
        methods: (key, log rows per run) of every method.
        title: line on top.
        out: PNG to write.
    """
    from smmil.plotting import new_figure, save, shown_name, style

    blocks = -(-len(methods) // PANELS_PER_ROW)
    columns = -(-len(methods) // blocks)
    with style():
        figure = new_figure(max(4.5, 2.7 * columns), 3.9 * blocks + 0.4)
        axes = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True)
        for i in range(len(methods), blocks * columns):
            for half in (0, 1):
                axes[2 * (i // columns) + half, i % columns].set_axis_off()
        for i, (method, logs) in enumerate(methods):
            top, bottom = (axes[2 * (i // columns) + half, i % columns] for half in (0, 1))
            _curves(top, logs, LOSSES)
            _curves(bottom, logs, AREAS)
            top.set_title(shown_name(method))
            top.set_ylim(bottom=0)
            bottom.set_ylim(-0.03, 1.03)
            bottom.set_xlabel("epoch")
            if i % columns == 0:
                top.set_ylabel("loss")
                bottom.set_ylabel("validation AUROC")
                top.legend(fontsize=7)
                bottom.legend(fontsize=7, loc="lower right")
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


def _curves(ax: Any, logs: Mapping[str, list[dict[str, Any]]], series: Sequence[tuple[str, str]]) -> None:
    from smmil.plotting import NEGATIVE, POSITIVE

    for (key, label), colour in zip(series, (NEGATIVE, POSITIVE), strict=True):
        lines = []
        for rows in logs.values():
            epochs, values = _series(rows, key)
            ax.plot(epochs, values, color=colour, linewidth=0.7, alpha=0.45)
            kept = max((row["epoch"] for row in rows if row.get("kept")), default=None)
            if kept in epochs:
                ax.plot(kept, values[epochs.index(kept)], "o", color=colour, markersize=2.8, alpha=0.8)
            lines.append(dict(zip(epochs, values, strict=True)))
        common = sorted(set.intersection(*map(set, lines))) if lines else []
        mean = [float(np.mean([line[epoch] for line in lines])) for epoch in common]
        ax.plot(common, mean, color=colour, linewidth=1.7, label=label)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Epochs and values of one quantity; epochs where it is undefined are left out."""
    pairs = [(int(row["epoch"]), float(row[key])) for row in rows if row.get(key) is not None]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def histogram(
    y: npt.NDArray[Any], score: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Normalised counts of both classes in 20 bins between the smallest and the largest score.

    Args:
        y: (M,) labels in {0, 1}.
        score: (M,) scores.

    Returns:
        Edges (21,), shares of negatives (20,), shares of positives (20,); a class without instances is all 0.
    """
    edges = np.histogram_bin_edges(score, BINS)
    shares = []
    for label in (0, 1):
        counts = np.histogram(score[y == label], edges)[0]
        shares.append(counts / max(1, counts.sum()))
    return edges, shares[0], shares[1]


def draw_histograms(runs: "Sequence[ChosenRun]", title: str, out: Path) -> None:
    """Draws figure 4 of the paper for one run per method into a PNG."""
    from smmil.metrics import labelled
    from smmil.plotting import NEGATIVE, POSITIVE, new_figure, save, shown_name, style

    blocks = -(-len(runs) // PANELS_PER_ROW)
    columns = -(-len(runs) // blocks)
    with style():
        figure = new_figure(max(4.5, 2.7 * columns), 2.1 * blocks + 0.4)
        axes = figure.subplots(blocks, columns, squeeze=False)
        for i, ax in enumerate(axes.flat):
            if i >= len(runs):
                ax.set_axis_off()
                continue
            test = runs[i].predictions.part("test")
            y, score = labelled(test["y_inst"], test["instance_score"])
            ax.set_title(shown_name(runs[i].method))
            if len(y) == 0:
                ax.text(0.5, 0.5, "no labelled instance", ha="center", transform=ax.transAxes)
                continue
            edges, negative, positive = histogram(y, score)
            ax.stairs(
                negative, edges, color=NEGATIVE, fill=True, alpha=0.5, label=f"negative ({int((y == 0).sum()):,})"
            )
            ax.stairs(
                positive, edges, color=POSITIVE, fill=True, alpha=0.5, label=f"positive ({int((y == 1).sum()):,})"
            )
            ax.set_ylim(bottom=0)
            ax.set_xlabel("raw instance score")
            if i % columns == 0:
                ax.set_ylabel("share of the class")
            if i == 0:
                ax.legend(fontsize=7)
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
        save(figure, out)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smmil.figures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--runs", nargs="+", required=True, type=Path, help="runs.json per method")
    parser.add_argument("--index", nargs="+", required=True, type=Path, help="index.json of the predictions per method")
    parser.add_argument("--metrics", nargs="+", required=True, type=Path, help="metrics JSON per method")
    parser.add_argument("--out", required=True, type=Path, help="folder for the PNG files and figures.json")
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    args = _arguments(given)
    from smmil.chosen_runs import load_chosen
    from smmil.methods_table import METHODS

    order = list(METHODS)
    pairs = sorted((chosen_logs(path) for path in args.runs), key=lambda pair: order.index(pair[0]["method"]))
    chosen = load_chosen(args.index, args.metrics, dataset=args.dataset)
    mark = "   † RANDOM ENCODER WEIGHTS" if any(run.random_weights for run in chosen) else ""
    drawn = [(summary["method"], logs) for summary, logs in pairs]
    draw_curves(drawn, f"{args.dataset}: learning curves{mark}", args.out / "curves.png")
    draw_histograms(chosen, f"{args.dataset}: scores of test instances{mark}", args.out / "histograms.png")
    figures = [
        {
            "file": "curves.png",
            "caption": "Learning curves of the runs that validation chose: thin lines are splits, thick lines their "
            "mean, dots the epochs whose weights were kept.",
            "runs": [f"{method}/{run}" for method, logs in drawn for run in logs],
        },
        {
            "file": "histograms.png",
            "caption": f"Raw scores of all labelled test instances, each class normalised, {BINS} bins from the "
            "smallest to the largest score. Well localising methods put positives right and negatives left.",
            "runs": [f"{run.method}/{run.run}" for run in chosen],
        },
    ]
    command = shlex.join(["python", "-m", "smmil.figures", *given])
    entry = {"dataset": args.dataset, "encoder": chosen[0].predictions.meta["encoder"], "figures": figures}
    write_json(args.out / "figures.json", {**entry, "command": command, "stage_version": STAGE_VERSION})
    log.info("%s", args.out / "figures.json")
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
