"""Cells of the tables: what each kind of column computes from metrics.

A cell keeps the values of the splits in seed order; mean, deviation (n - 1), median and worst follow from them. The
worst split has the smallest value, or the largest where smaller is better (`smmil.tables.specs.STYLES`). Differences
are
taken split by split, since the two methods share the split of a seed, and then averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smmil.artifacts.results import split_values
from smmil.config.methods import bases
from smmil.evaluate.ranks import mean_ranks
from smmil.tables.records import Cell, Column
from smmil.tables.specs import style

MetricsByKey = Mapping[tuple[str, str, str], Mapping[str, Any]]

NO_FILE = "no metrics file"


def metric_cell(metrics: Mapping[str, Any] | None, metric: str) -> Cell:
    """Return a metric of one method over its splits; the note of an empty cell gives the reason."""
    larger = style(metric)[1]
    if metrics is None:
        return Cell(note=NO_FILE, larger=larger)
    values = tuple(value for _, value in split_values(metrics, metric))
    splits = sorted(metrics["splits"], key=lambda split: (split["seed"], split["run"]))
    interval = (metrics.get("bootstrap", {}).get("intervals") or {}).get(metric)
    note = "" if values else "; ".join(sorted({_reason(split["test"], metric) for split in splits})) or "no split"
    agreement = [split.get("signed_agreement") for split in splits] if metric.startswith("signed_") else []
    return Cell(
        values,
        len(splits),
        (interval[0], interval[1]) if interval else None,
        tuple(split["run"] for split in splits),
        note,
        larger=larger,
        agreement=tuple(float(value) for value in agreement if value is not None),
    )


def _reason(test: Mapping[str, Any], metric: str) -> str:
    if metric not in test:
        return "not in the metrics file"
    return str(test.get("undefined", {}).get(metric, "undefined"))


def _metric(column: Column, methods: Sequence[str], metrics: MetricsByKey) -> list[Cell]:
    return [metric_cell(metrics.get((*column.keys[0], method)), column.metrics[0]) for method in methods]


def _difference(column: Column, methods: Sequence[str], metrics: MetricsByKey) -> list[Cell]:
    return [_one_difference(column, method, metrics) for method in methods]


def _one_difference(column: Column, method: str, metrics: MetricsByKey) -> Cell:
    base = bases().get(method)
    if base is None:
        return Cell(applies=False)
    pair = [metrics.get((*column.keys[0], name)) for name in (method, base)]
    if pair[0] is None or pair[1] is None:
        return Cell(note=NO_FILE)
    values, base_values = (dict(split_values(entry, column.metrics[0])) for entry in pair)
    differences = tuple(value - base_values[seed] for seed, value in values.items() if seed in base_values)
    runs = tuple(split["run"] for entry in pair if entry for split in entry["splits"])
    return Cell(differences, len(pair[0]["splits"]), runs=runs, note="" if differences else "no split with both values")


def _rank(column: Column, methods: Sequence[str], metrics: MetricsByKey) -> list[Cell]:
    ranked = [
        [metric_cell(metrics.get((*key, method)), metric) for method in methods]
        for key in column.keys
        for metric in column.metrics
    ]
    ranks = mean_ranks([[cell.mean for cell in cells] for cells in ranked]) if ranked else [None for _ in methods]
    # columns without any value do not count
    return [
        Cell(note="a cell behind it is empty", larger=False)
        if rank is None
        else Cell((rank,), larger=False, fewest=min(len(cells[i].values) for cells in ranked if cells[i].values))
        for i, rank in enumerate(ranks)
    ]


def _inverted(column: Column, methods: Sequence[str], metrics: MetricsByKey) -> list[Cell]:
    result = []
    for method in methods:
        cells = [metric_cell(metrics.get((*key, method)), column.metrics[0]) for key in column.keys]
        n_runs = sum(len(cell.values) for cell in cells)
        count = (float(sum(cell.below_half for cell in cells)),) if n_runs else ()
        result.append(Cell(count, n_runs, note="" if n_runs else NO_FILE, larger=False))
    return result


def _job(column: Column, methods: Sequence[str], metrics: MetricsByKey) -> list[Cell]:
    cells, name = [], column.metrics[0]
    for method in methods:
        entry = metrics.get((*column.keys[0], method))
        value = None if entry is None else entry.get("job", {}).get(name)
        note = NO_FILE if entry is None else "" if value is not None else "not recorded"
        cells.append(Cell(() if value is None else (float(value),), 1, note=note, larger=style(name)[1]))
    return cells


# kind -> the cells of a column, one per method
KINDS: dict[str, Callable[[Column, Sequence[str], MetricsByKey], list[Cell]]] = {
    "mean": _metric,
    "spread": _metric,
    "difference": _difference,
    "rank": _rank,
    "inverted": _inverted,
    "job": _job,
}
# kinds whose best and second-best values are marked in each block
MARKED = frozenset({"mean", "rank", "job"})
