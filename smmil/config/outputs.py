"""Trainings that each table and figure needs; `snakemake -n table3` plans exactly these.

A pairing is (dataset, encoder, method or variant). The rows of Tables 1, 2 and 6 to 10 are the configuration's
`methods` (and `more_methods`); those of the ablations, Tables 3 to 5, are fixed by the paper. `comparisons` needs no
further training: its rows are the methods with Sm whose base is trained for another table or figure.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.datasets import DATASETS
from smmil.config.layouts import PairDataset, PairLayout, TableDataset, TableLayout
from smmil.config.methods import bases
from smmil.config.targets import BLOCKS, EVERY_ENCODER, FIGURES, ONLY_KIND, SWEPT, TABLES, Pairing

if TYPE_CHECKING:
    from smmil.config.experiment import Config


def title_of(dataset: str) -> str:
    """Return the title of a dataset: that of its kind if it has the kind's name, else its name."""
    return DATASETS[dataset].title if dataset in DATASETS else dataset


def compared(config: "Config", dataset: str) -> tuple[tuple[str, str], ...]:
    """Return the comparisons of a trained dataset at its main encoder.

    Returns:
        (method with Sm, its base) where both are among `methods` and `more_methods`, or in a table of `report.tables`.
    """
    main = (dataset, config.datasets[dataset].table_encoder)
    trained = {*config.methods, *config.more_methods}
    for table in config.report.tables:
        if table != "comparisons":
            trained |= {method for *where, method in pairings(config, table) if tuple(where) == main}
    return tuple(pair for pair in bases().items() if trained.issuperset(pair))


def rows(config: "Config", target: str) -> tuple[str, ...]:
    """Return the methods of a table or figure, without the variants of sweeps; ValueError for any other target."""
    if target in BLOCKS:
        return tuple(method for methods in BLOCKS[target].values() for method in methods)
    if target in ("table1", "table2", "fig4", "fig5"):
        return tuple(config.methods)
    if target == "comparisons":
        return tuple(dict.fromkeys(method for pair in bases().items() for method in pair))
    if target in TABLES or target in ("cd", "curves"):
        return tuple(dict.fromkeys([*config.methods, *config.more_methods]))
    if target in FIGURES:
        # alpha = 0 and T = 0 are ABMIL; the method without options is a point of the sweep, too
        methods = [sweep.method for sweep in config.sweeps.values() if sweep.argument == SWEPT[target]]
        return tuple(dict.fromkeys(["abmil", *methods])) if methods else ()
    raise ValueError(f"found {target!r}, expected one of {', '.join([*TABLES, *FIGURES])}")


def datasets(config: "Config", target: str) -> tuple[str, ...]:
    """Return the trained datasets of a table or figure."""
    only = [n for n, d in config.trained.items() if d.kind == ONLY_KIND.get(target)]
    names = only or [*config.trained]
    if target in SWEPT:
        swept = {n for sweep in config.sweeps.values() if sweep.argument == SWEPT[target] for n in sweep.datasets}
        names = [name for name in names if name in swept]
    return tuple(names)


def encoders(config: "Config", target: str, dataset: str) -> tuple[str, ...]:
    """Return the feature extractors of a dataset in a table or figure."""
    chosen = config.datasets[dataset]
    return tuple(chosen.encoders) if target in EVERY_ENCODER else (chosen.table_encoder,)


def pairings(config: "Config", target: str) -> tuple[Pairing, ...]:
    """Return all trainings that a table or figure needs; ValueError for any other target."""
    result: list[Pairing] = []
    for dataset in datasets(config, target):
        names: Iterable[str] = rows(config, target)
        if target == "comparisons":
            names = [method for pair in compared(config, dataset) for method in pair]
        if target in SWEPT:
            points = [v.name for v in config.variants_on(dataset).values() if v.argument == SWEPT[target]]
            names = [*names, *points]
        result += [(dataset, encoder, name) for encoder in encoders(config, target, dataset) for name in names]
    return tuple(dict.fromkeys(result))


def all_pairings(config: "Config") -> tuple[Pairing, ...]:
    """Return all trainings that the configuration's `report.tables` and `report.figures` need."""
    targets = [*config.report.tables, *config.report.figures]
    return tuple(dict.fromkeys(pairing for target in targets for pairing in pairings(config, target)))


def table_layout(config: "Config", table: str) -> TableLayout | PairLayout:
    """Return the rows and columns of a table of `TABLES`.

    In `resources` a complete cell has a value per split and learning rate. `comparisons` has the datasets with pairs.
    """
    n_splits = len(config.training.splits)
    facts = {}
    for name in datasets(config, table):
        chosen = config.datasets[name]
        note = DATASETS[chosen.kind].split_note(Path(chosen.root), chosen.source)
        facts[name] = {"name": name, "title": title_of(name), "split_note": note}
    if table == "comparisons":
        paired = [
            PairDataset(**fact, encoder=config.datasets[name].table_encoder, pairs=pairs)
            for name, fact in facts.items()
            if (pairs := compared(config, name))
        ]
        return PairLayout(datasets=tuple(paired), splits=n_splits)
    return TableLayout(
        datasets=tuple(TableDataset(**fact, encoders=encoders(config, table, name)) for name, fact in facts.items()),
        methods=rows(config, table),
        splits=n_splits * (len(config.training.learning_rates) if table == "resources" else 1),
    )
