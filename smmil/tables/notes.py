"""Notes under a table: missing values, warnings, protocol and definitions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeVar

from preprocessing.features.encoders import encoder_title
from smmil.artifacts.results import inverted, split_values
from smmil.config.definitions import PRESETS, definitions, protocol_text, rate_choice_text, shared_quirks
from smmil.config.layouts import Dataset, TableLayout
from smmil.config.methods import METHODS, display_name
from smmil.config.variants import SEPARATOR, Variant, base_method
from smmil.evaluate.signs import LEAST_SUPPORT, UNSUPPORTED, sign_support
from smmil.tables.cells import INVERTED, NO_CALL, NO_FILE, Cell, MetricsByKey, Section, leaves_range, metric_cell
from smmil.tables.originals import original_of
from smmil.tables.specs import Column, Key

RANK_RULE = (
    "Rank: inside each group, methods are ranked by AUROC and by F1 on every dataset (ties share the average rank), "
    "then averaged; other columns do not count; no rank where a cell is empty. In brackets: the fewest splits of a "
    "cell behind it, where any lacks some."
)
RANDOM_WEIGHTS = (
    "† RANDOM ENCODER WEIGHTS: the features of {where} come from an untrained encoder; these numbers only show that "
    "the pipeline runs."
)
SPREAD = (
    "Spread over the runs: median / worst run (of energies the largest), and for AUROCs / the number of inverted runs "
    "(the AUROC is below 0.5): bag labels do not fix the sign of the attention, so a mean can hide runs that point the "
    "wrong way."
)
DIFFERENCE = "Δ: the method with Sm minus the one without, split by split, mean ± standard deviation."
BEST = (
    "Best of the block in bold, second underlined, where the gap to the next value exceeds its uncertainty: the 95 % "
    "t-interval of the paired difference over the splits excludes 0; with two splits, each mean also lies outside the "
    "other's bootstrap interval; one split is never marked. ◆ proposed in the paper."
)
RANGE = "(a–b): smallest and largest split, where mean ± deviation would leave the range of the metric."
SIGNS = {
    INVERTED: "⇅ AUROC below 0.5 in at least one run: it ranks upside down, or worse than chance.",
    NO_CALL: "‡ F1 of 0 in at least one run with an AUROC above 0.5: the fault is the threshold's, not the ranking's.",
}
CELLS = (
    "Cells: {cells} over the training/validation splits; all splits share one test set, so they are not independent."
)
# the other metrics are defined in `smmil.config.definitions`
DEFINITIONS = {
    "train_seconds": "Seconds of one training: all epochs with their validation, from the run's log, mean ± standard "
    "deviation over all splits and learning rates; loading the features is not in it.",
    "memory_mib": "Peak memory: largest resident memory of a process that trained the method, the loaded features "
    "included, MiB.",
    "device_memory_mib": "Peak GPU memory: the most that the tensors of such a process took on the GPU, MiB.",
}
# longer lists are cut
MOST_NAMED = 20
Head = TypeVar("Head")


class _Value(NamedTuple):
    """One value of a table; `beside` where only the sections after the paper's table need it."""

    beside: bool
    method: str
    metric: str
    key: Key
    cell: Cell


def notes(sections: Sequence[Section], metrics: MetricsByKey, layout: TableLayout, n_splits: int) -> tuple[str, ...]:
    """Return the lines to print under a table, the most alarming first.

    Args:
        sections: sections of the table, the paper's first.
        metrics: metrics in the table by (dataset, encoder, method).
        layout: datasets of the table, and a line that is printed first.
        n_splits: splits of a complete cell.
    """
    titles = {dataset.name: dataset.title for dataset in layout.datasets}
    columns = [column for section in sections for column in section.columns]
    kinds = {column.kind for column in columns}
    names = list(dict.fromkeys(metric for column in columns for metric in column.metrics))
    pooled, signed = (any(name.startswith(prefix) for name in names) for prefix in ("instance", "signed"))
    values = _values(sections, metrics)
    protocol, quirks = shared_quirks(metrics.values(), "table")
    known = {**definitions(quirks), **DEFINITIONS}
    areas = {key: split_values(entry, "instance_auroc") for key, entry in metrics.items()}
    supports = {
        key: [(split.seed, support) for split in entry.splits if (support := sign_support(split)) is not None]
        for key, entry in metrics.items()
    }
    cells = CELLS.format(cells="mean ± standard deviation (n − 1)" if "mean" in kinds else "ranks of means")
    rates = rate_choice_text(entry.learning_rate_choice for entry in metrics.values())
    lines = [
        layout.note,
        random_weights_note(titles[key[0]] for key, entry in metrics.items() if entry.random_weights),
        *_missing(sections, values, titles),
        *_partial(sections[0], values, titles, n_splits),
        _low_runs("Inverted runs, instance AUROC < 0.5", areas, titles, 0.5) if pooled else "",
        _low_runs(UNSUPPORTED, supports, titles, LEAST_SUPPORT) if signed else "",
        # runs without recorded quirks may have had some
        protocol_line(protocol, quirks, recorded=all(entry.quirks is not None for entry in metrics.values())),
        *split_notes(layout.datasets),
        _options(metrics),
        _features(columns, titles),
        _departures(value.method for value in values),
        _one_scale(value.method for value in values) if pooled else "",
        BEST if "train_seconds" in names else " ".join(filter(None, (cells, rates, BEST))),
        *_signs(sections),
        SPREAD if "spread" in kinds else "",
        DIFFERENCE if "difference" in kinds else "",
        *(known[name] for name in names if name in known),
        _bags_within(metrics, titles) if any(name.endswith("_within") for name in names) else "",
        RANK_RULE if "rank" in kinds else "",
        _no_interval(columns, values, metrics),
    ]
    return tuple(filter(None, lines))


def _signs(sections: Sequence[Section]) -> list[str]:
    """Return what signs and ranges mean, as far as the table has any."""
    means = [(column, cell) for section in sections for _, column, cell in section.cells() if column.kind == "mean"]
    lines = [RANGE] if any(leaves_range(column, cell) for column, cell in means) else []
    return lines + [text for sign, text in SIGNS.items() if any(sign in cell.signs for _, cell in means)]


def _bags_within(metrics: MetricsByKey, titles: Mapping[str, str]) -> str:
    """Return over how many positive test bags the in-bag AUROC is averaged: `27 of 30 (RSNA)`; "" without any."""
    tests = [(titles[key[0]], split.test) for key, entry in metrics.items() for split in entry.splits]
    counts = [(title, test.n_in_bag, test.n_in_bag + test.n_not_in_bag) for title, test in tests]
    listed = ", ".join(dict.fromkeys(f"{ranked} of {total} ({title})" for title, ranked, total in counts if total))
    left_out = any(ranked < total for _, ranked, total in counts)
    rest = "; the others lack labels or hold instances of one class" if left_out else ""
    return f"In-bag AUROC over positive test bags: {listed}{rest}." if listed else ""


def random_weights_note(titles: Iterable[str]) -> str:
    """Return the warning about datasets with an untrained encoder, "" without any."""
    where = ", ".join(sorted(set(titles)))
    return RANDOM_WEIGHTS.format(where=where) if where else ""


def _values(sections: Sequence[Section], metrics: MetricsByKey) -> list[_Value]:
    """Return every value of a table once; ranks stand for the values they are computed from."""
    values: dict[tuple[str, str, Key], _Value] = {}
    for i, section in enumerate(sections):
        for column in section.columns:
            if column.kind != "job":
                for row, key, metric in product(section.rows, column.keys, column.metrics):
                    if (row.method, metric, key) not in values:
                        cell = metric_cell(metrics.get((*key, row.method)), metric)
                        values[row.method, metric, key] = _Value(i > 0, row.method, metric, key, cell)
    return list(values.values())


def _missing(sections: Sequence[Section], values: Sequence[_Value], titles: Mapping[str, str]) -> list[str]:
    """Return a line for the paper's table, and one for values of other sections that are missing in existing runs."""
    lines = []
    several = len({value.key[1] for value in values}) > 1
    main = [value for value in values if not value.beside]
    if empty := [value for value in main if not value.cell.values]:
        listed = _by_reason((_where(value.key, titles, several=several), value) for value in empty)
        ranks = " behind the ranks" if all(column.kind == "rank" for column in sections[0].columns) else ""
        lines.append(f"{len(empty)} of {len(main)} cells{ranks} are empty. {listed}.")
    beside = [value for value in values if value.beside and value.cell.note != NO_FILE]
    if empty := [value for value in beside if not value.cell.values]:
        listed = _by_reason((value.metric, value) for value in empty)
        lines.append(f"Beside the paper's table, {len(empty)} of {len(beside)} values are missing. {listed}.")
    jobs = [cell for section in sections for _, column, cell in section.cells() if column.kind == "job"]
    if n_empty := sum(not cell.values for cell in jobs):
        lines.append(f"Peak memory: {n_empty} of {len(jobs)} cells are empty (no training, or no record of it).")
    return lines


def _by_reason(values: Iterable[tuple[str, _Value]]) -> str:
    """Return the methods of empty values under their heads, with the reason."""
    groups = grouped(((head, value.cell.note), display_name(value.method)) for head, value in values)
    return "; ".join(f"{head}: {_names(names)} ({reason})" for (head, reason), names in groups.items())


def grouped(pairs: Iterable[tuple[Head, str]]) -> dict[Head, list[str]]:
    """Return the names under every head, each once, in the order of their first occurrence."""
    groups: dict[Head, dict[str, None]] = {}
    for head, name in pairs:
        groups.setdefault(head, {})[name] = None
    return {head: [*names] for head, names in groups.items()}


def _partial(section: Section, values: Sequence[_Value], titles: Mapping[str, str], n_splits: int) -> list[str]:
    """Return cells of the paper's table that lack splits, values behind its ranks, and values of other sections."""
    columns = [column for column in section.columns if column.kind in ("mean", "difference")]
    cells = [
        f"{row.name} {column.head} {column.label} {len(row.cells[i].values)}"
        for i, column in enumerate(section.columns)
        for row in section.rows
        if column in columns and 0 < len(row.cells[i].values) < n_splits
    ]
    listed = {(metric, key) for column in columns for metric in column.metrics for key in column.keys}
    several = len({key[1] for column in section.columns for key in column.keys}) > 1
    of_ranks, of_tables = list[str](), list[str]()
    for value in values:
        n = len(value.cell.values)
        if 0 < n < n_splits and (value.metric, value.key) not in listed:
            where = _where(value.key, titles, several=several)
            (of_tables if value.beside else of_ranks).append(f"{display_name(value.method)} {where} {value.metric} {n}")
    # in the table of resources, every learning rate is a run
    unit = "runs" if any("train_seconds" in column.metrics for column in section.columns) else "splits"
    lines = {
        f"Fewer than {n_splits} {unit}, number in brackets": cells,
        f"Behind the ranks, values of fewer than {n_splits} {unit}": of_ranks,
        f"Beside the paper's table, values of fewer than {n_splits} {unit}": of_tables,
    }
    return [f"{head}: {_names(names, '; ')}." for head, names in lines.items() if names]


def _low_runs(
    what: str,
    values: Mapping[tuple[str, str, str], Sequence[tuple[int, float]]],
    titles: Mapping[str, str],
    least: float,
) -> str:
    """Count and name the runs with a value below `least`: `2 of 9, in: SmAP on RSNA (split 1, 2)`; "" for none.

    `values` are the (seed, value) of the runs by (dataset, encoder, method).
    """
    order, names, count = list(METHODS), [], 0
    several = len({key[1] for key in values}) > 1
    for key in sorted(values, key=lambda key: (key[:2], order.index(key[2]))):
        if seeds := inverted(values[key], least):
            count += len(seeds)
            where = _where(key[:2], titles, several=several)
            names.append(f"{display_name(key[2])} on {where} (split {', '.join(map(str, seeds))})")
    return f"{what}: {count} of {sum(map(len, values.values()))}, in: {_names(names, '; ')}." if names else ""


def _no_interval(columns: Sequence[Column], values: Sequence[_Value], metrics: MetricsByKey) -> str:
    """Return the metrics whose bootstrap interval is empty in the CSV, although runs have values."""
    means = {metric for column in columns if column.kind == "mean" for metric in column.metrics}
    counts: dict[str, list[bool]] = {}
    for value in values:
        entry = metrics.get((*value.key, value.method))
        if value.metric in means and value.cell.values and entry and entry.bootstrap:
            counts.setdefault(value.metric, []).append(value.cell.ci is None)
    without = [f"{metric} ({sum(empty)} of {len(empty)} cells)" for metric, empty in counts.items() if any(empty)]
    return f"No bootstrap interval in the CSV: {', '.join(without)}." if without else ""


def split_notes(datasets: Iterable[Dataset]) -> list[str]:
    """Return a line for every dataset whose bags were sampled."""
    return [f"Split of {dataset.title}: {dataset.split_note}." for dataset in datasets if dataset.split_note]


def protocol_line(protocol: str, quirks: Collection[str], *, recorded: bool = True) -> str:
    """Return the protocol with the quirks that differ from its preset, "" without a protocol."""
    preset = f"{protocol} ({PRESETS[protocol]})" if recorded and protocol in PRESETS else protocol
    return f"Protocol: {preset}{protocol_text(protocol, quirks).removeprefix(protocol)}." if protocol else ""


def _options(metrics: MetricsByKey) -> str:
    """Return the arguments that the configuration gives to methods, "" for none; quirks have a line of their own."""
    changed = []
    for key in sorted(metrics, key=lambda key: (key[2], key)):
        method, options = key[2], metrics[key].method_options
        varied = Variant.parse(method).argument if SEPARATOR in method else ""
        values = [f"{name} = {options[name]}" for name in sorted({*options} - {"quirks", varied})]
        changed += [f"{display_name(method)} ({', '.join(values)})"] if values else []
    return f"Arguments set by the configuration: {'; '.join(dict.fromkeys(changed))}." if changed else ""


def _features(columns: Sequence[Column], titles: Mapping[str, str]) -> str:
    encoders = grouped(key for column in columns for key in column.keys)
    listed = "; ".join(f"{titles[name]}: {', '.join(names)}" for name, names in encoders.items())
    return f"Features: {listed}."


def _departures(methods: Iterable[str]) -> str:
    """Return what the methods of a table do otherwise than their originals, "" for nothing."""
    originals = ((display_name(method), original_of(method)) for method in map(base_method, methods))
    groups = grouped(
        (departure.note, name) for name, original in originals if original for departure in original.departures
    )
    listed = "; ".join(f"{note}: {', '.join(names)}" for note, names in groups.items() if note)
    return f"Chosen here, not the original's (docs/reference/methods.md): {listed}." if listed else ""


def _one_scale(methods: Iterable[str]) -> str:
    """Return which scores depend on the size or the logit of their bag, "" where none does."""
    names = [display_name(m) for m in dict.fromkeys(methods) if not METHODS[base_method(m)].scores_compare]
    return (
        f"Scores of {', '.join(names)} have no common scale: a bag's size or logit sets it, so metrics over all "
        "instances also compare bags."
        if names
        else ""
    )


def _where(key: Key, titles: Mapping[str, str], *, several: bool) -> str:
    """Return the title of a dataset, with the extractor where the table shows several."""
    dataset, encoder = key
    return titles[dataset] + (f" {encoder_title(encoder)}" if several else "")


def _names(names: Sequence[str], between: str = ", ") -> str:
    more = [f"and {len(names) - MOST_NAMED} more"] if len(names) > MOST_NAMED else []
    return between.join([*names[:MOST_NAMED], *more])
