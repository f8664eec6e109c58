"""Write a table of the paper as CSV, Markdown and LaTeX, from metrics or, for time and memory, from runs.

The layout names the datasets with their feature extractors, and the methods (`smmil.config.layouts.TableLayout`):
    {"datasets": [{"name": "rsna", "title": "RSNA", "encoders": ["resnet18"]}, ...], "methods": ["smap_early", ...],
     "splits": 5, "note": "..."}

Run alone:
    python -m smmil.tables --table table1 --metrics M.json ... --layout layout.json --out-csv t.csv --out-md t.md
    python -m smmil.tables --table resources --runs runs.json ... --layout layout.json --out-csv t.csv --out-tex t.tex
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from smmil.config.targets import TABLES


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Write one table as CSV, Markdown, LaTeX and HTML."""
    parser = argparse.ArgumentParser(prog="python -m smmil.tables", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", required=True, choices=[table for table in TABLES if table != "comparisons"])
    parser.add_argument("--metrics", nargs="*", default=[], help="metrics JSON files; missing ones are empty cells")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, help="runs.json files, for the table `resources`")
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and methods")
    parser.add_argument("--out-csv", type=Path, help="every number, one row per method")
    parser.add_argument("--out-md", type=Path, help="Markdown")
    parser.add_argument("--out-tex", type=Path, help="LaTeX, needs \\usepackage{booktabs}")
    parser.add_argument("--out-html", type=Path, help="fragment of HTML for the report")
    args = parser.parse_args(argv)
    from smmil.artifacts.hashes import json_argument
    from smmil.artifacts.records import Metrics
    from smmil.config.layouts import TableLayout
    from smmil.tables.build import build_table
    from smmil.tables.formats import write_table
    from smmil.tables.resources import read_resources

    metrics = [*map(Metrics.read, args.metrics), *map(read_resources, args.runs)]
    table = build_table(args.table, metrics, TableLayout.parse(json_argument(args.layout, "--layout")))
    write_table(table, {"csv": args.out_csv, "md": args.out_md, "tex": args.out_tex, "html": args.out_html})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
