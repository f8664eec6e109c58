"""Every table of the paper from metrics files: one builder over the specifications of `smmil.table_specs`.

Cells are mean +- standard deviation (n - 1) over the splits that define the metric; the confidence interval is a
bootstrap over test bags (`smmil.bootstrap`); ranks follow `smmil.ranks`. A missing run is an empty cell and is counted
under the table. `smmil.outputs.table_layout` makes the layout from a configuration.

Layout (JSON):
    {"datasets": [{"name": "rsna", "title": "RSNA", "encoders": ["resnet18"]}, ...], "methods": ["smap_early", ...],
     "splits": 5, "note": "..."}
`encoder` may stand for `encoders` of one; tables with fixed rows need no `methods`; `splits` is the number of splits a
complete cell has (default: the largest found); `note` is printed first.

Run alone:
    python -m smmil.tables --table table1 --metrics M.json ... --layout layout.json --out-csv t.csv --out-md t.md
    python -m smmil.tables --table resources --runs runs.json ...
        --layout layout.json --out-csv t.csv --out-tex t.tex
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_text
from smmil.methods_table import GROUPS, METHODS, display_name
from smmil.ranks import places
from smmil.table_cells import KINDS, MARKED, Cell, Column
from smmil.table_specs import ENCODERS, TABLES

logger = logging.getLogger(__name__)

STAGE_VERSION = 4

Key = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """One method: its name in this table, its cells, and per cell its place inside the block (1 best, 2 second)."""

    method: str
    name: str
    cells: tuple[Cell, ...]
    places: tuple[int | None, ...]


@dataclass(frozen=True)
class Section:
    """Columns over the rows of a table; the first section is the paper's table, `key` names the others."""

    key: str
    title: str
    columns: tuple[Column, ...]
    blocks: dict[str, tuple[Row, ...]]

    @property
    def has_values(self) -> bool:
        """Whether any cell has a value."""
        return any(cell.values for rows in self.blocks.values() for row in rows for cell in row.cells)


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        name: key of `TABLES`.
        title: its heading.
        sections: the paper's table first; all have the same rows.
        n_splits: splits of a complete cell.
        protocol: of the runs behind it, with the quirks that differ from its preset.
        notes: lines under it.
        random_keys: (dataset, encoder) with an untrained encoder.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    n_splits: int
    protocol: str
    notes: tuple[str, ...] = ()
    random_keys: frozenset[tuple[str, str]] = frozenset()


def build_table(name: str, metrics: Sequence[dict[str, Any]], layout: dict[str, Any]) -> Table:
    """Arranges metrics into one table.

    Args:
        name: a key of `TABLES`.
        metrics: objects as `smmil.evaluate` writes them; for `resources` as `smmil.table_resources` reads them.
        layout: see the module docstring.

    Returns:
        The table; rows in the paper's order inside their blocks.

    Raises:
        ValueError: unknown table, layout key or method; two metrics of one cell; rows of two protocols, or of
            different quirks.
    """
    if name not in TABLES:
        raise ValueError(f"--table: found {name!r}, expected one of {', '.join(TABLES)}")
    spec = TABLES[name]
    check_layout(layout, fixed_rows="blocks" in spec)
    datasets = [{**d, "encoders": d.get("encoders") or [d["encoder"]]} for d in layout["datasets"]]
    blocks = spec["blocks"] if "blocks" in spec else _groups(layout["methods"])
    found, used = _by_key(metrics), {}
    columns = [columns_of(section, datasets) for section in spec["sections"]]
    keys = {key for group in columns for column in group for key in column.keys}
    methods = {method for names in blocks.values() for method in names}
    for key, one in found.items():
        if key[:2] in keys and key[2] in methods:
            used[key] = one
        else:
            logger.warning("%s: metrics of %s are not in the layout", name, " / ".join(key))
    made = [
        (_section(section, group, blocks, spec.get("names", {}), used), section.get("optional", False))
        for section, group in zip(spec["sections"], columns, strict=True)
    ]
    sections = tuple(section for section, optional in made if section.has_values or not optional)
    n_splits = int(layout.get("splits", max((len(m["splits"]) for m in used.values()), default=0)))
    random = frozenset((dataset, encoder) for (dataset, encoder, _), one in used.items() if one.get("random_weights"))
    from smmil.definitions import protocol_text, shared_quirks
    from smmil.table_notes import notes

    protocol = protocol_text(*shared_quirks(used.values(), "table")) or "none (no metrics)"
    titles = {d["name"]: d.get("title", d["name"]) for d in datasets}
    lines = notes(sections, used, titles, n_splits, layout.get("note", ""))
    return Table(name, spec["title"], sections, n_splits, protocol, lines, random)


def check_layout(layout: dict[str, Any], *, fixed_rows: bool = False) -> None:
    """Checks a layout.

    Args:
        layout: see the module docstring.
        fixed_rows: the table has rows of its own, so that `methods` may be missing.

    Raises:
        ValueError: with what was found and what is expected.
    """
    unknown = sorted(set(layout) - {"datasets", "methods", "splits", "note"})
    if unknown or not layout.get("datasets") or not (fixed_rows or layout.get("methods")):
        raise ValueError(f"--layout: found the keys {sorted(layout)}, expected datasets, methods [, splits, note]")
    for dataset in layout["datasets"]:
        encoder = {"encoder", "encoders"} & {key for key, value in dataset.items() if value}
        if "name" not in dataset or not encoder or not set(dataset) <= {"name", "encoder", "encoders", "title"}:
            raise ValueError(f"--layout: datasets: found {dataset}, expected name, encoder or encoders [, title]")
    strange = [method for method in layout.get("methods", []) if method not in METHODS]
    if strange:
        raise ValueError(f"--layout: methods: found {strange}, expected keys of smmil.methods_table.METHODS")


def columns_of(section: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The columns of one section of a specification over the datasets of a layout (with `encoders` each)."""
    titles = {d["name"]: d.get("title", d["name"]) for d in datasets}
    if section["by"] == "dataset":
        heads = [(titles[d["name"]], [(d["name"], d["encoders"][0])]) for d in datasets]
    else:
        # extractors that every dataset has come first, those of one dataset last
        encoders = list(dict.fromkeys(encoder for d in datasets for encoder in d["encoders"]))
        encoders.sort(key=lambda encoder: -sum(encoder in d["encoders"] for d in datasets))
        heads = [(ENCODERS.get(e, e), [(d["name"], e) for d in datasets if e in d["encoders"]]) for e in encoders]
    columns = []
    for head, keys in heads:
        for spec in section["columns"]:
            together = [keys] if section["by"] == "encoder" else [[key] for key in keys]
            columns += [_column(head, spec["label"] or titles[own[0][0]], spec, own) for own in together]
    every = [key for _, keys in heads for key in keys]
    columns += [_column("", spec["label"], spec, every, overall=True) for spec in section.get("overall", ())]
    return tuple(columns)


def _column(
    head: str, label: str, spec: Mapping[str, Any], keys: list[tuple[str, str]], overall: bool = False
) -> Column:
    kind, name = spec["kind"], spec.get("csv", spec["metrics"][0])
    if kind == "difference":
        name += ".difference"
    # a column over several datasets is named by its extractor, one over everything by itself
    where = "" if overall else f"{keys[0][1]}." if kind in ("rank", "inverted") else f"{'.'.join(keys[0])}."
    return Column(head, label, kind, tuple(spec["metrics"]), tuple(keys), where + name)


def _groups(methods: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The methods in the paper's two groups, in the order of the tables; an empty group is left out."""
    groups = {group: tuple(m for m in METHODS if m in methods and METHODS[m][1] == group) for group in GROUPS}
    return {group: names for group, names in groups.items() if names}


def _section(
    spec: Mapping[str, Any],
    columns: tuple[Column, ...],
    blocks: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    found: Mapping[tuple[str, str, str], dict[str, Any]],
) -> Section:
    filled = {}
    for title, methods in blocks.items():
        cells = [KINDS[column.kind](column, methods, found) for column in columns]
        marks = [_places(column, own) for column, own in zip(columns, cells, strict=True)]
        filled[title] = tuple(
            Row(m, names.get(m, display_name(m)), tuple(own[i] for own in cells), tuple(own[i] for own in marks))
            for i, m in enumerate(methods)
        )
    return Section(spec["key"], spec["title"], columns, filled)


def _places(column: Column, cells: Sequence[Cell]) -> list[int | None]:
    if column.kind not in MARKED:
        return [None for _ in cells]
    return places([cell.mean for cell in cells], larger=cells[0].larger)


def _by_key(metrics: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in metrics:
        key = (one["dataset"], one["encoder"], one["method"])
        if key in found:
            raise ValueError(f"--metrics: found two files for {' / '.join(key)}, expected one")
        found[key] = one
    return found


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smmil.tables", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", required=True, choices=[*TABLES])
    parser.add_argument("--metrics", nargs="*", default=[], help="metrics JSON files; missing ones are empty cells")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, help="runs.json files, for the table `resources`")
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and methods")
    parser.add_argument("--out-csv", type=Path, help="every number, one row per method")
    parser.add_argument("--out-md", type=Path, help="Markdown")
    parser.add_argument("--out-tex", type=Path, help="LaTeX, needs \\usepackage{booktabs}")
    parser.add_argument("--out-html", type=Path, help="fragment of HTML for the report")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: metrics files in, CSV, Markdown, LaTeX and HTML out."""
    arguments = _arguments(argv)
    from smmil.results import json_argument, read_metrics
    from smmil.table_formats import to_csv, to_html, to_markdown
    from smmil.table_latex import to_latex
    from smmil.table_resources import read_resources

    writers = {arguments.out_csv: to_csv, arguments.out_md: to_markdown, arguments.out_tex: to_latex}
    writers[arguments.out_html] = to_html
    writers.pop(None, None)
    if not writers:
        raise ValueError("found no --out-csv, --out-md, --out-tex or --out-html, expected at least one")
    metrics = [read_metrics(path) for path in arguments.metrics]
    metrics += [read_resources(path) for path in arguments.runs]
    table = build_table(arguments.table, metrics, json_argument(arguments.layout, "--layout"))
    for path, write in writers.items():
        write_text(path, write(table))
        logger.info("%s: %d methods", path, sum(len(rows) for rows in table.sections[0].blocks.values()))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)(None))
