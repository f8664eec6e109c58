"""The report: one HTML file with tables, figures, maps and the state of the data, each with its command and runs.

No request leaves the page: style and small copies of the pictures are inside; links lead to the full PNG and PDF files
and to the tables' CSV, Markdown and LaTeX. Everything is read from files named on the command line, nothing is computed
again. Templates: `smmil/report/templates`, and those of `preprocessing.common.webpage`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from preprocessing.common.webpage import render, thumbnail
from preprocessing.qc.counts import Counts
from preprocessing.status import Status
from smmil.artifacts.records import Metrics, RunsFile, SplitMetrics
from smmil.config.layouts import PairLayout, TableLayout
from smmil.config.methods import METHODS, display_name, marked_name
from smmil.figures.entries import FigureEntry, MapsFile
from smmil.figures.job import in_order
from smmil.tables import formats
from smmil.tables.notes import MOST_NAMED

Layouts = Mapping[str, TableLayout | PairLayout]


@dataclass(frozen=True)
class Inputs:
    """Everything that the report shows, read from files; by path where other files lie beside.

    Attributes:
        metrics: metrics of every pairing in the tables.
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
    figures: Mapping[Path, FigureEntry] = field(default_factory=dict)
    maps: Mapping[Path, MapsFile] = field(default_factory=dict)
    status: Sequence[Status] = ()
    trainings: Sequence[RunsFile] = ()


def build_page(
    title: str,
    layout: TableLayout,
    inputs: Inputs,
    *,
    page: Path,
    layouts: Layouts | None = None,
    configuration: str = "",
    quirks: Sequence[str] = (),
    warnings: Sequence[str] = (),
    code_version: str = "",
) -> str:
    """Assemble the HTML report.

    Args:
        title: of the page.
        layout: datasets and methods, as `smmil.tables` takes it.
        inputs: what was read from files.
        page: path of the HTML file; links are relative to it.
        layouts: table -> its layout, for its runs and what is missing.
        configuration: arguments that gave Snakemake its configuration, e.g. `--configfile mine.yaml`.
        quirks: differences between the protocols that the configuration puts in force.
        warnings: lines to show on top.
        code_version: of what writes this page.
    """
    metrics, layouts = inputs.metrics, layouts or {}
    missing = [path for path in inputs.tables if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such table; write it with python -m smmil.tables --out-html")
    fragments = {path: path.read_text("utf-8") for path in inputs.tables}
    left_out = [*filter(None, map(formats.left_out, fragments.values()))]
    left_out += [f"{entry.title}. {entry.empty.capitalize()}." for entry in inputs.figures.values() if entry.empty]
    inputs = replace(
        inputs,
        tables=[path for path in inputs.tables if not formats.left_out(fragments[path])],
        figures={path: entry for path, entry in inputs.figures.items() if not entry.empty},
    )
    protocol = ", ".join(sorted({entry.protocol for entry in metrics})) or "none (no metrics)"
    version, datasets = code_version or "unknown", datasets_of(layout, inputs)
    return render(
        "report.html.j2",
        Path(__file__).parent / "templates",
        title=title,
        inputs=inputs,
        warnings=[*warnings, *automatic_warnings(metrics, inputs.qc.values())],
        summary=summary(layout, metrics, quirks, protocol, version),
        protocol=protocol,
        code_version=version,
        runs_of_table={path: runs_of_table(layouts.get(path.stem), metrics) for path in inputs.tables},
        configuration=configuration,
        runs=run_groups(metrics),
        left_out=list(dict.fromkeys(left_out)),
        gap=missing_runs(layouts, metrics),
        datasets=datasets,
        trainings={name: [training_row(t) for t in inputs.trainings if t.dataset == name] for name in datasets},
        thumbnail=thumbnail,
        target=lambda path: quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()),
    )


def datasets_of(layout: TableLayout, inputs: Inputs) -> dict[str, str]:
    """Return name -> title of every dataset; those that were only preprocessed or scored come last."""
    titles = {dataset.name: dataset.title for dataset in layout.datasets}
    others = {counts.dataset for counts in inputs.qc.values()} | {maps.dataset for maps in inputs.maps.values()}
    others |= {status.dataset for status in inputs.status}
    return titles | {name: name for name in sorted(others - titles.keys())}


def automatic_warnings(metrics: Sequence[Metrics], counts: Iterable[Counts]) -> list[str]:
    """Return what a reader must know before any number: random encoders, miniature cohorts, failed bags."""
    counts, lines = list(counts), []
    random = sorted({entry.dataset for entry in metrics if entry.random_weights})
    if random:
        lines.append(f"Random encoder weights ({', '.join(random)}): the numbers only show that the pipeline runs.")
    small = [f"{cohort.dataset} {cohort.bags} bags" for cohort in counts if _is_miniature(cohort)]
    if small:
        lines.append(f"Miniature cohorts ({', '.join(small)}): far smaller than the published datasets.")
    failed = [f"{cohort.dataset} {n}" for cohort in counts if (n := cohort.states.get("failed", 0))]
    if failed:
        lines.append(f"Failed bags: {', '.join(failed)}; they are missing from every number below.")
    return lines


def _is_miniature(counts: Counts) -> bool:
    # a dataset of one's own has no published count
    published = next((entry.published for entry in counts.expected if entry.name == "bags"), 0)
    return counts.bags < published / 2


def summary(
    layout: TableLayout, metrics: Sequence[Metrics], quirks: Sequence[str], protocol: str, code_version: str
) -> dict[str, str]:
    """Return what was run; `quirks` are those in force by the configuration, those of the runs are added."""
    active = sorted({*quirks, *(quirk for entry in metrics for quirk in entry.quirks or ())})
    splits = [split for entry in metrics for split in entry.splits]
    seeds = sorted({split.seed for split in splits})
    rates = sorted({run.lr for split in splits for run in split.candidates or (split,)}, reverse=True)
    return {
        "Datasets (encoder)": ", ".join(f"{d.title} ({', '.join(d.encoders)})" for d in layout.datasets),
        "Methods": ", ".join(display_name(method) for method in METHODS if method in layout.methods),
        "Splits": ", ".join(map(str, seeds)) or "none yet",
        "Learning rates": ", ".join(f"{rate:g}" for rate in rates) + (" (chosen on validation)" if rates else ""),
        "Protocol": protocol,
        "Quirks in force": ", ".join(active) or "none",
        "Code version": code_version,
    }


def run_groups(metrics: Sequence[Metrics]) -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of every run in the tables, grouped by "dataset / encoder"."""
    order = in_order([entry.method for entry in metrics])
    groups: dict[str, list[tuple[str, ...]]] = {}
    for entry in sorted(metrics, key=lambda m: (m.dataset, m.encoder, order.index(m.method))):
        rows = groups.setdefault(f"{entry.dataset} / {entry.encoder}", [])
        rows += [_run_row(entry, split) for split in entry.splits]
    return groups


def _run_row(entry: Metrics, split: SplitMetrics) -> tuple[str, ...]:
    test = split.test.values
    # Under the quirk eval_gate_by_bag, `test` has the gated values.
    ungated = test if split.ungated is None else split.ungated
    others = [f"{run.lr:g}: {_text(run.test.get('bag_auroc'))}" for run in split.candidates if not run.chosen]
    return (
        *(entry.dataset, entry.encoder, marked_name(entry.method), str(split.seed), f"{split.lr:g}", split.run),
        _text(ungated["instance_auroc"]) + (" ⇅" if split.test.inverted else ""),
        *map(_text, (split.gated.get("instance_auroc"), test["instance_f1"], split.threshold)),
        *map(_text, (test["bag_auroc"], test["bag_f1"])),
        ", ".join(others),
    )


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def training_row(training: RunsFile) -> tuple[str, ...]:
    """Return encoder, method, training settings, quirks and the kept epochs of the chosen runs."""
    settings = ", ".join(f"{key} {value}" for key, value in sorted(training.training.items()))
    kept = ", ".join(f"{run.run}: {run.best_epoch}" for run in training.chosen)
    return training.encoder, marked_name(training.method), settings, ", ".join(training.quirks) or "none", kept


def missing_runs(layouts: Layouts, metrics: Sequence[Metrics]) -> str:
    """Return a line that names the pairings of the tables without metrics, "" if there are none."""
    runs, expected = _n_runs(metrics), dict.fromkeys(key for layout in layouts.values() for key in layout.pairings)
    missing = ["/".join(pairing) for pairing in expected if pairing not in runs]
    if not missing:
        return ""
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    named = ", ".join(missing[:MOST_NAMED])
    total = len(metrics) + len(missing)
    return f"{len(missing)} of {total} trainings behind the tables have no result: {named}{more}."


def _n_runs(metrics: Sequence[Metrics]) -> dict[tuple[str, str, str], int]:
    return {(entry.dataset, entry.encoder, entry.method): len(entry.splits) for entry in metrics}


def runs_of_table(layout: TableLayout | PairLayout | None, metrics: Sequence[Metrics]) -> tuple[int, list[str]]:
    """Return the number of runs in a table, and per dataset and encoder a line with those of each method."""
    runs, groups = _n_runs(metrics), dict[str, list[str]]()
    pairings = layout.pairings if layout else ()
    for pairing in pairings:
        name = f"{marked_name(pairing[2])} ({runs.get(pairing) or 'no run'})"
        groups.setdefault(" / ".join(pairing[:2]), []).append(name)
    lines = [f"{where}: {', '.join(names)}" for where, names in groups.items()]
    return sum(runs.get(pairing, 0) for pairing in pairings), lines
