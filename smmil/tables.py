"""The paper's Table 1 (instance AUROC, F1) and Table 2 (bag AUROC, F1) from metrics files.

Cells are mean +- standard deviation (n - 1) over the splits that define the metric; the confidence interval is a
bootstrap over test bags (`smmil.bootstrap`); ranks follow `smmil.ranks`. A missing run is an empty cell and is counted
under the table.

Layout (JSON):
    {"datasets": [{"name": "rsna", "title": "RSNA", "encoder": "resnet18"}, ...], "methods": ["smap_early", ...],
     "splits": 5, "note": "..."}
`splits` is the number of splits a complete cell has (default: the largest found); `note` is printed first.

Run alone:
    python -m smmil.tables --table table1 --metrics M.json ... --layout layout.json --out-csv t.csv --out-md t.md
"""

import argparse
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_text
from smmil.methods_table import GROUPS, METHODS

logger = logging.getLogger(__name__)

TABLES: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "table1": ("Table 1. Localisation: instance level", (("instance_auroc", "AUROC"), ("instance_f1", "F1"))),
    "table2": ("Table 2. Classification: bag level", (("bag_auroc", "AUROC"), ("bag_f1", "F1"))),
}


@dataclass(frozen=True)
class Column:
    """One metric of one dataset."""

    dataset: str
    encoder: str
    title: str
    metric: str
    label: str


@dataclass(frozen=True)
class Cell:
    """One method in one column; `values` holds the splits that define the metric.

    Attributes:
        values: per split, in seed order.
        n_splits: splits that were run.
        ci: bootstrap interval, or None.
        runs: the runs behind the cell.
        note: why a value is missing, or "".
    """

    values: tuple[float, ...] = ()
    n_splits: int = 0
    ci: tuple[float, float] | None = None
    runs: tuple[str, ...] = ()
    note: str = ""

    @property
    def mean(self) -> float | None:
        """Mean over splits, None for an empty cell."""
        return sum(self.values) / len(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over splits (n - 1), None for fewer than two."""
        if len(self.values) < 2:
            return None
        import statistics

        return statistics.stdev(self.values)


@dataclass(frozen=True)
class Row:
    """One method: its cells, mean rank, and places (1 = best, 2 = second) inside its group."""

    method: str
    cells: tuple[Cell, ...]
    rank: float | None
    places: tuple[int | None, ...]
    rank_place: int | None


@dataclass(frozen=True)
class Table:
    """A table ready to be written; `notes` are the lines under it, `random_datasets` those with untrained encoders."""

    name: str
    title: str
    columns: tuple[Column, ...]
    groups: dict[str, tuple[Row, ...]]
    n_splits: int
    protocol: str
    notes: tuple[str, ...] = ()
    random_datasets: frozenset[str] = frozenset()


def build_table(name: str, metrics: Sequence[dict[str, Any]], layout: dict[str, Any]) -> Table:
    """Arranges metrics into one table.

    Args:
        name: a key of `TABLES`.
        metrics: objects as `smmil.evaluate` writes them.
        layout: see the module docstring.

    Returns:
        The table; rows in the layout's order inside the two groups of the paper.

    Raises:
        ValueError: unknown table, layout key or method; two metrics of one cell; two protocols in one table.
    """
    if name not in TABLES:
        raise ValueError(f"--table: found {name!r}, expected one of {', '.join(TABLES)}")
    title, pairs = TABLES[name]
    check_layout(layout)
    found = _by_key(metrics)
    columns = tuple(
        Column(d["name"], d["encoder"], d.get("title", d["name"]), metric, label)
        for d in layout["datasets"]
        for metric, label in pairs
    )
    wanted = {(c.dataset, c.encoder, method) for c in columns for method in layout["methods"]}
    used = {key: value for key, value in found.items() if key in wanted}
    for key in sorted(set(found) - wanted):
        logger.warning("%s: metrics of %s are not in the layout", name, " / ".join(key))
    n_splits = int(layout.get("splits", max((len(m["splits"]) for m in used.values()), default=0)))
    groups = {group: _rows(group, columns, layout["methods"], used) for group in GROUPS}
    groups = {group: rows for group, rows in groups.items() if rows}
    from smmil.table_notes import notes

    lines = notes(pairs, columns, groups, used, n_splits, layout.get("note", ""))
    random = frozenset(key[0] for key, one in used.items() if one.get("random_weights"))
    return Table(name, title, columns, groups, n_splits, _protocol(used.values()), lines, random)


def check_layout(layout: dict[str, Any]) -> None:
    """Checks a layout.

    Raises:
        ValueError: with what was found and what is expected.
    """
    unknown = sorted(set(layout) - {"datasets", "methods", "splits", "note"})
    if unknown or not layout.get("datasets") or not layout.get("methods"):
        raise ValueError(f"--layout: found the keys {sorted(layout)}, expected datasets, methods [, splits, note]")
    for dataset in layout["datasets"]:
        if not {"name", "encoder"} <= set(dataset) <= {"name", "encoder", "title"}:
            raise ValueError(f"--layout: datasets: found {dataset}, expected name, encoder [, title]")
    strange = [method for method in layout["methods"] if method not in METHODS]
    if strange:
        raise ValueError(f"--layout: methods: found {strange}, expected keys of smmil.methods_table.METHODS")


def _by_key(metrics: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in metrics:
        key = (one["dataset"], one["encoder"], one["method"])
        if key in found:
            raise ValueError(f"--metrics: found two files for {' / '.join(key)}, expected one")
        found[key] = one
    return found


def _protocol(metrics: Iterable[dict[str, Any]]) -> str:
    protocols = sorted({str(one["protocol"]) for one in metrics})
    if len(protocols) > 1:
        raise ValueError(f"--metrics: found the protocols {protocols}, expected one per table; make one table each")
    return protocols[0] if protocols else "none (no metrics)"


def _rows(
    group: str, columns: Sequence[Column], methods: Sequence[str], found: dict[tuple[str, str, str], dict[str, Any]]
) -> tuple[Row, ...]:
    from smmil.ranks import mean_ranks, places

    own = [method for method in METHODS if method in methods and METHODS[method][1] == group]
    grid = [[_cell(found.get((c.dataset, c.encoder, method)), c.metric) for c in columns] for method in own]
    values = [[row[j].mean for row in grid] for j in range(len(columns))]
    ranks = mean_ranks(values) if own else []
    marks = [places(column) for column in values]
    rank_marks = places(ranks, larger=False)
    return tuple(
        Row(method, tuple(grid[i]), ranks[i], tuple(column[i] for column in marks), rank_marks[i])
        for i, method in enumerate(own)
    )


def _cell(metrics: dict[str, Any] | None, metric: str) -> Cell:
    if metrics is None:
        return Cell(note="no metrics file")
    splits = sorted(metrics["splits"], key=lambda split: split["seed"])
    values = tuple(split["test"][metric] for split in splits if split["test"][metric] is not None)
    reasons = {split["test"].get("undefined", {}).get(metric, "undefined") for split in splits}
    interval = metrics.get("bootstrap", {}).get("intervals", {}).get(metric)
    note = "" if values else "; ".join(sorted(reasons)) or "no split"
    runs = tuple(split["run"] for split in splits)
    return Cell(values, len(splits), (interval[0], interval[1]) if interval else None, runs, note)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: metrics files in, CSV and Markdown out."""
    parser = argparse.ArgumentParser(prog="python -m smmil.tables", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", required=True, choices=sorted(TABLES))
    parser.add_argument("--metrics", nargs="*", default=[], help="metrics JSON files; missing ones are empty cells")
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and methods")
    parser.add_argument("--out-csv", required=True)
    parser.add_argument("--out-md", required=True)
    arguments = parser.parse_args(argv)
    from smmil.results import json_argument, read_metrics
    from smmil.table_formats import to_csv, to_markdown

    metrics = [read_metrics(path) for path in arguments.metrics]
    table = build_table(arguments.table, metrics, json_argument(arguments.layout, "--layout"))
    write_text(Path(arguments.out_csv), to_csv(table))
    write_text(Path(arguments.out_md), to_markdown(table))
    logger.info("%s: %d methods", arguments.out_md, sum(len(rows) for rows in table.groups.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)(None))
