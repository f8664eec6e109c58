"""Draw the contact sheet of a data set: bags.csv and manifests of instances in, HTML, JPEG and counts out."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Write the sheet of one dataset."""
    parser = argparse.ArgumentParser(prog="python -m preprocessing.qc", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument("--bags", required=True, type=Path, help="bags.csv")
    parser.add_argument("--report", required=True, type=Path, help="bags.report.json")
    parser.add_argument("--instances", required=True, type=Path, help="folder of the instances stage")
    parser.add_argument("--manifests", nargs="*", default=[], type=Path, help="shard manifests of the instances stage")
    parser.add_argument("--max-bags", type=int, default=200, help="thumbnails in the page, the oddest and a sample")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(arguments)
    if args.max_bags < 1:
        raise ValueError(f"--max-bags: found {args.max_bags}, expected at least 1")
    from preprocessing.qc.sheet import write_sheet

    command = shlex.join(["python", "-m", "preprocessing.qc", *arguments])
    write_sheet(
        *(args.dataset, args.bags, args.report, args.instances, args.manifests, args.out),
        max_bags=args.max_bags,
        command=command,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
