"""Write the HTML report: tables, figures, maps, contact sheets and status in, one page out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.common.cli import guard, read_record
from preprocessing.common.files import write_text
from smmil.report.page import build_page

if TYPE_CHECKING:
    pass


log = logging.getLogger(__name__)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smmil.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--title", default="smmil report")
    parser.add_argument(
        "--layout", required=True, help="JSON, or the path of a JSON file: datasets and methods of the tables"
    )
    parser.add_argument("--layouts", default="{}", help="JSON, or the path of a JSON file: table -> its layout")
    parser.add_argument("--configuration", default="", help="arguments that gave Snakemake its configuration")
    parser.add_argument("--quirks", nargs="*", default=[], help="quirks that the configuration puts in force")
    parser.add_argument("--warning", action="append", default=[], help="a line to show on top; may be repeated")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    files = {
        "tables": "tables as HTML fragments, with CSV, Markdown and LaTeX beside",
        "metrics": "metrics JSON files, for the list of runs",
        "qc": "counts.json files, with contact-sheet.jpg beside",
        "figures": "JSON of figures, with the pictures beside",
        "maps": "maps.json files, with the pictures beside",
        "status": "status.json files",
        "runs": "runs.json files, for the training settings",
    }
    for name, text in files.items():
        parser.add_argument(f"--{name}", nargs="*", default=[], type=Path, help=text)
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    from preprocessing.qc.counts import Counts
    from preprocessing.status import Status
    from smmil.artifacts.hashes import code_version, json_argument
    from smmil.artifacts.results import read_metrics
    from smmil.report.sections import Figure, Inputs, Maps, Trainings

    inputs = Inputs(
        metrics=[read_metrics(path) for path in args.metrics],
        tables=args.tables,
        qc={path: read_record(Counts, path) for path in args.qc},
        figures={path: read_record(Figure, path) for path in args.figures},
        maps={path: read_record(Maps, path) for path in args.maps},
        status=[read_record(Status, path) for path in args.status],
        trainings=[read_record(Trainings, path) for path in args.runs],
    )
    text = build_page(
        args.title,
        json_argument(args.layout, "--layout"),
        inputs,
        page=args.out,
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
