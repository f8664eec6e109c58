"""Train one (dataset, encoder, method): splits x learning rates in one job, bags loaded once, each run resumable.

Run alone:
    python -m smmil.train --dataset D --encoder E --method abmil --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --config-json '{"epochs": 50}' --out results/D/runs/E/abmil --done results/D/runs/E/abmil/runs.json

Writes one directory per run (`smmil.artifacts.runs`), `splits.csv`, and at the end `runs.json`: the list of runs with
their selected epoch, score and hash of the weights, and the learning rate that validation chose for every split (ties:
the larger rate, as in `smmil.evaluate.runs`). Finished runs with the same key are skipped, unfinished ones continue.

`--part SEED` trains the runs of one split (use another `--done`); the same command without `--part` then finds all runs
finished and writes the same `runs.json` as a single job.

A finished run is trained again if its split has other bags: with `drop_inconsistent` a new annotation decides which
bags take part.

Exit codes: 0 done; 1 full or read-only disk; 2 user error; 128 + signal (SIGTERM 143, SIGUSR1 138) after a stop with a
saved state: the same command continues.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from preprocessing.common.cli import guard
from smmil.data.arguments import add_source_arguments


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m smmil.train", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--method", required=True, help="key of smmil.config.methods.METHODS, or a variant of one (__)")
    add_source_arguments(parser)
    parser.add_argument("--config-json", default="{}", help="smmil.config.training_options as JSON")
    parser.add_argument("--method-options", default="{}", help="options of the method as JSON")
    parser.add_argument("--splits", help="split seeds instead of the config's, e.g. 1,2")
    parser.add_argument("--learning-rates", help="instead of the config's, e.g. 1e-4,1e-5")
    parser.add_argument("--part", type=int, metavar="SEED", help="train this split only: one of several jobs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--done", type=Path, required=True, help="runs.json, written last")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Train every run that is not finished; see the module docstring."""
    arguments = build_parser().parse_args(argv)
    from smmil.artifacts.hashes import json_argument
    from smmil.data.sources import open_source
    from smmil.train.job import train_runs
    from smmil.train.specs import Job, job_options

    options = job_options(
        arguments.config_json,
        arguments.method,
        splits=arguments.splits,
        learning_rates=arguments.learning_rates,
    )
    job = Job(
        dataset=arguments.dataset,
        encoder=arguments.encoder,
        name=arguments.method,
        method_options=json_argument(arguments.method_options, "--method-options"),
        options=options,
        source=open_source(arguments, options.data),
        out=arguments.out,
    )
    signum = train_runs(job, arguments.done, part=arguments.part)
    return 0 if signum is None else 128 + signum


if __name__ == "__main__":
    raise SystemExit(main())
