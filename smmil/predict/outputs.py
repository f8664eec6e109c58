"""Outputs of a prediction of one bag: instances.csv, heatmap.png and, for slides, tiles.geojson.

The picture shows the thumbnail beside the instance scores painted over it (slides, overlapping tiles averaged), or the
scores over the slices beside the montage with a coloured bar per slice (scans). Sign-aware scores
(`smmil.predictions.signed`) are missing if the run has no direction, and 0 if no gradient of the run was finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.bags.rows import BagRow
from preprocessing.exchange.model import Bag
from preprocessing.exchange.qupath import write_tiles
from preprocessing.exchange.tables import write_csv
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.schema import Array
from smmil.artifacts.results import SIGNED
from smmil.config.methods import display_name
from smmil.figures.map_panels import MapBag, Panel, draw_map, read_thumbnail
from smmil.figures.plotting import RANDOM_MARK, colour_of, percentile_rank
from smmil.figures.top_tiles import draw_top_tiles, read_top_tiles

RANDOM_MEANING = "† The encoder is untrained: the picture shows that the pipeline runs, and nothing about the image."
MEASUREMENTS = {"signed": "Signed score", "signed_sm": "Smoothed signed score"}


@dataclass(frozen=True)
class Scored:
    """One scored bag.

    Attributes:
        coords: (N,2) level-0 px or (N,1) mm.
        grid: (N,2) cells.
        scores: (N,) instance scores, higher = more positive.
        threshold: threshold of instance scores, None if unknown.
        signed: (N,) sign-aware scores by key of `SIGNED`, empty if the run has no direction.
        name: name of `scores` in pictures.
    """

    bag_id: str
    attrs: InstanceAttrs
    coords: Array
    grid: Array
    scores: npt.NDArray[np.float64]
    probability: float
    threshold: float | None
    method: str
    random_weights: bool
    signed: Mapping[str, npt.NDArray[np.float64]]
    warnings: tuple[str, ...]
    name: str = "raw score"

    def as_signed(self, name: str) -> "Scored":
        """Return the bag with sign-aware scores in place of the raw ones, for a picture of them."""
        # The threshold from validation is one of raw scores.
        return replace(self, scores=self.signed[name], threshold=None, name=SIGNED[name])

    @property
    def is_scan(self) -> bool:
        """Whether the bag is a CT scan."""
        return self.attrs.modality == "ct"


def write_instances(path: Path, bag: Scored) -> None:
    """Write a CSV line per instance: place, score, rank (1 = highest), above the threshold, sign-aware scores."""
    order = range(len(bag.scores))
    columns: dict[str, object]
    if bag.is_scan:
        positions = [f"{position:.4g}" for position in bag.coords[:, 0]]
        columns = {"slice": order, "position_mm": positions, "file": bag.attrs.files}
    else:
        (x, y), (row, col) = bag.coords.T, bag.grid.T
        columns = {"instance": order, "x": x, "y": y, "row": row, "col": col}
    columns["score"] = [f"{score:.9g}" for score in bag.scores]
    columns["rank"] = [f"{rank:.6g}" for rank in percentile_rank(bag.scores)]
    if bag.threshold is not None:
        columns["positive"] = (bag.scores > bag.threshold).astype(int)
    for name, scores in bag.signed.items():
        columns[f"{name}_score"] = [f"{score:.9g}" for score in scores]
    write_csv(path, [*columns], zip(*columns.values(), strict=True))


def write_geojson(path: Path, bag: Scored) -> None:
    """Write the tiles of a slide with score and rank as GeoJSON for QuPath."""
    columns = {"Score": bag.scores, "Rank": percentile_rank(bag.scores)}
    columns |= {MEASUREMENTS[name]: scores for name, scores in bag.signed.items()}
    write_tiles(path, Bag(BagRow(bag.bag_id, "wsi", ()), bag.coords, attrs=bag.attrs, scores=columns))


def draw_heatmap(path: Path, bag: Scored, thumbnails: Path) -> None:
    """Draw the scores of a bag over its thumbnail or slices, with its warnings below."""
    name = display_name(bag.method)
    title = f"{bag.bag_id}: probability {bag.probability:.3f}, {len(bag.scores)} instances, {name}"
    title += f"   {RANDOM_MARK}" if bag.random_weights else ""
    picture, outlines = read_thumbnail(thumbnails, bag.bag_id, bag.attrs)
    map_bag = MapBag(bag.bag_id, bag.attrs, bag.coords, None, picture, outlines)
    caption = [RANDOM_MEANING] * bag.random_weights + [f"Warning: {warning}" for warning in bag.warnings]
    line = "dashed" if bag.is_scan else "red"
    heading = "Instance scores" + ("" if bag.threshold is None else f"; {line} line: threshold from validation")
    panel = Panel(heading, bag.scores, "", name, colour_of(bag.method), bag.threshold, bag.name)
    draw_map(map_bag, [panel], title, path, max_cell=4.8, caption=caption)


def draw_extremes(path: Path, bag: Scored, source: Path) -> None:
    """Draw the tiles or slices of a bag with the highest and lowest scores, read from the slide or folder `source`."""
    tiles = read_top_tiles(source, bag.attrs, bag.coords, bag.scores)
    title = f"{bag.bag_id}: highest and lowest {bag.name} of {display_name(bag.method)}"
    draw_top_tiles(tiles, bag.attrs, title, path, random=bag.random_weights)
