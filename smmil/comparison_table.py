"""The table `comparisons`: every method with Sm against its base, a paired bootstrap over the test bags each.

One section per dataset, at its main encoder; a row is a method with Sm, and says which base is subtracted. Per metric
the mean over splits of metric(with Sm) - metric(base) with its standard deviation over the splits, and its
95 % interval (`smmil.comparisons`). From stored predictions alone. A pair without predictions is an empty cell and is
counted under the table.

Layout (JSON; `smmil.outputs.table_layout` makes it from a configuration):
    {"datasets": [{"name": "rsna", "title": "RSNA", "encoder": "resnet18", "pairs": [["smap_early", "abmil"], ...]}],
     "splits": 5}

Run alone:
    python -m smmil.comparison_table --index results/*/predictions/*/*/index.json --layout layout.json
        --out-csv comparisons.csv --out-md comparisons.md --out-tex comparisons.tex --out-html comparisons.html
        [--resamples 1000]
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_text
from smmil.definitions import definitions, shared_quirks
from smmil.methods_table import GROUPS, METHODS, display_name, group_of
from smmil.table_cells import Cell, Column
from smmil.table_notes import RANDOM_WEIGHTS, protocol_line
from smmil.table_specs import style
from smmil.tables import Row, Section, Table

log = logging.getLogger(__name__)

STAGE_VERSION = 3

METRICS = {
    "instance_auroc": "Instance AUROC",
    "signed_instance_auroc": "Sign-aware instance AUROC",
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
    "lower the instance AUROC; the sign-aware one stands beside it. Of the energy less is smoother, not better."
)
NO_PREDICTIONS = "no predictions of one of the two"
Key = tuple[str, str, str]


def build(indexes: Mapping[Key, Path], layout: Mapping[str, Any], *, resamples: int, seed: int = 0) -> Table:
    """Compares every pair of a layout.

    Args:
        indexes: `index.json` of the predictions by (dataset, encoder, method); those that are missing are empty cells.
        layout: see the module docstring.
        resamples: of the bootstrap; 0 leaves the intervals out.
        seed: of its draws.

    Returns:
        The table; a dataset's section has all rows, "–" where it has no such pair.

    Raises:
        ValueError: a wrong layout, predictions of other bags, or two protocols or sets of quirks.
    """
    from smmil.comparisons import compare

    check_layout(layout)
    found: dict[Key, dict[str, Any]] = {}
    for one in layout["datasets"]:
        for pair in one["pairs"]:
            ours, base = (indexes.get((one["name"], one["encoder"], method)) for method in pair)
            if ours is not None and base is not None:
                log.info("%s: %s", one["name"], _name(*pair))
                key = (one["name"], one["encoder"], pair[0])
                found[key] = compare(ours, base, [*METRICS], resamples=resamples, seed=seed)
    protocol, quirks = shared_quirks((one[side] for one in found.values() for side in ("first", "second")), "table")
    sections = tuple(_section(one, _rows(layout), found) for one in layout["datasets"])
    random = frozenset(key[:2] for key, one in found.items() if one["random_weights"])
    lines = (
        *_missing(layout, found),
        *protocol_line(protocol, quirks),
        *_meaning(layout, resamples),
        *(definitions(quirks)[metric] for metric in METRICS),
    )
    shown = protocol or "none (no predictions)"
    return Table("comparisons", "Sm against its base", sections, layout["splits"], shown, lines, random)


def check_layout(layout: Mapping[str, Any]) -> None:
    """Checks a layout.

    Raises:
        ValueError: with what was found and what is expected.
    """
    if set(layout) != {"datasets", "splits"} or not layout["datasets"]:
        raise ValueError(f"--layout: found the keys {sorted(layout)}, expected datasets (one at least) and splits")
    for one in layout["datasets"]:
        if not {"name", "encoder", "pairs"} <= set(one) <= {"name", "title", "encoder", "pairs"} or not one["pairs"]:
            raise ValueError(f"--layout: datasets: found {one}, expected name, encoder, pairs (one at least) [, title]")
        strange = [pair for pair in one["pairs"] if len(pair) != 2 or not set(pair) <= set(METHODS)]
        if strange:
            raise ValueError(f"--layout: pairs: found {strange}, expected two keys of smmil.methods_table.METHODS each")


def by_pairing(indexes: Sequence[Path]) -> dict[Key, Path]:
    """Index files by the (dataset, encoder, method) of the predictions they list.

    Raises:
        ValueError: two of one pairing, or a damaged file.
    """
    from smmil.results import load_predictions, read_index

    found: dict[Key, Path] = {}
    for path in indexes:
        meta = load_predictions(read_index(path)[0]).meta
        key = (meta["dataset"], meta["encoder"], meta["method"])
        if key in found:
            raise ValueError(f"{path}: found a second index of {' / '.join(key)} beside {found[key]}, expected one")
        found[key] = path
    return found


def _name(method: str, base: str) -> str:
    return f"{display_name(method)} − {display_name(base)}"


def _rows(layout: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """The pairs of all datasets by group, in the order of the tables."""
    pairs = {(pair[0], pair[1]) for one in layout["datasets"] for pair in one["pairs"]}
    ordered = sorted(pairs, key=lambda pair: [*METHODS].index(pair[0]))
    groups = {group: [pair for pair in ordered if group_of(pair[0]) == group] for group in GROUPS}
    return {group: own for group, own in groups.items() if own}


def _section(
    dataset: Mapping[str, Any], rows: Mapping[str, list[tuple[str, str]]], found: Mapping[Key, dict[str, Any]]
) -> Section:
    name, encoder = dataset["name"], dataset["encoder"]
    columns = tuple(
        Column(title, "Δ (95 %)", "paired", (metric,), ((name, encoder),), f"{name}.{encoder}.{metric}.difference")
        for metric, title in METRICS.items()
    )
    blocks = {}
    for group, pairs in rows.items():
        made = []
        for pair in pairs:
            if [*pair] not in dataset["pairs"]:
                cells = [Cell(applies=False) for _ in columns]
            else:
                one = found.get((name, encoder, pair[0]))
                cells = [_cell(one, metric) for metric in METRICS]
            made.append(Row(pair[0], _name(*pair), tuple(cells), tuple(None for _ in cells)))
        blocks[group] = tuple(made)
    return Section(name, f"{dataset.get('title', name)} ({encoder})", columns, blocks)


def _cell(one: Mapping[str, Any] | None, metric: str) -> Cell:
    """A difference with its interval; an empty cell says why."""
    larger = style(metric)[1]
    if one is None:
        return Cell(note=NO_PREDICTIONS, larger=larger)
    values = one["metrics"][metric]
    if values["difference"] is None:
        return Cell(note=values["reason"], larger=larger)
    runs = (*one["first"]["runs"], *one["second"]["runs"])
    ci = (values["interval"][0], values["interval"][1]) if values["interval"] else None
    return Cell(tuple(values["splits"]), len(one["seeds"]), ci, runs, larger=larger)


def _titles(layout: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("title", one["name"]) for one in layout["datasets"]}


def _missing(layout: Mapping[str, Any], found: Mapping[Key, dict[str, Any]]) -> list[str]:
    """What to distrust and what is not there."""
    titles, lines = _titles(layout), []
    random = sorted({titles[key[0]] for key, one in found.items() if one["random_weights"]})
    if random:
        lines.append(RANDOM_WEIGHTS.format(where=", ".join(random)))
    pairs = [(one, pair) for one in layout["datasets"] for pair in one["pairs"]]
    empty, gaps = 0, dict[str, list[str]]()
    for one, pair in pairs:
        values = found.get((one["name"], one["encoder"], pair[0]))
        for metric, title in METRICS.items():
            cell = _cell(values, metric)
            if not cell.values:
                empty += 1
                what = f"{titles[one['name']]} {_name(*pair)}" + ("" if values is None else f" {title}")
                gaps.setdefault(cell.note, []).append(what)
    if gaps:
        listed = "; ".join(f"{why}: {', '.join(dict.fromkeys(names))}" for why, names in gaps.items())
        lines.append(f"{empty} of {len(pairs) * len(METRICS)} differences are empty. {listed}.")
    return lines


def _meaning(layout: Mapping[str, Any], resamples: int) -> list[str]:
    titles = _titles(layout)
    features = "; ".join(f"{titles[one['name']]}: {one['encoder']}" for one in layout["datasets"])
    drawn = MEANING.format(resamples=f"{resamples:,}")
    return [f"Features: {features}.", drawn, CHANCE, "◆ proposed in the paper; –: not trained here."]


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m smmil.comparison_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--index", nargs="*", default=[], type=Path, help="index.json per method; missing = a gap")
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and their pairs")
    parser.add_argument("--resamples", type=int, default=1000, help="draws of the test bags, 0 = no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out-csv", type=Path, required=True, help="every number, one row per pair")
    parser.add_argument("--out-md", type=Path, required=True, help="Markdown")
    parser.add_argument("--out-tex", type=Path, required=True, help="LaTeX, needs \\usepackage{booktabs}")
    parser.add_argument("--out-html", type=Path, required=True, help="fragment of HTML for the report")
    args = parser.parse_args(argv)
    from smmil.results import json_argument
    from smmil.table_formats import to_csv, to_html, to_markdown
    from smmil.table_latex import to_latex

    layout = json_argument(args.layout, "--layout")
    table = build(by_pairing(args.index), layout, resamples=args.resamples, seed=args.seed)
    writers = {args.out_csv: to_csv, args.out_md: to_markdown, args.out_tex: to_latex, args.out_html: to_html}
    for path, write in writers.items():
        write_text(path, write(table))
        log.info("%s: %d datasets", path, len(table.sections))
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
