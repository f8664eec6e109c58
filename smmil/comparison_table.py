"""Write the table of paired comparisons: predictions of both methods of every pair in; CSV, MD, LaTeX, HTML, JSON out.

Run alone:
    python -m smmil.comparison_table --index results/*/predictions/*/*/index.json --layout layout.json
        --out-csv comparisons.csv --out-md comparisons.md --out-tex comparisons.tex --out-html comparisons.html
        [--out-json comparisons.json] [--resamples 1000]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Write the table of comparisons."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m smmil.comparison_table", description=description)
    parser.add_argument("--index", nargs="*", default=[], type=Path, help="index.json per method; missing = a gap")
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and their pairs")
    parser.add_argument("--resamples", type=int, default=1000, help="draws of the test bags, 0 = no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out-csv", type=Path, required=True, help="every number, one row per pair")
    parser.add_argument("--out-md", type=Path, required=True, help="Markdown")
    parser.add_argument("--out-tex", type=Path, required=True, help="LaTeX, needs \\usepackage{booktabs}")
    parser.add_argument("--out-html", type=Path, required=True, help="fragment of HTML for the report")
    parser.add_argument("--out-json", type=Path, help="every comparison with its splits, for smmil.findings")
    args = parser.parse_args(argv)
    from smmil.artifacts.hashes import json_argument
    from smmil.artifacts.records import ComparisonsFile
    from smmil.config.layouts import PairLayout
    from smmil.tables.comparisons import build, compare_pairs
    from smmil.tables.formats import write_table

    layout = PairLayout.parse(json_argument(args.layout, "--layout"))
    results = compare_pairs(args.index, layout, resamples=args.resamples, seed=args.seed)
    table = build(results, layout, resamples=args.resamples)
    write_table(table, {"csv": args.out_csv, "md": args.out_md, "tex": args.out_tex, "html": args.out_html})
    if args.out_json:
        titles = {dataset.name: dataset.title for dataset in layout.datasets}
        ComparisonsFile(titles=titles, comparisons=tuple(results.values())).write(args.out_json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
