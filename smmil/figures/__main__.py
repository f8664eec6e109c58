"""Draw one figure: metrics, predictions or runs in, PNG, PDF and JSON out."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.common.cli import guard
from preprocessing.common.files import write_json
from smmil.config import stage_versions
from smmil.figures.drawing import DRAWERS, _folders, drawer

if TYPE_CHECKING:
    pass


log = logging.getLogger(__name__)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m smmil.figures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--figure", required=True, choices=sorted(DRAWERS))
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: datasets and their methods")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics JSON per row; missing = a gap")
    parser.add_argument("--index", nargs="*", default=[], type=Path, help="index.json of the predictions per row")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, help="runs.json per row, for curves and resources")
    parser.add_argument("--instances", nargs="*", default=[], help="dataset=folder of the instances stage, for maps")
    parser.add_argument("--seed", type=int, help="split whose run a map or histogram shows (default: the first)")
    parser.add_argument("--bag-id", nargs="*", default=[], help="bags of a map, instead of the one of most lesion")
    parser.add_argument("--out", required=True, type=Path, help="PNG; PDF and JSON are written beside it")
    return parser.parse_args(argv)


def _main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    args = _arguments(given)
    if args.out.suffix != ".png":
        raise ValueError(f"--out: found {args.out}, expected a name that ends in .png")
    draw = drawer(args.figure)
    from smmil.artifacts.hashes import json_argument
    from smmil.config.layouts import FigureLayout
    from smmil.figures.job import Job, by_key, describe

    layout = FigureLayout.parse(json_argument(args.layout, "--layout"))
    metrics, paths = by_key(args.metrics, layout)
    folders = _folders(args.instances)
    job = Job(args.figure, layout, metrics, args.out, paths, args.index, args.runs, folders, args.seed, args.bag_id)
    drawn = draw(job)
    command = shlex.join(["python", "-m", "smmil.figures", *given])
    write_json(args.out.with_suffix(".json"), describe(job, drawn, command, stage_versions.FIGURES))
    log.info("%s", args.out)
    return 0


main = guard(_main)


if __name__ == "__main__":
    raise SystemExit(main(None))
