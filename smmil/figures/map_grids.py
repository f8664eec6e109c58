"""Figures 5 and 12: attention maps of one bag beside the truth, for every method, or for every alpha of one method.

Every dataset is a block. Slides have a thumbnail, the lesion share of the tiles and one map per row of the layout;
scans have some slices and one strip per row over all slices. Colours run from the smallest to the largest raw score of
that row in this bag; both are printed. Scores are the stored predictions of the chosen run of the first split (or
`--seed`); the bag is the positive test bag with the highest lesion share (or `--bag-id`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.artifacts.chosen_runs import ChosenRun
from smmil.config.layouts import FigureDataset
from smmil.config.methods import marked_name
from smmil.config.variants import Variant
from smmil.figures.bag_maps import bag_scores, select_bags
from smmil.figures.job import Job, PictureText, chosen_run, in_order, inverted_note, picture
from smmil.figures.map_panels import Array, MapBag, Panel, cells_of_slide, fill_slide, montage_cell, read_map_bag
from smmil.figures.plotting import CONTINUOUS, MAX_WIDTH, NEUTRAL, POSITIVE, min_max
from smmil.figures.sweeps import BASELINE, series

# side of a square map in inches, and slices of a scan
MAP, SLICES = 1.9, 10
RULE = "Colours: smallest to largest raw score of each panel's own bag and method, both printed there"

# title of a map, and its run
MapRow = tuple[str, ChosenRun | None]


def draw_methods(job: Job) -> PictureText:
    """Draw figure 5: every method on one bag per dataset."""
    blocks = [
        (dataset, [(marked_name(m), chosen_run(job, dataset, m)) for m in in_order(dataset.methods)])
        for dataset in job.layout.datasets
    ]
    caption = "Attention maps beside the ground truth: one positive test bag per dataset, every method. "
    return _draw(job, blocks, "Figure 5. Attention maps", f"{caption}AUROC: instances of this bag only.")


def draw_alphas(job: Job) -> PictureText:
    """Draw figure 12: one bag for ABMIL and every alpha of the swept methods."""
    swapped = job.quirk("sm_alpha_rule")
    blocks = []
    for dataset in job.layout.datasets:
        rows: list[MapRow] = [(f"{marked_name(BASELINE)} (no Sm)", chosen_run(job, dataset, BASELINE))]
        for base, points in series(job, dataset, "alpha").items():
            for point in points:
                title = f"{marked_name(base)}, {Variant(base, 'alpha', point.value).label}"
                if swapped and not isinstance(point.value, str):
                    title += f" (runs as {1 - point.value:g})"
                rows.append((title, chosen_run(job, dataset, point.method)))
        blocks.append((dataset, rows))
    rule = (
        f"Protocol {job.protocol}: a fixed α runs as 1 − α; the panels give both."
        if swapped
        else f"Protocol {job.protocol}: α as in Eq. 8; the released code runs a fixed α as 1 − α (mirrored)."
    )
    return _draw(job, blocks, "Figure 12. Effect of α on a map", f"One positive test bag per dataset. {rule}", rule)


def _draw(
    job: Job, blocks: Sequence[tuple[FigureDataset, Sequence[MapRow]]], title: str, caption: str, *rule: str
) -> PictureText:
    loaded = [(dataset, rows, _load(job, dataset, rows)) for dataset, rows in blocks]
    heights = [_height(rows, bag) for _, rows, bag in loaded] or [1.0]
    runs, notes = [], []
    with picture(job, MAX_WIDTH, sum(heights) + 0.3, *rule, grid=False) as figure:
        parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
        for part, (dataset, rows, bag) in zip(parts, loaded, strict=False):
            if bag is None:
                part.suptitle(f"{dataset.title}: no run ({job.n_splits * len(rows)} missing)", fontsize=10)
                continue
            part.suptitle(f"{dataset.title}: {bag.bag_id} ({bag.n} instances)", fontsize=10, fontweight="bold")
            panels = [_panel(*row, bag) for row in rows]
            if bag.is_scan:
                scan_block(part, bag, panels)
            else:
                fill_slide(part, bag, panels, MAP)
            runs += [f"{dataset.name}/{dataset.encoder}/{run.method}/{run.run}" for _, run in rows if run]
            notes.append(f"{dataset.title}: bag {bag.bag_id}.")
        if not blocks:
            figure.text(0.02, 0.4, "No run: the configuration has none for this figure.")
    return PictureText(title, f"{caption} {RULE}; overlapping tiles averaged.", [*notes, *inverted_note(job)], runs)


def _load(job: Job, dataset: FigureDataset, rows: Sequence[MapRow]) -> MapBag | None:
    """Read the bag to draw; None if no row has a run."""
    first = next((run for _, run in rows if run is not None), None)
    if first is None:
        return None
    if dataset.name not in job.instances:
        raise ValueError(f"--instances: found {sorted(job.instances)}, expected {dataset.name}=folder among them")
    ids = set(first.predictions.arrays["bag_id"].tolist())
    bag_ids = [bag_id for bag_id in job.bag_ids if bag_id in ids] or select_bags(first.predictions.part("test"), 1)
    return read_map_bag(job.instances[dataset.name], bag_ids[0])


def _height(rows: Sequence[MapRow], bag: MapBag | None) -> float:
    if bag is None:
        return 0.5
    if bag.is_scan:
        return 2.4 + 0.25 * (len(rows) + 1)
    _, height, per_row = cells_of_slide(bag, len(rows) + 2, MAP)
    return (height + 0.7) * -(-(len(rows) + 2) // per_row) + 0.6


def _panel(title: str, run: ChosenRun | None, bag: MapBag) -> Panel:
    """Return the scores of a bag with their range and AUROC."""
    if run is None:
        return Panel(title, None)
    _, scores, area = bag_scores(run, bag)
    text = f"{scores.min():.3g} to {scores.max():.3g}" + ("" if area is None else f" · AUROC {area:.2f}")
    return Panel(title, scores, text)


def scan_block(part: Any, bag: MapBag, panels: Sequence[Panel]) -> None:
    """Draw some slices into a subfigure, and below them the truth and one strip per panel over all slices."""
    montage = bag.outlines["montage"]
    top, bottom = part.subplots(2, 1, height_ratios=[1.7, 0.27 * (len(panels) + 1)])
    top.set_axis_off()
    slices = montage["slices"]
    cells = np.unique(np.linspace(0, len(slices) - 1, min(SLICES, len(slices))).round().astype(int))
    top.imshow(np.concatenate([montage_cell(bag.picture, montage, k) for k in cells], axis=1))
    top.set_title(f"slices {', '.join(str(slices[k]) for k in cells)}; red frame: positive", fontsize=8.5)
    assert bag.coverage is not None
    bottom.imshow(strips_of(bag.coverage, panels), aspect="auto", interpolation="nearest")
    bottom.set_yticks(range(len(panels) + 1), labels=["Ground truth", *(panel.title for panel in panels)], fontsize=8)
    right = bottom.secondary_yaxis("right")
    texts = ["", *("no run" if panel.scores is None else panel.text for panel in panels)]
    right.set_yticks(range(len(panels) + 1), labels=texts, fontsize=7.5)
    for axis in (bottom, right):
        axis.tick_params(axis="y", length=0)
    for y in np.arange(0.5, len(panels) + 0.5):
        bottom.axhline(y, color="white", linewidth=2)
    bottom.set_xlabel("slice in anatomical order (truth: red positive, grey unknown)")


def strips_of(coverage: Array, panels: Sequence[Panel]) -> npt.NDArray[np.float64]:
    """Return the truth, coverage (N,), and the scores of P panels as rows of colours (1+P,N,3) in [0, 1].

    Coverage above 0 is positive, NaN unknown; a panel without a run is white.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    rows = np.ones((1 + len(panels), len(coverage), 3))
    rows[0] = np.where((coverage > 0)[:, None], to_rgb(POSITIVE), to_rgb("#eef0f2"))
    rows[0, np.isnan(coverage)] = to_rgb(NEUTRAL)
    for row, panel in zip(rows[1:], panels, strict=True):
        if panel.scores is not None:
            row[:] = colormaps[CONTINUOUS](min_max(panel.scores))[:, :3]
    return rows
