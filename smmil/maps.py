"""Draw attention maps of some test bags of a data set beside the ground truth."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Draw maps of test bags."""
    parser = argparse.ArgumentParser(prog="python -m smmil.maps", description=__doc__)
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: the dataset and its methods")
    parser.add_argument("--instances", required=True, type=Path, help="folder of the instances stage")
    parser.add_argument("--index", nargs="*", default=[], type=Path, help="index.json of the predictions per method")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics JSON per method; missing = a gap")
    parser.add_argument("--seed", type=int, help="split whose chosen runs are shown (default: the first)")
    parser.add_argument("--bags", type=int, default=3, help="number of test bags, chosen by lesion share")
    parser.add_argument("--bag-id", nargs="*", default=[], help="these bags instead")
    parser.add_argument("--bag-list", type=Path, help="bags.csv, to show tiles of these bags from their images")
    parser.add_argument("--root", type=Path, default=Path(), help="raw folder that the images are relative to")
    parser.add_argument("--out", required=True, type=Path, help="folder for the PNG files and maps.json")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    from preprocessing.bags.table import read_bags
    from smmil.artifacts.chosen_runs import load_chosen
    from smmil.artifacts.hashes import json_argument
    from smmil.config.layouts import FigureLayout
    from smmil.figures.bag_maps import draw_maps

    dataset = FigureLayout.parse(json_argument(args.layout, "--layout")).single()
    runs = load_chosen(args.index, args.metrics, dataset=dataset.name, seed=args.seed)
    command = shlex.join(["python", "-m", "smmil.maps", *argv])
    rows = read_bags(args.bag_list) if args.bag_list else []
    images = {row.bag_id: args.root if row.modality == "ct" else args.root / row.images[0] for row in rows}
    chosen = {"n_bags": args.bags, "bag_ids": args.bag_id, "images": images}
    draw_maps(dataset, args.instances, runs, args.out, command, **chosen)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
