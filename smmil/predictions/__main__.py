"""Predict validation and test bags with every run of a method: runs.json in, one npz per run and index.json out."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.cli import guard
from preprocessing.common.files import write_json
from smmil.artifacts.hashes import hash_file, hash_json
from smmil.config import stage_versions
from smmil.predictions.runs import (
    data_options,
    is_current,
    load_run,
    predict_bags,
    write_predictions,
)

if TYPE_CHECKING:
    import torch

    from smmil.data.sources import Source


log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from smmil.data.sources import add_source_arguments

    parser = argparse.ArgumentParser(prog="python -m smmil.predictions", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="runs.json: validation and test bags of all its runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--index", type=Path, required=True, help="index.json, written last")
    add_source_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, help="torch threads")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predict the runs of a `runs.json`; see the module docstring."""
    arguments = build_parser().parse_args(argv)
    from smmil.compute.devices import choose_device, numerics

    device = choose_device(arguments.device)
    with numerics(device, threads=arguments.threads):
        return _predict_runs(arguments, device)


def _predict_runs(arguments: argparse.Namespace, device: torch.device) -> int:
    from smmil.artifacts.hashes import read_json
    from smmil.data.cache import BagCache
    from smmil.data.sources import open_source
    from smmil.data.splits import read_splits
    from smmil.data.stored import labels_key
    from smmil.predictions.signed import find_direction

    listed = read_json(arguments.runs)
    source = open_source(arguments, data_options(listed["data"]))
    if source.inputs != listed["inputs"] or source.data != listed["data"]:
        raise ValueError(f"{arguments.runs}: its runs were trained on other bags than those given; train again")
    splits = read_splits(arguments.runs.parent / "splits.csv")
    wanted = {bag_id for split in splits.values() for bag_id, part in split.items() if part in ("val", "test")}
    labels = labels_key(arguments.instances, wanted) if arguments.instances else ""
    entries = [_entry(listed, run, source, labels) for run in listed["runs"]]
    thresholds: dict[str, float] = {}
    pending = [entry for entry in entries if not is_current(arguments.out / entry["file"], entry["meta"])]
    if pending:
        bags, thresholds = source.load(sorted(wanted))
        cache = BagCache(bags, device)
        for entry in pending:
            meta = entry["meta"]
            model, _ = load_run(arguments.runs.parent / meta["run"], device)
            parts = splits[meta["seed"]]
            chosen = sorted(
                (i for i, bag in enumerate(bags) if parts[bag.bag_id] in ("val", "test")),
                key=lambda i: (parts[bags[i].bag_id] != "val", bags[i].bag_id),
            )
            direction = find_direction(model, cache, [i for i in chosen if parts[bags[i].bag_id] == "val"])
            arrays = predict_bags(model, cache, bags, chosen, [parts[bags[i].bag_id] for i in chosen], direction)
            meta |= {"label_thresholds": thresholds, "signed_agreement": direction.agreement}
            write_predictions(arguments.out / entry["file"], arrays, meta)
            log.info("%s: %d bags, %d instances", meta["run"], len(chosen), len(arrays["y_inst"]))
    write_json(arguments.index, _index(listed, entries, arguments.out, arguments.index))
    return 0


def _entry(listed: Mapping[str, Any], run: Mapping[str, Any], source: Source, labels: str) -> dict[str, Any]:
    """Return file name and meta of a run's predictions; `key` covers everything the numbers depend on."""
    meta = {name: listed[name] for name in ("dataset", "encoder", "method", "protocol", "quirks", "random_weights")}
    meta |= {name: run[name] for name in ("run", "seed", "lr", "selection_score", "best_epoch", "chosen")}
    decides = [stage_versions.PREDICTIONS, meta, run["key"], run["weights_sha256"], source.inputs, source.data, labels]
    return {"file": f"{run['run']}.npz", "meta": {**meta, "key": hash_json(decides)}}


def _index(listed: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], out: Path, index: Path) -> dict[str, Any]:
    shared = {name: listed[name] for name in ("dataset", "encoder", "method", "protocol", "random_weights")}
    folder = Path(os.path.relpath(out, index.parent))
    names = ("run", "seed", "lr", "selection_score", "best_epoch", "chosen")
    runs = [
        {
            **{name: entry["meta"][name] for name in names},
            "file": (folder / entry["file"]).as_posix(),
            "sha256": hash_file(out / entry["file"]),
        }
        for entry in entries
    ]
    return {**shared, "runs": runs}


if __name__ == "__main__":
    raise SystemExit(main())
