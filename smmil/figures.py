"""Draws one figure of the paper, or a companion of it, from stored metrics, predictions and logs.

| figure | content | needs |
|---|---|---|
| fig4 | histograms of instance scores by label, a panel per method and dataset | metrics, index |
| fig5 | attention maps beside the truth, one bag per dataset, every method | metrics, index, instances |
| fig6a, fig6b, fig7 | metrics against alpha, spectral normalisation, number of steps | metrics |
| fig12 | one bag's map at every alpha | metrics, index, instances |
| cd | critical-difference diagram of mean ranks | metrics |
| histograms | fig4 of one dataset | metrics, index |
| curves, resources | learning curves; time and memory per method, of one dataset | metrics, runs |

Writes `X.png`, `X.pdf` and `X.json` (title, caption, notes, runs, number of missing runs, protocol, command).

Run alone:
    python -m smmil.figures --figure fig6a --layout layout.json --metrics results/*/metrics/*/*.json --out fig6a.png
"""

import argparse
import importlib
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.cli import guard, write_json

if TYPE_CHECKING:
    from smmil.fig_job import Drawn, Job

log = logging.getLogger(__name__)

STAGE_VERSION = 3
# figure -> module:function, imported when the figure is drawn
DRAWERS = {
    "fig4": "smmil.fig_histograms:draw",
    "fig5": "smmil.fig_maps:draw_methods",
    "fig6a": "smmil.fig_sweeps:draw_alpha",
    "fig6b": "smmil.fig_sweeps:draw_spectral_norm",
    "fig7": "smmil.fig_sweeps:draw_steps",
    "fig12": "smmil.fig_maps:draw_alphas",
    "cd": "smmil.fig_ranks:draw",
    "histograms": "smmil.fig_histograms:draw",
    "curves": "smmil.fig_curves:draw",
    "resources": "smmil.fig_resources:draw",
}


def drawer(figure: str) -> "Callable[[Job], Drawn]":
    """Return the function that draws a figure.

    Raises:
        ValueError: unknown figure.
    """
    if figure not in DRAWERS:
        raise ValueError(f"--figure: found {figure!r}, expected one of {', '.join(DRAWERS)}")
    module, name = DRAWERS[figure].split(":")
    function: Callable[[Job], Drawn] = getattr(importlib.import_module(module), name)
    return function


def _folders(pairs: Sequence[str]) -> dict[str, Path]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ValueError(f"--instances: found {wrong[0]!r}, expected dataset=folder")
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}


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
    from smmil.fig_job import Job, by_key, describe
    from smmil.layouts import FigureLayout
    from smmil.results import json_argument

    layout = FigureLayout.parse(json_argument(args.layout, "--layout"))
    metrics, paths = by_key(args.metrics, layout)
    folders = _folders(args.instances)
    job = Job(args.figure, layout, metrics, args.out, paths, args.index, args.runs, folders, args.seed, args.bag_id)
    drawn = draw(job)
    command = shlex.join(["python", "-m", "smmil.figures", *given])
    write_json(args.out.with_suffix(".json"), describe(job, drawn, command, STAGE_VERSION))
    log.info("%s", args.out)
    return 0


main = guard(_main)

if __name__ == "__main__":
    raise SystemExit(main(None))
