"""The report: one HTML file with tables, figures, maps and the state of the data, each with its command and runs.

No request leaves the page: style and small copies of the pictures are inside; links lead to the full PNG and PDF files
and to the tables' CSV, Markdown and LaTeX. Everything is read from files named on the command line, nothing is computed
again. Templates: `smmil/report/templates`, and those of `preprocessing.common.webpage`.

Run alone:
    python -m smmil.report --title "smmil demo" --layout layout.json --tables results/tables/*.html
        --metrics results/*/metrics/*/*.json --figures results/figures/*.json results/*/figures/*/*.json
        --maps results/*/maps/*/maps.json --qc results/*/qc/counts.json --status results/*/status/status.json
        --runs results/*/runs/*/*/runs.json --out report.html
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from preprocessing.qc.counts import Counts
    from smmil.report.sections import Inputs, Metrics

log = logging.getLogger(__name__)

MINIATURE_BAGS = 60


def build_page(
    title: str,
    layout: Mapping[str, Any],
    inputs: "Inputs",
    *,
    page: Path,
    layouts: Mapping[str, Mapping[str, Any]] | None = None,
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
        layouts: table -> its layout, for the runs behind it and what is missing.
        configuration: arguments that gave Snakemake its configuration, e.g. `--configfile mine.yaml`.
        quirks: differences between the protocols that the configuration puts in force.
        warnings: lines to show on top.
        code_version: of what writes this page.
    """
    from preprocessing.common.webpage import render, thumbnail
    from smmil.report import sections

    metrics, layouts = inputs.metrics, layouts or {}
    missing = [path for path in inputs.tables if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such table; write it with python -m smmil.tables --out-html")
    protocol = ", ".join(sorted({str(entry["protocol"]) for entry in metrics})) or "none (no metrics)"
    version = code_version or "unknown"
    return render(
        "report.html.j2",
        Path(__file__).parent / "templates",
        title=title,
        inputs=inputs,
        warnings=[*warnings, *automatic_warnings(metrics, inputs.qc.values())],
        summary=sections.summary(layout, metrics, quirks, protocol, version),
        protocol=protocol,
        code_version=version,
        behind={path: sections.runs_behind(layouts.get(path.stem), metrics) for path in inputs.tables},
        configuration=configuration,
        runs=sections.run_groups(metrics),
        gap=sections.missing_runs(layouts, metrics),
        datasets=datasets_of(layout, inputs),
        thumbnail=thumbnail,
        target=lambda path: quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()),
    )


def datasets_of(layout: Mapping[str, Any], inputs: "Inputs") -> dict[str, str]:
    """Return name -> title of every dataset; those that were only preprocessed or scored come last."""
    titles = {dataset["name"]: dataset.get("title", dataset["name"]) for dataset in layout["datasets"]}
    prepared = {counts.dataset for counts in inputs.qc.values()} | {status.dataset for status in inputs.status}
    others = (prepared | {maps.dataset for maps in inputs.maps.values()}) - titles.keys()
    return titles | {name: name for name in sorted(others)}


def automatic_warnings(metrics: Sequence["Metrics"], counts: Iterable["Counts"]) -> list[str]:
    """Return what a reader must know before any number: random encoders, miniature cohorts, failed bags."""
    counts, lines = list(counts), []
    random = sorted({entry["dataset"] for entry in metrics if entry.get("random_weights")})
    if random:
        lines.append(f"Random encoder weights ({', '.join(random)}): the numbers only show that the pipeline runs.")
    small = [f"{cohort.dataset} {cohort.bags} bags" for cohort in counts if _is_miniature(cohort)]
    if small:
        lines.append(f"Miniature cohorts ({', '.join(small)}): far smaller than the published datasets.")
    failed = [f"{cohort.dataset} {n}" for cohort in counts if (n := cohort.states.get("failed", 0))]
    if failed:
        lines.append(f"Failed bags: {', '.join(failed)}; they are missing from every number below.")
    return lines


def _is_miniature(counts: "Counts") -> bool:
    published = next((entry.published for entry in counts.expected if entry.name == "bags"), 2 * MINIATURE_BAGS)
    return counts.bags < published / 2
