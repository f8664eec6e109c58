"""Generate miniature cohorts: `python -m preprocessing.synthetic --out DIR --size demo --seed 0`.

Writes DIR/camelyon16, DIR/panda and DIR/rsna in the real raw formats. A finished folder with the same parameters is
kept, an interrupted one is completed, and one with other parameters is rebuilt.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from preprocessing.synthetic.cohort import DATASETS, build
from preprocessing.synthetic.sizes import SIZES


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(prog="python -m preprocessing.synthetic", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, required=True, help="folder for one folder per data set")
    p.add_argument("--size", choices=list(SIZES), default="demo", help="preset (default: demo)")
    p.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    p.add_argument("--datasets", default=",".join(DATASETS), help=f"comma-separated (default: {','.join(DATASETS)})")
    p.add_argument(
        "--workers", type=int, default=1, help="processes; the result is the same for any number (default: 1)"
    )
    parameters = p.add_argument_group("parameters that replace the preset's")
    parameters.add_argument("--slides", type=int, help="slides per slide data set")
    parameters.add_argument("--scans", type=int, help="CT scans")
    parameters.add_argument("--side", type=int, help="mean side of a CAMELYON16 slide, px at level 0")
    parameters.add_argument("--length", type=int, help="mean length of a PANDA strip, px at level 0")
    parameters.add_argument("--matrix", type=int, help="rows and columns of a CT slice")
    parameters.add_argument(
        "--empty-slide", action="store_true", default=None, help="add a CAMELYON16 slide without tissue"
    )
    parameters.add_argument("--fraction", type=float, help="rehearsal: share of the paper's counts (default: 1)")
    return p


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Build the cohorts."""
    args = parser().parse_args(argv)
    names = ("slides", "scans", "side", "length", "matrix", "empty_slide", "fraction")
    overrides = {name: getattr(args, name) for name in names}
    datasets = [name for name in args.datasets.split(",") if name]
    build(args.out, args.size, args.seed, datasets, overrides, args.workers)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
