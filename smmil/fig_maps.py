"""Figures 5 and 12: attention maps of one bag beside the truth, every method, or every alpha of one method.

One block per dataset. Slides: thumbnail, lesion share of the tiles, then one painted map per row of the layout. Scans:
some slices, then one strip per row over all slices in anatomical order. One rule for all: colours go from the smallest
to the largest raw score of that row in this bag, both printed with it. Scores are the stored predictions of the first
split's chosen run (or `--seed`); the bag is the positive test bag with the highest lesion share (or `--bag-id`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smmil.fig_job import Drawn, Job, chosen_run, in_order, inverted_note, missing_runs, missing_text
from smmil.fig_sweeps import BASELINE, series
from smmil.fig_variants import value_text
from smmil.map_blocks import scan_block, slide_block
from smmil.metrics import auroc, labelled
from smmil.plotting import headline, new_figure, save, shown_name, style

if TYPE_CHECKING:
    from smmil.chosen_runs import ChosenRun

PER_ROW = 6
RULE = "Colours: smallest to largest raw score of each panel's own bag and method, both printed there"


@dataclass(frozen=True)
class MapRow:
    """One map: its title, and the run it comes from (None = no run)."""

    title: str
    run: "ChosenRun | None"


def draw_methods(job: Job) -> Drawn:
    """Figure 5: every method on one bag per dataset."""
    blocks = [(d, [MapRow(shown_name(m), chosen_run(job, d, m)) for m in in_order(d["methods"])]) for d in job.datasets]
    caption = (
        "Attention maps beside the ground truth: one positive test bag per dataset, every method. AUROC: instances of "
        "this bag only."
    )
    return _draw(job, blocks, "Figure 5. Attention maps", caption, [])


def draw_alphas(job: Job) -> Drawn:
    """Figure 12: the same bag for ABMIL and every alpha of the swept methods."""
    swapped = job.quirk("sm_alpha_rule")
    blocks = []
    for dataset in job.datasets:
        rows = [MapRow(f"{shown_name(BASELINE)} (no Sm)", chosen_run(job, dataset, BASELINE))]
        for base, points in series(job, dataset, "alpha").items():
            for point in points:
                title = f"{shown_name(base)}, {value_text('alpha', point.value)}"
                if swapped and not isinstance(point.value, str):
                    title += f" (runs as {1 - point.value:g})"
                rows.append(MapRow(title, chosen_run(job, dataset, point.method)))
        blocks.append((dataset, rows))
    rule = (
        f"Protocol {job.protocol}: a fixed α runs as 1 − α; the panels give both."
        if swapped
        else f"Protocol {job.protocol}: α as in Eq. 8; the released code runs a fixed α as 1 − α (mirrored)."
    )
    return _draw(job, blocks, "Figure 12. Effect of α on a map", f"One positive test bag per dataset. {rule}", [rule])


def _draw(
    job: Job, blocks: list[tuple[dict[str, Any], list[MapRow]]], title: str, caption: str, more: list[str]
) -> Drawn:
    loaded = [(d, rows, _load(job, d, rows)) for d, rows in blocks]
    heights = [_height(rows, bag) for _, rows, bag in loaded] or [1.0]
    runs, notes = [], []
    with style(grid=False):
        figure = new_figure(13.2, sum(heights) + 0.7)
        parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
        for part, (dataset, rows, bag) in zip(parts, loaded, strict=False):
            name = dataset.get("title", dataset["name"])
            if bag is None:
                part.suptitle(f"{name}: no run ({job.n_splits() * len(rows)} missing)", fontsize=10)
                continue
            part.suptitle(f"{name}: {bag['bag_id']} ({bag['n']} instances)", fontsize=10, fontweight="bold")
            panels = [(row.title, _panel(row.run, bag["bag_id"])) for row in rows]
            (scan_block if bag["scan"] else slide_block)(part, bag, panels, PER_ROW)
            runs += [f"{dataset['name']}/{dataset['encoder']}/{r.run.method}/{r.run.run}" for r in rows if r.run]
            notes.append(f"{name}: bag {bag['bag_id']}.")
        if not blocks:
            figure.text(0.02, 0.4, "No run: the configuration has none for this figure.")
        headline(figure, title, f"{RULE}.", *more, missing_text(missing_runs(job)), random=job.random_weights)
        save(figure, job.out)
    return Drawn(title, f"{caption} {RULE}; overlapping tiles averaged.", [*notes, *inverted_note(job)], runs)


def _load(job: Job, dataset: dict[str, Any], rows: list[MapRow]) -> dict[str, Any] | None:
    """Geometry of the bag to show; None where no row has a run.

    Raises:
        ValueError: no folder of instances for the dataset, or a damaged bag.
    """
    from smmil.maps import select_bags
    from smmil.stored import read_geometry

    first = next((row.run for row in rows if row.run is not None), None)
    if first is None:
        return None
    if dataset["name"] not in job.instances:
        raise ValueError(f"--instances: found {sorted(job.instances)}, expected {dataset['name']}=folder among them")
    folder = job.instances[dataset["name"]]
    ids = set(first.predictions.arrays["bag_id"].tolist())
    asked = [bag_id for bag_id in job.bag_ids if bag_id in ids]
    bag_id = asked[0] if asked else select_bags(first.predictions.part("test"), 1)[0]
    attrs, arrays = read_geometry(folder, bag_id, ["coords", "coverage"])
    scan = attrs.get("modality") == "ct"
    return {"bag_id": bag_id, "folder": folder, "attrs": attrs, **arrays, "n": len(arrays["coords"]), "scan": scan}


def _height(rows: list[MapRow], bag: dict[str, Any] | None) -> float:
    if bag is None:
        return 0.5
    if bag["scan"]:
        return 2.6 + 0.27 * (len(rows) + 1)
    wide, high = bag["attrs"].get("dimensions", (1, 1))
    aspect = min(max(float(high) / float(wide), 0.3), 1.2)
    return (2.1 * aspect + 0.6) * -(-(len(rows) + 2) // PER_ROW) + 0.5


def _panel(run: "ChosenRun | None", bag_id: str) -> dict[str, Any] | None:
    """Scores of a bag and what stands under its map; None = no run."""
    if run is None:
        return None
    part = run.predictions.bag(bag_id)
    score = part["instance_score"].astype(np.float64)
    area = auroc(*labelled(part["y_inst"], part["instance_score"]))
    text = f"{score.min():.3g} to {score.max():.3g}" + ("" if area is None else f" · AUROC {area:.2f}")
    return {"score": score, "text": text, "path": run.predictions.path}
