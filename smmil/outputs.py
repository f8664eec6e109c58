"""Which trainings every table and figure of the paper rests on; `snakemake -n table3` asks for these and no others.

A pairing is (dataset, encoder, method or variant). Rows of Tables 1, 2 and 6 to 10 are the configuration's `methods`
(and `more_methods`); the rows of the ablations, Tables 3 to 5, are the paper's and stand here. `comparisons` trains
nothing of its own: its rows are the methods with Sm whose base is trained beside them. A configuration that trains
nothing has no tables and no figures.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from smmil.methods_table import METHODS

if TYPE_CHECKING:
    from smmil.config import Config

Pairing = tuple[str, str, str]

# table -> block -> its rows, in the paper's order; best and second are marked inside a block
BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "table3": {
        "Sm without the transformer": ("smap_early", "smap_mid", "smap_late", "abmil"),
        "Sm with the transformer": ("smtap", "smt_ap", "t_smap", "t_ap"),
    },
    "table4": {"CLAM": ("clam", "smclam"), "DSMIL": ("dsmil", "smdsmil"), "DFTD-MIL": ("dftd", "smdftd")},
    "table5": {
        "Without global interactions": ("smap_early", "abmil_penalty", "abmil"),
        "With global interactions": ("smtap", "t_penalty", "t_ap"),
    },
}

TABLES: dict[str, str] = {
    "table1": "Localisation: instance level",
    "table2": "Classification: bag level",
    "table3": "Where Sm is placed",
    "table4": "Sm on top of other methods",
    "table5": "Sm against a penalty on the Dirichlet energy",
    "table6": "Mean rank per feature extractor",
    "table7": "Instance AUROC, every feature extractor",
    "table8": "Instance F1, every feature extractor",
    "table9": "Bag AUROC, every feature extractor",
    "table10": "Bag F1, every feature extractor",
    "resources": "Time and memory of every training",
    "comparisons": "Sm against its base, paired over the test bags",
}
FIGURES: dict[str, str] = {
    "fig4": "Histograms of the instance scores",
    "fig5": "Attention maps",
    "fig6a": "The trade-off alpha",
    "fig6b": "Spectral normalisation",
    "fig7": "Number of steps",
    "fig12": "Effect of alpha on a map",
    "cd": "Critical difference of mean ranks",
    "curves": "Learning curves",
}
SWEPT = {"fig6a": "alpha", "fig12": "alpha", "fig6b": "spectral_norm", "fig7": "T"}
# Table 4 of the paper shows one dataset; where it is not trained, all that are
ONLY_KIND = {"table4": "camelyon16"}
EVERY_ENCODER = ("table6", "table7", "table8", "table9", "table10", "resources")
TITLES = {"camelyon16": "CAMELYON16", "panda": "PANDA", "rsna": "RSNA"}


def bases() -> dict[str, str]:
    """Method with Sm -> its base: in each block of Tables 3 and 4 the method that the paper does not propose."""
    found: dict[str, str] = {}
    for block in (*BLOCKS["table3"].values(), *BLOCKS["table4"].values()):
        (base,) = (method for method in block if not METHODS[method][2])
        found |= {method: base for method in block if method != base}
    return found


def compared(config: "Config", dataset: str) -> tuple[tuple[str, str], ...]:
    """The comparisons of a dataset at its main encoder.

    Args:
        config: the experiment.
        dataset: a trained one.

    Returns:
        (method with Sm, its base) where both are among `methods` and `more_methods`, or in a table that is asked for.
    """
    own = (dataset, config.datasets[dataset].table_encoder)
    trained = {*config.methods, *config.more_methods}
    for table in config.report.tables:
        if table != "comparisons":
            trained |= {method for *where, method in pairings(config, table) if tuple(where) == own}
    return tuple(pair for pair in bases().items() if trained.issuperset(pair))


def rows(config: "Config", target: str) -> tuple[str, ...]:
    """The methods a table or figure shows (`comparisons`: those of `compared`), in no order; sweeps not included.

    Raises:
        ValueError: unknown target.
    """
    if target in BLOCKS:
        return tuple(method for methods in BLOCKS[target].values() for method in methods)
    if target in ("table1", "table2", "fig4", "fig5"):
        return tuple(config.methods)
    if target == "comparisons":
        return tuple(dict.fromkeys(method for pair in bases().items() for method in pair))
    if target in TABLES or target in ("cd", "curves"):
        return tuple(dict.fromkeys([*config.methods, *config.more_methods]))
    if target in FIGURES:
        # alpha = 0 and T = 0 are ABMIL; the middle of the range is the method as it is
        methods = [sweep.method for sweep in config.sweeps.values() if sweep.argument == SWEPT[target]]
        return tuple(dict.fromkeys(["abmil", *methods])) if methods else ()
    raise ValueError(f"found {target!r}, expected one of {', '.join([*TABLES, *FIGURES])}")


def datasets(config: "Config", target: str) -> tuple[str, ...]:
    """The trained datasets a table or figure shows."""
    names = [*config.trained]
    only = [n for n, d in config.trained.items() if d.kind == ONLY_KIND.get(target)]
    if only:
        names = only
    if target in SWEPT:
        swept = {n for sweep in config.sweeps.values() if sweep.argument == SWEPT[target] for n in sweep.datasets}
        names = [name for name in names if name in swept]
    return tuple(names)


def encoders(config: "Config", target: str, dataset: str) -> tuple[str, ...]:
    """The feature extractors of a dataset that a table or figure shows."""
    chosen = config.datasets[dataset]
    return tuple(chosen.encoders) if target in EVERY_ENCODER else (chosen.table_encoder,)


def pairings(config: "Config", target: str) -> tuple[Pairing, ...]:
    """All trainings behind one table or figure.

    Args:
        config: the experiment.
        target: key of `TABLES` or `FIGURES`.

    Raises:
        ValueError: unknown target.
    """
    found: list[Pairing] = []
    for dataset in datasets(config, target):
        names: Iterable[str] = rows(config, target)
        if target == "comparisons":
            names = [method for pair in compared(config, dataset) for method in pair]
        if target in SWEPT:
            points = [v.name for v in config.variants_on(dataset).values() if v.argument == SWEPT[target]]
            names = [*names, *points]
        found += [(dataset, encoder, name) for encoder in encoders(config, target, dataset) for name in names]
    return tuple(dict.fromkeys(found))


def all_pairings(config: "Config") -> tuple[Pairing, ...]:
    """All trainings behind the tables and figures that the configuration asks for (`report.tables`, `.figures`)."""
    wanted = [
        pairing for target in [*config.report.tables, *config.report.figures] for pairing in pairings(config, target)
    ]
    return tuple(dict.fromkeys(wanted))


def table_layout(config: "Config", table: str) -> dict[str, Any]:
    """Rows and columns of one table as `smmil.tables` takes them.

    Args:
        config: the experiment.
        table: key of `TABLES`.

    Returns:
        datasets (name, title, and encoder, or encoders where the table shows several), methods, and the number of
        splits of a complete cell; for `resources` the number of runs, since every learning rate is a training. For
        `comparisons` every dataset has its `pairs` (`compared`), and there are no methods (`smmil.comparison_table`).

    Raises:
        ValueError: unknown table.
    """
    if table not in TABLES:
        raise ValueError(f"found {table!r}, expected one of {', '.join(TABLES)}")
    shown: list[dict[str, Any]] = []
    for name in datasets(config, table):
        own = [*encoders(config, table, name)]
        shown.append({"name": name, "title": TITLES.get(name, name)})
        shown[-1].update({"encoder": own[0]} if len(own) == 1 else {"encoders": own})
    if table == "comparisons":
        pairs = [{**one, "pairs": [[*pair] for pair in compared(config, one["name"])]} for one in shown]
        return {"datasets": [one for one in pairs if one["pairs"]], "splits": len(config.training.splits)}
    rates = len(config.training.learning_rates) if table == "resources" else 1
    return {"datasets": shown, "methods": [*rows(config, table)], "splits": len(config.training.splits) * rates}
