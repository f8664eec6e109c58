"""Best and second-best values of a block, marked only where the gap to the next one exceeds its uncertainty.

Methods share their splits, so a gap is the mean over the splits of the paired difference. It is clear where its 95 %
t-interval excludes 0. Two splits say little about a spread: there, the mean of each must also lie outside the other's
bootstrap interval over the test bags. One split says nothing. The second-best value is marked where it is clear of the
third, and only below a marked best one.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, stdev

from smmil.tables.cells import Cell

FEW_SPLITS = 3


def clear_places(cells: Sequence[Cell]) -> list[int | None]:
    """Return 1 for the best and 2 for the second-best cell of a column in one block, None for the others."""
    values = {i: cell.mean if cell.larger else -cell.mean for i, cell in enumerate(cells) if cell.mean is not None}
    order = sorted(values, key=lambda i: -values[i])
    places: list[int | None] = [None for _ in cells]
    for place, (better, worse) in enumerate(pairwise(order[:3]), start=1):
        if not is_clear(cells[better], cells[worse]):
            break
        places[better] = place
    return places


def is_clear(better: Cell, worse: Cell) -> bool:
    """Return whether the gap between two values exceeds its uncertainty."""
    from scipy.stats import t

    sign = 1 if better.larger else -1
    gaps = [sign * (value - worse.by_split[seed]) for seed, value in better.by_split.items() if seed in worse.by_split]
    if len(gaps) < 2:
        return False
    reach = float(t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps))
    # sums of equal numbers may differ in the last digit
    if fmean(gaps) - reach < 1e-9:
        return False
    return len(gaps) >= FEW_SPLITS or (_excludes(better, worse.mean) and _excludes(worse, better.mean))


def _excludes(cell: Cell, value: float | None) -> bool:
    return cell.ci is not None and value is not None and not cell.ci[0] <= value <= cell.ci[1]
