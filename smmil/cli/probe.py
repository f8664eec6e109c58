"""Measure for some seconds what a run does: cut bags, encode tiles, train a step of every method."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from preprocessing.bags.rows import BagRow, resolve
from preprocessing.bags.table import read_bags
from preprocessing.common.options import InstanceOptions, ct_options, wsi_options
from preprocessing.datasets import DATASETS
from preprocessing.features.encoder_model import LoadedEncoder, load_encoder
from preprocessing.features.encoders import ENCODERS
from preprocessing.features.extraction import BagPlan, Extraction
from preprocessing.features.prefetch import Tile
from preprocessing.features.stage import choose_device
from preprocessing.instances.graph import chain_neighbors, grid_neighbors
from preprocessing.instances.scan_bag import read_slices
from preprocessing.instances.stage import cut_bag
from preprocessing.slides.tile_reader import iter_tiles
from preprocessing.store.bags import InstanceAttrs, bag_path, read_arrays, read_instance_attrs
from smmil.cli.estimate import BagProbe, DatasetProbe, Estimate, Machine, StepProbe, estimate
from smmil.config.experiment import Config, training_options
from smmil.config.outputs import all_pairings
from smmil.config.quirks import method_changes
from smmil.config.variants import base_method
from smmil.data.batch import Bag, BagBatch, pack
from smmil.models import build_model
from smmil.models.base import forward
from smmil.planning import Plan

SAMPLE_BAGS, TRIED_BAGS = 4, 8
CUT_SECONDS, ENCODE_SECONDS, STEP_SECONDS, TRAIN_SECONDS = 10.0, 3.0, 0.3, 20.0
# instances of a training step; larger batches take memory and, per bag, the same time
STEP_INSTANCES = 20_000
Report = Callable[[str], None]


def measured(config: Config, cores: str) -> Estimate:
    """Measure, and compute what a run takes; what is measured now is shown on a terminal.

    Args:
        config: the experiment.
        cores: a number, or "all".

    Raises:
        ValueError: another value of `cores`, imported features, no raw data, or no bag that can be cut.
    """
    if cores != "all" and not (cores.isdecimal() and int(cores)):
        raise ValueError(f"--cores: found {cores!r}, expected a number or all")
    for name, dataset in config.used.items():
        for key in dataset.encoders:
            if key not in ENCODERS and not key.startswith("timm/"):
                raise ValueError(
                    f"datasets.{name}.encoders: {key} are imported features, and a plan measures how long images take "
                    "to be cut and encoded; only training is left: smmil run"
                )
    count = len(os.sched_getaffinity(0)) if cores == "all" else int(cores)
    plan = Plan(config)
    if missing := plan.missing_raw():
        raise ValueError("\n\n".join(missing))
    logger = logging.getLogger("preprocessing")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with Console(stderr=True).status("measuring") as status:
            probes, machine = probe(config, count, status.update)
    finally:
        logger.setLevel(level)
    return estimate(config, probes, machine, {name: plan.instance_bytes(name) for name in config.used})


def probe(config: Config, cores: int, report: Report) -> tuple[list[DatasetProbe], Machine]:
    """Measure every dataset in use.

    Args:
        config: the experiment.
        cores: used at once.
        report: called with what is measured now.

    Raises:
        ValueError: no raw data, or none of some bags can be cut.
    """
    device = choose_device(config.features.device)
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
    report("start of a job")
    start, wall, processor = _start_seconds(), time.perf_counter(), time.process_time()
    load = cache(partial(_load, config, device))
    probes = [_dataset(config, dataset, load, report) for dataset in config.used]
    share = (time.process_time() - processor) / (time.perf_counter() - wall)
    return probes, Machine(cores, name, start, min(1.0, share))


def _start_seconds() -> float:
    times = []
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        times.append(time.perf_counter() - started)
    # the first one may have read the files from the disk
    return min(times)


def _dataset(config: Config, name: str, load: Callable[[str], LoadedEncoder], report: Report) -> DatasetProbe:
    chosen = config.datasets[name]
    report(f"{name}: list of bags")
    path = Path(config.results, name, "bags.csv")
    rows = read_bags(path) if path.is_file() else DATASETS[chosen.kind].list_bags(Path(chosen.root), chosen.source).rows
    rows = [row for row in rows if not row.skip]
    with tempfile.TemporaryDirectory() as scratch:
        sample, kept = _cut(config, name, rows, Path(scratch), report)
        report(f"{name}: tiles per second of {', '.join(chosen.encoders)}")
        encoders = {encoder: load(encoder) for encoder in chosen.encoders}
        rate = _encode(config, Path(chosen.root), kept, Path(scratch), encoders)
    features = encoders[chosen.table_encoder].encoder.dim
    size = round(np.median([bag.instances for bag in sample]))
    steps = _train(config, name, features, max(1, size), rows[0].modality, report)
    parts = [[row for row in rows if row.split == part and row.label is not None] for part in ("train", "val", "test")]
    train, val, test = map(len, parts)
    if not val:
        val = round(chosen.val_share * train)
        train -= val
    return DatasetProbe(name, len(rows), train, val, test, sample, rate, steps)


def _cut(
    config: Config, name: str, rows: Sequence[BagRow], scratch: Path, report: Report
) -> tuple[tuple[BagProbe, ...], list[BagRow]]:
    """Cut a random sample of bags until there are enough, or the time is up."""
    chosen = config.datasets[name]
    options = InstanceOptions(wsi=wsi_options(chosen.instances.wsi), ct=ct_options(chosen.instances.ct))
    order = np.random.default_rng(0).permutation(len(rows))[:TRIED_BAGS]
    sample, kept, faults = [], [], []
    started = time.perf_counter()
    for i in order:
        row = rows[int(i)]
        report(f"{name}: cut {row.bag_id}")
        before = time.perf_counter()
        try:
            outcome = cut_bag(row, options, Path(chosen.root), scratch, dataset=name)
        except ValueError as error:
            faults.append(str(error))
            continue
        seconds = time.perf_counter() - before
        files = [path for path in bag_path(scratch / "store", row.bag_id).rglob("*") if path.is_file()]
        files += scratch.glob(f"thumbnails/{row.bag_id}.*")
        sample.append(BagProbe(outcome.n, seconds, sum(path.stat().st_size for path in files), len(files)))
        kept += [row] if outcome.n else []
        if len(sample) >= SAMPLE_BAGS or (kept and time.perf_counter() - started > CUT_SECONDS):
            break
    if not kept:
        reason = faults[0] if faults else "no tissue"
        raise ValueError(f"datasets.{name}: none of {len(order)} bags gives tiles, e.g. {reason}")
    return tuple(sample), kept


def _load(config: Config, device: str, encoder: str) -> LoadedEncoder:
    """Load an encoder, with random weights where its file is not there yet: they are as fast."""
    folder, precision = config.weights.folder, config.features.precision
    files = Plan(config).weights([encoder])
    mode = config.weights.mode if files and Path(files[0]).is_file() else "random"
    policy = config.features.resize_policy
    return load_encoder(encoder, folder, mode=mode, policy=policy, device=device, precision=precision)


def _encode(
    config: Config, root: Path, rows: Sequence[BagRow], scratch: Path, encoders: dict[str, LoadedEncoder]
) -> float:
    """Return the tiles per second of a feature job with all encoders."""
    batch, workers = config.features.batch_size, config.features.workers

    def plans(most: int) -> list[BagPlan]:
        result: list[BagPlan] = []
        for row in rows:
            attrs = read_instance_attrs(scratch / "store", row.bag_id)
            coords = read_arrays(scratch / "store", row.bag_id, ["coords"])["coords"]
            n = min(len(coords), most - sum(plan.n for plan in result))

            if n > 0:
                source = (
                    partial(read_slices, root, attrs)
                    if row.modality == "ct"
                    else partial(_tiles, root, row, attrs, coords)
                )
                result.append(BagPlan(row.bag_id, n, source, frozenset(encoders)))
        return result

    def seconds(chosen: Sequence[BagPlan]) -> float:
        started = time.perf_counter()
        with Extraction(chosen, encoders, batch, workers) as extraction:
            for plan in chosen:
                extraction.result(plan.bag_id)
        return time.perf_counter() - started

    on_cpu = all(encoder.device.type == "cpu" for encoder in encoders.values())
    with _torch_threads(workers if on_cpu else torch.get_num_threads()):
        # the first batch also builds kernels and opens files
        seconds(plans(batch))
        first = plans(batch)
        rate = sum(plan.n for plan in first) / seconds(first)
        more = plans(max(batch, int(rate * ENCODE_SECONDS) // batch * batch))
        return sum(plan.n for plan in more) / seconds(more)


def _tiles(
    root: Path, row: BagRow, attrs: InstanceAttrs, coords: npt.NDArray[np.int32], start: int, stop: int
) -> Iterator[Tile]:
    """Iterate over tiles start..stop of a slide, (H, W, 3) uint8."""
    return iter_tiles(resolve(root, row.images[0]), attrs, coords[start:stop], mpp_override=row.mpp)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(config: Config, name: str, features: int, size: int, modality: str, report: Report) -> dict[str, StepProbe]:
    """Return the cost of a training step of every method of a dataset, on bags of one size."""
    device = choose_device(config.training.device)
    methods = dict.fromkeys(method for dataset, _, method in all_pairings(config) if dataset == name)
    steps: dict[str, StepProbe] = {}
    started = time.perf_counter()
    # one thread: jobs run side by side, each on its share of the cores
    with _torch_threads(1 if device == "cpu" else torch.get_num_threads()):
        for method in methods:
            if steps and time.perf_counter() - started > TRAIN_SECONDS:
                slowest = max(steps.values(), key=lambda step: step.seconds)
                steps[method] = StepProbe(slowest.seconds, slowest.bytes, measured=False)
                continue
            report(f"{name}: a training step of {method} on bags of {size:,} tiles")
            steps[method] = _step(config, name, method, features, size, modality, device)
    return steps


def _step(config: Config, name: str, method: str, features: int, size: int, modality: str, device: str) -> StepProbe:
    options = training_options(config, name, method)
    arguments = json.loads(Plan(config).method_options(name, method))
    bags = min(options.batch_size, max(1, STEP_INSTANCES // size))
    batch = _batch(bags, size, features, modality).to(device)
    model = build_model(
        base_method(method), features, **method_changes(config.active_quirks, base_method(method), arguments)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=device == "cpu" or None)
    model.train()

    def step() -> float:
        before = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        terms = model.loss(batch, forward(model, batch, options.precision))
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize(device)
        return time.perf_counter() - before

    first = step()
    times: list[float] = []
    while sum(times) < STEP_SECONDS and first < STEP_SECONDS * 10:
        times.append(step())
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return StepProbe(min(times, default=first) / bags, weights)


def _batch(bags: int, size: int, features: int, modality: str) -> BagBatch:
    """Return bags of random features on a square of tiles, or a chain of slices."""
    generator = torch.Generator().manual_seed(0)
    side = int(np.ceil(np.sqrt(size)))
    row, column = np.divmod(np.arange(size), side if modality == "wsi" else 1)
    cells = np.stack([row, column], 1).astype(np.int64)
    table = grid_neighbors(cells) if modality == "wsi" else chain_neighbors(size)
    grid = torch.from_numpy(cells)
    return pack(
        [
            Bag(
                bag_id=str(i),
                x=torch.randn(size, features, generator=generator),
                neighbors=torch.from_numpy(table.astype(np.int64)),
                grid=grid,
                coords=grid.float(),
                y=float(i % 2),
                y_inst=torch.full((size,), -1),
                coverage=torch.full((size,), torch.nan),
            )
            for i in range(bags)
        ]
    )
