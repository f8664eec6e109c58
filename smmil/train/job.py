"""One training job: all runs (splits and learning rates) of one method on one data set, finished runs skipped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.files import write_json
from smmil.artifacts.hashes import hash_json, versions
from smmil.artifacts.runs import RunSpec, load_weights, read_done, save_weights
from smmil.config import stage_versions
from smmil.train.progress import Progress, StopRequest, reporting

if TYPE_CHECKING:
    import torch

    from smmil.config.training_options import TrainingOptions
    from smmil.data.cache import BagCache
    from smmil.data.sources import Source
    from smmil.data.splits import Split


log = logging.getLogger(__name__)


def _is_finished(spec: RunSpec, job: Job) -> bool:
    folder = job.out / spec.name
    return read_done(folder, spec.key) is not None and not _has_other_bags(folder, job.splits[spec.seed])


def _has_other_bags(folder: Path, split: Split) -> bool:
    """Return whether a finished or unfinished run was trained on another split."""
    from smmil.artifacts.hashes import read_json

    path = folder / "config.json"
    return path.is_file() and bool(read_json(path)["split"]["bags_sha256"] != _bags_hash(split))


def _bags_hash(split: Split) -> str:
    return hash_json([list(part) for part in _parts(split)])


def train_runs(specs: Sequence[RunSpec], job: Job) -> int | None:
    """Load the bags once and train the runs one after the other.

    Returns:
        The signal that stopped the job, or None when all runs are finished.

    Raises:
        OutOfMemory: a run does not fit with its features in host memory either.
    """
    from smmil.compute.devices import choose_device, numerics
    from smmil.data.cache import BagCache
    from smmil.predictions.memory import with_host_fallback
    from smmil.train.fit import Interrupted

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


def _parts(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return split.train, split.val


def _train_run(
    spec: RunSpec,
    job: Job,
    cache: BagCache,
    positions: dict[str, int],
    labels: dict[str, float],
    progress: Progress,
    stop: StopRequest,
) -> None:
    from smmil.compute.devices import seed_everything
    from smmil.models import build_model
    from smmil.predictions.signed import find_direction, save_direction
    from smmil.train.fit import Fit, class_weight

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


def _counts(split: Split, labels: dict[str, float]) -> dict[str, Any]:
    counted: dict[str, Any] = {"bags_sha256": _bags_hash(split)}
    for name, part in zip(("train", "val"), _parts(split), strict=True):
        counted[f"{name}_bags"] = len(part)
        counted[f"{name}_positive_bags"] = sum(1 for bag_id in part if labels[bag_id] == 1)
    return counted


def run_config(spec: RunSpec, job: Job, facts: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return everything needed to rebuild and to judge a run, without host names and paths."""
    from smmil.compute.devices import device_name, numerics_facts

    return {
        **asdict(spec),
        "name": job.name,
        "training": job.options.model_dump(mode="json"),
        "data": job.source.data,
        "features": job.source.facts,
        "random_weights": job.source.random_weights,
        "key": spec.key,
        "stage_version": stage_versions.RUNS,
        "versions": versions(),
        "device": device_name(device),
        "numerics": numerics_facts(device, job.options.precision),
        **facts,
    }


@dataclass
class Job:
    """What the runs of one job share; `name` is the method or variant."""

    name: str
    options: TrainingOptions
    source: Source
    splits: dict[int, Split]
    out: Path
