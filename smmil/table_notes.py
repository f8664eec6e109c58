"""The lines under a table: protocol, definitions, what is missing, what to distrust."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from smmil.definitions import PRESETS, definitions, protocol_text, shared_quirks
from smmil.methods_table import METHODS, display_name
from smmil.table_cells import NO_FILE, Cell, Column, Found, by_seed, metric_cell
from smmil.table_specs import ENCODERS

if TYPE_CHECKING:
    from smmil.tables import Section

RANK_RULE = (
    "Rank: inside each group, methods are ranked in every metric × dataset column (ties share the average rank), then "
    "averaged; no rank where a cell is empty. In brackets: the fewest splits of a cell behind it, where any lacks some."
)
RANDOM_WEIGHTS = (
    "† RANDOM ENCODER WEIGHTS: the features of {where} come from an untrained encoder; these numbers only show that "
    "the pipeline runs."
)
SPREAD = (
    "Spread over the runs: median / worst run (of energies the largest), and for AUROC / the number of inverted runs "
    "(instance AUROC < 0.5): bag labels do not fix the sign of the attention, so a mean can hide runs that point the "
    "wrong way."
)
DIFFERENCE = "Δ: the method with Sm minus the one without, split by split, mean ± standard deviation."
# the direction of a sign-aware score explains r^2 of the variance of the validation bags' logits: below one half, most
# of what the model does lies elsewhere, and a negative r says the opposite of the gradients it was made of
LEAST_AGREEMENT = 0.5**0.5
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
    lines += _partial(sections, found, titles, n_splits)
    if any(metric.startswith("instance") for metric in metrics):
        lines += _inverted(found, titles)
    if any(metric.startswith("signed") for metric in metrics):
        lines += _low_agreement(found, titles)
    protocol, quirks = shared_quirks(found.values(), "table")
    # runs that record no quirks may have had some
    recorded = all("quirks" in one for one in found.values())
    lines += protocol_line(protocol, quirks, recorded=recorded)
    lines += _features(columns, titles)
    lines += _cells(kinds, metrics)
    lines += [SPREAD] if "spread" in kinds else []
    lines += [DIFFERENCE] if "difference" in kinds else []
    known = {**definitions(quirks), **DEFINITIONS}
    lines += [known[metric] for metric in metrics if metric in known]
    lines += [RANK_RULE] if "rank" in kinds else []
    return (*lines, *_no_interval(columns, sections, found))


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
        title = _where(value.key, titles, several=several)
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


def _partial(sections: Sequence["Section"], found: Found, titles: Mapping[str, str], n_splits: int) -> list[str]:
    """Cells of the paper's table that lack splits, then what stands behind its ranks alone, then beside it."""
    section, shown, few = sections[0], set(), []
    for i, column in enumerate(section.columns):
        if column.kind not in ("mean", "difference"):
            continue
        shown |= {(metric, key) for metric in column.metrics for key in column.keys}
        for row in (row for rows in section.blocks.values() for row in rows):
            if 0 < len(row.cells[i].values) < n_splits:
                few.append(f"{row.name} {column.head} {column.label} {len(row.cells[i].values)}")
    # every learning rate is a run of its own there
    unit = "runs" if any("train_seconds" in column.metrics for column in section.columns) else "splits"
    lines = [f"Fewer than {n_splits} {unit}, number in brackets: {_names(few, '; ')}."] if few else []
    places: dict[bool, list[str]] = {False: [], True: []}
    several = len({key[1] for column in section.columns for key in column.keys}) > 1
    for value in _values(sections, found):
        if 0 < len(value.cell.values) < n_splits and (value.metric, value.key) not in shown:
            where = _where(value.key, titles, several=several)
            name = f"{display_name(value.method)} {where} {value.metric} {len(value.cell.values)}"
            places[value.beside].append(name)
    for beside, what in ((False, "Behind the ranks"), (True, "Beside the paper's table")):
        if places[beside]:
            lines.append(f"{what}, values of fewer than {n_splits} {unit}: {_names(places[beside], '; ')}.")
    return lines


def _inverted(found: Found, titles: Mapping[str, str]) -> list[str]:
    areas = {key: by_seed(one, "instance_auroc") for key, one in found.items()}
    odd, count, total = _odd_runs(areas, titles, 0.5)
    return [f"Inverted runs, instance AUROC < 0.5: {count} of {total}, in: {odd}."] if count else []


def _low_agreement(found: Found, titles: Mapping[str, str]) -> list[str]:
    told = {
        key: [(split["seed"], value) for split in one["splits"] if (value := split.get("signed_agreement")) is not None]
        for key, one in found.items()
    }
    odd, count, total = _odd_runs(told, titles, LEAST_AGREEMENT)
    if not count:
        return []
    why = "its direction explains less than half of the variance of the validation bags' logits"
    return [
        f"Sign-aware score not to be trusted, agreement < {LEAST_AGREEMENT:.2f} ({why}): {count} of {total}, in: {odd}."
    ]


def _odd_runs(
    values: Mapping[tuple[str, str, str], Sequence[tuple[int, float]]], titles: Mapping[str, str], least: float
) -> tuple[str, int, int]:
    """Names of the runs with a value below `least`, how many they are, and of how many.

    Args:
        values: (seed, value) of the runs by (dataset, encoder, method).
        titles: dataset name -> title.
        least: of a value that is not odd.
    """
    order, odd = list(METHODS), []
    several = len({key[1] for key in values}) > 1
    low = {key: [str(seed) for seed, value in own if value < least] for key, own in values.items()}
    for (*where, method), seeds in sorted(low.items(), key=lambda item: (item[0][:2], order.index(item[0][2]))):
        if seeds:
            place = _where((where[0], where[1]), titles, several=several)
            odd.append(f"{display_name(method)} on {place} (split {', '.join(seeds)})")
    return _names(odd, "; "), sum(map(len, low.values())), sum(map(len, values.values()))


def _no_interval(columns: Sequence[Column], sections: Sequence["Section"], found: Found) -> list[str]:
    """Metrics of the CSV whose bootstrap interval is empty, although runs have values."""
    shown = {metric for column in columns if column.kind == "mean" for metric in column.metrics}
    counts: dict[str, list[bool]] = {}
    for value in _values(sections, found):
        one = found.get((*value.key, value.method), {})
        if value.metric in shown and value.cell.values and "bootstrap" in one:
            counts.setdefault(value.metric, []).append(value.cell.ci is None)
    without = [f"{metric} ({sum(gone)} of {len(gone)} cells)" for metric, gone in counts.items() if any(gone)]
    return [f"No bootstrap interval in the CSV: {', '.join(without)}."] if without else []


def protocol_line(protocol: str, quirks: Collection[str], *, recorded: bool = True) -> list[str]:
    """The protocol and the quirks that differ from its preset, in one line; none without a protocol."""
    preset = f"{protocol} ({PRESETS[protocol]})" if recorded and protocol in PRESETS else protocol
    return [f"Protocol: {preset}{protocol_text(protocol, quirks).removeprefix(protocol)}."] if protocol else []


def _features(columns: Sequence[Column], titles: Mapping[str, str]) -> list[str]:
    encoders: dict[str, list[str]] = {}
    for dataset, encoder in (key for column in columns for key in column.keys):
        _add(encoders.setdefault(dataset, []), encoder)
    listed = "; ".join(f"{titles[name]}: {', '.join(own)}" for name, own in encoders.items())
    return [f"Features: {listed}."]


def _cells(kinds: Collection[str], metrics: Sequence[str]) -> list[str]:
    best = "Best of the block in bold, second underlined. ◆ proposed in the paper."
    if "train_seconds" in metrics:
        return [best]
    over = "training/validation splits; all splits share one test set, so they are not independent"
    cells = "mean ± standard deviation (n − 1)" if "mean" in kinds else "ranks of means"
    return [f"Cells: {cells} over the {over}. Learning rate chosen per split on validation, never on test. {best}"]


def _where(key: tuple[str, str], titles: Mapping[str, str], *, several: bool) -> str:
    """The title of a dataset, with the extractor where the table shows several."""
    dataset, encoder = key
    return titles[dataset] + (f" {ENCODERS.get(encoder, encoder)}" if several else "")


def _add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _names(names: Sequence[str], between: str = ", ") -> str:
    more = [f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return between.join([*names[:MOST_NAMED], *more])
