"""The report: one HTML file with tables, figures, maps and the state of the data, each with its command and runs.

No request leaves the page: style and small copies of the pictures are inside; links lead to the full PNG and PDF files
and to the tables' CSV, Markdown and LaTeX. Everything is read from files named on the command line, nothing is computed
again. Templates: `smmil/report/templates`, and those of `preprocessing.common.webpage`.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

from preprocessing.common.webpage import render, thumbnail
from preprocessing.qc.counts import Counts
from preprocessing.status import Status
from smmil.analysis.records import Analysis
from smmil.artifacts.records import ComparisonsFile, Metrics, RunsFile, SplitMetrics
from smmil.config.layouts import PairLayout, TableLayout
from smmil.config.methods import METHODS, display_name, marked_name
from smmil.config.targets import EVERY_ENCODER
from smmil.figures.entries import FigureEntry, MapEntry, MapsFile
from smmil.figures.job import in_order
from smmil.findings import findings
from smmil.report.analysis import bag_results, results_folder, view_command
from smmil.report.overview import WIDTH, overview
from smmil.tables import formats
from smmil.tables.notes import MOST_NAMED

# figures of one dataset -> their entry in the navigation
OF_DATASET = {"histograms": "Scores by label", "curves": "Learning curves", "resources": "Time and memory"}
Layouts = Mapping[str, TableLayout | PairLayout]


@dataclass(frozen=True)
class Inputs:
    """Everything that the report shows, read from files; by path where other files lie beside."""

    metrics: Sequence[Metrics] = ()
    tables: Sequence[Path] = ()
    qc: Mapping[Path, Counts] = field(default_factory=dict)
    figures: Mapping[Path, FigureEntry] = field(default_factory=dict)
    analyses: Mapping[Path, Analysis] = field(default_factory=dict)
    maps: Mapping[Path, MapsFile] = field(default_factory=dict)
    status: Sequence[Status] = ()
    trainings: Sequence[RunsFile] = ()
    comparisons: ComparisonsFile | None = None


@dataclass(frozen=True)
class Entry:
    """An entry of the navigation: `target` is an id of the page, "" for a heading; `title` is HTML."""

    target: str
    title: Markup
    children: Sequence["Entry"] = ()


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

    `page` is the path of the HTML file, to which links are relative; the other arguments are those of the command line.

    Raises:
        ValueError: a table or picture is missing.
    """
    metrics, layouts = inputs.metrics, layouts or {}
    missing = [path for path in inputs.tables if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such table; write it with python -m smmil.tables --out-html")
    protocol = ", ".join(sorted({entry.protocol for entry in metrics})) or "none (no metrics)"
    version, datasets = code_version or "unknown", datasets_of(layout, inputs)
    repeated = repeated_tables(layouts)
    # costs come after all results
    tables = sorted(inputs.tables, key=lambda path: path.stem == "resources")
    texts = {path: Markup(path.read_text("utf-8")) for path in tables if path.stem not in repeated}
    fragments = {path: text for path, text in texts.items() if not formats.left_out(text)}
    pictures = figures_of_page(inputs.figures)
    left_out = [*filter(None, map(formats.left_out, texts.values()))]
    left_out += [f"{entry.title}. {entry.empty.capitalize()}." for entry in inputs.figures.values() if entry.empty]
    lines = [*warnings, *filter(None, [missing_runs(layouts, metrics)])]
    outcomes = findings(inputs.comparisons) if inputs.comparisons else ()
    return render(
        "report.html.j2",
        Path(__file__).parent / "templates",
        title=title,
        inputs=inputs,
        overview=overview(layout, metrics, outcomes, list(inputs.qc.values()), inputs.status, lines),
        contents_of_page=contents(fragments, pictures, inputs, datasets),
        fragments=fragments,
        repeated=[path for path in inputs.tables if path.stem in repeated],
        pictures=pictures,
        of_dataset=OF_DATASET,
        first_map=first_map(inputs.maps),
        width=WIDTH,
        summary=summary(layout, metrics, quirks, protocol, version),
        protocol=protocol,
        code_version=version,
        runs_of_table={path: runs_of_table(layouts.get(path.stem), metrics) for path in inputs.tables},
        configuration=configuration,
        runs=run_groups(metrics),
        left_out=list(dict.fromkeys(left_out)),
        datasets=datasets,
        bag_results=[bag_results(path, analysis, datasets) for path, analysis in inputs.analyses.items()],
        trainings={name: [training_row(t) for t in inputs.trainings if t.dataset == name] for name in datasets},
        thumbnail=thumbnail,
        target=lambda path: quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()),
        view_command=lambda path, bag_id: view_command(results_folder(path, "maps"), bag_id),
    )


def repeated_tables(layouts: Layouts) -> set[str]:
    """Return Tables 6 to 10 where they show no run but those of Tables 1 and 2."""
    first = layouts.get("table1") or layouts.get("table2")
    if first is None:
        return set()
    return {
        table
        for table in EVERY_ENCODER
        if table != "resources" and table in layouts and {*layouts[table].pairings} <= {*first.pairings}
    }


def figures_of_page(figures: Mapping[Path, FigureEntry]) -> dict[Path, FigureEntry]:
    """Return the figures that show something, without histograms of a dataset that is in figure 4."""
    filled = {path: entry for path, entry in figures.items() if not entry.empty}
    in_fig4 = {name for entry in filled.values() if entry.figure == "fig4" for name in entry.datasets}
    return {p: entry for p, entry in filled.items() if entry.figure != "histograms" or not in_fig4 >= {*entry.datasets}}


def first_map(maps: Mapping[Path, MapsFile]) -> tuple[Path, MapsFile, MapEntry] | None:
    """Return a positive bag for the first screen, or any; None without maps."""
    drawn = [(path, record, entry) for path, record in maps.items() for entry in record.maps]
    return next((triple for triple in drawn if triple[2].label == 1), next(iter(drawn), None))


def contents(
    fragments: Mapping[Path, Markup], pictures: Mapping[Path, FigureEntry], inputs: Inputs, datasets: Mapping[str, str]
) -> list[Entry]:
    """Return the navigation: results, figures, datasets with what there is of them, and how it was run."""
    headings = {path: re.search("<h2>(.*?)</h2>", fragment) for path, fragment in fragments.items()}
    tables = [Entry(path.stem, Markup(match[1] if match else "Table")) for path, match in headings.items()]
    figures = [Entry(f.figure, escape(f.title)) for f in pictures.values() if f.figure not in OF_DATASET]
    mapped, counted = ({record.dataset for record in of.values()} for of in (inputs.maps, inputs.qc))
    parts = []
    for name, title in datasets.items():
        children = [Entry(f"maps-{name}", Markup("Maps"))] if name in mapped else []
        children += [
            Entry(f"{entry.figure}-{name}", Markup(OF_DATASET[entry.figure]))
            for entry in pictures.values()
            if entry.figure in OF_DATASET and name in entry.datasets
        ]
        children += [Entry(f"qc-{name}", Markup("Bags"))] if name in counted else []
        parts.append(Entry(f"data-{name}", escape(title), children))
    bags = [Entry("bags", Markup("Bag by bag"))] if inputs.analyses else []
    groups = {"Results": [*tables, *bags], "Figures": figures, "Datasets": parts}
    entries = [Entry("overview", Markup("Overview"))]
    for heading, members in groups.items():
        entries += [Entry("", Markup(heading)), *members] if members else []
    return [*entries, Entry("", Markup("Background")), Entry("runs", Markup("Runs")), Entry("made", Markup("Settings"))]


def datasets_of(layout: TableLayout, inputs: Inputs) -> dict[str, str]:
    """Return name -> title of every dataset; those that were only preprocessed or scored come last."""
    titles = {dataset.name: dataset.title for dataset in layout.datasets}
    others = {counts.dataset for counts in inputs.qc.values()} | {maps.dataset for maps in inputs.maps.values()}
    others |= {status.dataset for status in inputs.status}
    return titles | {name: name for name in sorted(others - titles.keys())}


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
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    text = f"{len(missing)} of {len(metrics) + len(missing)} trainings behind the tables have no result: "
    return f"{text}{', '.join(missing[:MOST_NAMED])}{more}." if missing else ""


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
