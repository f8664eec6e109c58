"""What every table of the paper shows, as data: title, rows, sections and their columns.

A table is one or more sections over the same rows: the paper's own first, then what stands beside it (spread over the
runs, the sign-aware score), so that the paper's table stays readable. A section says how its columns are laid out:

    by         "dataset": the columns repeat per dataset (its first extractor); "encoder": per extractor, over all of
               its datasets; "encoder_dataset": per extractor and dataset
    columns    repeated under every heading of `by`
    overall    columns at the end, over all headings

and a column what it computes: `kind` (key of `smmil.table_cells.KINDS`), the `metrics` behind it, and its `label`
("" = the dataset's title). `csv` names a column that is no plain metric in the CSV.
"""

from typing import Any

from smmil.outputs import BLOCKS

INSTANCE = ("instance_auroc", "instance_f1")
SIGNED = ("signed_instance_auroc", "signed_instance_f1")
BAG = ("bag_auroc", "bag_f1")
# not in the paper: what the field asks for beside AUROC and F1
MORE_INSTANCE = ("instance_auprc", "instance_froc", "instance_dice")
MORE_BAG = ("bag_auprc", "bag_ece")
ENERGY = ("dirichlet_raw", "dirichlet_normalised")

# metric -> (format of its numbers, whether larger is better); others are shares with three decimals, larger is better
STYLES: dict[str, tuple[str, bool]] = {
    "bag_ece": (".3f", False),
    "dirichlet_raw": ("#.3g", False),
    "dirichlet_normalised": ("#.3g", False),
    "train_seconds": (".1f", False),
    "memory_mib": (".0f", False),
    "device_memory_mib": (".0f", False),
}
SHARE = (".3f", True)
SHORT = {
    **{"auroc": "AUROC", "f1": "F1", "auprc": "AUPRC", "froc": "FROC", "dice": "Dice", "ece": "ECE"},
    **{"raw": "Energy", "normalised": "Normalised energy"},
}
ENCODERS = {"resnet18": "ResNet18", "resnet50": "ResNet50", "vit_b_32": "ViT-B-32", "resnet50_bt": "ResNet50-BT"}

# method with Sm -> the method under it, for columns of differences
BASES = {"smclam": "clam", "smdsmil": "dsmil", "smdftd": "dftd"}


def _columns(metrics: tuple[str, ...], kind: str = "mean", prefix: str = "") -> list[dict[str, Any]]:
    return [{"kind": kind, "metrics": (m,), "label": prefix + SHORT[m.rsplit("_", 1)[1]]} for m in metrics]


def _rank(metrics: tuple[str, ...], csv: str, label: str = "Rank") -> dict[str, Any]:
    return {"kind": "rank", "metrics": metrics, "label": label, "csv": csv}


def _inverted(metric: str, label: str, csv: str) -> dict[str, Any]:
    return {"kind": "inverted", "metrics": (metric,), "label": label, "csv": csv}


def _spread(by: str, metrics: tuple[str, ...], of: str = "", key: str = "spread", **columns: Any) -> dict[str, Any]:
    """The spread of metrics, `of` what the paper does not show; that one is left out where no run has it."""
    own = {"columns": [{**column, **columns} for column in _columns(metrics, "spread")]}
    title = "Spread over the runs" + (f": {of}" if of else "")
    return {"key": key, "title": title, "by": by, "optional": bool(of), **own}


def _signed(
    by: str, columns: list[dict[str, Any]], *overall: dict[str, Any], **spread: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sign-aware score's section and the spread of its metrics; `spread` as the columns of `_spread`."""
    metrics = tuple(dict.fromkeys(column["metrics"][0] for column in columns))
    own = {"by": by, "columns": columns, "overall": overall}
    return (
        {"key": "signed", "title": "The same with the sign-aware score", **own},
        _spread(by, metrics, "sign-aware score", "signed-spread", **spread),
    )


def _more(metrics: tuple[str, ...]) -> dict[str, Any]:
    return {"key": "more", "title": "Further metrics", "by": "dataset", "columns": _columns(metrics)}


def _one_metric(title: str, metric: str) -> dict[str, Any]:
    """A table of one metric over every extractor and dataset (Tables 7 to 10)."""
    one = [{"kind": "mean", "metrics": (metric,), "label": ""}]
    sections = [{"key": "", "title": "", "by": "encoder_dataset", "columns": one}]
    if metric in INSTANCE:
        signed = [{"kind": "mean", "metrics": (f"signed_{metric}",), "label": ""}]
        sections += [_spread("encoder_dataset", (metric,), label=""), *_signed("encoder_dataset", signed, label="")]
    return {"title": title, "sections": sections}


def _section(by: str, columns: list[dict[str, Any]], *overall: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"key": "", "title": "", "by": by, "columns": columns, "overall": overall, **more}


def _memory(key: str, title: str, name: str, *, optional: bool = False) -> dict[str, Any]:
    column = {"kind": "job", "metrics": (name,), "label": "", "csv": name}
    return {"key": key, "title": title, "by": "encoder_dataset", "columns": [column], "optional": optional}


TABLES: dict[str, dict[str, Any]] = {
    "table1": {
        "title": "Table 1. Localisation: instance level",
        "sections": [
            _section("dataset", _columns(INSTANCE), _rank(INSTANCE, "rank")),
            _spread("dataset", INSTANCE),
            *_signed("dataset", _columns(SIGNED), _rank(SIGNED, "signed_rank")),
            _more(MORE_INSTANCE),
            _spread("dataset", MORE_INSTANCE, "further metrics", "more-spread"),
        ],
    },
    "table2": {
        "title": "Table 2. Classification: bag level",
        "sections": [_section("dataset", _columns(BAG), _rank(BAG, "rank")), _more(MORE_BAG)],
    },
    "table3": {
        "title": "Table 3. Placement of Sm",
        "names": {"smap_early": "SmAP-early", "smtap": "SmT+SmAP"},
        "sections": [
            _section(
                "dataset",
                _columns(INSTANCE, prefix="Inst. ")
                + _columns(BAG, prefix="Bag ")
                + [{"kind": "mean", "metrics": ("dirichlet_raw",), "label": "Energy"}],
            ),
            {
                "key": "energy",
                "title": "Dirichlet energy with the scale of the scores divided out",
                "by": "dataset",
                "columns": [{"kind": "mean", "metrics": ("dirichlet_normalised",), "label": "Normalised energy"}],
            },
            _spread("dataset", INSTANCE),
            _spread("dataset", ENERGY, "Dirichlet energies", "energy-spread"),
            *_signed("dataset", _columns(SIGNED)),
        ],
    },
    "table4": {
        "title": "Table 4. Sm on top of other methods",
        "sections": [
            _section(
                "dataset",
                [
                    column
                    for prefix, metrics in (("Inst. ", INSTANCE), ("Bag ", BAG))
                    for pair in zip(
                        _columns(metrics, prefix=prefix), _columns(metrics, "difference", "Δ "), strict=True
                    )
                    for column in pair
                ],
            ),
            _spread("dataset", INSTANCE),
            *_signed("dataset", _columns(SIGNED) + _columns(SIGNED, "difference", "Δ ")),
        ],
    },
    "table5": {
        "title": "Table 5. Sm against a penalty on the Dirichlet energy",
        "sections": [
            _section("dataset", _columns(INSTANCE, prefix="Inst. ") + _columns(BAG, prefix="Bag ")),
            _spread("dataset", INSTANCE),
            *_signed("dataset", _columns(SIGNED)),
        ],
    },
    "table6": {
        "title": "Table 6. Mean rank per feature extractor",
        "sections": [
            _section("encoder", [_rank(INSTANCE, "instance_rank", "Inst."), _rank(BAG, "bag_rank", "Bag")]),
            {
                "key": "signed",
                "title": "Instance rank with the sign-aware score; inverted runs of all runs, without and with it",
                "by": "encoder",
                "columns": [
                    _rank(SIGNED, "signed_instance_rank", "Inst. rank"),
                    _inverted(INSTANCE[0], "Inverted", "inverted"),
                    _inverted(SIGNED[0], "Inv. sign-aware", "signed_inverted"),
                ],
            },
        ],
    },
    "table7": _one_metric("Table 7. Instance AUROC, every feature extractor", "instance_auroc"),
    "table8": _one_metric("Table 8. Instance F1, every feature extractor", "instance_f1"),
    "table9": _one_metric("Table 9. Bag AUROC, every feature extractor", "bag_auroc"),
    "table10": _one_metric("Table 10. Bag F1, every feature extractor", "bag_f1"),
    "resources": {
        "title": "Time and memory of every training",
        "sections": [
            _section(
                "encoder_dataset",
                [{"kind": "mean", "metrics": ("train_seconds",), "label": ""}],
                title="Seconds of one training",
            ),
            _memory("memory", "Peak memory of the training process, MiB", "memory_mib"),
            # on a machine without a GPU it is not there
            _memory("gpu", "Peak GPU memory of the training process, MiB", "device_memory_mib", optional=True),
        ],
    },
}
for _name, _blocks in BLOCKS.items():
    TABLES[_name]["blocks"] = _blocks


def style(metric: str) -> tuple[str, bool]:
    """Format of a metric's numbers and whether larger is better; a sign-aware metric looks like the metric itself."""
    return STYLES.get(metric, SHARE)
