"""Draw attention maps of some test bags of a data set beside the ground truth."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from preprocessing.common.files import write_json
from smmil.config import stage_versions
from smmil.figures.bag_maps import absent_methods, draw_bag, select_bags

log = logging.getLogger(__name__)


def _main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m smmil.maps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layout", required=True, help="JSON, or the path of a JSON file: the dataset and its methods")
    parser.add_argument("--instances", required=True, type=Path, help="folder of the instances stage")
    parser.add_argument("--index", nargs="*", default=[], type=Path, help="index.json of the predictions per method")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics JSON per method; missing = a gap")
    parser.add_argument("--seed", type=int, help="split whose chosen runs are shown (default: the first)")
    parser.add_argument("--bags", type=int, default=3, help="number of test bags, chosen by lesion share")
    parser.add_argument("--bag-id", nargs="*", default=[], help="these bags instead")
    parser.add_argument("--out", required=True, type=Path, help="folder for the PNG files and maps.json")
    given = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(given)
    from smmil.artifacts.chosen_runs import load_chosen
    from smmil.artifacts.hashes import json_argument
    from smmil.config.layouts import FigureLayout
    from smmil.figures.job import in_order

    dataset = FigureLayout.parse(json_argument(args.layout, "--layout")).single()
    runs = load_chosen(args.index, args.metrics, dataset=dataset.name, seed=args.seed)
    absent = in_order([method for method in dataset.methods if method not in {run.method for run in runs}])
    bags = args.bag_id or (select_bags(runs[0].predictions.part("test"), args.bags) if runs else [])
    maps = []
    command = shlex.join(["python", "-m", "smmil.maps", *given])
    for bag_id in bags:
        maps.append(draw_bag(args.instances, bag_id, runs, args.out / f"{bag_id}.png", absent))
        write_json(args.out / f"{bag_id}.json", {**maps[-1], "command": command, "stage_version": stage_versions.MAPS})
        log.info("%s", args.out / f"{bag_id}.png")
    entry = {"dataset": dataset.name, "encoder": dataset.encoder, "maps": maps}
    notes = absent_methods(absent, len(runs) + len(absent))
    write_json(
        args.out / "maps.json", {**entry, "notes": notes, "command": command, "stage_version": stage_versions.MAPS}
    )
    return 0


main = guard(_main)


if __name__ == "__main__":
    raise SystemExit(main(None))
