"""Ranks of methods: mean ranks, Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006).

Shapes: K columns (dataset x metric, or dataset x split) of N values, one per method, None = missing; tied methods share
the average of the ranks they cover (1, 2.5, 2.5, 4).

- Mean ranks in tables (paper Tables 1 and 2, last column): every column ranks the methods that have a value. Columns
  without any value do not count; a method without a value in a column that counts has no mean rank, since its mean
  would be over other columns than the other methods'. Six columns with the ranks 1, 2, 2, 2, 2, 2 give 11 / 6 = 1.833.
- `rank_test` uses complete columns only. With the ranks r and the mean ranks R_j, Friedman's statistic, corrected for
  ties, is chi2 = K sum_j (R_j - (N + 1) / 2)^2 / v, v = sum (r - (N + 1) / 2)^2 / (K (N - 1)), compared with
  chi-square of N - 1 degrees of freedom. Two methods differ when their mean ranks are at least
  CD = q sqrt(N (N + 1) / (6 K)) apart, q being the studentised range of N means (infinite degrees of freedom) over
  sqrt 2.

Both tests assume independent columns. Splits of one dataset share its test set and most of their training bags, so the
tests are too confident there; `RankTest.warning` says so and is printed with every figure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = Sequence[float | None]
Floats = npt.NDArray[np.float64]

WARNING = (
    "Friedman's test and Nemenyi's critical difference take the columns as independent. Splits share one test set and "
    "most of their training bags, and metrics of one dataset are computed from the same predictions: differences look "
    "surer than they are."
)


def mean_ranks(columns: Sequence[Column]) -> list[float | None]:
    """Average the ranks of every method over columns.

    Args:
        columns: (K, N) values; columns without any value are left out.

    Returns:
        (N,) mean ranks, None for a method with a missing value or where no column counts.
    """
    counted = [column for column in columns if any(value is not None for value in column)]
    if not counted:
        return [None for _ in (columns[0] if columns else ())]
    return [None if math.isnan(mean) else float(mean) for mean in _ranks(counted).mean(0)]


def _ranks(columns: Sequence[Column]) -> Floats:
    """Rank every column, 1 = the largest: (K, N), NaN where the value is missing."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-np.array(columns, np.float64), axis=1, nan_policy="omit"), np.float64)


@dataclass(frozen=True)
class RankTest:
    """Outcome of `rank_test`.

    Attributes:
        names: (N,) methods in the given order.
        mean_ranks: (N,) 1 = best; empty when no column is complete.
        statistic: Friedman's chi-square; it, p and the critical difference are None without a complete column or with
            fewer than two methods.
        columns: complete columns used.
        dropped: columns left out because a method has no value there.
        groups: maximal sets of at least two methods (names, best first) that do not differ by the critical difference:
            the bars of the diagram.
        warning: to be printed with every use.
    """

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    statistic: float | None
    p: float | None
    critical_difference: float | None
    columns: int
    dropped: int
    groups: tuple[tuple[str, ...], ...]
    warning: str = WARNING


def rank_test(names: Sequence[str], columns: Sequence[Column]) -> RankTest:
    """Compute mean ranks, Friedman's test, the critical difference and the groups within it.

    Args:
        names: (N,) methods, each once.
        columns: (K, N) values, larger = better, None = missing.
    """
    # A method that lacks a column would be ranked over easier or harder columns than the others.
    complete = [column for column in columns if None not in column]
    means = tuple(_ranks(complete).mean(0).tolist()) if complete and names else ()
    statistic, p, distance = None, None, None
    if len(means) >= 2:
        statistic, p = friedman(complete)
        distance = nemenyi_distance(len(names), len(complete))
    groups = () if distance is None else _groups(names, means, distance)
    return RankTest(tuple(names), means, statistic, p, distance, len(complete), len(columns) - len(complete), groups)


def friedman(columns: Sequence[Column]) -> tuple[float, float]:
    """Compute Friedman's chi-square, corrected for ties, and its p value; the direction of better does not matter.

    Args:
        columns: (K, N) values, K >= 1, N >= 2, none missing.

    Returns:
        (statistic, p); (0, 1) when every column is one tie.
    """
    # scipy.stats.friedmanchisquare refuses two methods and returns NaN where everything is tied
    from scipy.stats import chi2

    k, n = len(columns), len(columns[0])
    centred = _ranks(columns) - (n + 1) / 2
    variance = float((centred**2).sum()) / (k * (n - 1))
    statistic = k * float((centred.mean(0) ** 2).sum()) / variance if variance else 0.0
    return statistic, float(chi2.sf(statistic, n - 1))


def nemenyi_distance(methods: int, columns: int) -> float:
    """Return the critical difference, at a confidence of 95 %, of two mean ranks of N >= 2 methods over K columns."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(0.95, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * columns))


def _groups(names: Sequence[str], means: Sequence[float], distance: float) -> tuple[tuple[str, ...], ...]:
    """Return maximal runs of methods, in order of rank, whose ends are closer than the critical difference."""
    order = sorted(range(len(names)), key=lambda j: means[j])
    groups: list[tuple[str, ...]] = []
    reached = 0
    for first in range(len(order)):
        last = max(i for i in range(first, len(order)) if means[order[i]] - means[order[first]] < distance)
        # a run that ends where the one before it ended is part of that one
        if last > first and last + 1 > reached:
            groups.append(tuple(names[j] for j in order[first : last + 1]))
        reached = max(reached, last + 1)
    return tuple(groups)
