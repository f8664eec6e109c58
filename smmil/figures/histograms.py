"""Figure 4 and its companions: histograms of instance scores by instance label, a panel per method and dataset.

A panel shows all labelled instances of the test bags of one run (the chosen run of the first split). Scores are scaled
to [0, 1] by their minimum and maximum; there are 20 bins, and each class is normalised to 1. Under the quirk
`eval_histogram` only bags predicted positive (logit > 0) are shown, and each class has bins of its own between its
minimum and its maximum, as in the released code. The spread of the instance AUROC over all runs stands above the panel,
since the histogram of another run may be mirrored.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.artifacts.chosen_runs import ChosenRun
from smmil.config.layouts import FigureDataset
from smmil.config.methods import marked_name
from smmil.evaluate.metrics import labelled
from smmil.figures.job import Job, PictureText, chosen_run, in_order, inverted_note, picture, spread_text
from smmil.figures.plotting import NEGATIVE, NEUTRAL, POSITIVE, min_max

BINS = 20
PANELS_PER_ROW = 5
RULE = "min to max of the run's test instances → [0, 1]"
Array = npt.NDArray[Any]


def histogram(y: Array, score: Array, label: int, *, own_bins: bool = False) -> tuple[Array, Array]:
    """Compute the histogram of one class among labels (M,) and scores (M,): shares (20,) of sum 1 and edges (21,).

    Bins run from the minimum to the maximum of all scores, or with `own_bins` of the class.
    """
    scores = score[y == label]
    counts, edges = np.histogram(scores, np.histogram_bin_edges(scores if own_bins else score, BINS))
    return counts / max(1, counts.sum()), edges


def panel_instances(run: ChosenRun, *, predicted_positive: bool) -> tuple[Array, Array]:
    """Return labels (M,) in {0, 1} and scores (M,) in [0, 1] of a run's labelled test instances.

    `predicted_positive` leaves only bags with a logit above 0.
    """
    test = run.predictions.part("test")
    labels, scores = test["y_inst"], test["instance_score"]
    if predicted_positive:
        rows = np.repeat(test["bag_logit"] > 0, np.diff(test["offsets"]))
        labels, scores = labels[rows], scores[rows]
    y, score = labelled(labels, scores)
    return y, min_max(score)


def draw(job: Job) -> PictureText:
    """Draw all datasets of the layout, one block each."""
    positive_only = job.quirk("eval_histogram")
    datasets = job.layout.datasets or [FigureDataset(name="", title="no dataset", encoder="", methods=())]
    blocks = [(dataset, in_order(dataset.methods)) for dataset in datasets]
    rows = [max(1, -(-len(methods) // PANELS_PER_ROW)) for _, methods in blocks]
    # rows of all blocks have the same number of columns
    columns = max(2, *(-(-len(methods) // n) for (_, methods), n in zip(blocks, rows, strict=True)))
    which = "instances of bags predicted positive" if positive_only else "all labelled test instances"
    rule = f"Scores of {which}; {RULE}; {BINS} bins, each class normalised."
    spread = "Under a name: instance AUROC over all splits (⇅: inverted runs, AUROC < 0.5)."
    shown = dict[str, bool]()
    height = 2.0 * sum(rows) + 0.3 * len(blocks) + 0.7
    with picture(job, 2.4 * columns, height) as figure:
        parts = np.atleast_1d(figure.subfigures(len(blocks), 1, height_ratios=rows))
        for part, (dataset, methods), n_rows in zip(parts, blocks, rows, strict=True):
            part.suptitle(dataset.title, fontsize=10, fontweight="bold")
            axes = part.subplots(n_rows, columns, squeeze=False)
            for i, ax in enumerate(axes.flat):
                if i >= len(methods):
                    ax.set_axis_off()
                    continue
                shown |= _panel(ax, job, dataset, methods[i], positive_only)
                if i % columns == 0:
                    ax.set_ylabel("share of the class")
                if i + columns >= len(methods):
                    ax.set_xlabel("score, min to max → 0 to 1")
    caption = f"{rule} {spread} Methods that localise well put positives right and negatives left."
    selection = "Shown: one run per method, the first split's, its learning rate chosen on validation."
    notes = [*inverted_note(job), selection]
    if positive_only:
        notes.append(
            "Released code (eval_histogram): only bags predicted positive are shown, each class with bins of its own."
        )
    empty = "no run has test instances of both labels" if shown and not any(shown.values()) else ""
    title = "Figure 4. Histograms of the instance scores"
    if job.figure != "fig4":
        title = f"{', '.join(dataset.title for dataset in datasets)}: instance scores by label"
    return PictureText(title, caption, notes, [*shown], empty)


def _panel(ax: Any, job: Job, dataset: FigureDataset, method: str, positive_only: bool) -> dict[str, bool]:
    """Draw a run; return its name with whether it has instances of both labels, {} without a run."""
    run = chosen_run(job, dataset, method)
    ax.set_title(marked_name(method))
    ax.set_xlim(0, 1)
    if run is None:
        ax.text(0.5, 0.5, f"no run\n({job.n_splits} missing)", ha="center", va="center", color=NEUTRAL)
        ax.set_yticks([])
        return {}
    y, score = panel_instances(run, predicted_positive=positive_only)
    name = f"{dataset.name}/{dataset.encoder}/{method}/{run.run}"
    if len(y) == 0:
        text = "no bag predicted positive" if positive_only else "no labelled instance"
        ax.text(0.5, 0.5, text, ha="center", va="center", color=NEUTRAL)
        return {name: False}
    highest = 0.0
    for label, colour, class_name in ((0, NEGATIVE, "negative"), (1, POSITIVE, "positive")):
        count = int((y == label).sum())
        if not count:
            continue
        shares, edges = histogram(y, score, label, own_bins=positive_only)
        highest = max(highest, float(shares.max()))
        ax.stairs(shares, edges, color=colour, fill=True, alpha=0.5, label=f"{class_name} ({count:,})")
    ax.set_ylim(0, 1.35 * highest)  # room for the legend
    ax.legend(fontsize=6.5, loc="upper center", ncols=2, columnspacing=0.8, handlelength=1, borderpad=0.1)
    ax.set_title(f"{marked_name(method)}\n", fontsize=9)
    text = spread_text(job.metrics_of(dataset, method))
    ax.text(0.5, 1.02, text, fontsize=7, ha="center", transform=ax.transAxes, color="#4a5158")
    return {name: 0 < int(y.sum()) < len(y)}
