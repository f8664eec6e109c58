"""Attention maps beside the ground truth (paper figure 5), drawn from saved predictions and stored geometry.

Some test bags of a dataset have a PNG, a PDF and a `{bag}.json` each; `maps.json` lists them. Slides: thumbnail, lesion
share of the tiles, and for each method the raw score over the tissue, coloured from the bag's minimum to its maximum.
Scans: the score over the slices for each method, with positive slices shaded, and the montage with a
coloured bar for each method. The last two maps are the sign-aware score, as it is and smoothed by Sm, of the run with
the best selection score on validation.

Bags are positive test bags from the highest to the median lesion share, and negative ones of middle size; or
`--bag-id`. The layout gives the expected methods (`smmil.config.layouts.FigureLayout`); a method without a run has no
map and is counted in the heading and the notes.

Run alone:
    python -m smmil.maps --layout layout.json --instances results/D/instances
        --index results/D/predictions/E/M/index.json ... --metrics results/D/metrics/E/M.json ... --out results/D/maps/E
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.artifacts.chosen_runs import ChosenRun
from smmil.artifacts.results import SIGNED
from smmil.config import stage_versions
from smmil.config.layouts import FigureDataset
from smmil.config.methods import display_name, marked_name
from smmil.evaluate.metrics import auroc, labelled
from smmil.figures.entries import MapEntry, MapsFile
from smmil.figures.job import in_order
from smmil.figures.map_panels import MapBag, Panel, draw_map, read_map_bag
from smmil.figures.plotting import RANDOM_MARK, colour_of
from smmil.figures.top_tiles import draw_top_tiles, read_top_tiles

logger = logging.getLogger(__name__)

Arrays = Mapping[str, npt.NDArray[Any]]


def select_bags(test: Arrays, n: int) -> list[str]:
    """Choose `n` of the test bags (`Predictions.part`) to draw, or fewer; return their ids.

    Positives lie evenly between the highest and the median lesion share; a third of all (at least one of two) are
    negatives of middle size.
    """
    sizes, offsets, ids = np.diff(test["offsets"]), test["offsets"], test["bag_id"].tolist()
    filled = np.flatnonzero(sizes > 0).tolist()
    share = {i: float(np.mean(test["y_inst"][offsets[i] : offsets[i + 1]] == 1)) for i in filled}
    positive = sorted((i for i in filled if test["y"][i] == 1), key=lambda i: (-share[i], ids[i]))
    negative = sorted((i for i in filled if test["y"][i] == 0), key=lambda i: (sizes[i], ids[i]))
    # If there are too few bags of one label, bags of the other take their places, so negatives are counted twice.
    n_negative = min(len(negative), max(n // 3, 1 if n > 1 else 0))
    n_positive = min(len(positive), n - n_negative)
    n_negative = min(len(negative), n - n_positive)
    chosen = [positive[i] for i in _spread(0, len(positive) // 2, n_positive, len(positive))]
    chosen += [negative[i] for i in _spread(len(negative) // 2, len(negative) // 2, n_negative, len(negative))]
    return [ids[i] for i in chosen]


def _spread(first: int, last: int, n: int, size: int) -> list[int]:
    """Return `n` different positions below `size`: evenly from first to last, or the nearest free ones."""
    taken: list[int] = []
    for wanted in np.linspace(first, last, n).round().astype(int).tolist():
        taken.append(min((i for i in range(size) if i not in taken), key=lambda i: (abs(i - wanted), i)))
    return taken


def draw_maps(
    dataset: FigureDataset,
    instances: Path,
    runs: Sequence[ChosenRun],
    out: Path,
    command: str,
    *,
    n_bags: int = 3,
    bag_ids: Sequence[str] = (),
    images: Mapping[str, Path] | None = None,
) -> None:
    """Draw some test bags with all methods, and write `{bag}.json` and `maps.json`.

    There is one run per method; without any, no bag is drawn. `bag_ids` replace the `n_bags` chosen by lesion share.
    `images` has a bag's slide, or the folder that the files of a scan are relative to, for a strip of its tiles.

    Raises:
        ValueError: predictions and store hold different numbers of instances, or a stored bag is damaged.
    """
    absent = in_order([method for method in dataset.methods if method not in {run.method for run in runs}])
    made = {"command": command, "stage_version": stage_versions.MAPS}
    maps: list[MapEntry] = []
    unreadable: list[str] = []
    for bag_id in bag_ids or (select_bags(runs[0].predictions.part("test"), n_bags) if runs else []):
        bag = read_map_bag(instances, bag_id)
        maps.append(draw_bag(bag, runs, out / f"{bag_id}.png", absent))
        logger.info("%s", out / f"{bag_id}.png")
        MapEntry.model_validate({**maps[-1].as_json(), **made}).write(out / f"{bag_id}.json")
        if images and bag_id in images:
            try:
                maps.append(draw_tiles(bag, runs, images[bag_id], out / f"{bag_id}.tiles.png"))
            except (OSError, ValueError) as error:
                # raw files may have moved away since
                logger.warning("no tiles of %s: %s", bag_id, error)
                unreadable.append(f"No tiles of {bag_id}: {error}")
    notes = [*absent_methods(absent, len(runs) + len(absent)), *unreadable]
    MapsFile(dataset=dataset.name, encoder=dataset.encoder, maps=tuple(maps), notes=tuple(notes), **made).write(
        out / "maps.json"
    )


def draw_bag(bag: MapBag, runs: Sequence[ChosenRun], out: Path, absent: Sequence[str] = ()) -> MapEntry:
    """Draw one bag with all methods, at least one; `absent` are the expected methods without a run."""
    if bag.coverage is not None and np.isnan(bag.coverage).all():
        # nothing is known to compare with
        bag = replace(bag, coverage=None)
    loaded = [bag_scores(run, bag) for run in runs]
    panels = [_panel(run, *part) for run, part in zip(runs, loaded, strict=True)]
    signed = signed_panels(preferred(runs), bag.bag_id)
    first = loaded[0][0]
    truth = {0.0: "negative", 1.0: "positive"}.get(float(first["y"][0]), "unlabelled")
    title = f"{bag.bag_id} ({truth} test bag, {bag.n} instances)"
    title += f"   {len(absent)} of {len(runs) + len(absent)} methods have no run" if absent else ""
    title += f"   {RANDOM_MARK}" if any(run.random_weights for run in runs) else ""
    draw_map(bag, [*panels, *signed], title, out)
    lesion = "not annotated" if bag.coverage is None else f"{100 * float(np.mean(first['y_inst'] == 1)):.3g} % positive"
    caption = f"{bag.bag_id}: {truth} test bag of {bag.n} instances, {lesion}."
    caption += " Colours run from the lowest to the highest raw score of each map, the numbers below it; overlapping "
    caption += "tiles are averaged. AUROC: instances of this bag only. Threshold: from validation."
    if signed:
        caption += " Last: sign-aware scores of the run that validation prefers, as they are and smoothed by Sm."
    notes = (*absent_methods(absent, len(runs) + len(absent)), *inverted_runs(runs))
    return _entry(bag, first, runs, out, f"{bag.bag_id}, {truth}", caption, notes=notes)


def draw_tiles(bag: MapBag, runs: Sequence[ChosenRun], image: Path, out: Path) -> MapEntry:
    """Draw the tiles or slices of a bag with the highest and lowest scores of the run that validation prefers.

    `image` is the slide, or the folder that the files of a scan are relative to.
    """
    run = preferred(runs)
    part, scores, _ = bag_scores(run, bag)
    what = "slices" if bag.is_scan else "tiles"
    title = f"{bag.bag_id}: {what} with the highest and the lowest scores of {display_name(run.method)}"
    tiles = read_top_tiles(image, bag.attrs, bag.coords, scores)
    draw_top_tiles(tiles, bag.attrs, title, out, random=run.random_weights)
    caption = f"{title}, the run that validation prefers; score above, rank below. Tiles do not overlap."
    return _entry(bag, part, [run], out, title, caption)


def preferred(runs: Sequence[ChosenRun]) -> ChosenRun:
    """Return the run with the best selection score on validation."""
    return max(runs, key=lambda run: run.predictions.meta.selection_score)


def _entry(
    bag: MapBag, part: Arrays, runs: Sequence[ChosenRun], out: Path, title: str, caption: str, **more: Any
) -> MapEntry:
    label, random = float(part["y"][0]), any(run.random_weights for run in runs)
    return MapEntry(
        bag_id=bag.bag_id,
        label=None if np.isnan(label) else int(label),
        title=title,
        file=out.name,
        files=(out.name, out.with_suffix(".pdf").name),
        protocol=runs[0].predictions.meta.protocol,
        random_weights=random,
        caption=caption + (" Random encoder weights." if random else ""),
        runs=tuple(f"{run.method}/{run.run}" for run in runs),
        **more,
    )


def bag_scores(run: ChosenRun, bag: MapBag) -> tuple[Arrays, npt.NDArray[np.float64], float | None]:
    """Return the predictions of a bag, its scores (N,) and the AUROC of its instances, None if undefined."""
    part = run.predictions.bag(bag.bag_id)
    scores = part["instance_score"].astype(np.float64)
    if len(scores) != bag.n:
        raise ValueError(
            f"{run.predictions.path}: {len(scores)} scores of bag {bag.bag_id}, the store holds {bag.n} instances; "
            "extract features and train again"
        )
    return part, scores, auroc(*labelled(part["y_inst"], part["instance_score"]))


def _panel(run: ChosenRun, part: Arrays, scores: npt.NDArray[np.float64], area: float | None) -> Panel:
    name, threshold = marked_name(run.method), run.split.threshold
    title = f"{name}\nlogit {float(part['bag_logit'][0]):+.2f}" + ("" if area is None else f" · AUROC {area:.2f}")
    return Panel(title, scores, "", name, colour_of(run.method), threshold)


def signed_panels(run: ChosenRun, bag_id: str) -> list[Panel]:
    """Return the maps of a run's sign-aware scores, [] without any."""
    part, name, panels = run.predictions.bag(bag_id), marked_name(run.method), []
    for key, quantity in SIGNED.items():
        if f"{key}_score" in part:
            scores, threshold = part[f"{key}_score"].astype(np.float64), getattr(run.split, f"{key}_threshold")
            area = auroc(*labelled(part["y_inst"], scores))
            short = f"{name} {quantity.removesuffix(' score')}"
            title = short + ("" if area is None else f"\nAUROC {area:.2f}")
            panels.append(Panel(title, scores, "", short, colour_of(run.method), threshold, quantity))
    return panels


def inverted_runs(runs: Sequence[ChosenRun]) -> list[str]:
    """Return a line naming the maps whose run is inverted over all test bags, [] without any."""
    areas = [(run.method, run.split.test.values.get("instance_auroc")) for run in runs]
    names = ", ".join(
        f"{marked_name(method)} ({area:.2f})" for method, area in areas if area is not None and area < 0.5
    )
    return [f"Inverted over all test bags (instance AUROC < 0.5): {names}."] if names else []


def absent_methods(absent: Sequence[str], expected: int) -> list[str]:
    """Return a line that counts and names the expected methods without a run, [] without any."""
    names = ", ".join(map(marked_name, absent))
    return [f"{len(absent)} of {expected} methods have no run, and no map: {names}."] if absent else []
