"""The report: one HTML file with tables, state of the data, and every figure with its command and runs.

No request leaves the page: style and pictures (at most 1500 px) are inside. Everything is read from files named on the
command line; nothing is computed again but the tables.

Run alone:
    python -m smmil.report --title "smmil demo" --layout layout.json --metrics results/*/metrics/*/*.json
        --qc results/*/qc/counts.json --figures results/*/figures/*/figures.json --maps results/*/maps/*/maps.json
        --manifests results/*/features/*/shards/*.json --runs results/*/runs/*/*/runs.json --out report.html
"""

import argparse
import logging
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from preprocessing.cli import guard, write_text

log = logging.getLogger(__name__)

STAGE_VERSION = 1
MINIATURE_BAGS = 60


def build_page(
    title: str,
    layout: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    parts: Mapping[str, Sequence[tuple[Path, dict[str, Any]]]],
    *,
    warnings: Sequence[str] = (),
    commands: Mapping[str, str] | None = None,
    code_version: str = "",
) -> str:
    """Puts the page together.

    Args:
        title: of the page.
        layout: of the tables, see `smmil.tables`.
        metrics: objects of `smmil.evaluate`.
        parts: "qc", "figures", "maps", "manifests", "runs": (file, its JSON) each.
        warnings: lines to show on top.
        commands: table name -> the command that writes it.
        code_version: of what wrote this page.

    Returns:
        HTML.
    """
    from preprocessing import webpage
    from smmil.report_sections import dataset_section, runs_table, summary
    from smmil.table_formats import to_html
    from smmil.tables import TABLES, build_table

    tables = {name: build_table(name, metrics, layout) for name in TABLES}
    protocol = tables["table1"].protocol
    datasets = [(one["name"], one.get("title", one["name"])) for one in layout["datasets"]]
    extra = sorted(
        {item["dataset"] for kind in ("qc", "maps") for _, item in parts.get(kind, ())} - {n for n, _ in datasets}
    )
    datasets += [(name, name) for name in extra]
    body, links = [], []
    for name, table in tables.items():
        links.append((name, table.title.split(".")[0]))
        command = (commands or {}).get(name, "")
        how = f"<details><summary>How this was made</summary><pre>{escape(command)}</pre></details>" if command else ""
        body.append(f'<section id="{name}"><h2>{escape(table.title)}</h2>{to_html(table)}{how}</section>')
    body.append(runs_table(metrics))
    for name, shown in datasets:
        links.append((f"data-{name}", shown))
        body.append(dataset_section(name, shown, parts))
    alarms = "".join(webpage.warning(text) for text in [*warnings, *automatic_warnings(metrics, parts)])
    items = "".join(f'<li><a href="#{escape(key, quote=True)}">{escape(text)}</a></li>' for key, text in links)
    header = f"{alarms}{summary(layout, metrics, protocol, code_version)}<nav><ul>{items}</ul></nav>"
    footer = f"<p>Code version {escape(code_version or 'unknown')}. Protocol {escape(protocol)}.</p>"
    return webpage.page(title, "".join(body), header=header, footer=footer)


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


def table_command(name: str, layout: str, metrics: Sequence[Path]) -> str:
    """The command that writes a table of the report as CSV and Markdown."""
    files = [str(path) for path in metrics]
    ends = ["--out-csv", f"{name}.csv", "--out-md", f"{name}.md"]
    return shlex.join(["python", "-m", "smmil.tables", "--table", name, "--metrics", *files, "--layout", layout, *ends])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smmil.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--title", default="smmil report")
    parser.add_argument(
        "--layout", required=True, help="JSON, or the path of a JSON file: datasets and methods of the tables"
    )
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics JSON files")
    parser.add_argument(
        "--qc", nargs="*", default=[], type=Path, help="counts.json files, contact-sheet.jpg beside them"
    )
    parser.add_argument("--figures", nargs="*", default=[], type=Path, help="figures.json files, pictures beside them")
    parser.add_argument("--maps", nargs="*", default=[], type=Path, help="maps.json files, pictures beside them")
    parser.add_argument("--manifests", nargs="*", default=[], type=Path, help="shard manifests of the features stage")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, help="runs.json files, for the training settings")
    parser.add_argument("--warning", action="append", default=[], help="a line to show on top; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    from smmil.results import json_argument, read_json, read_metrics
    from smmil.runs import code_version
    from smmil.tables import TABLES

    kinds = ("qc", "figures", "maps", "manifests", "runs")
    parts = {kind: [(path, read_json(path)) for path in getattr(args, kind)] for kind in kinds}
    for path, item in [pair for pairs in parts.values() for pair in pairs]:
        if "dataset" not in item:
            raise ValueError(
                f"{path}: found the keys {sorted(item)}, expected a dataset among them; wrong kind of file?"
            )
    text = build_page(
        args.title,
        json_argument(args.layout, "--layout"),
        [read_metrics(path) for path in args.metrics],
        parts,
        warnings=args.warning,
        commands={name: table_command(name, args.layout, args.metrics) for name in TABLES},
        code_version=code_version(),
    )
    write_text(args.out, text)
    log.info("%s: %.1f MB", args.out, len(text) / 1e6)
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
