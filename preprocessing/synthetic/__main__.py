"""Generate miniature cohorts: `python -m preprocessing.synthetic --out DIR --size demo --seed 0`.

Writes DIR/camelyon16, DIR/panda and DIR/rsna in the real raw formats. A folder of the same parameters is kept, one of
others is replaced.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from preprocessing.synthetic.cohort import DATASETS, build
from preprocessing.synthetic.sizes import SIZES

PARAMETERS = {
    "slides": (int, "slides per slide data set"),
    "scans": (int, "CT scans"),
    "side": (int, "mean side of a CAMELYON16 slide, px at level 0"),
    "length": (int, "mean length of a PANDA strip, px at level 0"),
    "matrix": (int, "rows and columns of a CT slice"),
    "fraction": (float, "rehearsal: share of the paper's counts (default: 1)"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(prog="python -m preprocessing.synthetic", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, required=True, help="folder for one folder per data set")
    p.add_argument("--size", choices=list(SIZES), default="demo", help="preset (default: demo)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    p.add_argument("--datasets", default=",".join(DATASETS), help=f"comma-separated (default: {','.join(DATASETS)})")
    group = p.add_argument_group("parameters that replace the preset's")
    for name, (kind, text) in PARAMETERS.items():
        group.add_argument(f"--{name}", type=kind, help=text)
    group.add_argument("--empty-slide", action="store_true", default=None, help="add a CAMELYON16 slide without tissue")
    return p


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Build the cohorts."""
    args = parser().parse_args(argv)
    overrides = {name: getattr(args, name) for name in (*PARAMETERS, "empty_slide")}
    datasets = [name for name in args.datasets.split(",") if name]
    build(args.out, args.size, args.seed, datasets, overrides)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
