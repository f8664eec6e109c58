"""Predict validation and test bags with every run of a method: runs.json in, one npz per run and index.json out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from smmil.artifacts.records import RunsFile
from smmil.data.arguments import add_source_arguments


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Predict the runs of a `runs.json`; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m smmil.predictions", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="runs.json: validation and test bags of all its runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the npz files")
    parser.add_argument("--index", type=Path, required=True, help="index.json, written last")
    add_source_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda")
    parser.add_argument("--threads", type=int, help="torch threads")
    arguments = parser.parse_args(argv)
    from smmil.data.sources import open_source
    from smmil.predictions.runs import data_options, predict_runs

    predict_runs(
        arguments.runs,
        open_source(arguments, data_options(RunsFile.read(arguments.runs).data)),
        arguments.out,
        arguments.index,
        instances=arguments.instances,
        device=arguments.device,
        threads=arguments.threads,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
