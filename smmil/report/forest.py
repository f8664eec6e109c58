"""Forest plots as inline SVG: values with their 95 % intervals, a row each, in groups.

The plot is a figure of the page itself: it takes its colours from the stylesheet and is legible in light and dark.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

WIDTH, ROW, LEFT, RIGHT, TOP = 520, 22, 105, 190, 6
# shares of an axis: steps between ticks are 1, 2 or 5 times a power of ten
STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Mark:
    """One row.

    Attributes:
        label: name of the row.
        value: the value.
        interval: its ends, or None.
        runs: values of the single runs, drawn as rings.
        text: the numbers, right of the plot.
        look: class of the stylesheet, e.g. "better".
    """

    label: str
    value: float
    interval: tuple[float, float] | None = None
    runs: Sequence[float] = ()
    text: str = ""
    look: str = ""


@dataclass(frozen=True)
class Forest:
    """A plot: rows by group, the title of the axis, and the value that a dashed line marks."""

    groups: Mapping[str, Sequence[Mark]]
    axis: str
    reference: float

    @property
    def height(self) -> int:
        """Height of the drawing, in its own units."""
        return TOP + ROW * (sum(map(len, self.groups.values())) + len(self.groups)) + 42

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis: around all values, intervals and the reference."""
        marks = list(chain.from_iterable(self.groups.values()))
        values = [self.reference, *chain.from_iterable((m.value, *m.runs, *(m.interval or ())) for m in marks)]
        margin = 0.04 * (max(values) - min(values) or 1.0)
        return min(values) - margin, max(values) + margin

    def x(self, value: float) -> float:
        """Return the place of a value on the axis."""
        low, high = self.limits
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    @property
    def ticks(self) -> list[float]:
        """Three to seven round numbers on the axis."""
        low, high = self.limits
        power = 10.0 ** math.floor(math.log10((high - low) / 3))
        step = max(factor * power for factor in STEPS if (high - low) / (factor * power) >= 2.5)
        return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
