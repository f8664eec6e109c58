"""Builds the paper's tables from metrics, by the specifications of `smmil.tables.specs`.

Cells are mean ± standard deviation (n - 1) over the splits that define the metric, with a bootstrap interval over test
bags (`smmil.evaluate.bootstrap`); ranks follow `smmil.evaluate.ranks`. A missing run is an empty cell and is counted
under the table.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from preprocessing.features.encoders import encoder_title
from smmil.artifacts.records import Metrics
from smmil.config.definitions import protocol_text, shared_quirks
from smmil.config.layouts import TableDataset, TableLayout
from smmil.config.methods import GROUPS, METHODS, display_name
from smmil.tables.cells import MARKED, MetricsByKey, Row, Section, Table, cells_of, clear_places, reason_empty
from smmil.tables.notes import notes
from smmil.tables.specs import TABLES, Column, Key, SectionSpec, TableSpec

logger = logging.getLogger(__name__)


def build_table(name: str, metrics: Sequence[Metrics], layout: TableLayout) -> Table:
    """Arrange metrics into one table, rows in the paper's order within their blocks.

    Args:
        name: a key of `smmil.tables.specs.TABLES`.
        metrics: metrics as written by `smmil.evaluate.runs`; for `resources` as read by `smmil.tables.resources`.
        layout: datasets and methods.

    Raises:
        ValueError: no datasets or methods, two metrics of one cell, rows of two protocols or of different quirks.
    """
    spec = TABLES[name]
    if not layout.datasets or (spec.blocks is None and not layout.methods):
        missing = "methods" if layout.datasets else "datasets"
        raise ValueError(f"--layout: found no {missing}, expected {TableLayout.EXPECTED}")
    blocks = spec.blocks or _groups(layout.methods)
    columns = [columns_of(section, layout.datasets) for section in spec.sections]
    keys = {key for section in columns for column in section for key in column.keys}
    methods = {method for block in blocks.values() for method in block}
    used: dict[tuple[str, str, str], Metrics] = {}
    for entry in metrics:
        key = (entry.dataset, entry.encoder, entry.method)
        if key in used:
            raise ValueError(f"--metrics: found two files for {' / '.join(key)}, expected one")
        if key[:2] in keys and key[2] in methods:
            used[key] = entry
        else:
            logger.warning("%s: metrics of %s are not in the layout", name, " / ".join(key))
    every = [_section(spec, part, group, blocks, used) for part, group in zip(spec.sections, columns, strict=True)]
    with_values = [section for section in every if section.has_values]
    # before the first run, the rows and columns say what is to come
    expected = [section for section, part in zip(every, spec.sections, strict=True) if not part.optional]
    sections = tuple(with_values or expected)
    n_splits = layout.splits
    if n_splits is None:
        n_splits = max((len(entry.splits) for entry in used.values()), default=0)
    random = frozenset(key[:2] for key, entry in used.items() if entry.random_weights)
    protocol = protocol_text(*shared_quirks(used.values(), "table")) or "none (no metrics)"
    empty = [f"{section.title} ({reason_empty([section])})" for section in expected if not section.has_values]
    lines = notes(sections, used, layout, n_splits)
    if with_values and empty:
        lines = (*lines, f"Left out, without any value: {'; '.join(empty)}.")
    left_out = reason_empty(every[:1]) if used and not with_values else ""
    return Table(name, spec.title, sections, n_splits, protocol, lines, random, left_out)


def columns_of(section: SectionSpec, datasets: Sequence[TableDataset]) -> tuple[Column, ...]:
    """Return the columns of a section over the datasets of a layout."""
    titles = {dataset.name: dataset.title for dataset in datasets}
    if section.by == "dataset":
        heads = [(dataset.title, [(dataset.name, dataset.encoders[0])]) for dataset in datasets]
    else:
        # extractors of all datasets come first, those of a single dataset last
        encoders = list(dict.fromkeys(encoder for dataset in datasets for encoder in dataset.encoders))
        encoders.sort(key=lambda encoder: -sum(encoder in dataset.encoders for dataset in datasets))
        heads = [(encoder_title(e), [(d.name, e) for d in datasets if e in d.encoders]) for e in encoders]
    columns = [
        replace(_over(column, group, named=True), head=head, label=column.label or titles[group[0][0]])
        for head, keys in heads
        for column in section.columns
        for group in ([keys] if section.by == "encoder" else [[key] for key in keys])
    ]
    every = [key for _, keys in heads for key in keys]
    return (*columns, *(_over(column, every, named=False) for column in section.overall))


def _over(column: Column, keys: Sequence[Key], *, named: bool) -> Column:
    """Return a column over these keys; `named` puts them into its name in the CSV."""
    name = (column.csv or column.metrics[0]) + (".difference" if column.kind == "difference" else "")
    # a column over several datasets is named by its extractor
    prefix = keys[0][1] if column.kind in ("rank", "inverted") else ".".join(keys[0])
    return replace(column, keys=tuple(keys), csv=f"{prefix}.{name}" if named else name)


def _groups(methods: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the methods by group, in the order of the tables, without empty groups."""
    groups = {group: tuple(m for m in METHODS if m in methods and METHODS[m].group == group) for group in GROUPS}
    return {group: names for group, names in groups.items() if names}


def _section(
    table: TableSpec,
    spec: SectionSpec,
    columns: tuple[Column, ...],
    blocks: Mapping[str, Sequence[str]],
    metrics: MetricsByKey,
) -> Section:
    rows = {}
    for title, methods in blocks.items():
        cells = [cells_of(column, methods, metrics) for column in columns]
        marks = [
            clear_places(group) if column.kind in MARKED else [None] * len(methods)
            for column, group in zip(columns, cells, strict=True)
        ]
        names = [table.names.get(method, display_name(method)) for method in methods]
        rows[title] = tuple(map(Row, methods, names, zip(*cells, strict=True), zip(*marks, strict=True)))
    return Section(spec.key, spec.title, columns, rows)
