"""One training job: all runs (splits and learning rates) of one method on one data set, finished runs skipped."""

import logging
from collections.abc import Sequence
from functools import partial
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
from smmil.train.progress import Progress, StopRequest, check_tensorboard, reporting
from smmil.train.specs import Job, job_specs, summary

log = logging.getLogger(__name__)


def train_runs(job: Job, done: Path, *, part: int | None = None) -> int | None:
    """Train the runs of a job that are not finished; write `splits.csv`, the run directories and `runs.json`.

    Args:
        job: the job.
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
        if job.options.tensorboard:
            check_tensorboard()
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
        StopRequest() as stop,
    ):
        splits = [job.splits[spec.seed] for spec in specs]
        bags, _ = job.source.load(sorted({bag_id for split in splits for bag_id in (*split.train, *split.val)}))
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


def _train_run(
    spec: RunSpec,
    job: Job,
    cache: BagCache,
    positions: dict[str, int],
    labels: dict[str, float],
    progress: Progress,
    stop: StopRequest,
) -> None:
    folder, split = job.out / spec.name, job.splits[spec.seed]
    (folder / "done.json").unlink(missing_ok=True)
    if _has_other_bags(folder, split):
        (folder / "state.pt").unlink(missing_ok=True)
    weight = class_weight([labels[bag_id] for bag_id in split.train]) if job.options.class_weight else None
    seed_everything(spec.seed)
    model = build_model(spec.method, cache.in_features, pos_weight=weight, **spec.method_options).to(cache.device)
    run_config(spec, job, cache, weight, _counts(split, labels)).write(folder / "config.json")
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
    done = RunDone(key=spec.key, best_epoch=best.epoch, selection_score=best.score, weights_sha256=weights_sha256)
    done.write(folder / "done.json")
    (folder / "state.pt").unlink(missing_ok=True)


def _counts(split: Split, labels: dict[str, float]) -> SplitCounts:
    return SplitCounts(
        bags_sha256=_bags_hash(split),
        train_bags=len(split.train),
        train_positive_bags=sum(labels[bag_id] == 1 for bag_id in split.train),
        val_bags=len(split.val),
        val_positive_bags=sum(labels[bag_id] == 1 for bag_id in split.val),
    )


def run_config(spec: RunSpec, job: Job, cache: BagCache, pos_weight: float | None, split: SplitCounts) -> RunConfig:
    """Return everything needed to rebuild and to judge a run, without host names and paths."""
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
        "pos_weight": pos_weight,
        "split": split,
    }
    return RunConfig.model_validate(spec.common(RunConfig) | facts)
