"""Cells of the tables from metrics objects: what each kind of column computes (`KINDS`).

A cell keeps the values it is made of, one per split in seed order; mean, deviation (n - 1), median and worst follow
from them. "Worst" is the smallest value, or the largest where smaller is better (`smmil.table_specs.STYLES`). A run is
inverted when its instance AUROC is below .5. Differences are taken split by split (the two methods share the splits of
a seed), then averaged.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smmil.table_specs import BASES, style

Found = Mapping[tuple[str, str, str], Mapping[str, Any]]

NO_FILE = "no metrics file"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        head: heading over a group of columns, "" for none.
        label: its own heading.
        kind: key of `KINDS`.
        metrics: what it is made of; a plain column has one.
        keys: the (dataset, encoder) pairs it is made of; a plain column has one.
        csv: name in the CSV.
    """

    head: str
    label: str
    kind: str
    metrics: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    csv: str


@dataclass(frozen=True)
class Cell:
    """One method in one column.

    Attributes:
        values: per split that defines the metric, in seed order; one number for ranks and counts.
        n_splits: splits that were run.
        ci: bootstrap interval, or None.
        runs: the runs behind the cell.
        note: why a value is missing, or "".
        applies: False where the column means nothing for this row (a difference of a method to itself).
        larger: whether larger is better.
        fewest: of a rank, splits of the value behind it that has the fewest; None for other cells.
        agreement: of a sign-aware metric, per run how far the bag logit follows its score (`smmil.signed`).
    """

    values: tuple[float, ...] = ()
    n_splits: int = 0
    ci: tuple[float, float] | None = None
    runs: tuple[str, ...] = ()
    note: str = ""
    applies: bool = True
    larger: bool = True
    fewest: int | None = None
    agreement: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean over splits, None for an empty cell."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over splits (n - 1), None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def median(self) -> float | None:
        """Median over splits, None for an empty cell."""
        return statistics.median(self.values) if self.values else None

    @property
    def worst(self) -> float | None:
        """The worst split, None for an empty cell."""
        return (min if self.larger else max)(self.values) if self.values else None

    @property
    def below_half(self) -> int:
        """Splits below .5: the inverted ones, where the values are AUROCs."""
        return sum(value < 0.5 for value in self.values)


def metric_cell(metrics: Mapping[str, Any] | None, metric: str) -> Cell:
    """A metric of one method over its splits; an empty cell says why."""
    larger = style(metric)[1]
    if metrics is None:
        return Cell(note=NO_FILE, larger=larger)
    pairs = by_seed(metrics, metric)
    splits = sorted(metrics["splits"], key=lambda split: (split["seed"], split["run"]))
    reasons = {_reason(split["test"], metric) for split in splits}
    interval = (metrics.get("bootstrap", {}).get("intervals") or {}).get(metric)
    note = "" if pairs else "; ".join(sorted(reasons)) or "no split"
    runs = tuple(split["run"] for split in splits)
    ci = (interval[0], interval[1]) if interval else None
    told = [split.get("signed_agreement") for split in splits] if metric.startswith("signed_") else []
    agreement = tuple(float(value) for value in told if value is not None)
    values = tuple(value for _, value in pairs)
    return Cell(values, len(splits), ci, runs, note, larger=larger, agreement=agreement)


def by_seed(metrics: Mapping[str, Any], metric: str) -> list[tuple[int, float]]:
    """(seed, value) of the splits that define a metric, in seed order."""
    splits = sorted(metrics["splits"], key=lambda split: (split["seed"], split["run"]))
    values = [(int(split["seed"]), split["test"].get(metric)) for split in splits]
    return [(seed, float(value)) for seed, value in values if value is not None]


def _reason(test: Mapping[str, Any], metric: str) -> str:
    if metric not in test:
        return "not in the metrics file"
    return str(test.get("undefined", {}).get(metric, "undefined"))


def _metric(column: Column, methods: Sequence[str], found: Found) -> list[Cell]:
    return [metric_cell(found.get((*column.keys[0], method)), column.metrics[0]) for method in methods]


def _difference(column: Column, methods: Sequence[str], found: Found) -> list[Cell]:
    metric, cells = column.metrics[0], []
    for method in methods:
        base = BASES.get(method)
        if base is None:
            cells.append(Cell(applies=False))
            continue
        own, other = found.get((*column.keys[0], method)), found.get((*column.keys[0], base))
        if own is None or other is None:
            cells.append(Cell(note=NO_FILE))
            continue
        below = dict(by_seed(other, metric))
        pairs = [value - below[seed] for seed, value in by_seed(own, metric) if seed in below]
        runs = tuple(split["run"] for one in (own, other) for split in one["splits"])
        note = "" if pairs else "no split with both values"
        cells.append(Cell(tuple(pairs), len(own["splits"]), runs=runs, note=note))
    return cells


def _rank(column: Column, methods: Sequence[str], found: Found) -> list[Cell]:
    from smmil.ranks import mean_ranks

    behind = [
        [metric_cell(found.get((*key, method)), metric) for method in methods]
        for key in column.keys
        for metric in column.metrics
    ]
    ranks = mean_ranks([[cell.mean for cell in own] for own in behind]) if behind else [None for _ in methods]
    cells = []
    for i, rank in enumerate(ranks):
        if rank is None:
            cells.append(Cell(note="a cell behind it is empty", larger=False))
        else:
            # a column in which nobody has a value counts for no rank
            fewest = min(len(own[i].values) for own in behind if own[i].values)
            cells.append(Cell((rank,), larger=False, fewest=fewest))
    return cells


def _inverted(column: Column, methods: Sequence[str], found: Found) -> list[Cell]:
    cells = []
    for method in methods:
        own = [metric_cell(found.get((*key, method)), column.metrics[0]) for key in column.keys]
        runs = sum(len(cell.values) for cell in own)
        count = (float(sum(cell.below_half for cell in own)),) if runs else ()
        cells.append(Cell(count, runs, note="" if runs else NO_FILE, larger=False))
    return cells


def _job(column: Column, methods: Sequence[str], found: Found) -> list[Cell]:
    cells = []
    for method in methods:
        one = found.get((*column.keys[0], method))
        value = None if one is None else one.get("job", {}).get(column.metrics[0])
        note = NO_FILE if one is None else "" if value is not None else "not recorded"
        cells.append(Cell(() if value is None else (float(value),), 1, note=note, larger=style(column.metrics[0])[1]))
    return cells


# kind -> the cells of a column, one per method
KINDS: dict[str, Callable[[Column, Sequence[str], Found], list[Cell]]] = {
    "mean": _metric,
    "spread": _metric,
    "difference": _difference,
    "rank": _rank,
    "inverted": _inverted,
    "job": _job,
}
# kinds whose best and second are marked inside a block
MARKED = frozenset({"mean", "rank", "job"})
