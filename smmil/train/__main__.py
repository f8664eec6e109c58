"""Train one (dataset, encoder, method): splits x learning rates in one job, bags loaded once, each run resumable.

Run alone:
    python -m smmil.train --dataset D --encoder E --method abmil --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --config-json '{"epochs": 50}' --out results/D/runs/E/abmil --done results/D/runs/E/abmil/runs.json

Writes one directory per run (`smmil.artifacts.runs`), `splits.csv`, and at the end `runs.json`: the list of runs with
their
selected epoch, score and hash of the weights, and the learning rate that validation chose for every split (ties: the
larger rate, as in `smmil.evaluate.runs`). Finished runs with the same key are skipped, unfinished ones continue.

`--part SEED` trains the runs of one split (use another `--done`); the same command without `--part` then finds all runs
finished and writes the same `runs.json` as a single job.

A finished run is trained again if its split has other bags: with `drop_inconsistent` a new annotation decides which
bags take part.

Exit codes: 0 done; 1 full or read-only disk; 2 user error; 128 + signal (SIGTERM 143, SIGUSR1 138) after a stop with a
saved state: the same command continues.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.common.cli import guard
from preprocessing.common.files import write_json
from smmil.train.job import Job, _is_finished, train_runs
from smmil.train.progress import check_tensorboard
from smmil.train.specs import job_specs, options_of, summary

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from smmil.data.sources import add_source_arguments

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
    from smmil.data.sources import open_source
    from smmil.data.splits import make_split, write_splits

    options = options_of(arguments)
    source = open_source(arguments, options.data)
    specs = job_specs(arguments, options, source)
    splits = {seed: make_split(source.listing.bags, seed, options.val_share) for seed in options.splits}
    write_splits(arguments.out / "splits.csv", source.listing.bags, list(splits.values()))
    job = Job(arguments.method, options, source, splits, arguments.out)
    pending = [spec for spec in specs if not _is_finished(spec, job)]
    log.info("%d runs, %d already finished", len(specs), len(specs) - len(pending))
    if pending:
        if options.tensorboard:
            check_tensorboard()
        signum = train_runs(pending, job)
        if signum is not None:
            log.warning("stopped by signal %d, state saved; run the same command to continue", signum)
            return 128 + signum
    write_json(arguments.done, summary(specs, job.name, options, source, job.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
