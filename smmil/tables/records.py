"""Records of tables: columns, cells, rows, sections and the whole table that the writers take."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

Key = tuple[str, str]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        head: heading over a group of columns, or "".
        label: heading of the column.
        kind: key of `smmil.tables.cells.KINDS`, or "paired".
        metrics: metrics it is computed from; one except for ranks.
        keys: (dataset, encoder) pairs it is computed from; one except for ranks and counts.
        csv: name in the CSV.
    """

    head: str
    label: str
    kind: str
    metrics: tuple[str, ...]
    keys: tuple[Key, ...]
    csv: str


@dataclass(frozen=True)
class Cell:
    """One method in one column.

    Attributes:
        values: value of every split that defines the metric, in seed order; a single number for ranks and counts.
        n_splits: splits that were run.
        ci: bootstrap interval, or None.
        runs: runs the cell is computed from.
        note: reason of a missing value, or "".
        applies: False where the column has no meaning for this row, as the difference of a method to itself.
        larger: whether larger is better.
        fewest: for a rank, the smallest number of splits of a value it is computed from.
        agreement: for a sign-aware metric, agreement of its score with the bag logit per run
        (`smmil.predictions.signed`).
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
        """Worst split, None for an empty cell."""
        return (min if self.larger else max)(self.values) if self.values else None

    @property
    def below_half(self) -> int:
        """Number of splits below .5; for AUROCs, the inverted runs."""
        return sum(value < 0.5 for value in self.values)


@dataclass(frozen=True)
class Row:
    """One method: its name in this table, its cells, and the place of each cell in its block (1 = best, 2 = second)."""

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
    def rows(self) -> tuple[Row, ...]:
        """The rows of all blocks."""
        return tuple(row for rows in self.blocks.values() for row in rows)

    def cells(self) -> Iterator[tuple[Row, Column, Cell]]:
        """Iterate over all cells, row by row."""
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                yield row, column, cell


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        name: key of `smmil.config.targets.TABLES`.
        title: heading.
        sections: the paper's table first; all have the same rows.
        n_splits: splits of a complete cell.
        protocol: protocol of the runs, with the quirks that differ from its preset.
        notes: lines under the table.
        random_keys: (dataset, encoder) pairs with an untrained encoder.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    n_splits: int
    protocol: str
    notes: tuple[str, ...] = ()
    random_keys: frozenset[Key] = frozenset()
