"""Mean ranks inside a group of methods (paper Tables 1 and 2, last column).

Rule: in every metric x dataset column the methods that have a value are ranked, 1 = the largest, tied methods sharing
the average of the ranks they cover (1, 2.5, 2.5, 4); the mean rank is the mean over columns. Six columns with the ranks
1, 2, 2, 2, 2, 2 give 11 / 6 = 1.833. Columns in which nobody of the group has a value do not count; a method that lacks
a value in a column that counts has no mean rank, since its mean would be over other columns than its neighbours'.
"""

from collections.abc import Sequence


def rank_column(values: Sequence[float | None]) -> list[float | None]:
    """Average ranks of one column, larger is better.

    Args:
        values: one value per method, None = missing.

    Returns:
        Rank per method, 1 = best, None where the value is missing.
    """
    present = [value for value in values if value is not None]
    ranks: list[float | None] = []
    for value in values:
        if value is None:
            ranks.append(None)
            continue
        above = sum(other > value for other in present)
        ranks.append(above + (sum(other == value for other in present) + 1) / 2)
    return ranks


def mean_ranks(columns: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean rank per method over columns.

    Args:
        columns: per column one value per method, None = missing; columns without any value are left out.

    Returns:
        Mean rank per method, None for a method with a missing value or where no column counts.
    """
    ranked = [rank_column(column) for column in columns if any(value is not None for value in column)]
    if not ranked:
        return [None for _ in (columns[0] if columns else ())]
    result: list[float | None] = []
    for method in range(len(ranked[0])):
        own = [rank for column in ranked if (rank := column[method]) is not None]
        result.append(sum(own) / len(own) if len(own) == len(ranked) else None)
    return result


def places(values: Sequence[float | None], *, larger: bool = True) -> list[int | None]:
    """Competition places for marking best (1) and second (2): tied methods share the better place (1, 1, 3).

    Args:
        values: one value per method, None = missing.
        larger: whether the largest value is the best one (False for ranks).

    Returns:
        Place per method; all None where fewer than two methods have a value or all are equal: nothing to mark then.
    """
    present = [value for value in values if value is not None]
    if len(set(present)) < 2:
        return [None for _ in values]
    sign = 1 if larger else -1
    return [None if v is None else 1 + sum(sign * other > sign * v for other in present) for v in values]
