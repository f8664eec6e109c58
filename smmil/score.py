"""Score the bags of another data set with the chosen runs of a training (one per split), or with one run.

In: `runs.json` of a finished training (`--runs`) or the directory of one run (`--run`), and the bag store of another
data set that was cut and encoded like the one the runs learned from; a bag that was not is refused by name.
Out: `{run}.npz` per chosen run (arrays as in `smmil.predictions.runs`), `index.json`, and `scores.csv` with one line
per bag of `bags.csv` (`smmil.predictions.scoring`).

Run alone:
    python -m smmil.score --runs results/camelyon16/runs/resnet18/smap_early/runs.json --bags results/mine/bags.csv \
        --instances results/mine/instances --features results/mine/features/resnet18 \
        --manifests results/mine/features/resnet18/shards/*.json --out results/mine/scores/smap_early
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from smmil.data.arguments import add_source_arguments


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Score the usable bags of a dataset with every chosen run of a training."""
    parser = argparse.ArgumentParser(prog="python -m smmil.score", description=main.__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--runs", type=Path, help="runs.json of the training: all its chosen runs")
    what.add_argument("--run", type=Path, help="directory of one finished run: that alone")
    parser.add_argument("--out", type=Path, required=True, help="folder of the npz files, scores.csv and index.json")
    parser.add_argument(
        "--dataset-folder", type=Path, help="results/D of the runs' dataset, where they do not lie in it"
    )
    parser.add_argument("--any-resolution", action="store_true", help="accept a resolution the runs have never seen")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, help="torch threads")
    add_source_arguments(parser)
    arguments = parser.parse_args(argv)
    from smmil.artifacts.records import RunConfig, RunsFile
    from smmil.data.sources import open_source
    from smmil.predictions.runs import data_options
    from smmil.predictions.scoring import score_bags

    runs = [arguments.run]
    if arguments.runs is not None:
        runs = [arguments.runs.parent / run.run for run in RunsFile.read(arguments.runs).chosen]
    data = RunConfig.read(runs[0] / "config.json").data
    score_bags(
        runs,
        open_source(arguments, data_options(data)),
        arguments.out,
        where=str(arguments.features or arguments.table),
        dataset_folder=arguments.dataset_folder,
        any_resolution=arguments.any_resolution,
        device=arguments.device,
        threads=arguments.threads,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
