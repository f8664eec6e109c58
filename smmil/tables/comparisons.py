"""Table of every method with Sm against its base, compared by a paired bootstrap over the test bags.

Every dataset has a section, at its main encoder; a row is a method with Sm minus its base. A cell is the mean
difference of a metric over the splits, its standard deviation over the splits and its 95 % interval
(`smmil.evaluate.comparisons`), from stored predictions. A pair without predictions is an empty cell and is counted
under the table.

The layout names the pairs of every dataset (`smmil.config.layouts.PairLayout`):
    {"datasets": [{"name": "rsna", "title": "RSNA", "encoder": "resnet18", "pairs": [["smap_early", "abmil"], ...]}],
     "splits": 5}
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from smmil.artifacts.records import Comparison, ComparisonsFile, PredictionIndex
from smmil.config.definitions import definitions, rate_choice_text, shared_quirks
from smmil.config.layouts import PairDataset, PairLayout
from smmil.config.methods import GROUPS, METHODS, PROPOSED, display_name, group_of
from smmil.evaluate.comparisons import compare
from smmil.tables.cells import Cell, Row, Section, Table
from smmil.tables.notes import protocol_line, random_weights_note, split_notes
from smmil.tables.specs import Column, style

logger = logging.getLogger(__name__)


METRICS = {
    "instance_auroc": "Instance AUROC",
    "instance_auroc_within": "In-bag AUROC",
    "signed_instance_auroc": "Sign-aware AUROC",
    "signed_sm_instance_auroc": "Smoothed sign-aware AUROC",
    "bag_auroc": "Bag AUROC",
    "dirichlet_normalised": "Normalised energy",
}
MEANING = (
    "Δ: the method with Sm minus its base, mean over the splits ± standard deviation over the splits (n − 1); in "
    "brackets the 95 % interval of the mean from a paired bootstrap over the test bags ({resamples} draws, in each the "
    "same bags for both methods and all splits)."
)
CHANCE = (
    "The interval sees the chance in which test bags there are. It does not see the chance of training (split, initial "
    "weights, order of the bags), which the deviation over the splits shows, nor that many pairs and metrics are "
    "looked at: of twenty intervals of equal methods one misses 0. Where runs are inverted (Table 1), smoothing can "
    "lower the instance AUROC; the sign-aware one stands beside it, raw and smoothed. Of the energy less is smoother, "
    "not better."
)
PairingKey = tuple[str, str, str]
Pair = tuple[str, str]
# (dataset, pair) -> its comparison
Results = Mapping[tuple[str, Pair], Comparison]


def compare_pairs(indexes: Mapping[PairingKey, Path], layout: PairLayout, *, resamples: int, seed: int = 0) -> Results:
    """Compare every pair of a layout that has predictions.

    Args:
        indexes: `index.json` of the predictions by (dataset, encoder, method); pairs with a missing one are left out.
        layout: the pairs of every dataset.
        resamples: draws of the bootstrap; 0 omits the intervals.
        seed: seed of the draws.

    Raises:
        ValueError: no datasets, or predictions of different bags.
    """
    if not layout.datasets:
        raise ValueError(f"--layout: found no datasets, expected {layout.EXPECTED}")
    results: dict[tuple[str, Pair], Comparison] = {}
    for dataset in layout.datasets:
        for pair in dataset.pairs:
            first, second = (indexes.get((dataset.name, dataset.encoder, method)) for method in pair)
            if first is not None and second is not None:
                logger.info("%s: %s", dataset.name, _name(pair))
                results[dataset.name, pair] = compare(first, second, [*METRICS], resamples=resamples, seed=seed)
    return results


def as_file(results: Results, layout: PairLayout) -> ComparisonsFile:
    """Return the record of all comparisons, in the order of the layout."""
    titles = {dataset.name: dataset.title for dataset in layout.datasets}
    return ComparisonsFile(titles=titles, comparisons=tuple(results.values()))


def build(results: Results, layout: PairLayout, *, resamples: int) -> Table:
    """Build the table of all comparisons; pairs without one are empty cells.

    Args:
        results: of `compare_pairs`.
        layout: the same layout.
        resamples: draws of the bootstrap.

    Returns:
        The table. The section of a dataset has all rows, with "–" where the dataset has no such pair.

    Raises:
        ValueError: two protocols or different sets of quirks.
    """
    sides = [side for result in results.values() for side in (result.first, result.second)]
    protocol, quirks = shared_quirks(sides, "table")
    random = {name for (name, _), result in results.items() if result.random_weights}
    metrics = [
        metric
        for metric in METRICS
        if not results or any(result.metrics[metric].splits is not None for result in results.values())
    ]
    features = "; ".join(f"{dataset.title}: {dataset.encoder}" for dataset in layout.datasets)
    lines = (
        random_weights_note(dataset.title for dataset in layout.datasets if dataset.name in random),
        _missing(layout, results, metrics),
        _undefined(results, metrics),
        protocol_line(protocol, quirks),
        *split_notes(layout.datasets),
        f"Features: {features}.",
        MEANING.format(resamples=f"{resamples:,}"),
        rate_choice_text(side.learning_rate_choice for side in sides),
        CHANCE,
        f"{PROPOSED} proposed in the paper; –: not trained here.",
        *(definitions(quirks)[metric] for metric in metrics),
    )
    return Table(
        "comparisons",
        "Sm against its base",
        tuple(_section(dataset, _groups(layout), results, metrics) for dataset in layout.datasets),
        layout.splits,
        protocol or "none (no predictions)",
        tuple(filter(None, lines)),
        frozenset((dataset.name, dataset.encoder) for dataset in layout.datasets if dataset.name in random),
    )


def by_pairing(indexes: Sequence[Path]) -> dict[PairingKey, Path]:
    """Return index files by (dataset, encoder, method).

    Raises:
        ValueError: two of one pairing, or a damaged file.
    """
    by_key: dict[PairingKey, Path] = {}
    for path in indexes:
        index = PredictionIndex.read(path)
        key = (index.dataset, index.encoder, index.method)
        if key in by_key:
            raise ValueError(f"{path}: found a second index of {' / '.join(key)} beside {by_key[key]}, expected one")
        by_key[key] = path
    return by_key


def _name(pair: Pair) -> str:
    return " − ".join(map(display_name, pair))


def _groups(layout: PairLayout) -> dict[str, list[Pair]]:
    """Return the pairs of all datasets by group, in the order of the tables."""
    order = list(METHODS)
    pairs = sorted({pair for dataset in layout.datasets for pair in dataset.pairs}, key=lambda p: order.index(p[0]))
    groups = {group: [pair for pair in pairs if group_of(pair[0]) == group] for group in GROUPS}
    return {group: members for group, members in groups.items() if members}


def _section(
    dataset: PairDataset, groups: Mapping[str, Sequence[Pair]], results: Results, metrics: Sequence[str]
) -> Section:
    key = (dataset.name, dataset.encoder)
    columns = tuple(
        Column("paired", (metric,), "Δ (95 %)", f"{'.'.join(key)}.{metric}.difference", METRICS[metric], (key,))
        for metric in metrics
    )
    blocks = {group: tuple(_row(dataset, pair, results, metrics) for pair in pairs) for group, pairs in groups.items()}
    return Section(dataset.name, f"{dataset.title} ({dataset.encoder})", columns, blocks)


def _row(dataset: PairDataset, pair: Pair, results: Results, metrics: Sequence[str]) -> Row:
    result = results.get((dataset.name, pair))
    cells = [_cell(result, metric) if pair in dataset.pairs else Cell(applies=False) for metric in metrics]
    return Row(pair[0], _name(pair), tuple(cells), (None,) * len(metrics))


def _cell(result: Comparison | None, metric: str) -> Cell:
    """Return a difference with its interval; the note of an empty cell gives the reason."""
    larger = style(metric)[1]
    if result is None:
        return Cell(note="no predictions of one of the two", larger=larger)
    values = result.metrics[metric]
    if values.splits is None:
        return Cell(note=values.reason, larger=larger)
    return Cell(values.splits, len(result.seeds), values.interval, larger=larger)


def _undefined(results: Results, metrics: Sequence[str]) -> str:
    """Name the metrics that no pair has, with the reason."""
    reasons: dict[str, list[str]] = {}
    for metric in METRICS.keys() - {*metrics}:
        reasons.setdefault(next(iter(results.values())).metrics[metric].reason, []).append(METRICS[metric])
    listed = "; ".join(f"{', '.join(sorted(names))} ({reason})" for reason, names in sorted(reasons.items()))
    return f"Left out, without any value: {listed}." if listed else ""


def _missing(layout: PairLayout, results: Results, metrics: Sequence[str]) -> str:
    """Count and name the empty differences."""
    pairs = [(dataset, pair) for dataset in layout.datasets for pair in dataset.pairs]
    empty, gaps = 0, dict[str, dict[str, None]]()
    for dataset, pair in pairs:
        result = results.get((dataset.name, pair))
        for metric in metrics:
            cell = _cell(result, metric)
            if not cell.values:
                empty += 1
                label = f"{dataset.title} {_name(pair)}" + ("" if result is None else f" {METRICS[metric]}")
                gaps.setdefault(cell.note, {})[label] = None
    listed = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in gaps.items())
    return f"{empty} of {len(pairs) * len(metrics)} differences are empty. {listed}." if gaps else ""
