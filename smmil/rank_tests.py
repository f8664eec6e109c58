"""Do methods differ over many columns? Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006).

Shapes: a matrix of K columns (rows of the argument: dataset x metric, or dataset x split) by N methods, None = missing.

In every column the methods are ranked, 1 = the best, ties share the average rank; a column in which a method has no
value is left out and counted, since a rank among fewer methods means something else. With mean ranks R_j,

    chi2 = (12 K / (N (N + 1))) sum_j (R_j - (N + 1) / 2)^2 / c, c = 1 - sum (t^3 - t) / (K N (N^2 - 1)) for ties of t,

is compared with chi-square of N - 1 degrees of freedom. Two methods differ at a level when their mean ranks are at
least CD = q sqrt(N (N + 1) / (6 K)) apart, q being the studentised range of N means (infinite degrees of freedom) over
sqrt 2. Both take the columns as independent. Splits of one dataset share its test set and most of their training bags,
so with such columns the test is too sure of itself; `RankTest.warning` says it, and every figure prints it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from smmil.ranks import rank_column

Column = Sequence[float | None]

WARNING = (
    "Friedman's test and Nemenyi's critical difference take the columns as independent. Splits share one test set and "
    "most of their training bags, and metrics of one dataset are computed from the same predictions: differences look "
    "surer than they are."
)


@dataclass(frozen=True)
class RankTest:
    """Outcome of `rank_test`.

    Attributes:
        names: (N,) methods in the given order.
        mean_ranks: (N,) 1 = best; empty when no column is complete.
        statistic: Friedman's chi-square, None without a complete column or with fewer than two methods.
        p: its p value.
        critical_difference: of two mean ranks, None where the statistic is.
        level: confidence of the critical difference, e.g. 0.95.
        columns: complete columns used.
        dropped: columns left out, as a method has no value there.
        groups: maximal sets of methods (names, best first) none of which differ by the critical difference; only sets
            of two or more: the bars of the diagram.
        warning: to be printed with every use.
    """

    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    statistic: float | None
    p: float | None
    critical_difference: float | None
    level: float
    columns: int
    dropped: int
    groups: tuple[tuple[str, ...], ...]
    warning: str = WARNING


def rank_test(names: Sequence[str], columns: Sequence[Column], *, larger: bool = True, level: float = 0.95) -> RankTest:
    """Mean ranks, Friedman's test, critical difference and the groups that it cannot tell apart.

    Args:
        names: (N,) methods, each once.
        columns: K columns of N values, None = missing.
        larger: whether the largest value is the best.
        level: confidence.

    Returns:
        See `RankTest`.

    Raises:
        ValueError: a column of another length, or a name twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"methods: found {sorted({n for n in names if list(names).count(n) > 1})} more than once")
    wrong = [i for i, column in enumerate(columns) if len(column) != len(names)]
    if wrong:
        raise ValueError(
            f"column {wrong[0]}: found {len(columns[wrong[0]])} values, expected {len(names)}, one a method"
        )
    complete = [[value for value in column if value is not None] for column in columns]
    complete = [column for column in complete if len(column) == len(names)]
    ranks = [_ranks(column, larger=larger) for column in complete]
    means = [sum(rank[j] for rank in ranks) / len(ranks) for j in range(len(names))] if ranks else []
    known = len(means) >= 2
    statistic, p = friedman(complete) if known else (None, None)
    distance = nemenyi_distance(len(names), len(complete), level=level) if known else None
    groups = _groups(names, means, distance) if distance is not None else ()
    dropped = len(columns) - len(complete)
    return RankTest(tuple(names), tuple(means), statistic, p, distance, level, len(complete), dropped, groups)


def friedman(columns: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Friedman's chi-square, corrected for ties, and its p value; the direction of better does not matter.

    Args:
        columns: K >= 1 columns of N >= 2 values, none missing.

    Returns:
        (statistic, p); (0, 1) when every column is one tie.

    Raises:
        ValueError: fewer than one column or two methods.
    """
    from scipy.stats import chi2

    if not columns or len(columns[0]) < 2:
        raise ValueError(f"friedman: found {len(columns)} columns, expected at least one, of two or more methods")
    k, n = len(columns), len(columns[0])
    ranks = [_ranks(column, larger=True) for column in columns]
    tied = sum(column.count(value) ** 2 - 1 for column in map(list, columns) for value in column)
    correction = 1 - tied / (k * n * (n * n - 1))
    if correction <= 0:
        return 0.0, 1.0
    spread = sum((sum(rank[j] for rank in ranks) / k - (n + 1) / 2) ** 2 for j in range(n))
    statistic = 12 * k / (n * (n + 1)) * spread / correction
    return statistic, float(chi2.sf(statistic, n - 1))


def nemenyi_distance(methods: int, columns: int, *, level: float = 0.95) -> float:
    """The critical difference of two mean ranks.

    Args:
        methods: N >= 2.
        columns: K >= 1.
        level: confidence.

    Raises:
        ValueError: fewer methods or columns.
    """
    import math

    from scipy.stats import studentized_range

    if methods < 2 or columns < 1:
        raise ValueError(f"found {methods} methods and {columns} columns, expected at least 2 and 1")
    quantile = float(studentized_range.ppf(level, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * columns))


def _ranks(column: Sequence[float], *, larger: bool) -> list[float]:
    return [rank for rank in rank_column([value if larger else -value for value in column]) if rank is not None]


def _groups(names: Sequence[str], means: Sequence[float], distance: float) -> tuple[tuple[str, ...], ...]:
    """Maximal runs of methods, in order of rank, whose ends are closer than the critical difference."""
    order = sorted(range(len(names)), key=lambda j: (means[j], j))
    groups: list[tuple[str, ...]] = []
    reached = 0
    for first in range(len(order)):
        last = max(i for i in range(first, len(order)) if means[order[i]] - means[order[first]] < distance)
        # a run that ends where the one before it ended is part of that one
        if last > first and last + 1 > reached:
            groups.append(tuple(names[j] for j in order[first : last + 1]))
        reached = max(reached, last + 1)
    return tuple(groups)
