"""The lines under a table: protocol, definitions, what is missing, what to distrust."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smmil.methods_table import METHODS, display_name

if TYPE_CHECKING:
    from smmil.tables import Column, Row

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


def notes(
    pairs: Sequence[tuple[str, str]],
    columns: Sequence["Column"],
    groups: Mapping[str, Sequence["Row"]],
    found: Mapping[tuple[str, str, str], dict[str, Any]],
    n_splits: int,
    note: str = "",
) -> tuple[str, ...]:
    """Lines to print under a table, the most alarming first.

    Args:
        pairs: (metric, label) of the table.
        columns: of the table.
        groups: rows per group.
        found: metrics in the table by (dataset, encoder, method).
        n_splits: splits of a complete cell.
        note: a line of the layout, printed first.
    """
    from smmil.metrics import DEFINITIONS

    lines = [note] if note else []
    titles = {column.dataset: column.title for column in columns}
    random = sorted({titles[key[0]] for key, one in found.items() if one.get("random_weights")})
    if random:
        lines.append(RANDOM_WEIGHTS.format(where=", ".join(random)))
    lines += _missing(columns, groups)
    lines += _partial(columns, groups, n_splits)
    if any(metric.startswith("instance") for metric, _ in pairs):
        lines += _inverted(found, titles)
    protocols = sorted({str(one["protocol"]) for one in found.values()})
    if protocols:
        lines.append("Protocol: " + ", ".join(PROTOCOLS.get(p, p) for p in protocols) + ".")
    encoders = ", ".join(f"{titles[d]}: {e}" for d, e in dict.fromkeys((c.dataset, c.encoder) for c in columns))
    lines.append(f"Features: {encoders}. Learning rate chosen per split on validation, never on test.")
    lines.append(
        "Cells: mean ± standard deviation (n − 1) over the training/validation splits; all splits share one test set, "
        "so they are not independent. Best of the group in bold, second underlined. ◆ proposed in the paper."
    )
    lines += [DEFINITIONS[metric] for metric, _ in pairs]
    lines.append(RANK_RULE)
    return tuple(lines)


def _missing(columns: Sequence["Column"], groups: Mapping[str, Sequence["Row"]]) -> list[str]:
    all_rows = [row for rows in groups.values() for row in rows]
    cells = [(row.method, column, cell) for row in all_rows for column, cell in _zip(columns, row)]
    empty = [(method, column, cell) for method, column, cell in cells if not cell.values]
    if not empty:
        return []
    where: dict[tuple[str, str], list[str]] = {}
    for method, column, cell in empty:
        names = where.setdefault((column.title, cell.note), [])
        if display_name(method) not in names:
            names.append(display_name(method))
    listed = "; ".join(f"{title}: {', '.join(names)} ({note})" for (title, note), names in where.items())
    return [f"{len(empty)} of {len(cells)} cells are empty. {listed}."]


def _partial(columns: Sequence["Column"], groups: Mapping[str, Sequence["Row"]], n_splits: int) -> list[str]:
    few = [
        f"{display_name(row.method)} {column.title} {column.label} {len(cell.values)}"
        for rows in groups.values()
        for row in rows
        for column, cell in _zip(columns, row)
        if cell.values and len(cell.values) < n_splits
    ]
    return [f"Fewer than {n_splits} splits, number in brackets: {'; '.join(few)}."] if few else []


def _inverted(found: Mapping[tuple[str, str, str], dict[str, Any]], titles: Mapping[str, str]) -> list[str]:
    odd = []
    for (dataset, _, method), one in sorted(
        found.items(), key=lambda item: (item[0][0], list(METHODS).index(item[0][2]))
    ):
        seeds = [str(split["seed"]) for split in one["splits"] if split["test"].get("inverted")]
        if seeds:
            odd.append(f"{display_name(method)} on {titles[dataset]} (split {', '.join(seeds)})")
    return [f"Inverted scores, instance AUROC < 0.5, in: {'; '.join(odd)}."] if odd else []


def _zip(columns: Sequence["Column"], row: "Row") -> list[tuple["Column", Any]]:
    return list(zip(columns, row.cells, strict=True))
