"""The lines under a table: protocol, definitions, what is missing, what to distrust."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from smmil.definitions import DEFINITIONS as MEASURED
from smmil.methods_table import METHODS, display_name
from smmil.table_cells import NO_FILE, Cell, Column, Found, metric_cell
from smmil.table_specs import ENCODERS

if TYPE_CHECKING:
    from smmil.tables import Section

PROTOCOLS = {
    "as_written": "as_written (the paper's text)",
    "as_released": "as_released (every quirk of the released code)",
}
RANK_RULE = (
    "Rank: inside each group, methods are ranked in every metric × dataset column (ties share the average rank), then "
    "averaged; no rank where a cell is empty."
)
RANDOM_WEIGHTS = (
    "† RANDOM ENCODER WEIGHTS: the features of {where} come from an untrained encoder; these numbers only show that "
    "the pipeline runs."
)
SPREAD = (
    "Spread over the runs: median / worst run, and for AUROC / the number of inverted runs (instance AUROC < 0.5): bag "
    "labels do not fix the sign of the attention, so a mean can hide runs that point the wrong way."
)
DIFFERENCE = "Δ: the method with Sm minus the one without, split by split, mean ± standard deviation."
# the other metrics: `smmil.definitions`
DEFINITIONS = {
    "train_seconds": "Seconds of one training: all epochs with their validation, from the run's log, mean ± standard "
    "deviation over all splits and learning rates; loading the features is not in it.",
    "memory_mib": "Peak memory: largest resident memory of a process that trained the method, the loaded features "
    "included, MiB.",
    "device_memory_mib": "Peak GPU memory: the most that the tensors of such a process took on the GPU, MiB.",
}
# longer lists say no more than the count
MOST_NAMED = 20


def notes(
    sections: Sequence["Section"], found: Found, titles: Mapping[str, str], n_splits: int, note: str = ""
) -> tuple[str, ...]:
    """Lines to print under a table, the most alarming first.

    Args:
        sections: of the table, the paper's first.
        found: metrics in the table by (dataset, encoder, method).
        titles: dataset name -> title.
        n_splits: splits of a complete cell.
        note: a line of the layout, printed first.
    """
    lines = [note] if note else []
    random = sorted({titles[key[0]] for key, one in found.items() if one.get("random_weights")})
    if random:
        lines.append(RANDOM_WEIGHTS.format(where=", ".join(random)))
    columns = [column for section in sections for column in section.columns]
    kinds = {column.kind for column in columns}
    metrics = list(dict.fromkeys(metric for column in columns for metric in column.metrics))
    lines += _missing(sections, found, titles)
    lines += _partial(sections, n_splits)
    if any(metric.startswith("instance") for metric in metrics):
        lines += _inverted(found, titles)
    protocols = sorted({str(one["protocol"]) for one in found.values()})
    if protocols:
        lines.append("Protocol: " + ", ".join(PROTOCOLS.get(p, p) for p in protocols) + ".")
    lines += _features(columns, titles)
    lines += _cells(metrics)
    lines += [SPREAD] if "spread" in kinds else []
    lines += [DIFFERENCE] if "difference" in kinds else []
    lines += _definitions(metrics)
    lines += [RANK_RULE] if "rank" in kinds else []
    return tuple(lines)


@dataclass(frozen=True)
class _Value:
    """One value behind a table; `beside` where only the sections beside the paper's table need it."""

    beside: bool
    method: str
    metric: str
    key: tuple[str, str]
    cell: Cell


def _values(sections: Sequence["Section"], found: Found) -> list[_Value]:
    """Every value behind a table once; ranks stand for the values they are made of."""
    values: dict[tuple[str, str, tuple[str, str]], _Value] = {}
    for i, section in enumerate(sections):
        methods = [row.method for rows in section.blocks.values() for row in rows]
        for column in section.columns:
            if column.kind == "job":
                continue
            for method, key, metric in product(methods, column.keys, column.metrics):
                cell = metric_cell(found.get((*key, method)), metric)
                values.setdefault((method, metric, key), _Value(i > 0, method, metric, key, cell))
    return list(values.values())


def _missing(sections: Sequence["Section"], found: Found, titles: Mapping[str, str]) -> list[str]:
    """One line for the paper's table; one for the values beside it that are missing though the runs are there."""
    values, lines = _values(sections, found), []
    several = len({value.key[1] for value in values}) > 1
    main = [value for value in values if not value.beside]
    where: dict[tuple[str, str], list[str]] = {}
    empty = [value for value in main if not value.cell.values]
    for value in empty:
        dataset, encoder = value.key
        title = titles[dataset] + (f" {ENCODERS.get(encoder, encoder)}" if several else "")
        _add(where.setdefault((title, value.cell.note), []), display_name(value.method))
    if empty:
        listed = "; ".join(f"{title}: {_names(names)} ({why})" for (title, why), names in where.items())
        behind = " behind the ranks" if all(column.kind == "rank" for column in sections[0].columns) else ""
        lines.append(f"{len(empty)} of {len(main)} cells{behind} are empty. {listed}.")
    beside = [value for value in values if value.beside and value.cell.note != NO_FILE]
    gone = [value for value in beside if not value.cell.values]
    what: dict[tuple[str, str], list[str]] = {}
    for value in gone:
        _add(what.setdefault((value.metric, value.cell.note), []), display_name(value.method))
    if gone:
        listed = "; ".join(f"{metric}: {_names(names)} ({why})" for (metric, why), names in what.items())
        lines.append(f"Beside the paper's table, {len(gone)} of {len(beside)} values are missing. {listed}.")
    return lines + _no_job(sections)


def _no_job(sections: Sequence["Section"]) -> list[str]:
    cells = [
        cell
        for section in sections
        for rows in section.blocks.values()
        for row in rows
        for column, cell in zip(section.columns, row.cells, strict=True)
        if column.kind == "job"
    ]
    empty = sum(not cell.values for cell in cells)
    return [f"Peak memory: {empty} of {len(cells)} cells are empty (no training, or no record of it)."] if empty else []


def _partial(sections: Sequence["Section"], n_splits: int) -> list[str]:
    few = []
    section = sections[0]
    for rows in section.blocks.values():
        for row in rows:
            for column, cell in zip(section.columns, row.cells, strict=True):
                if column.kind in ("mean", "difference") and 0 < len(cell.values) < n_splits:
                    few.append(f"{row.name} {column.head} {column.label} {len(cell.values)}")
    return [f"Fewer than {n_splits} splits, number in brackets: {_names(few, '; ')}."] if few else []


def _inverted(found: Found, titles: Mapping[str, str]) -> list[str]:
    order, odd, inverted, total = list(METHODS), [], 0, 0
    several = len({key[1] for key in found}) > 1
    for (dataset, encoder, method), one in sorted(found.items(), key=lambda i: (i[0][:2], order.index(i[0][2]))):
        splits = [split for split in one["splits"] if split["test"].get("instance_auroc") is not None]
        seeds = [str(split["seed"]) for split in splits if split["test"]["instance_auroc"] < 0.5]
        inverted, total = inverted + len(seeds), total + len(splits)
        if seeds:
            where = titles[dataset] + (f" {ENCODERS.get(encoder, encoder)}" if several else "")
            odd.append(f"{display_name(method)} on {where} (split {', '.join(seeds)})")
    if not odd:
        return []
    return [f"Inverted runs, instance AUROC < 0.5: {inverted} of {total}, in: {_names(odd, '; ')}."]


def _features(columns: Sequence[Column], titles: Mapping[str, str]) -> list[str]:
    encoders: dict[str, list[str]] = {}
    for dataset, encoder in (key for column in columns for key in column.keys):
        _add(encoders.setdefault(dataset, []), encoder)
    listed = "; ".join(f"{titles[name]}: {', '.join(own)}" for name, own in encoders.items())
    return [f"Features: {listed}."]


def _cells(metrics: Sequence[str]) -> list[str]:
    best = "Best of the block in bold, second underlined. ◆ proposed in the paper."
    if "train_seconds" in metrics:
        return [best]
    return [
        "Cells: mean ± standard deviation (n − 1) over the training/validation splits; all splits share one test set, "
        f"so they are not independent. Learning rate chosen per split on validation, never on test. {best}"
    ]


def _definitions(metrics: Sequence[str]) -> list[str]:
    known = {**MEASURED, **DEFINITIONS}
    return [known[metric] for metric in metrics if metric in known]


def _add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _names(names: Sequence[str], between: str = ", ") -> str:
    more = [f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return between.join([*names[:MOST_NAMED], *more])
