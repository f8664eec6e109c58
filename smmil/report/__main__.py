"""Write the HTML report: tables, figures, maps, contact sheets and status in, one page out.

Run alone:
    python -m smmil.report --title "smmil demo" --layout layout.json --tables results/tables/*.html
        --metrics results/*/metrics/*/*.json --figures results/figures/*.json results/*/figures/*/*.json
        --maps results/*/maps/*/maps.json --qc results/*/qc/counts.json --status results/*/status/status.json
        --runs results/*/runs/*/*/runs.json --comparisons results/tables/comparisons.json --out report.html
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard, read_record
from preprocessing.common.files import write_text

logger = logging.getLogger(__name__)


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m smmil.report", description=(__doc__ or "").split("\n")[0])
    layout = "JSON, or the path of a JSON file: "
    parser.add_argument("--title", default="smmil report")
    parser.add_argument("--layout", required=True, help=f"{layout}datasets and methods of the tables")
    parser.add_argument("--layouts", default="{}", help=f"{layout}table -> its layout")
    parser.add_argument("--configuration", default="", help="arguments that gave Snakemake its configuration")
    parser.add_argument("--quirks", nargs="*", default=[], help="quirks that the configuration puts in force")
    parser.add_argument("--warning", action="append", default=[], help="a line to show on top; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    files = {
        "tables": "tables as HTML fragments, with CSV, Markdown and LaTeX beside",
        "metrics": "metrics JSON files, for the list of runs",
        "qc": "counts.json files, with contact-sheet.jpg beside",
        "figures": "JSON of figures, with the pictures beside",
        "analysis": "analysis.json files, with the pictures beside",
        "maps": "maps.json files, with the pictures beside",
        "status": "status.json files",
        "runs": "runs.json files, for the training settings",
        "comparisons": "comparisons.json, for the findings on the first screen",
    }
    for name, text in files.items():
        parser.add_argument(f"--{name}", nargs="*", default=[], type=Path, help=text)
    args = parser.parse_args(argv)
    from preprocessing.qc.counts import Counts
    from preprocessing.status import Status
    from smmil.analysis.records import Analysis
    from smmil.artifacts.hashes import code_version, json_argument
    from smmil.artifacts.records import ComparisonsFile, Metrics, RunsFile
    from smmil.config.layouts import TableLayout, parse_table_layout
    from smmil.figures.entries import FigureEntry, MapsFile
    from smmil.report.page import Inputs, build_page

    inputs = Inputs(
        metrics=[Metrics.read(path) for path in args.metrics],
        tables=args.tables,
        qc={path: read_record(Counts, path) for path in args.qc},
        figures={path: FigureEntry.read(path) for path in args.figures},
        analyses={path: Analysis.read(path) for path in args.analysis},
        maps={path: MapsFile.read(path) for path in args.maps},
        status=[read_record(Status, path) for path in args.status],
        trainings=[RunsFile.read(path) for path in args.runs],
        comparisons=next((ComparisonsFile.read(path) for path in args.comparisons), None),
    )
    layouts = json_argument(args.layouts, "--layouts")
    text = build_page(
        args.title,
        TableLayout.parse(json_argument(args.layout, "--layout")),
        inputs,
        page=args.out,
        layouts={table: parse_table_layout(table, layout) for table, layout in layouts.items()},
        configuration=args.configuration,
        quirks=args.quirks,
        warnings=args.warning,
        code_version=code_version(),
    )
    write_text(args.out, text)
    logger.info("%s: %.1f MB", args.out, len(text) / 1e6)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
