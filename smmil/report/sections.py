"""What the report reads, as records, and the texts that its template shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocessing.qc.counts import Counts
from preprocessing.status import Status
from smmil.config.methods import METHODS, display_name, marked_name
from smmil.figures.job import in_order
from smmil.tables.notes import MOST_NAMED

Metrics = Mapping[str, Any]
Pairing = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A drawn picture, as the JSON beside it (or `maps.json`) describes it; `files` starts with the PNG."""

    title: str
    caption: str
    files: list[str]
    notes: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    command: str = ""
    protocol: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figure(Drawing):
    """The JSON beside a figure of `smmil.figures.drawing`."""

    figure: str
    datasets: list[str]


@dataclass(frozen=True)
class Maps:
    """The `maps.json` of one dataset and encoder."""

    dataset: str
    encoder: str
    maps: list[Drawing]
    command: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One training of `runs.json`."""

    run: str
    chosen: bool
    best_epoch: int | None = None


@dataclass(frozen=True)
class Trainings:
    """The `runs.json` of one method."""

    dataset: str
    encoder: str
    method: str
    training: dict[str, object]
    runs: list[Run]
    quirks: list[str] = field(default_factory=list)

    @property
    def row(self) -> tuple[str, ...]:
        """Encoder, method, training settings, quirks and the kept epochs of the chosen runs."""
        training = ", ".join(f"{key} {value}" for key, value in sorted(self.training.items()))
        kept = ", ".join(
            f"{run.run}: {run.best_epoch}" for run in self.runs if run.chosen and run.best_epoch is not None
        )
        return self.encoder, marked_name(self.method), training, ", ".join(self.quirks) or "none", kept


@dataclass(frozen=True)
class Inputs:
    """Everything the report shows, read from files; paths where other files lie beside.

    Attributes:
        metrics: objects of `smmil.evaluate.runs` of every pairing behind the tables.
        tables: HTML fragments of tables, with CSV, Markdown and LaTeX beside.
        qc: `counts.json`, with the contact sheet beside.
        figures: JSON files with the pictures beside.
        maps: `maps.json` files with the pictures beside.
        status: of the datasets.
        trainings: of the methods.
    """

    metrics: Sequence[Metrics] = ()
    tables: Sequence[Path] = ()
    qc: Mapping[Path, Counts] = field(default_factory=dict)
    figures: Mapping[Path, Figure] = field(default_factory=dict)
    maps: Mapping[Path, Maps] = field(default_factory=dict)
    status: Sequence[Status] = ()
    trainings: Sequence[Trainings] = ()


def summary(
    layout: Mapping[str, Any], metrics: Sequence[Metrics], quirks: Sequence[str], protocol: str, code_version: str
) -> dict[str, str]:
    """Return what was run; `quirks` are those in force by the configuration, those of the runs are added."""
    acting = sorted({*quirks, *(quirk for entry in metrics for quirk in entry.get("quirks", ()))})
    titles = [
        f"{dataset.get('title', dataset['name'])} ({', '.join(dataset.get('encoders') or [dataset['encoder']])})"
        for dataset in layout["datasets"]
    ]
    splits = [split for entry in metrics for split in entry["splits"]]
    seeds = sorted({split["seed"] for split in splits})
    rates = sorted({run["lr"] for split in splits for run in split.get("candidates", [split])}, reverse=True)
    return {
        "Datasets (encoder)": ", ".join(titles),
        "Methods": ", ".join(display_name(method) for method in METHODS if method in layout.get("methods", ())),
        "Splits": ", ".join(map(str, seeds)) or "none yet",
        "Learning rates": ", ".join(f"{rate:g}" for rate in rates) + (" (chosen on validation)" if rates else ""),
        "Protocol": protocol,
        "Quirks in force": ", ".join(acting) or "none",
        "Code version": code_version,
    }


def run_groups(metrics: Sequence[Metrics]) -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of every run behind the tables, grouped by "dataset / encoder"."""
    order = in_order([entry["method"] for entry in metrics])
    groups: dict[str, list[tuple[str, ...]]] = {}
    for entry in sorted(metrics, key=lambda m: (m["dataset"], m["encoder"], order.index(m["method"]))):
        rows = groups.setdefault(f"{entry['dataset']} / {entry['encoder']}", [])
        rows += [_run_row(entry, split) for split in entry["splits"]]
    return groups


def _run_row(entry: Metrics, split: Metrics) -> tuple[str, ...]:
    test = split["test"]
    others = [run for run in split.get("candidates", []) if not run["chosen"]]
    return (
        *(entry["dataset"], entry["encoder"], marked_name(entry["method"])),
        *(str(split["seed"]), f"{split['lr']:g}", split["run"]),
        # Under the quirk eval_gate_by_bag, `test` has the gated values.
        _text(split.get("ungated", test)["instance_auroc"]) + (" ⇅" if test.get("inverted") else ""),
        _text(split.get("gated", {}).get("instance_auroc")),
        *(_text(test["instance_f1"]), _text(split.get("threshold"))),
        *(_text(test["bag_auroc"]), _text(test["bag_f1"])),
        ", ".join(f"{run['lr']:g}: {_text(run['test'].get('bag_auroc'))}" for run in others),
    )


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def layout_pairings(layout: Mapping[str, Any]) -> list[Pairing]:
    """Return the (dataset, encoder, method) behind a table, from its layout (`smmil.config.outputs.table_layout`)."""
    pairings: list[Pairing] = []
    for dataset in layout["datasets"]:
        methods = [m for pair in dataset["pairs"] for m in pair] if "pairs" in dataset else layout["methods"]
        encoders = dataset.get("encoders") or [dataset["encoder"]]
        pairings += [(dataset["name"], encoder, method) for encoder in encoders for method in methods]
    return list(dict.fromkeys(pairings))


def missing_runs(layouts: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metrics]) -> str:
    """Return a line that names the pairings behind the tables without metrics, "" if there are none."""
    wanted = dict.fromkeys(pairing for layout in layouts.values() for pairing in layout_pairings(layout))
    missing = ["/".join(pairing) for pairing in wanted if pairing not in _runs_of(metrics)]
    if not missing:
        return ""
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    total = len(metrics) + len(missing)
    named = ", ".join(missing[:MOST_NAMED])
    return f"{len(missing)} of {total} trainings behind the tables have no result: {named}{more}."


def _runs_of(metrics: Sequence[Metrics]) -> dict[Pairing, int]:
    return {(entry["dataset"], entry["encoder"], entry["method"]): len(entry["splits"]) for entry in metrics}


def runs_behind(layout: Mapping[str, Any] | None, metrics: Sequence[Metrics]) -> tuple[int, list[str]]:
    """Return the number of runs behind a table, and per dataset and encoder a line with those of each method."""
    runs, groups = _runs_of(metrics), dict[str, list[str]]()
    pairings = layout_pairings(layout) if layout else []
    for pairing in pairings:
        name = f"{marked_name(pairing[2])} ({runs.get(pairing) or 'no run'})"
        groups.setdefault(" / ".join(pairing[:2]), []).append(name)
    lines = [f"{where}: {', '.join(names)}" for where, names in groups.items()]
    return sum(runs.get(pairing, 0) for pairing in pairings), lines
