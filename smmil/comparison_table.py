"""Write the table of paired comparisons: predictions of both methods of every pair in, CSV, MD, LaTeX and HTML out."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.common.cli import guard
from preprocessing.common.files import write_text
from smmil.tables.comparisons import build, by_pairing

if TYPE_CHECKING:
    pass


logger = logging.getLogger(__name__)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m smmil.comparison_table", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--index", nargs="*", default=[], type=Path, help="index.json per method; missing = a gap")
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and their pairs")
    parser.add_argument("--resamples", type=int, default=1000, help="draws of the test bags, 0 = no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--out-csv", type=Path, required=True, help="every number, one row per pair")
    parser.add_argument("--out-md", type=Path, required=True, help="Markdown")
    parser.add_argument("--out-tex", type=Path, required=True, help="LaTeX, needs \\usepackage{booktabs}")
    parser.add_argument("--out-html", type=Path, required=True, help="fragment of HTML for the report")
    args = parser.parse_args(argv)
    from smmil.artifacts.hashes import json_argument
    from smmil.config.layouts import PairLayout
    from smmil.tables.formats import to_csv, to_html, to_markdown
    from smmil.tables.latex import to_latex

    layout = PairLayout.parse(json_argument(args.layout, "--layout"))
    table = build(by_pairing(args.index), layout, resamples=args.resamples, seed=args.seed)
    writers = {args.out_csv: to_csv, args.out_md: to_markdown, args.out_tex: to_latex, args.out_html: to_html}
    for path, write in writers.items():
        write_text(path, write(table))
        logger.info("%s: %d datasets", path, len(table.sections))
    return 0


main = guard(_main)


if __name__ == "__main__":
    raise SystemExit(main(None))
