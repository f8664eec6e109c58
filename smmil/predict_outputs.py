"""What a prediction of one bag leaves for people: prediction.json, instances.csv, heatmap.png, and tiles.geojson.

The picture shows the thumbnail beside the instance scores painted over it (slides: overlapping tiles averaged), or the
scores over the slices beside the montage with one coloured bar per slice (scans). Colours run from the lowest to the
highest score of this bag; the scale stands below.

`signed_score`, the last column, is the sign-aware score of `smmil.signed`: in logits, by how much the bag's would rise
if all of it moved from the average instance towards this one. It is missing where the run kept no direction, and 0
everywhere where no gradient of the run was finite; `signed_agreement` in prediction.json tells how far to trust it.
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scored:
    """One scored bag.

    Attributes:
        bag_id: its name.
        attrs: of the stored instances.
        coords: (N,2) level-0 px or (N,1) mm.
        grid: (N,2) cells.
        scores: (N,) instance scores, higher = more positive.
        probability: of the bag.
        threshold: of instance scores, None if unknown.
        method: of the run.
        random_weights: whether the encoder is untrained.
        signed: (N,) sign-aware scores, None if the run has no direction.
        name: of `scores` in pictures.
    """

    bag_id: str
    attrs: Mapping[str, Any]
    coords: Array
    grid: Array
    scores: npt.NDArray[np.float64]
    probability: float
    threshold: float | None
    method: str
    random_weights: bool
    signed: npt.NDArray[np.float64] | None = None
    name: str = "raw score"

    def as_signed(self) -> "Scored":
        """The bag with its sign-aware scores in the place of its own, for a picture of them."""
        assert self.signed is not None
        return replace(self, scores=self.signed, threshold=None, name="sign-aware score")

    @property
    def is_scan(self) -> bool:
        """Whether it is a CT scan."""
        return self.attrs.get("modality") == "ct"


def instances_csv(bag: Scored) -> str:
    """One line per instance: where it is, score, rank in the bag (1 = highest), above the threshold, signed score."""
    from smmil.plotting import percentile_rank

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    where = ["slice", "position_mm", "file"] if bag.is_scan else ["instance", "x", "y", "row", "col"]
    signed = [] if bag.signed is None else ["signed_score"]
    writer.writerow([*where, "score", "rank", *(["positive"] if bag.threshold is not None else []), *signed])
    ranks = percentile_rank(bag.scores)
    for i, score in enumerate(bag.scores):
        if bag.is_scan:
            place = [i, f"{bag.coords[i, 0]:.4g}", bag.attrs["files"][i]]
        else:
            place = [i, *bag.coords[i].tolist(), *bag.grid[i].tolist()]
        above = [] if bag.threshold is None else [int(score > bag.threshold)]
        own = [] if bag.signed is None else [f"{bag.signed[i]:.9g}"]
        writer.writerow([*place, f"{score:.9g}", f"{ranks[i]:.6g}", *above, *own])
    return stream.getvalue()


def write_geojson(path: Path, bag: Scored) -> None:
    """The tiles of a slide with score and rank, for QuPath."""
    from preprocessing.bags import BagRow
    from preprocessing.exchange.model import Bag
    from preprocessing.exchange.qupath import write_tiles
    from smmil.plotting import percentile_rank

    row = BagRow(bag.bag_id, "wsi", ())
    columns = {"Score": bag.scores, "Rank": percentile_rank(bag.scores)}
    columns |= {} if bag.signed is None else {"Signed score": bag.signed}
    write_tiles(path, Bag(row, bag.coords, attrs=dict(bag.attrs), scores=columns))


def draw_heatmap(path: Path, bag: Scored, thumbnails: Path) -> None:
    """Writes the picture described at the top of this file."""
    from smmil.plotting import style

    picture, outlines = _picture(bag, thumbnails)
    with style(grid=False):
        if bag.is_scan:
            _draw_scan(path, bag, picture, outlines)
        else:
            _draw_slide(path, bag, picture, outlines)


def _picture(bag: Scored, thumbnails: Path) -> tuple[Array, dict[str, Any]]:
    from matplotlib.image import imread

    outlines = json.loads((thumbnails / f"{bag.bag_id}.json").read_text(encoding="utf-8"))
    file = thumbnails / f"{bag.bag_id}.jpg"
    if file.is_file():
        return np.asarray(imread(file)), outlines
    # a damaged coarse level leaves a slide without a thumbnail: the map is drawn on paper
    width, height = bag.attrs["dimensions"]
    outlines["downsample"] = max(1.0, max(width, height) / 1024)
    shape = (round(height / outlines["downsample"]), round(width / outlines["downsample"]), 3)
    return np.full(shape, 255, np.uint8), outlines


def _title(bag: Scored) -> str:
    from smmil.plotting import shown_name

    text = f"{bag.bag_id}: probability {bag.probability:.3f}, {len(bag.scores)} instances, {shown_name(bag.method)}"
    return text + ("   † RANDOM ENCODER WEIGHTS" if bag.random_weights else "")


def _limits(scores: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(scores.min()), float(scores.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw_slide(path: Path, bag: Scored, picture: Array, outlines: Mapping[str, Any]) -> None:
    from smmil.map_panels import paint
    from smmil.plotting import CONTINUOUS, POSITIVE, new_figure, save

    downsample = float(outlines["downsample"])
    side = float(bag.attrs["l0_footprint_px"]) / downsample
    painted = paint(bag.coords / downsample, side, bag.scores, picture.shape[:2])
    aspect = picture.shape[0] / picture.shape[1]
    figure = new_figure(12.0, min(9.0, 5.8 * aspect + 1.3))
    left, right = figure.subplots(1, 2)
    low, high = _limits(bag.scores)
    left.imshow(picture)
    left.set_title("Slide")
    right.imshow(0.55 + 0.45 * picture[..., :3].mean(axis=2) / 255, cmap="gray", vmin=0, vmax=1)
    image = right.imshow(painted, cmap=CONTINUOUS, vmin=low, vmax=high, alpha=0.85, interpolation="nearest")
    right.set_title("Instance scores")
    for ax in (left, right):
        ax.set_axis_off()
    bar = figure.colorbar(image, ax=[left, right], orientation="horizontal", fraction=0.04, pad=0.02, aspect=60)
    bar.set_label(f"{bag.name}, min to max of this slide; red line: threshold from validation, where known")
    if bag.threshold is not None and low < bag.threshold < high:
        bar.ax.axvline(bag.threshold, color=POSITIVE, linewidth=1.6)
    figure.suptitle(_title(bag), fontsize=9.5, x=0.01, ha="left")
    save(figure, path)


def _draw_scan(path: Path, bag: Scored, picture: Array, outlines: Mapping[str, Any]) -> None:
    from matplotlib import colormaps

    from smmil.map_panels import montage_with_bars
    from smmil.plotting import CONTINUOUS, NEUTRAL, colour_of, min_max, new_figure, save

    colours = colormaps[CONTINUOUS](min_max(bag.scores))[None, :, :3]
    figure = new_figure(13.0, 6.0)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    left.plot(np.arange(len(bag.scores)), bag.scores, color=colour_of(bag.method), marker="o", markersize=3)
    left.set_xlabel("slice in anatomical order" + ("; dashed: threshold from validation" if bag.threshold else ""))
    left.set_ylabel(bag.name)
    if bag.threshold is not None:
        left.axhline(bag.threshold, color=NEUTRAL, linewidth=0.9, linestyle="--")
    right.imshow(montage_with_bars(picture, outlines["montage"], colours))
    right.set_axis_off()
    right.set_title("Slices; the bar below is the score, lowest to highest of this scan")
    figure.suptitle(_title(bag), fontsize=9.5, x=0.01, ha="left")
    save(figure, path)
