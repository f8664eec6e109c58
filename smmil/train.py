"""Trains one (dataset, encoder, method): splits x learning rates in one job, bags loaded once, each run resumable.

Run alone:
    python -m smmil.train --dataset D --encoder E --method abmil --bags results/D/bags.csv \
        --instances results/D/instances --features results/D/features/E --manifests results/D/features/E/shards/*.json \
        --config-json '{"epochs": 50}' --out results/D/runs/E/abmil --done results/D/runs/E/abmil/runs.json

Writes one directory per run (`smmil.runs`), `splits.csv`, and last `runs.json`: the list of runs with their selected
epoch, score, hash of the weights, and which learning rate validation chose in every split (ties: the larger rate, as
in `smmil.evaluate`). Finished runs of the same key are skipped, unfinished ones continue where they were.

Exit codes: 0 done; 2 user error; 128 + signal (SIGTERM 143, SIGUSR1 138) after the state has been saved on request of
that signal: start the same command again and it continues.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.cli import guard, write_json
from smmil.live import Progress, StopRequest
from smmil.runs import RUN_STAGE_VERSION, RunSpec, read_done, save_weights, versions

if TYPE_CHECKING:
    import torch

    from smmil.batches import BagCache
    from smmil.sources import Source
    from smmil.splits import Split
    from smmil.training_options import TrainingOptions

log = logging.getLogger(__name__)


@dataclass
class Job:
    """What all runs of one job share."""

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
    parser.add_argument("--method", required=True, help="key of smmil.models.MODELS")
    add_source_arguments(parser)
    parser.add_argument("--config-json", default="{}", help="smmil.training_options as JSON")
    parser.add_argument("--method-options", default="{}", help="options of the method as JSON")
    parser.add_argument("--splits", help="split seeds instead of the config's, e.g. 1,2")
    parser.add_argument("--learning-rates", help="instead of the config's, e.g. 1e-4,1e-5")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--done", type=Path, required=True, help="runs.json, written last")
    return parser


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Trains every run that is not finished; see the top of this file."""
    arguments = build_parser().parse_args(argv)
    from smmil.loading import DataOptions
    from smmil.sources import open_source
    from smmil.splits import make_split, write_splits

    options = _options(arguments)
    data = DataOptions(options.label_rule, options.label_threshold, options.edge_weight, options.drop_inconsistent)
    source = open_source(arguments, data)
    splits = {seed: make_split(source.listing.bags, seed, options.val_share) for seed in options.splits}
    write_splits(arguments.out / "splits.csv", source.listing.bags, list(splits.values()))
    specs = _specs(arguments, options, source)
    job = Job(options, source, splits, arguments.out)
    pending = [spec for spec in specs if read_done(arguments.out / spec.name, spec.key) is None]
    log.info("%d runs, %d finished before", len(specs), len(specs) - len(pending))
    if pending:
        signum = train_runs(pending, job)
        if signum is not None:
            log.warning("stopped by signal %d, state saved; the same command continues", signum)
            return 128 + signum
    write_json(arguments.done, summary(specs, job))
    return 0


def _options(arguments: argparse.Namespace) -> "TrainingOptions":
    from pydantic import ValidationError

    from smmil.training_options import TrainingOptions

    values = _json_object(arguments.config_json, "--config-json")
    if arguments.splits:
        values["splits"] = _numbers(arguments.splits, int, "--splits")
    if arguments.learning_rates:
        values["learning_rates"] = _numbers(arguments.learning_rates, float, "--learning-rates")
    try:
        return TrainingOptions.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError(f"--config-json: {'; '.join(lines)}") from error


def _json_object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON ({error}); found {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: found {text[:80]!r}, expected a JSON object")
    return value


def _numbers(text: str, kind: type, name: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: found {text!r}, expected numbers separated by commas") from error


def _specs(arguments: argparse.Namespace, options: "TrainingOptions", source: "Source") -> list[RunSpec]:
    data = dict(source.data)
    if not data.get("drop_inconsistent"):
        # labels of instances reach no weight, so another threshold needs no training
        data = {name: value for name, value in data.items() if name not in ("label_rule", "label_threshold")}
    return [
        RunSpec(
            dataset=arguments.dataset,
            encoder=arguments.encoder,
            method=arguments.method,
            method_options=_json_object(arguments.method_options, "--method-options"),
            training=options.key_values,
            data=data,
            inputs=source.inputs,
            seed=seed,
            learning_rate=rate,
        )
        for seed in options.splits
        for rate in options.learning_rates
    ]


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
    from smmil.training import Fit, class_weight

    folder, split = job.out / spec.name, job.splits[spec.seed]
    (folder / "done.json").unlink(missing_ok=True)
    weight = class_weight([labels[bag_id] for bag_id in split.train]) if job.options.class_weight else None
    seed_everything(spec.seed)
    model = build_model(spec.method, cache.in_features, pos_weight=weight, **spec.method_options).to(cache.device)
    facts = {"in_features": cache.in_features, "pos_weight": weight, "split": _counts(split, labels)}
    write_json(folder / "config.json", run_config(spec, job, facts, cache.device))
    best = Fit(
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
        report=progress,
    ).run()
    done = {
        "key": spec.key,
        "best_epoch": best.epoch,
        "selection_score": best.score,
        "weights_sha256": save_weights(folder / "best.safetensors", best.weights),
    }
    write_json(folder / "done.json", done)
    # a third of a gigabyte per hundred runs, and nothing reads it any more
    (folder / "state.pt").unlink(missing_ok=True)


def _counts(split: "Split", labels: dict[str, float]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for name, part in zip(("train", "val"), _parts(split), strict=True):
        counted[f"{name}_bags"] = len(part)
        counted[f"{name}_positive_bags"] = sum(1 for bag_id in part if labels[bag_id] == 1)
    return counted


def run_config(spec: RunSpec, job: Job, facts: dict[str, Any], device: "torch.device") -> dict[str, Any]:
    """Everything needed to rebuild and to judge a run; no host names, no paths."""
    from smmil.devices import device_name

    return {
        **asdict(spec),
        "training": job.options.model_dump(mode="json"),
        "data": job.source.data,
        "features": job.source.facts,
        "random_weights": job.source.random_weights,
        "key": spec.key,
        "stage_version": RUN_STAGE_VERSION,
        "versions": versions(),
        "device": device_name(device),
        **facts,
    }


def summary(specs: Sequence[RunSpec], job: Job) -> dict[str, Any]:
    """The content of `runs.json`: a function of inputs and results alone (no times, no places)."""
    runs: list[dict[str, Any]] = []
    for spec in specs:
        done = read_done(job.out / spec.name, spec.key)
        if done is None:
            raise RuntimeError(f"{job.out / spec.name}: not finished although training ended")
        runs.append({"run": spec.name, "seed": spec.seed, "lr": spec.learning_rate, **done})
    for run in runs:
        rivals = [other for other in runs if other["seed"] == run["seed"]]
        run["chosen"] = run is max(rivals, key=lambda other: (other["selection_score"], other["lr"]))
    first = specs[0]
    return {
        "dataset": first.dataset,
        "encoder": first.encoder,
        "method": first.method,
        "method_options": first.method_options,
        "protocol": job.options.protocol,
        "training": first.training,
        "data": job.source.data,
        "inputs": first.inputs,
        "features": job.source.facts,
        "random_weights": job.source.random_weights,
        "bags": len(job.source.listing.bags),
        "excluded": job.source.listing.excluded,
        "runs": runs,
    }


if __name__ == "__main__":
    raise SystemExit(main())
