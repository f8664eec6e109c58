"""Train one (dataset, encoder, method): splits x learning rates in one job, bags loaded once, each run resumable.

Run alone:
    python -m smmil.train --dataset D --encoder E --method abmil --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --config-json '{"epochs": 50}' --out results/D/runs/E/abmil --done results/D/runs/E/abmil/runs.json

Writes one directory per run (`smmil.runs`), `splits.csv`, and at the end `runs.json`: the list of runs with their
selected epoch, score and hash of the weights, and the learning rate that validation chose for every split (ties: the
larger rate, as in `smmil.evaluate`). Finished runs with the same key are skipped, unfinished ones continue.

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
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.cli import guard, write_json
from smmil.live import Progress, StopRequest, check_tensorboard, reporting
from smmil.runs import RUN_STAGE_VERSION, RunSpec, hash_json, load_weights, read_done, save_weights, versions
from smmil.train_specs import data_options, job_specs, options_of, summary

if TYPE_CHECKING:
    import torch

    from smmil.batches import BagCache
    from smmil.sources import Source
    from smmil.splits import Split
    from smmil.training_options import TrainingOptions

log = logging.getLogger(__name__)


@dataclass
class Job:
    """What the runs of one job share; `name` is the method or variant."""

    name: str
    options: "TrainingOptions"
    source: "Source"
    splits: "dict[int, Split]"
    out: Path


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from smmil.sources import add_source_arguments

    parser = argparse.ArgumentParser(prog="python -m smmil.train", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--method", required=True, help="key of smmil.models.MODELS, or a variant of one (__)")
    add_source_arguments(parser)
    parser.add_argument("--config-json", default="{}", help="smmil.training_options as JSON")
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
    from smmil.sources import open_source
    from smmil.splits import make_split, write_splits

    options = options_of(arguments)
    source = open_source(arguments, data_options(options))
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


def _is_finished(spec: RunSpec, job: Job) -> bool:
    folder = job.out / spec.name
    return read_done(folder, spec.key) is not None and not _has_other_bags(folder, job.splits[spec.seed])


def _has_other_bags(folder: Path, split: "Split") -> bool:
    """Return whether a finished or unfinished run was trained on another split."""
    from smmil.results import read_json

    path = folder / "config.json"
    return path.is_file() and bool(read_json(path)["split"]["bags_sha256"] != _bags_hash(split))


def _bags_hash(split: "Split") -> str:
    return hash_json([list(part) for part in _parts(split)])


def train_runs(specs: Sequence[RunSpec], job: Job) -> int | None:
    """Load the bags once and train the runs one after the other.

    Returns:
        The signal that stopped the job, or None when all runs are finished.

    Raises:
        OutOfMemory: a run does not fit with its features in host memory either.
    """
    from smmil.batches import BagCache
    from smmil.devices import choose_device, numerics
    from smmil.memory import with_host_fallback
    from smmil.training import Interrupted

    options = job.options
    device = choose_device(options.device)
    # cuBLAS reads its workspace setting once, at the first CUDA call.
    with (
        numerics(device, deterministic=options.deterministic, precision=options.precision, threads=options.threads),
        StopRequest() as stop,
    ):
        used = {bag_id for spec in specs for part in _parts(job.splits[spec.seed]) for bag_id in part}
        bags, _ = job.source.load(sorted(used))
        cache = BagCache(bags, device)
        positions = {bag.bag_id: i for i, bag in enumerate(bags)}
        labels = {bag.bag_id: bag.y for bag in bags}
        del bags
        memory = "device" if cache.resident else "host"
        log.info("%d bags with %d features in %s memory (%s)", len(cache), cache.in_features, memory, device.type)
        progress = Progress(len(specs), options.epochs)
        for spec in specs:
            progress.start(spec.name)
            try:
                train = partial(_train_run, spec, job, cache, positions, labels, progress, stop)
                with_host_fallback(train, f"run {spec.name}", cache, job.name)
            except Interrupted:
                return stop.signum
    return None


def _parts(split: "Split") -> tuple[tuple[str, ...], tuple[str, ...]]:
    return split.train, split.val


def _train_run(
    spec: RunSpec,
    job: Job,
    cache: "BagCache",
    positions: dict[str, int],
    labels: dict[str, float],
    progress: Progress,
    stop: StopRequest,
) -> None:
    from smmil.devices import seed_everything
    from smmil.models import build_model
    from smmil.signed import find_direction, save_direction
    from smmil.training import Fit, class_weight

    folder, split = job.out / spec.name, job.splits[spec.seed]
    (folder / "done.json").unlink(missing_ok=True)
    if _has_other_bags(folder, split):
        (folder / "state.pt").unlink(missing_ok=True)
    weight = class_weight([labels[bag_id] for bag_id in split.train]) if job.options.class_weight else None
    seed_everything(spec.seed)
    model = build_model(spec.method, cache.in_features, pos_weight=weight, **spec.method_options).to(cache.device)
    facts = {"in_features": cache.in_features, "pos_weight": weight, "split": _counts(split, labels)}
    write_json(folder / "config.json", run_config(spec, job, facts, cache.device))
    with reporting(progress, folder, tensorboard=job.options.tensorboard) as report:
        fit = Fit(
            model,
            cache,
            [positions[bag_id] for bag_id in split.train],
            [positions[bag_id] for bag_id in split.val],
            job.options,
            base_lr=spec.learning_rate,
            seed=spec.seed,
            folder=folder,
            key=spec.key,
            stop=stop,
            report=report,
            on_step=progress.step,
        )
        best = fit.run()
    weights_sha256 = save_weights(folder / "best.safetensors", best.weights)
    load_weights(model, folder / "best.safetensors")
    # The direction needs the validation bags, which are not at hand when other data sets are scored.
    save_direction(folder, find_direction(model, cache, [positions[bag_id] for bag_id in split.val]), weights_sha256)
    done = {
        "key": spec.key,
        "best_epoch": best.epoch,
        "selection_score": best.score,
        "weights_sha256": weights_sha256,
    }
    write_json(folder / "done.json", done)
    (folder / "state.pt").unlink(missing_ok=True)


def _counts(split: "Split", labels: dict[str, float]) -> dict[str, Any]:
    counted: dict[str, Any] = {"bags_sha256": _bags_hash(split)}
    for name, part in zip(("train", "val"), _parts(split), strict=True):
        counted[f"{name}_bags"] = len(part)
        counted[f"{name}_positive_bags"] = sum(1 for bag_id in part if labels[bag_id] == 1)
    return counted


def run_config(spec: RunSpec, job: Job, facts: dict[str, Any], device: "torch.device") -> dict[str, Any]:
    """Return everything needed to rebuild and to judge a run, without host names and paths."""
    from smmil.devices import device_name, numerics_facts

    return {
        **asdict(spec),
        "name": job.name,
        "training": job.options.model_dump(mode="json"),
        "data": job.source.data,
        "features": job.source.facts,
        "random_weights": job.source.random_weights,
        "key": spec.key,
        "stage_version": RUN_STAGE_VERSION,
        "versions": versions(),
        "device": device_name(device),
        "numerics": numerics_facts(device, job.options.precision),
        **facts,
    }


if __name__ == "__main__":
    raise SystemExit(main())
