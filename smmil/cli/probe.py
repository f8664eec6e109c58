"""Measure for some seconds what a run does: cut bags, encode tiles, train a step of every method."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from preprocessing.features.extraction import BagPlan, Extraction, Tile
from preprocessing.features.stage import choose_device
from preprocessing.instances.graph import chain_neighbors, grid_neighbors
from preprocessing.instances.scan_bag import read_slices
from preprocessing.instances.stage import cut_bag
from preprocessing.slides.tile_reader import iter_tiles
from preprocessing.status import read_stage
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
        ValueError: another value of `cores`, no raw data, no bag that can be cut, or no imported bag that can be read.
    """
    if cores != "all" and not (cores.isdecimal() and int(cores)):
        raise ValueError(f"--cores: found {cores!r}, expected a number or all")
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
    """Measure every dataset in use and call `report` with what is measured now; raises as `measured`."""
    device = choose_device(config.features.device)
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name(device)
    report("start of a job")
    machine = Machine(cores, name, _start_seconds())
    load = cache(partial(_load, config, device))
    return [_dataset(config, dataset, load, report) for dataset in config.used], machine


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
    if all(key in ENCODERS or key.startswith("timm/") for key in chosen.encoders):
        with tempfile.TemporaryDirectory() as scratch:
            sample, kept = _cut(config, name, rows, Path(scratch), report)
            report(f"{name}: tiles per second of {', '.join(chosen.encoders)}")
            encoders = {encoder: load(encoder) for encoder in chosen.encoders}
            rate = _encode(config, Path(chosen.root), kept, Path(scratch), encoders)
        features = encoders[chosen.table_encoder].encoder.dim
    else:
        rate = 0.0
        sample, features = _imported(path.parent, chosen.table_encoder)
    size = round(np.median([bag.instances for bag in sample]))
    steps = _train(config, name, features, max(1, size), rows[0].modality, report)
    parts = [[row for row in rows if row.split == part and row.label is not None] for part in ("train", "val", "test")]
    train, val, test = map(len, parts)
    if not val:
        val = round(chosen.val_share * train)
        train -= val
    return DatasetProbe(name, len(rows), train, val, test, sample, rate, steps)


def _imported(folder: Path, encoder: str) -> tuple[list[BagProbe], int]:
    """Return the sizes of all imported bags, and the number of features of an instance."""
    outcomes = read_stage(folder, f"features/{encoder}").outcomes
    sizes = {bag: outcome.n for bag, outcome in outcomes.items() if outcome.state == "ok"}
    if not sizes:
        raise ValueError(f"{folder}/features/{encoder}: found no bag of these imported features; see `smmil import`")
    array = read_arrays(folder / "features" / encoder / "store", next(iter(sizes)), ["features"])["features"]
    return [BagProbe(n) for n in sizes.values()], array.shape[1]


def _cut(
    config: Config, name: str, rows: Sequence[BagRow], scratch: Path, report: Report
) -> tuple[list[BagProbe], list[BagRow]]:
    """Cut a random sample of bags until there are enough, or the time is up; return those with instances, too."""
    chosen = config.datasets[name]
    options = InstanceOptions(wsi=wsi_options(chosen.instances.wsi), ct=ct_options(chosen.instances.ct))
    # a random sample, since lists are often sorted by hospital or label; the same one every time
    order = np.random.default_rng(0).permutation(len(rows))[:TRIED_BAGS].tolist()
    sample, kept, faults = [], [], []
    started = time.perf_counter()
    for row in (rows[i] for i in order):
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
    return sample, kept


def _load(config: Config, device: str, encoder: str) -> LoadedEncoder:
    """Load an encoder, with random weights where its file is not there yet: they are as fast."""
    files = Plan(config).weights([encoder])
    return load_encoder(
        encoder,
        config.weights.folder,
        mode=config.weights.mode if files and Path(files[0]).is_file() else "random",
        policy=config.features.resize_policy,
        device=device,
        precision=config.features.precision,
    )


def _encode(
    config: Config, root: Path, rows: Sequence[BagRow], scratch: Path, encoders: Mapping[str, LoadedEncoder]
) -> float:
    """Return the tiles per second of a feature job with all encoders."""
    batch, workers = config.features.batch_size, config.features.workers
    bags = []
    for row in rows:
        attrs = read_instance_attrs(scratch / "store", row.bag_id)
        coords = read_arrays(scratch / "store", row.bag_id, ["coords"])["coords"]
        scan = partial(read_slices, root, attrs)
        bags.append(
            (row.bag_id, len(coords), scan if row.modality == "ct" else partial(_tiles, root, row, attrs, coords))
        )

    def speed(most: int) -> float:
        """Return the tiles per second of encoding the first `most` tiles."""
        plans, left = [], most
        for bag_id, size, source in bags:
            plans += [BagPlan(bag_id, min(size, left), source, frozenset(encoders))] if left else []
            left -= min(size, left)
        started = time.perf_counter()
        with Extraction(plans, encoders, batch, workers) as extraction:
            for plan in plans:
                extraction.result(plan.bag_id)
        return (most - left) / (time.perf_counter() - started)

    if all(encoder.device.type == "cpu" for encoder in encoders.values()):
        torch.set_num_threads(workers)
    # the first batch also builds kernels and opens files
    speed(batch)
    return speed(max(batch, int(speed(batch) * ENCODE_SECONDS) // batch * batch))


def _tiles(
    root: Path, row: BagRow, attrs: InstanceAttrs, coords: npt.NDArray[np.int32], start: int, stop: int
) -> Iterator[Tile]:
    """Iterate over tiles start..stop of a slide, (H, W, 3) uint8."""
    return iter_tiles(resolve(root, row.images[0]), attrs, coords[start:stop])


def _train(config: Config, name: str, features: int, size: int, modality: str, report: Report) -> dict[str, StepProbe]:
    """Return the cost of a training step of every method of a dataset, on bags of one size."""
    device = choose_device(config.training.device)
    methods = dict.fromkeys(method for dataset, _, method in all_pairings(config) if dataset == name)
    steps: dict[str, StepProbe] = {}
    started = time.perf_counter()
    if device == "cpu":
        # jobs run side by side, each on its share of the cores
        torch.set_num_threads(1)
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
    """Return bags of random features (size, features), on a square of tiles or a chain of slices."""
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
