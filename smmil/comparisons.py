"""Compare two methods over the same test bags: two index.json in, JSON out."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m smmil.comparisons", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--index", nargs=2, required=True, metavar=("FIRST", "SECOND"), help="index.json of both methods"
    )
    parser.add_argument("--metric", nargs="+", default=["instance_auroc"], help="metrics to compare")
    parser.add_argument("--out", type=Path, help="JSON to write; default: standard output")
    parser.add_argument("--resamples", type=int, default=2000, help="draws of the test bags")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    arguments = parser.parse_args(argv)
    from smmil.evaluate.comparisons import compare

    first, second = arguments.index
    comparison = compare(first, second, arguments.metric, resamples=arguments.resamples, seed=arguments.seed)
    if arguments.out:
        comparison.write(arguments.out)
    else:
        sys.stdout.write(json.dumps(comparison.as_json(), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
