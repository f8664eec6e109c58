"""Trains one (dataset, encoder, method): splits x learning rates in one job, bags loaded once, each run resumable.

Run alone:
    python -m smmil.train --dataset D --encoder E --method abmil --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --config-json '{"epochs": 50}' --out results/D/runs/E/abmil --done results/D/runs/E/abmil/runs.json

Writes one directory per run (`smmil.runs`), `splits.csv`, and last `runs.json`: the list of runs with their selected
epoch, score, hash of the weights, and which learning rate validation chose in every split (ties: the larger rate, as
in `smmil.evaluate`). Finished runs of the same key are skipped, unfinished ones continue where they were.

A job can be cut into parts: `--part SEED` trains the runs of one split (write its summary elsewhere with `--done`); the
same command without `--part` then finds all runs finished and writes `runs.json`, the same as without parts.

A finished run is also trained again if other bags are in its split than it has learned from: with `drop_inconsistent`
another annotation decides which bags take part.

Exit codes: 0 done; 1 a full or read-only disk; 2 user error; 128 + signal (SIGTERM 143, SIGUSR1 138) after the state
has been saved on request of that signal: start the same command again and it continues.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    """What all runs of one job share; `name` is the method or variant."""

    name: str
    options: "TrainingOptions"
    source: "Source"
    splits: "dict[int, Split]"
    out: Path


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
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
    """Trains every run that is not finished; see the top of this file."""
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
    log.info("%d runs, %d finished before", len(specs), len(specs) - len(pending))
    if pending:
        if options.tensorboard:
            check_tensorboard()
        signum = train_runs(pending, job)
        if signum is not None:
            log.warning("stopped by signal %d, state saved; the same command continues", signum)
            return 128 + signum
    write_json(arguments.done, summary(specs, job.name, options, source, job.out))
    return 0


def _is_finished(spec: RunSpec, job: Job) -> bool:
    folder = job.out / spec.name
    return read_done(folder, spec.key) is not None and not _of_other_bags(folder, job.splits[spec.seed])


def _of_other_bags(folder: Path, split: "Split") -> bool:
    """Whether a run, finished or not, has learned from another split; one that does not tell its bags has not."""
    from smmil.results import read_json

    if not (folder / "config.json").is_file():
        return False
    told = read_json(folder / "config.json").get("split", {}).get("bags_sha256")
    return told is not None and told != _bags_hash(split)


def _bags_hash(split: "Split") -> str:
    return hash_json([list(part) for part in _parts(split)])


def train_runs(specs: Sequence[RunSpec], job: Job) -> int | None:
    """Loads the bags once and trains the runs one after the other.

    Returns:
        The signal that stopped it, None when all are done.
    """
    from smmil.batches import BagCache
    from smmil.devices import choose_device, numerics
    from smmil.training import Interrupted

    options = job.options
    device = choose_device(options.device)
    # before the first CUDA call: cuBLAS reads its workspace setting once
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
        where = "on the device" if cache.resident else "in host memory"
        log.info("%d bags with %d features %s (%s)", len(cache), cache.in_features, where, device.type)
        progress = Progress(len(specs), options.epochs)
        for spec in specs:
            progress.start(spec.name)
            try:
                _train_run(spec, job, cache, positions, labels, progress, stop)
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
    if _of_other_bags(folder, split):
        (folder / "state.pt").unlink(missing_ok=True)
    weight = class_weight([labels[bag_id] for bag_id in split.train]) if job.options.class_weight else None
    seed_everything(spec.seed)
    model = build_model(spec.method, cache.in_features, pos_weight=weight, **spec.method_options).to(cache.device)
    facts = {"in_features": cache.in_features, "pos_weight": weight, "split": _counts(split, labels)}
    config = run_config(spec, job, facts, cache.device)
    write_json(folder / "config.json", config)
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
            method=job.name,
        )
        best = fit.run()
    if fit.memory.relief.events:
        write_json(folder / "config.json", {**config, "memory": asdict(fit.memory.relief)})
    weights_sha256 = save_weights(folder / "best.safetensors", best.weights)
    load_weights(model, folder / "best.safetensors")
    # bags of other data sets are scored without the validation bags that it takes
    save_direction(folder, find_direction(model, cache, [positions[bag_id] for bag_id in split.val]), weights_sha256)
    done = {
        "key": spec.key,
        "best_epoch": best.epoch,
        "selection_score": best.score,
        "weights_sha256": weights_sha256,
    }
    write_json(folder / "done.json", done)
    # a third of a gigabyte per hundred runs, and nothing reads it any more
    (folder / "state.pt").unlink(missing_ok=True)


def _counts(split: "Split", labels: dict[str, float]) -> dict[str, Any]:
    counted: dict[str, Any] = {"bags_sha256": _bags_hash(split)}
    for name, part in zip(("train", "val"), _parts(split), strict=True):
        counted[f"{name}_bags"] = len(part)
        counted[f"{name}_positive_bags"] = sum(1 for bag_id in part if labels[bag_id] == 1)
    return counted


def run_config(spec: RunSpec, job: Job, facts: dict[str, Any], device: "torch.device") -> dict[str, Any]:
    """Everything needed to rebuild and to judge a run; no host names, no paths. `name` is the method or variant.

    A run that ran out of memory gets `memory` at its end: the level it came to, and what happened (`smmil.memory`).
    """
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
