"""Write results bag by bag: predictions and metrics as tables in long form, or the analysis of one dataset.

Run alone:
    python -m smmil.analysis predictions --index results/*/predictions/*/*/index.json --bags rsna=results/rsna/bags.csv
        --out predictions.csv
    python -m smmil.analysis metrics --metrics results/*/metrics/*/*.json --out metrics.csv
    python -m smmil.analysis dataset --index results/rsna/predictions/E/*/index.json --bags rsna=results/rsna/bags.csv
        --instances results/rsna/instances --out results/rsna/analysis/E/analysis.json
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard

logger = logging.getLogger(__name__)


def _dataset_file(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals:
        raise ValueError(f"--bags: found {text!r}, expected dataset=bags.csv")
    return name, Path(path)


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m smmil.analysis", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    predictions = commands.add_parser("predictions", help="CSV: a row per test bag, split and method")
    metrics = commands.add_parser("metrics", help="CSV: a row per metric, split and method")
    dataset = commands.add_parser("dataset", help="JSON and pictures: curves, calibration, confusion, wrong bags")
    predictions.add_argument("--index", nargs="*", default=[], type=Path, help="index.json of each training")
    dataset.add_argument("--index", nargs="+", required=True, type=Path, help="index.json of each method")
    metrics.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics JSON of each training")
    dataset.add_argument("--instances", type=Path, help="folder of the instances stage, for the thumbnails")
    for command in (predictions, dataset):
        command.add_argument("--bags", nargs="*", default=[], help="dataset=bags.csv, for the patients")
    for command in (predictions, metrics, dataset):
        command.add_argument("--out", required=True, type=Path, help="file to write; pictures are written beside it")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    from smmil.analysis.build import write_analysis
    from smmil.analysis.long_tables import MetricRow, PredictionRow, metric_rows, prediction_rows, write_rows
    from smmil.artifacts.records import Metrics

    if args.command == "predictions":
        write_rows(args.out, PredictionRow, prediction_rows(args.index, dict(map(_dataset_file, args.bags))))
    elif args.command == "metrics":
        write_rows(args.out, MetricRow, metric_rows(map(Metrics.read, args.metrics)))
    else:
        line = shlex.join(["python", "-m", "smmil.analysis", *argv])
        write_analysis(args.out, args.index, dict(map(_dataset_file, args.bags)), args.instances, line)
    logger.info("%s", args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
