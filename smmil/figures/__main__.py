"""Draw one figure of the paper, or a companion of it, from stored metrics, predictions and logs.

| figure | content | needs |
|---|---|---|
| fig4 | histograms of instance scores by label, a panel per method and dataset | metrics, index |
| fig5 | attention maps beside the truth, one bag per dataset, every method | metrics, index, instances |
| fig6a, fig6b, fig7 | metrics against alpha, spectral normalisation, number of steps | metrics |
| fig12 | one bag's map at every alpha | metrics, index, instances |
| cd | critical-difference diagram of mean ranks | metrics |
| histograms | fig4 of one dataset | metrics, index |
| curves, resources | learning curves; time and memory per method, of one dataset | metrics, runs |

Writes `X.png`, `X.pdf` and `X.json` (`smmil.figures.entries.FigureEntry`).

Run alone:
    python -m smmil.figures --figure fig6a --layout layout.json --metrics results/*/metrics/*/*.json --out fig6a.png
"""

import argparse
import importlib
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from smmil.config import stage_versions

logger = logging.getLogger(__name__)

# figure -> module:function, imported when the figure is drawn
DRAWERS = {
    "fig4": "histograms:draw",
    "fig5": "map_grids:draw_methods",
    "fig6a": "sweeps:draw_alpha",
    "fig6b": "sweeps:draw_spectral_norm",
    "fig7": "sweeps:draw_steps",
    "fig12": "map_grids:draw_alphas",
    "cd": "ranks:draw",
    "histograms": "histograms:draw",
    "curves": "training_logs:draw_curves",
    "resources": "training_logs:draw_resources",
}


def _dataset_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals:
        raise ValueError(f"--instances: found {text!r}, expected dataset=folder")
    return name, Path(folder)


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Draw one figure and describe it in JSON."""
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
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.out.suffix != ".png":
        raise ValueError(f"--out: found {args.out}, expected a name that ends in .png")
    from smmil.artifacts.hashes import json_argument
    from smmil.config.layouts import FigureLayout
    from smmil.figures.job import Job, by_key, describe

    layout = FigureLayout.parse(json_argument(args.layout, "--layout"))
    metrics, paths = by_key(args.metrics, layout)
    folders = dict(map(_dataset_folder, args.instances))
    job = Job(args.figure, layout, metrics, args.out, paths, args.index, args.runs, folders, args.seed, args.bag_id)
    module, function = DRAWERS[args.figure].split(":")
    text = getattr(importlib.import_module(f"smmil.figures.{module}"), function)(job)
    command = shlex.join(["python", "-m", "smmil.figures", *argv])
    describe(job, text, command, stage_versions.FIGURES).write(args.out.with_suffix(".json"))
    logger.info("%s", args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
