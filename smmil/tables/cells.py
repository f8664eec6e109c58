"""Cells of the tables: what each kind of column computes from metrics, and the table that the writers take.

A cell keeps the values of the splits in seed order; mean, deviation (n - 1), median and worst follow from them. The
worst split has the smallest value, or the largest where smaller is better (`smmil.tables.specs.STYLES`). Differences
are taken split by split, since the two methods share the split of a seed, and then averaged.
"""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from smmil.artifacts.records import Metrics
from smmil.artifacts.results import inverted, split_values
from smmil.config.methods import bases
from smmil.evaluate.ranks import mean_ranks
from smmil.tables.specs import LARGEST, TABS, Column, Key, style

# (dataset, encoder, method) -> metrics
MetricsByKey = Mapping[tuple[str, str, str], Metrics]
NO_FILE = "no metrics file"
# signs beside a value
INVERTED, NO_CALL = "⇅", "‡"


@dataclass(frozen=True)
class Cell:
    """One method in one column.

    Attributes:
        values: value of every split that defines the metric, in seed order; a single number for ranks and counts.
        n_splits: splits that were run.
        ci: bootstrap interval, or None.
        note: reason of a missing value, or "".
        applies: False where the column has no meaning for this row, as the difference of a method to itself.
        larger: whether larger is better.
        fewest: for a rank, the smallest number of splits of a value it is computed from.
        agreement: for a sign-aware metric, agreement of its score with the bag logit per run
            (`smmil.predictions.signed`).
        by_split: value by seed, for paired comparisons (`is_clear`); of a rank, the rank on that split.
        signs: `INVERTED` and `NO_CALL` where they apply.
    """

    values: tuple[float, ...] = ()
    n_splits: int = 0
    ci: tuple[float, float] | None = None
    note: str = ""
    applies: bool = True
    larger: bool = True
    fewest: int | None = None
    agreement: tuple[float, ...] = ()
    by_split: Mapping[int, float] = field(default_factory=dict)
    signs: str = ""

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
        """Worst split, None for an empty cell."""
        return (min if self.larger else max)(self.values) if self.values else None

    @property
    def below_half(self) -> int:
        """Number of splits below .5; for AUROCs, the inverted runs."""
        return sum(value < 0.5 for value in self.values)


@dataclass(frozen=True)
class Row:
    """One method: its name in this table, its cells, and their places in the block (`clear_places`)."""

    method: str
    name: str
    cells: tuple[Cell, ...]
    places: tuple[int | None, ...]


@dataclass(frozen=True)
class Section:
    """Columns over the rows of a table. The first section is the paper's table, `key` identifies the others."""

    key: str
    title: str
    columns: tuple[Column, ...]
    blocks: dict[str, tuple[Row, ...]]

    @property
    def tab(self) -> str:
        """Short title, for a row of tabs."""
        return TABS.get(self.key, self.title)

    @property
    def has_intervals(self) -> bool:
        """Whether any mean has a bootstrap interval."""
        return any(column.kind == "mean" and cell.ci for _, column, cell in self.cells())

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all blocks."""
        return tuple(row for rows in self.blocks.values() for row in rows)

    def cells(self) -> Iterator[tuple[Row, Column, Cell]]:
        """Iterate over all cells, row by row."""
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield row, column, cell

    @property
    def has_values(self) -> bool:
        """Whether any cell has a value."""
        return any(cell.values for _, _, cell in self.cells())


def reason_empty(sections: Iterable[Section]) -> str:
    """Return the most frequent reason why cells of sections are empty."""
    notes = Counter(
        cell.note for section in sections for _, _, cell in section.cells() if cell.note not in ("", NO_FILE)
    )
    return notes.most_common(1)[0][0] if notes else "no value"


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        name: key of `smmil.config.targets.TABLES`.
        sections: the paper's table first; all have the same rows.
        n_splits: splits of a complete cell.
        protocol: protocol of the runs, with the quirks that differ from its preset.
        notes: lines under the table.
        random_keys: (dataset, encoder) pairs with an untrained encoder.
        left_out: why no cell has a value although runs exist, "" otherwise; the report leaves such a table out.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    n_splits: int
    protocol: str
    notes: tuple[str, ...] = ()
    random_keys: frozenset[Key] = frozenset()
    left_out: str = ""


def metric_cell(metrics: Metrics | None, metric: str) -> Cell:
    """Return a metric of one method over its splits; the note of an empty cell gives the reason."""
    larger = style(metric)[1]
    if metrics is None:
        return Cell(note=NO_FILE, larger=larger)
    pairs, tests = split_values(metrics, metric), [split.test for split in metrics.splits]
    # In the table of resources a split has a run for every learning rate.
    by_seed: dict[int, list[float]] = {}
    for seed, value in pairs:
        by_seed.setdefault(seed, []).append(value)
    reasons = {
        test.undefined.get(metric, "undefined") if metric in test.values else "not in the metrics file"
        for test in tests
    }
    agreements = [split.signed_agreement for split in metrics.splits if metric.startswith("signed_")]
    return Cell(
        tuple(value for _, value in pairs),
        len(tests),
        metrics.bootstrap.intervals.get(metric) if metrics.bootstrap else None,
        "" if pairs else "; ".join(sorted(reasons)) or "no split",
        larger=larger,
        agreement=tuple(agreement for agreement in agreements if agreement is not None),
        by_split={seed: statistics.fmean(of_seed) for seed, of_seed in by_seed.items()},
        signs=_signs(metrics, metric),
    )


def _signs(metrics: Metrics, metric: str) -> str:
    """Return `INVERTED` where a run's AUROC is below .5, `NO_CALL` where its F1 is 0 at an AUROC above."""
    values = split_values(metrics, metric)
    if "_auroc" in metric:
        return INVERTED if inverted(values) else ""
    areas = dict(split_values(metrics, metric.removesuffix("_f1") + "_auroc")) if metric.endswith("_f1") else {}
    return NO_CALL if any(value == 0 and areas.get(seed, 0) > 0.5 for seed, value in values) else ""


def leaves_range(column: Column, cell: Cell) -> bool:
    """Return whether mean ± deviation reaches values that the metric cannot take."""
    if column.kind != "mean" or cell.mean is None or cell.std is None:
        return False
    largest = LARGEST.get(column.metrics[0], 1.0)
    return cell.mean - cell.std < -1e-9 or cell.mean + cell.std > largest + 1e-9


def _metric(column: Column, method: str, metrics: MetricsByKey) -> Cell:
    return metric_cell(metrics.get((*column.keys[0], method)), column.metrics[0])


def _difference(column: Column, method: str, metrics: MetricsByKey) -> Cell:
    base = bases().get(method)
    if base is None:
        return Cell(applies=False)
    first, second = (metrics.get((*column.keys[0], name)) for name in (method, base))
    if first is None or second is None:
        return Cell(note=NO_FILE)
    values, base_values = (dict(split_values(entry, column.metrics[0])) for entry in (first, second))
    differences = tuple(value - base_values[seed] for seed, value in values.items() if seed in base_values)
    return Cell(differences, len(first.splits), note="" if differences else "no split with both values")


def _inverted(column: Column, method: str, metrics: MetricsByKey) -> Cell:
    cells = [metric_cell(metrics.get((*key, method)), column.metrics[0]) for key in column.keys]
    n_runs = sum(len(cell.values) for cell in cells)
    count = (float(sum(cell.below_half for cell in cells)),) if n_runs else ()
    return Cell(count, n_runs, note="" if n_runs else NO_FILE, larger=False)


def _job(column: Column, method: str, metrics: MetricsByKey) -> Cell:
    entry, larger = metrics.get((*column.keys[0], method)), style(column.metrics[0])[1]
    value = entry.job.get(column.metrics[0]) if entry else None
    if value is None:
        return Cell(n_splits=1, note="not recorded" if entry else NO_FILE, larger=larger)
    return Cell((value,), 1, larger=larger)


# kind -> the cell of a method; "rank" needs all methods
KINDS: dict[str, Callable[[Column, str, MetricsByKey], Cell]] = {
    "mean": _metric,
    "spread": _metric,
    "difference": _difference,
    "inverted": _inverted,
    "job": _job,
}


def cells_of(column: Column, methods: Sequence[str], metrics: MetricsByKey) -> list[Cell]:
    """Return the cells of a column in one block, one per method."""
    if column.kind != "rank":
        return [KINDS[column.kind](column, method, metrics) for method in methods]
    ranked = [
        [metric_cell(metrics.get((*key, method)), metric) for method in methods]
        for key in column.keys
        for metric in column.metrics
    ]
    ranks = mean_ranks([[cell.mean for cell in cells] for cells in ranked]) if ranked else [None for _ in methods]
    seeds = sorted({seed for cells in ranked for cell in cells for seed in cell.by_split})
    by_seed = {s: mean_ranks([[cell.by_split.get(s) for cell in cells] for cells in ranked]) for s in seeds}
    # columns without any value do not count
    return [
        Cell(note="a cell behind it is empty", larger=False)
        if rank is None
        else Cell(
            (rank,),
            larger=False,
            fewest=min(len(cells[i].values) for cells in ranked if cells[i].values),
            by_split={seed: value for seed, of_seed in by_seed.items() if (value := of_seed[i]) is not None},
        )
        for i, rank in enumerate(ranks)
    ]


# kinds whose best and second-best values are marked in each block; single measurements are not
MARKED = frozenset({"mean", "rank"})


def clear_places(cells: Sequence[Cell]) -> list[int | None]:
    """Return 1 for the best and 2 for the second-best cell of a column in one block, None for the others.

    A value is marked only where it is clear of the next one, the second-best only below a marked best one.
    """
    values = {i: cell.mean if cell.larger else -cell.mean for i, cell in enumerate(cells) if cell.mean is not None}
    order = sorted(values, key=lambda i: -values[i])
    places: list[int | None] = [None for _ in cells]
    for place, (better, worse) in enumerate(pairwise(order[:3]), start=1):
        if not is_clear(cells[better], cells[worse]):
            break
        places[better] = place
    return places


def is_clear(better: Cell, worse: Cell) -> bool:
    """Return whether the gap between two values exceeds its uncertainty.

    Methods share their splits, so the gap is the mean over the splits of the paired difference. It is clear where its
    95 % t-interval excludes 0. Two splits say little about a spread: there, the mean of each must also lie outside the
    other's bootstrap interval over the test bags. One split says nothing.
    """
    from scipy.stats import t

    sign = 1 if better.larger else -1
    gaps = [sign * (value - worse.by_split[seed]) for seed, value in better.by_split.items() if seed in worse.by_split]
    if len(gaps) < 2:
        return False
    reach = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    # sums of equal numbers may differ in the last digit
    if statistics.fmean(gaps) - reach < 1e-9:
        return False
    return len(gaps) > 2 or all(
        cell.ci is not None and other.mean is not None and not cell.ci[0] <= other.mean <= cell.ci[1]
        for cell, other in ((better, worse), (worse, better))
    )
