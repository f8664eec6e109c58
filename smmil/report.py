"""The report: one HTML file with tables, figures, maps, state of the data, and behind each its command and runs.

No request leaves the page: style and small copies of the pictures are inside; links lead to the full PNG and PDF files
and to the tables' CSV, Markdown and LaTeX. Everything is read from files named on the command line, nothing is computed
again.

Run alone:
    python -m smmil.report --title "smmil demo" --layout layout.json --tables results/tables/*.md
        --metrics results/*/metrics/*/*.json --figures results/figures/*.json results/*/figures/*/*.json
        --maps results/*/maps/*/maps.json --qc results/*/qc/counts.json --status results/*/status/status.json
        --manifests results/*/features/*/shards/*.json --runs results/*/runs/*/*/runs.json --out report.html
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_text

log = logging.getLogger(__name__)

STAGE_VERSION = 3
MINIATURE_BAGS = 60

Part = tuple[Path, dict[str, Any]]


def build_page(
    title: str,
    layout: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    parts: Mapping[str, Sequence[Part]],
    *,
    page: Path,
    tables: Sequence[tuple[Path, str]] = (),
    layouts: Mapping[str, dict[str, Any]] | None = None,
    configuration: str = "",
    quirks: Sequence[str] = (),
    warnings: Sequence[str] = (),
    code_version: str = "",
) -> str:
    """Puts the page together.

    Args:
        title: of the page.
        layout: datasets and methods, as `smmil.tables` takes it.
        metrics: objects of `smmil.evaluate` of every pairing behind the tables, for the list of runs.
        parts: "qc", "figures", "maps", "manifests", "status", "runs": (file, its JSON) each.
        page: where the page will lie; links are relative to it.
        tables: (Markdown file, its text) of every table.
        layouts: table -> its layout, for the runs behind it and what is missing.
        configuration: arguments that gave Snakemake its configuration, e.g. `--configfile mine.yaml`.
        quirks: differences between the protocols that the configuration puts in force.
        warnings: lines to show on top.
        code_version: of what wrote this page.

    Returns:
        HTML.
    """
    from preprocessing import webpage
    from smmil.report_pictures import figure
    from smmil.report_sections import OF_DATASET, dataset_section, runs_table, summary, table_section

    protocol = ", ".join(sorted({str(one["protocol"]) for one in metrics})) or "none (no metrics)"
    body, links, layouts = [], [], layouts or {}
    for path, text in tables:
        links.append((path.stem, path.stem))
        body.append(table_section(path, text, page, configuration, layouts.get(path.stem), metrics))
    if not tables:
        body.append(webpage.warning("No table was given."))
    body.append(runs_table(metrics, missing_pairings(layouts, metrics)))
    for path, entry in parts.get("figures", ()):
        if entry["figure"] not in OF_DATASET:
            links.append((entry["figure"], entry["figure"]))
            head = f'<section id="{escape(entry["figure"], quote=True)}"><h2>{escape(entry["title"])}</h2>'
            body.append(f"{head}{figure(path.parent, entry, page)}</section>")
    for name, shown in datasets_of(layout, parts):
        links.append((f"data-{name}", shown))
        body.append(dataset_section(name, shown, parts, page))
    alarms = "".join(webpage.warning(text) for text in [*warnings, *automatic_warnings(metrics, parts)])
    items = "".join(f'<li><a href="#{escape(key, quote=True)}">{escape(text)}</a></li>' for key, text in links)
    header = f"{alarms}{summary(layout, metrics, protocol, code_version, quirks)}<nav><ul>{items}</ul></nav>"
    footer = f"<p>Code version {escape(code_version or 'unknown')}. Protocol {escape(protocol)}.</p>"
    return webpage.page(title, "".join(body), header=header, footer=footer)


def missing_pairings(
    layouts: Mapping[str, dict[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """The (dataset, encoder, method) of the tables' layouts that have no metrics, each once."""
    from smmil.report_sections import behind_layout

    wanted = dict.fromkeys(pairing for layout in layouts.values() for pairing in behind_layout(layout))
    found = {(one["dataset"], one["encoder"], one["method"]) for one in metrics}
    return [pairing for pairing in wanted if pairing not in found]


def datasets_of(layout: Mapping[str, Any], parts: Mapping[str, Sequence[Part]]) -> list[tuple[str, str]]:
    """Name and title of every dataset of the page; those that only were preprocessed or scored come last."""
    named = [(one["name"], one.get("title", one["name"])) for one in layout["datasets"]]
    shown = {item["dataset"] for kind in ("qc", "maps", "status") for _, item in parts.get(kind, ())}
    return named + [(name, name) for name in sorted(shown - {name for name, _ in named})]


def automatic_warnings(
    metrics: Sequence[Mapping[str, Any]], parts: Mapping[str, Sequence[tuple[Path, dict[str, Any]]]]
) -> list[str]:
    """What a reader must know before reading any number: random encoders, miniature cohorts, failed bags."""
    lines = []
    random = sorted({one["dataset"] for one in metrics if one.get("random_weights")})
    if random:
        lines.append(f"Random encoder weights ({', '.join(random)}): the numbers only show that the pipeline runs.")
    counts = [counts for _, counts in parts.get("qc", ())]
    small = [f"{one['dataset']} {sum(one['states'].values())} bags" for one in counts if _is_miniature(one)]
    if small:
        lines.append(f"Miniature cohorts ({', '.join(small)}): far smaller than the published datasets.")
    failed = [f"{one['dataset']} {n}" for one in counts if (n := one["states"].get("failed", 0))]
    if failed:
        lines.append(f"Failed bags: {', '.join(failed)}; they are missing from every number below.")
    return lines


def _is_miniature(counts: Mapping[str, Any]) -> bool:
    published = {name: number for name, number, _ in counts.get("expected", [])}.get("bags")
    bags = sum(counts["states"].values())
    return bool(bags < (published / 2 if published else MINIATURE_BAGS))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smmil.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--title", default="smmil report")
    parser.add_argument(
        "--layout", required=True, help="JSON, or the path of a JSON file: datasets and methods of the tables"
    )
    parser.add_argument("--tables", nargs="*", default=[], type=Path, help="tables as Markdown, CSV and LaTeX beside")
    parser.add_argument("--layouts", default="{}", help="JSON, or the path of a JSON file: table -> its layout")
    parser.add_argument("--configuration", default="", help="arguments that gave Snakemake its configuration")
    parser.add_argument("--quirks", nargs="*", default=[], help="quirks that the configuration puts in force")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics JSON files, for the list of runs")
    parser.add_argument(
        "--qc", nargs="*", default=[], type=Path, help="counts.json files, contact-sheet.jpg beside them"
    )
    parser.add_argument("--figures", nargs="*", default=[], type=Path, help="JSON of figures, pictures beside them")
    parser.add_argument("--maps", nargs="*", default=[], type=Path, help="maps.json files, pictures beside them")
    parser.add_argument("--manifests", nargs="*", default=[], type=Path, help="shard manifests of the features stage")
    parser.add_argument(
        "--status", nargs="*", default=[], type=Path, help="status.json files; missing ones are skipped"
    )
    parser.add_argument("--runs", nargs="*", default=[], type=Path, help="runs.json files, for the training settings")
    parser.add_argument("--warning", action="append", default=[], help="a line to show on top; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    from smmil.results import json_argument, read_json, read_metrics
    from smmil.runs import code_version

    args.status = [path for path in args.status if path.is_file()]
    kinds = ("qc", "figures", "maps", "manifests", "status", "runs")
    parts = {kind: [(path, read_json(path)) for path in getattr(args, kind)] for kind in kinds}
    for kind, key in [(kind, "dataset") for kind in kinds if kind != "figures"] + [("figures", "figure")]:
        for path, item in parts[kind]:
            if key not in item:
                raise ValueError(
                    f"{path}: found the keys {sorted(item)}, expected {key} among them; wrong kind of file?"
                )
    missing = [path for path in args.tables if not path.is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such table; write it with python -m smmil.tables")
    text = build_page(
        args.title,
        json_argument(args.layout, "--layout"),
        [read_metrics(path) for path in args.metrics],
        parts,
        page=args.out,
        tables=[(path, path.read_text(encoding="utf-8")) for path in args.tables],
        layouts=json_argument(args.layouts, "--layouts"),
        configuration=args.configuration,
        quirks=args.quirks,
        warnings=args.warning,
        code_version=code_version(),
    )
    write_text(args.out, text)
    log.info("%s: %.1f MB", args.out, len(text) / 1e6)
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
