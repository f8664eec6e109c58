"""Small plots of a cohort for the contact sheet: one dot per bag, or bars where there are many bags."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from preprocessing.qc.facts import BagFacts

WIDTH, HEIGHT, COLUMNS, MOST_DOTS = 240.0, 72.0, 40, 600


class Dot(NamedTuple):
    """A bag at (x, y) px; `tip` is shown when it is pointed at."""

    bag: BagFacts
    x: float
    y: float
    tip: str


class Bar(NamedTuple):
    """`n` bags of one column: left edge `x`, `height` px."""

    x: float
    height: float
    n: int


@dataclass(frozen=True)
class Plot:
    """How one quantity is distributed.

    Attributes:
        low, median, high: labels.
        median_x: position of the median, px.
        radius: of the dots, px.
        dots: one per bag, or `bars` if there are too many.
    """

    title: str
    low: str
    median: str
    high: str
    median_x: float
    radius: float
    dots: list[Dot] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


def plots(bags: Sequence[BagFacts]) -> list[Plot]:
    """Plot the tissue share and the size of the bags that are ok."""
    intact = [bag for bag in bags if bag.state == "ok"]
    tissue = [(bag, bag.tissue_share) for bag in intact if bag.tissue_share is not None]
    sizes = [(bag, float(bag.n)) for bag in intact if bag.n]
    unit = "Slices" if intact and all(bag.modality == "ct" for bag in intact) else "Tiles"
    drawn = [_plot("Tissue share of the slide", tissue, False), _plot(f"{unit} per bag", sizes, True)]
    return [plot for plot in drawn if plot is not None]


def _plot(title: str, values: Sequence[tuple[BagFacts, float]], logarithmic: bool) -> Plot | None:
    if not values:
        return None
    numbers = np.array([value for _, value in values])
    low, middle, high = float(numbers.min()), float(np.median(numbers)), float(numbers.max())
    scale = math.log if logarithmic else float

    def position(value: float) -> float:
        """Return the share of the width, in [0, 1]."""
        spread = scale(high) - scale(low)
        return (scale(value) - scale(low)) / spread if spread else 0.5

    columns = [min(COLUMNS - 1, int(position(value) * COLUMNS)) for _, value in values]
    step, stack = WIDTH / COLUMNS, [0] * COLUMNS
    counts = Counter(columns)
    most = max(counts.values())
    height = min(step, HEIGHT / most)
    labels = [f"{v:,.0f}" if logarithmic else f"{v:.2g}" for v in (low, middle, high)]
    plot = Plot(title, labels[0], labels[1], labels[2], position(middle) * WIDTH, max(1.5, 0.46 * min(step, height)))
    if len(values) > MOST_DOTS:
        plot.bars.extend(Bar(column * step, HEIGHT * n / most, n) for column, n in sorted(counts.items()))
        return plot
    for (bag, value), column in sorted(zip(values, columns, strict=True), key=lambda pair: pair[0][0].bag_id):
        y = HEIGHT - (stack[column] + 0.5) * height
        stack[column] += 1
        tip = f"{bag.bag_id}: {value:,.0f}" if logarithmic else f"{bag.bag_id}: {value:.2g}"
        plot.dots.append(Dot(bag, (column + 0.5) * step, y, tip))
    return plot
