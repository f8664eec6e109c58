"""List the bags of a data set: raw folder in, bags.csv and a report out."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """List one dataset."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.bags", description="List the bags of a dataset.")
    parser.add_argument("--dataset", required=True, help="name of the dataset in the config")
    parser.add_argument("--kind", required=True, help="a kind of `preprocessing.datasets`, e.g. custom")
    parser.add_argument("--root", required=True, type=Path, help="folder with the raw data")
    parser.add_argument("--options", default="{}", help="the kind's options, one JSON object")
    parser.add_argument("--max-bags", type=int, help="bags the workflow planned for; more is an error")
    parser.add_argument(
        "--instance-bytes", type=int, default=0, help="bytes of the features of one instance, to check the disk"
    )
    parser.add_argument("--splits", type=int, default=0, help="training splits that the bags have to be enough for")
    parser.add_argument("--out", required=True, type=Path, help="bags.csv; NAME.report.json is written beside it")
    args = parser.parse_args(argv)
    from preprocessing.datasets.listing import list_bags

    try:
        options = json.loads(args.options)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options: not JSON ({error}); found {args.options[:80]!r}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--options: expected a JSON object, found {type(options).__name__}")
    limits = {"max_bags": args.max_bags, "instance_bytes": args.instance_bytes, "splits": args.splits}
    list_bags(args.dataset, args.kind, args.root, options, args.out, **limits)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
