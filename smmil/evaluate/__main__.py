"""Evaluate the stored predictions of one method: index.json in, metrics JSON out."""

import argparse
from collections.abc import Sequence

from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m smmil.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--index", required=True, help="index.json of the predictions of one method")
    parser.add_argument("--out", required=True, help="metrics JSON to write")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples over test bags, 0 = none")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    arguments = parser.parse_args(argv)
    from smmil.evaluate.runs import evaluate

    evaluate(arguments.index, arguments.out, resamples=arguments.resamples, seed=arguments.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
