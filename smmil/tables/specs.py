"""Specifications of the paper's tables: title, rows, sections and columns.

A table is one or more sections over the same rows: the paper's table first, then what is not in the paper (spread over
the runs, the sign-aware score, further metrics).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from smmil.config.targets import BLOCKS

Key = tuple[str, str]


@dataclass(frozen=True)
class Column:
    """One column; a specification leaves `head` and `keys` to `smmil.tables.build`.

    Attributes:
        kind: key of `smmil.tables.cells.KINDS`, "rank" or "paired".
        metrics: metrics it is computed from; one except for ranks.
        label: heading of the column, "" = the dataset's title.
        csv: name in the CSV, "" = the metric's.
        head: heading over a group of columns, or "".
        keys: (dataset, encoder) pairs it is computed from; one except for ranks and counts.
    """

    kind: str
    metrics: tuple[str, ...]
    label: str = ""
    csv: str = ""
    head: str = ""
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class SectionSpec:
    """Columns of one section.

    Attributes:
        columns: columns repeated under every heading.
        overall: columns at the end, over all headings.
        key: "" for the paper's table.
        title: heading of the section.
        by: "dataset": the columns repeat for every dataset at its first extractor; "encoder": for every extractor, over
            all its datasets; "encoder_dataset": for every extractor and dataset.
        optional: whether a section without values is left out.
    """

    columns: Sequence[Column]
    overall: Sequence[Column] = ()
    key: str = ""
    title: str = ""
    by: str = "dataset"
    optional: bool = False


@dataclass(frozen=True)
class TableSpec:
    """Title and sections of a table, names of methods that differ in it, and its rows by block where they are fixed."""

    title: str
    sections: Sequence[SectionSpec]
    names: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, tuple[str, ...]] | None = None


INSTANCE = ("instance_auroc", "instance_f1")
SIGNED = ("signed_instance_auroc", "signed_instance_f1")
BAG = ("bag_auroc", "bag_f1")
# the paper's Table 1 has the instance metrics without the AUROC within bags
IN_BAG = "instance_auroc_within"
LOCALISATION = (INSTANCE[0], IN_BAG, INSTANCE[1])
SMOOTHED = ("signed_sm_instance_auroc",)
# not in the paper
MORE_INSTANCE = ("instance_auprc", "instance_froc", "instance_dice")
MORE_BAG = ("bag_auprc", "bag_ece")
ENERGY = ("dirichlet_raw", "dirichlet_normalised")

# metric -> format of its numbers, whether larger is better
STYLES: dict[str, tuple[str, bool]] = {
    "bag_ece": (".3f", False),
    "dirichlet_raw": ("#.3g", False),
    "dirichlet_normalised": ("#.3g", False),
    "train_seconds": (".1f", False),
    "memory_mib": (".0f", False),
    "device_memory_mib": (".0f", False),
}
# no metric is below 0; of those that can be above 1, the largest value
LARGEST = {"dirichlet_normalised": 2.0} | dict.fromkeys(
    ("dirichlet_raw", "train_seconds", "memory_mib", "device_memory_mib"), float("inf")
)
SHORT = {
    **{"auroc": "AUROC", "f1": "F1", "auprc": "AUPRC", "froc": "FROC", "dice": "Dice", "ece": "ECE"},
    **{"raw": "Energy", "normalised": "Normalised energy", "within": "In-bag AUROC"},
}
# key of a section -> its title in a row of tabs; others show their title
TABS = {
    **{"": "Table", "spread": "Median and worst run", "signed": "Sign-aware score", "more": "Further metrics"},
    **{"signed-spread": "Sign-aware: median and worst", "more-spread": "Further: median and worst"},
    **{"within": "Within bags", "signed-sm": "Smoothed sign-aware", "energy": "Scale-free energy"},
    **{"energy-spread": "Energy: median and worst", "memory": "Memory", "gpu": "GPU memory"},
}


def style(metric: str) -> tuple[str, bool]:
    """Return the format of a metric's numbers and whether larger is better."""
    return STYLES.get(metric, (".3f", True))


def _columns(metrics: Sequence[str], kind: str = "mean", prefix: str = "") -> list[Column]:
    return [Column(kind, (metric,), prefix + _label(metric)) for metric in metrics]


def _label(metric: str) -> str:
    return ("Smoothed " if metric.startswith("signed_sm_") else "") + SHORT[metric.rsplit("_", 1)[1]]


def _rank(metrics: tuple[str, ...], csv: str, label: str = "Rank") -> Column:
    return Column("rank", metrics, label, csv)


def _spread(metrics: Sequence[str], of: str = "", key: str = "spread") -> SectionSpec:
    """Return the section of spreads; `of` names metrics that are not in the paper, so that the section is optional."""
    title = "Spread over the runs" + (f": {of}" if of else "")
    return SectionSpec(_columns(metrics, "spread"), (), key, title, optional=bool(of))


def _signed(columns: Sequence[Column], *overall: Column) -> tuple[SectionSpec, SectionSpec]:
    """Return the sections of the sign-aware score and of its spread."""
    metrics = list(dict.fromkeys(column.metrics[0] for column in columns))
    section = SectionSpec(columns, overall, "signed", "The same with the sign-aware score")
    return section, _spread(metrics, "sign-aware score", "signed-spread")


def _more(metrics: Sequence[str]) -> SectionSpec:
    return SectionSpec(_columns(metrics), (), "more", "Further metrics")


def _one_metric(title: str, metric: str) -> TableSpec:
    """Return a table of one metric over every extractor and dataset (Tables 7 to 10), named by the datasets' titles."""
    sections = [SectionSpec(_columns([metric]))]
    if metric == INSTANCE[0]:
        title_within = "Within bags: mean AUROC over the positive test bags"
        sections.append(SectionSpec(_columns([IN_BAG]), (), "within", title_within))
    if metric in INSTANCE:
        sections += [_spread([metric]), *_signed(_columns([f"signed_{metric}"]))]
        smoothed = "The same with the sign-aware score smoothed by Sm"
        sections.append(SectionSpec(_columns([f"signed_sm_{metric}"]), (), "signed-sm", smoothed, optional=True))
    # Columns are named by the datasets' titles.
    columns = [[replace(column, label="") for column in section.columns] for section in sections]
    every = zip(sections, columns, strict=True)
    return TableSpec(title, [replace(section, columns=of, by="encoder_dataset") for section, of in every])


def _job(metric: str, key: str, title: str, *, optional: bool = False) -> SectionSpec:
    kind = "mean" if metric == "train_seconds" else "job"
    return SectionSpec([Column(kind, (metric,))], (), key, title, "encoder_dataset", optional)


BOTH_LEVELS = _columns(INSTANCE, prefix="Inst. ") + _columns(BAG, prefix="Bag ")
TABLES: dict[str, TableSpec] = {
    "table1": TableSpec(
        "Table 1. Localisation: instance level",
        [
            SectionSpec(_columns(LOCALISATION), [_rank(INSTANCE, "rank")]),
            _spread(LOCALISATION),
            *_signed(_columns((SIGNED[0], f"signed_{IN_BAG}", SIGNED[1], *SMOOTHED)), _rank(SIGNED, "signed_rank")),
            _more(MORE_INSTANCE),
            _spread(MORE_INSTANCE, "further metrics", "more-spread"),
        ],
    ),
    "table2": TableSpec(
        "Table 2. Classification: bag level", [SectionSpec(_columns(BAG), [_rank(BAG, "rank")]), _more(MORE_BAG)]
    ),
    "table3": TableSpec(
        "Table 3. Placement of Sm",
        [
            SectionSpec(BOTH_LEVELS + _columns(ENERGY[:1])),
            SectionSpec(
                _columns(ENERGY[1:]), (), "energy", "Dirichlet energy with the scale of the scores divided out"
            ),
            _spread(INSTANCE),
            _spread(ENERGY, "Dirichlet energies", "energy-spread"),
            *_signed(_columns(SIGNED + SMOOTHED)),
        ],
        {"smap_early": "SmAP-early", "smtap": "SmT+SmAP"},
        BLOCKS["table3"],
    ),
    "table4": TableSpec(
        "Table 4. Sm on top of other methods",
        [
            SectionSpec([c for mean in BOTH_LEVELS for c in (mean, *_columns(mean.metrics, "difference", "Δ "))]),
            _spread(INSTANCE),
            *_signed(_columns(SIGNED + SMOOTHED) + _columns(SIGNED, "difference", "Δ ")),
        ],
        blocks=BLOCKS["table4"],
    ),
    "table5": TableSpec(
        "Table 5. Sm against a penalty on the Dirichlet energy",
        [SectionSpec(BOTH_LEVELS), _spread(INSTANCE), *_signed(_columns(SIGNED + SMOOTHED))],
        blocks=BLOCKS["table5"],
    ),
    "table6": TableSpec(
        "Table 6. Mean rank per feature extractor",
        [
            SectionSpec([_rank(INSTANCE, "instance_rank", "Inst."), _rank(BAG, "bag_rank", "Bag")], by="encoder"),
            SectionSpec(
                [
                    _rank(SIGNED, "signed_instance_rank", "Inst. rank"),
                    Column("inverted", INSTANCE[:1], "Inverted", "inverted"),
                    Column("inverted", SIGNED[:1], "Inv. sign-aware", "signed_inverted"),
                ],
                (),
                "signed",
                "Instance rank with the sign-aware score; inverted runs of all runs, without and with it",
                "encoder",
            ),
        ],
    ),
    "table7": _one_metric("Table 7. Instance AUROC, every feature extractor", "instance_auroc"),
    "table8": _one_metric("Table 8. Instance F1, every feature extractor", "instance_f1"),
    "table9": _one_metric("Table 9. Bag AUROC, every feature extractor", "bag_auroc"),
    "table10": _one_metric("Table 10. Bag F1, every feature extractor", "bag_f1"),
    "resources": TableSpec(
        "Time and memory of every training",
        [
            _job("train_seconds", "", "Seconds of one training"),
            _job("memory_mib", "memory", "Peak memory of the training process, MiB"),
            # absent on machines without a GPU
            _job("device_memory_mib", "gpu", "Peak GPU memory of the training process, MiB", optional=True),
        ],
    ),
}
