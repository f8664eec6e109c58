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

from smmil.artifacts.records import Comparison, PredictionIndex
from smmil.config.definitions import definitions, rate_choice_text, shared_quirks
from smmil.config.layouts import PairDataset, PairLayout
from smmil.config.methods import GROUPS, METHODS, PROPOSED, display_name, group_of
from smmil.evaluate.comparisons import compare
from smmil.tables.cells import Cell, Row, Section, Table
from smmil.tables.notes import grouped, protocol_line, random_weights_note, split_notes
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
Pair = tuple[str, str]
# (dataset, pair) -> its comparison
Results = Mapping[tuple[str, Pair], Comparison]


def compare_pairs(indexes: Sequence[Path], layout: PairLayout, *, resamples: int, seed: int = 0) -> Results:
    """Compare every pair of a layout that has an `index.json` of both; 0 resamples omit the intervals.

    Raises:
        ValueError: no datasets, two indexes of one pairing, or predictions of different bags.
    """
    if not layout.datasets:
        raise ValueError(f"--layout: found no datasets, expected {layout.EXPECTED}")
    by_key: dict[tuple[str, str, str], Path] = {}
    for path in indexes:
        index = PredictionIndex.read(path)
        key = (index.dataset, index.encoder, index.method)
        if key in by_key:
            raise ValueError(f"{path}: found a second index of {' / '.join(key)} beside {by_key[key]}, expected one")
        by_key[key] = path
    results: dict[tuple[str, Pair], Comparison] = {}
    for dataset in layout.datasets:
        for pair in dataset.pairs:
            first, second = (by_key.get((dataset.name, dataset.encoder, method)) for method in pair)
            if first is not None and second is not None:
                logger.info("%s: %s", dataset.name, _name(pair))
                results[dataset.name, pair] = compare(first, second, [*METRICS], resamples=resamples, seed=seed)
    return results


def build(results: Results, layout: PairLayout, *, resamples: int) -> Table:
    """Build the table of the results of `compare_pairs`; pairs without one are empty cells.

    The section of a dataset has all rows, with "–" where the dataset has no such pair.

    Raises:
        ValueError: two protocols or different sets of quirks.
    """
    sides = [side for result in results.values() for side in (result.first, result.second)]
    protocol, quirks = shared_quirks(sides, "table")
    random = [d for d in layout.datasets if any(r.random_weights for (name, _), r in results.items() if name == d.name)]
    every = [result.metrics for result in results.values()]
    metrics = [metric for metric in METRICS if not every or any(values[metric].splits is not None for values in every)]
    reasons = grouped((every[0][metric].reason, METRICS[metric]) for metric in METRICS if metric not in metrics)
    left_out = "; ".join(f"{', '.join(sorted(names))} ({reason})" for reason, names in sorted(reasons.items()))
    features = "; ".join(f"{dataset.title}: {dataset.encoder}" for dataset in layout.datasets)
    lines = (
        random_weights_note(dataset.title for dataset in random),
        _missing(layout, results, metrics),
        f"Left out, without any value: {left_out}." if left_out else "",
        protocol_line(protocol, quirks),
        *split_notes(layout.datasets),
        f"Features: {features}.",
        MEANING.format(resamples=f"{resamples:,}"),
        rate_choice_text(side.learning_rate_choice for side in sides),
        CHANCE,
        f"{PROPOSED} proposed in the paper; –: not trained here.",
        *(definitions(quirks)[metric] for metric in metrics),
    )
    # pairs of all datasets in the order of the tables
    unique = {pair for dataset in layout.datasets for pair in dataset.pairs}
    pairs = sorted(unique, key=lambda pair: [*METHODS].index(pair[0]))
    return Table(
        "comparisons",
        "Sm against its base",
        tuple(_section(dataset, pairs, results, metrics) for dataset in layout.datasets),
        layout.splits,
        protocol or "none (no predictions)",
        tuple(filter(None, lines)),
        frozenset((dataset.name, dataset.encoder) for dataset in random),
    )


def _name(pair: Pair) -> str:
    return " − ".join(map(display_name, pair))


def _section(dataset: PairDataset, pairs: Sequence[Pair], results: Results, metrics: Sequence[str]) -> Section:
    key = (dataset.name, dataset.encoder)
    columns = tuple(
        Column("paired", (metric,), "Δ (95 %)", f"{'.'.join(key)}.{metric}.difference", METRICS[metric], (key,))
        for metric in metrics
    )
    blocks: dict[str, tuple[Row, ...]] = {}
    for group in GROUPS:
        if members := [pair for pair in pairs if group_of(pair[0]) == group]:
            blocks[group] = tuple(_row(dataset, pair, results, metrics) for pair in members)
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


def _missing(layout: PairLayout, results: Results, metrics: Sequence[str]) -> str:
    """Count and name the empty differences."""
    pairs = [(dataset, pair) for dataset in layout.datasets for pair in dataset.pairs]
    gaps = []
    for dataset, pair in pairs:
        result = results.get((dataset.name, pair))
        for metric in metrics:
            cell = _cell(result, metric)
            if not cell.values:
                gaps.append((cell.note, f"{dataset.title} {_name(pair)}" + (f" {METRICS[metric]}" if result else "")))
    listed = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in grouped(gaps).items())
    return f"{len(gaps)} of {len(pairs) * len(metrics)} differences are empty. {listed}." if gaps else ""
