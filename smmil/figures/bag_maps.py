"""Attention maps beside the ground truth (paper figure 5), drawn from saved predictions and stored geometry.

Some test bags of a dataset have a PNG, a PDF and a `{bag}.json` each; `maps.json` lists them. Slides: thumbnail, lesion
share of the tiles, and for each method the raw score (colours from the bag's minimum to its maximum) and its rank
within the bag. Scans: the score over the slices for each method, with positive slices shaded, and the montage with a
coloured bar for each method.

Bags are positive test bags from the highest to the median lesion share, and negative ones of middle size; or
`--bag-id`. The layout gives the expected methods (`smmil.config.layouts.FigureLayout`); a method without a run has no
map and
is counted in the heading and the notes.

Run alone:
    python -m smmil.maps --layout layout.json --instances results/D/instances
        --index results/D/predictions/E/M/index.json ... --metrics results/D/metrics/E/M.json ... --out results/D/maps/E
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smmil.config.methods import marked_name

if TYPE_CHECKING:
    from smmil.artifacts.chosen_runs import ChosenRun
    from smmil.figures.map_panels import Panel

log = logging.getLogger(__name__)


def select_bags(test: dict[str, npt.NDArray[Any]], n: int) -> list[str]:
    """Choose bags to draw.

    Args:
        test: arrays of the test bags (`Predictions.part`).
        n: number of bags; a third of them (at least one of two) is negative.

    Returns:
        Bag ids: positives evenly between the highest and the median lesion share, then negatives of middle size; fewer
        than `n` if there are not enough.
    """
    sizes, offsets = np.diff(test["offsets"]), test["offsets"]
    share = [
        float(np.mean(test["y_inst"][a:b] == 1)) if b > a else 0.0 for a, b in zip(offsets, offsets[1:], strict=False)
    ]
    ids = test["bag_id"].tolist()
    filled = [i for i in range(len(ids)) if sizes[i] > 0]
    positive = sorted((i for i in filled if test["y"][i] == 1), key=lambda i: (-share[i], ids[i]))
    negative = sorted((i for i in filled if test["y"][i] == 0), key=lambda i: (sizes[i], ids[i]))
    n_negative = min(len(negative), max(n // 3, 1 if n > 1 else 0))
    n_positive = min(len(positive), n - n_negative)
    n_negative = min(len(negative), n - n_positive)
    chosen = [positive[i] for i in _spread(0, len(positive) // 2, n_positive, len(positive))]
    chosen += [negative[i] for i in _spread(len(negative) // 2, len(negative) // 2, n_negative, len(negative))]
    return [ids[i] for i in chosen]


def _spread(first: int, last: int, n: int, size: int) -> list[int]:
    """Return `n` different positions below `size`: evenly from first to last, or the nearest free ones."""
    wanted = [round(p) for p in np.linspace(first, last, n)] if n else []
    taken: list[int] = []
    for p in wanted:
        free = sorted((q for q in range(size) if q not in taken), key=lambda q: (abs(q - p), q))
        taken.append(free[0])
    return taken


def draw_bag(
    instances: Path, bag_id: str, runs: "Sequence[ChosenRun]", out: Path, absent: Sequence[str] = ()
) -> dict[str, Any]:
    """Draw one bag with all methods.

    Args:
        instances: folder with `store/` and `thumbnails/`.
        bag_id: name of the bag.
        runs: runs to draw, at least one.
        out: PNG to write.
        absent: expected methods that have no run.

    Returns:
        The bag's entry of `maps.json`.

    Raises:
        ValueError: predictions and store hold different numbers of instances, or the stored bag is damaged.
    """
    from smmil.figures.map_panels import check_size, draw_scan, draw_slide, read_map_bag

    bag = read_map_bag(instances, bag_id)
    parts = [run.predictions.bag(bag_id) for run in runs]
    for run, part in zip(runs, parts, strict=True):
        check_size(bag, part["instance_score"], run.predictions.path)
    label = float(parts[0]["y"][0])
    truth = {0.0: "negative", 1.0: "positive"}.get(label, "unlabelled")
    random = any(run.random_weights for run in runs)
    title = f"{bag_id} ({truth} test bag, {bag.n} instances)"
    title += f"   {len(absent)} of {len(runs) + len(absent)} methods have no run" if absent else ""
    title += "   † RANDOM ENCODER WEIGHTS" if random else ""
    panels = [_panel(run, part) for run, part in zip(runs, parts, strict=True)]
    if bag.is_scan:
        draw_scan(bag, panels, title, out)
    else:
        note = "AUROC: instances of this bag only; red line on a bar: threshold from validation"
        draw_slide(bag, panels, f"{title}\n{note}", out)
    share = float(np.mean(parts[0]["y_inst"] == 1))
    caption = f"{bag_id}: {truth} test bag, {100 * share:.3g} % of its {bag.n} instances positive."
    caption += " Raw scores of the saved predictions, overlapping tiles averaged; colours as stated under each bar."
    return {
        "bag_id": bag_id,
        "label": None if np.isnan(label) else int(label),
        "title": f"{bag_id}, {truth}",
        "file": out.name,
        "files": [out.name, out.with_suffix(".pdf").name],
        "protocol": str(runs[0].predictions.meta["protocol"]),
        "random_weights": random,
        "notes": [*absent_methods(absent, len(runs) + len(absent)), *inverted_runs(runs)],
        "caption": caption + (" Random encoder weights." if random else ""),
        "runs": [f"{run.method}/{run.run}" for run in runs],
    }


def _panel(run: "ChosenRun", part: Mapping[str, npt.NDArray[Any]]) -> "Panel":
    from smmil.evaluate.metrics import auroc, labelled
    from smmil.figures.map_panels import Panel
    from smmil.figures.plotting import colour_of

    name, area = marked_name(run.method), auroc(*labelled(part["y_inst"], part["instance_score"]))
    title = f"{name}\nlogit {float(part['bag_logit'][0]):+.2f}" + ("" if area is None else f" · AUROC {area:.2f}")
    scores = part["instance_score"].astype(np.float64)
    return Panel(title, scores, "", name, colour_of(run.method), run.split.get("threshold"))


def inverted_runs(runs: "Sequence[ChosenRun]") -> list[str]:
    """Return a line naming the maps whose run is inverted over all test bags, [] without any."""
    from smmil.artifacts.results import inverted, split_values

    areas = [(run.method, split_values({"splits": [run.split]}, "instance_auroc")) for run in runs]
    names = ", ".join(f"{marked_name(method)} ({area[0][1]:.2f})" for method, area in areas if inverted(area))
    return [f"Inverted over all test bags (instance AUROC < 0.5): {names}."] if names else []


def absent_methods(absent: Sequence[str], expected: int) -> list[str]:
    """Return a line that counts and names the expected methods without a run, [] without any."""
    names = ", ".join(map(marked_name, absent))
    return [f"{len(absent)} of {expected} methods have no run, and no map: {names}."] if absent else []
