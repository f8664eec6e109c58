"""One training job: all runs (splits and learning rates) of one method on one data set, finished runs skipped."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from smmil.artifacts.hashes import hash_json, versions
from smmil.artifacts.records import RunConfig, RunDone, SplitCounts
from smmil.artifacts.runs import RunSpec, load_weights, read_done, save_weights
from smmil.compute.devices import choose_device, device_name, numerics, numerics_facts, seed_everything
from smmil.config import stage_versions
from smmil.data.cache import BagCache
from smmil.data.splits import Split, write_splits
from smmil.models import build_model
from smmil.predictions.memory import with_host_fallback
from smmil.predictions.signed import find_direction, save_direction
from smmil.train.fit import Fit, Interrupted, class_weight
from smmil.train.progress import Progress, reporting, stop_requests
from smmil.train.specs import Job, job_specs, summary

log = logging.getLogger(__name__)


def train_runs(job: Job, done: Path, *, part: int | None = None) -> int | None:
    """Train the runs of a job that are not finished; write `splits.csv`, the run directories and `runs.json`.

    Args:
        job: its splits, learning rates, options and bags.
        done: `runs.json` to write at the end.
        part: seed of the only split to train; None = all.

    Returns:
        The signal that stopped the job, or None when all runs are finished.

    Raises:
        ValueError: invalid options, or too few bags for a split.
        OutOfMemory: a run does not fit with its features in host memory either.
    """
    specs = job_specs(job, part)
    write_splits(job.out / "splits.csv", job.source.listing.bags, list(job.splits.values()))
    pending = [spec for spec in specs if not _is_finished(spec, job)]
    log.info("%d runs, %d already finished", len(specs), len(specs) - len(pending))
    if pending:
        if job.options.tensorboard and find_spec("tensorboard") is None:
            raise ValueError(
                "training.tensorboard: found true, but the package tensorboard is not installed; install it, or leave "
                "the key false (log.jsonl and the learning curves of the report hold the same numbers)"
            )
        signum = _train_pending(pending, job)
        if signum is not None:
            log.warning("stopped by signal %d, state saved; run the same command to continue", signum)
            return signum
    summary(specs, job).write(done)
    return None


def _is_finished(spec: RunSpec, job: Job) -> bool:
    folder = job.out / spec.name
    return read_done(folder, spec.key) is not None and not _has_other_bags(folder, job.splits[spec.seed])


def _has_other_bags(folder: Path, split: Split) -> bool:
    """Return whether a finished or unfinished run was trained on another split."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        return RunConfig.read(path).split.bags_sha256 != _bags_hash(split)
    except ValueError as error:
        log.warning("%s; the run is trained again", error)
        return True


def _bags_hash(split: Split) -> str:
    return hash_json([split.train, split.val])


def _train_pending(specs: Sequence[RunSpec], job: Job) -> int | None:
    """Load the bags once and train the runs one after the other; return the signal that stopped the job."""
    options = job.options
    device = choose_device(options.device)
    # cuBLAS reads its workspace setting once, at the first CUDA call.
    with (
        numerics(device, deterministic=options.deterministic, precision=options.precision, threads=options.threads),
        stop_requests() as signals,
    ):
        splits = [job.splits[spec.seed] for spec in specs]
        bag_ids = sorted({bag_id for split in splits for bag_id in (*split.train, *split.val)})
        # No name for the bags, which would keep features in host memory that the cache moves to the device.
        cache = BagCache(job.source.load(bag_ids)[0], device)
        memory = "device" if cache.resident else "host"
        log.info("%d bags with %d features in %s memory (%s)", len(cache), cache.in_features, memory, device.type)
        progress = Progress(len(specs), options.epochs)
        for spec in specs:
            progress.start(spec.name)
            try:
                train = partial(_train_run, spec, job, cache, progress, lambda: bool(signals))
                with_host_fallback(train, f"run {spec.name}", cache, job.name)
            except Interrupted:
                return signals[-1]
    return None


def _train_run(spec: RunSpec, job: Job, cache: BagCache, progress: Progress, stop: Callable[[], bool]) -> None:
    folder, split = job.out / spec.name, job.splits[spec.seed]
    # A crash from here on must not leave a run that looks finished.
    (folder / "done.json").unlink(missing_ok=True)
    if _has_other_bags(folder, split):
        (folder / "state.pt").unlink(missing_ok=True)
    labels = {bag.bag_id: bag.y for bag in cache.bags}
    positions = {bag.bag_id: i for i, bag in enumerate(cache.bags)}
    train, val = ([positions[bag_id] for bag_id in part] for part in (split.train, split.val))
    weight = class_weight([labels[bag_id] for bag_id in split.train]) if job.options.class_weight else None
    seed_everything(spec.seed)
    model = build_model(spec.method, cache.in_features, pos_weight=weight, **spec.method_options).to(cache.device)
    # Everything needed to rebuild and to judge the run, without host names and paths.
    facts = {
        "training": job.options.model_dump(mode="json"),
        "data": job.source.data,
        "name": job.name,
        "features": job.source.facts,
        "random_weights": job.source.random_weights,
        "key": spec.key,
        "stage_version": stage_versions.RUNS,
        "versions": versions(),
        "device": device_name(cache.device),
        "numerics": numerics_facts(cache.device, job.options.precision),
        "in_features": cache.in_features,
        "pos_weight": weight,
        "split": SplitCounts(
            bags_sha256=_bags_hash(split),
            train_bags=len(train),
            train_positive_bags=sum(labels[bag_id] == 1 for bag_id in split.train),
            val_bags=len(val),
            val_positive_bags=sum(labels[bag_id] == 1 for bag_id in split.val),
        ),
    }
    RunConfig.model_validate(spec.common(RunConfig) | facts).write(folder / "config.json")
    with reporting(progress, folder, tensorboard=job.options.tensorboard) as report:
        best = Fit(
            model,
            cache,
            train,
            val,
            job.options,
            base_lr=spec.learning_rate,
            seed=spec.seed,
            folder=folder,
            key=spec.key,
            stop=stop,
            report=report,
            on_step=progress.step,
        ).run()
    weights_sha256 = save_weights(folder / "best.safetensors", best.weights)
    load_weights(model, folder / "best.safetensors")
    # The direction needs the validation bags, which are not at hand when other data sets are scored.
    save_direction(folder, find_direction(model, cache, val), weights_sha256)
    done = RunDone(key=spec.key, best_epoch=best.epoch, selection_score=best.score, weights_sha256=weights_sha256)
    done.write(folder / "done.json")
    (folder / "state.pt").unlink(missing_ok=True)
