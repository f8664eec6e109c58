"""What a run will take, computed from a few seconds of measurements (`smmil.cli.probe`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from smmil.config.experiment import Config
from smmil.config.outputs import all_pairings

# a forward pass alone beside a training step, which adds the backward pass of about twice its cost
FORWARD_SHARE = 1 / 3
# arrays and attributes of a bag's features in the store
FILES_PER_FEATURES = 4
# config, log, weights, direction, done
FILES_PER_RUN = 5


@dataclass(frozen=True)
class BagProbe:
    """One bag that was cut: its instances, the seconds it took, and what it left on disk."""

    instances: int
    seconds: float = 0.0
    bytes: int = 0
    files: int = 0


@dataclass(frozen=True)
class StepProbe:
    """One training step of a method: seconds per bag, and bytes of its weights.

    `measured` is False if the time was up, and the slowest of the others is assumed.
    """

    seconds: float
    bytes: int
    measured: bool = True


@dataclass(frozen=True)
class DatasetProbe:
    """Measurements on one dataset.

    Attributes:
        bags: all of it.
        train, val, test: labelled bags by part, of one split.
        sample: bags that were cut, or all bags if the features are imported.
        tiles_per_second: read, resized and encoded by all encoders of the dataset in one job; 0 if imported.
        steps: by method.
    """

    name: str
    bags: int
    train: int
    val: int
    test: int
    sample: Sequence[BagProbe]
    tiles_per_second: float
    steps: Mapping[str, StepProbe]

    @property
    def instances(self) -> float:
        """Return the estimated number of instances of the dataset."""
        return self.bags * mean(bag.instances for bag in self.sample)

    @property
    def spread(self) -> float:
        """Return the relative standard error of `instances`; 0 for a complete sample, infinite for one bag of many."""
        k = len(self.sample)
        if k == self.bags:
            return 0.0
        counts = [bag.instances for bag in self.sample]
        return stdev(counts) / max(mean(counts), 1) / math.sqrt(k) if k > 1 else math.inf


@dataclass(frozen=True)
class Machine:
    """What the jobs run on: cores in use, name of the GPU or "CPU", seconds until a job that needs torch begins."""

    cores: int
    device: str
    start_seconds: float


@dataclass(frozen=True)
class Item:
    """A part of the work on a dataset: what for people, seconds with all cores of this machine, and what is on disk."""

    stage: str
    dataset: str
    amount: str
    seconds: float
    bytes: float = 0.0
    files: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a run will take, and what that rests on, one line each."""

    items: tuple[Item, ...]
    basis: tuple[str, ...]

    @property
    def total(self) -> Item:
        """Return the sum of all parts."""
        sums = (sum(getattr(item, name) for item in self.items) for name in ("seconds", "bytes", "files"))
        return Item("in all", "", "", *sums)


def estimate(
    config: Config, probes: Sequence[DatasetProbe], machine: Machine, instance_bytes: Mapping[str, int]
) -> Estimate:
    """Compute what the whole run takes if nothing of it is there yet.

    Args:
        config: the experiment.
        probes: one per dataset in use.
        machine: what it runs on.
        instance_bytes: by dataset, bytes of the features of one instance, all encoders together.
    """
    trainings = all_pairings(config)
    runs = len(config.training.splits) * len(config.training.learning_rates)
    # jobs share a GPU; the cores are divided among them
    gpu = machine.device != "CPU"
    side_by_side = 1 if gpu else max(1, min(machine.cores, len(trainings)))
    feature_jobs = 1 if gpu else max(1, machine.cores // config.features.workers)
    items, jobs = [], len(config.report.tables) + len(config.report.figures) + 1
    for probe in probes:
        dataset, n, count = config.datasets[probe.name], probe.bags, probe.instances
        if probe.tiles_per_second:
            shards = math.ceil(n / dataset.bags_per_shard)
            seconds, *on_disk = (
                n * mean(getattr(bag, name) for bag in probe.sample) for name in ("seconds", "bytes", "files")
            )
            amount = f"{n:,} bags, about {rounded(count)} tiles"
            items.append(Item("cut", probe.name, amount, seconds / min(machine.cores, shards), *on_disk))
            seconds = count / probe.tiles_per_second / min(feature_jobs, shards)
            amount = f"{', '.join(dataset.encoders)} at {probe.tiles_per_second:.0f} tiles/s"
            on_disk = [count * instance_bytes[probe.name], n * FILES_PER_FEATURES * len(dataset.encoders)]
            items.append(Item("features", probe.name, amount, seconds, *on_disk))
            jobs += shards * (1 + len(dataset.encoders))
        steps = [probe.steps[method] for name, _, method in trainings if name == probe.name]
        # training, predictions and metrics of each method; list of bags, contact sheet and status of the dataset
        jobs += 3 * len(steps) + 3
        if steps:
            epochs = config.training.epochs
            bags = epochs * (probe.train + FORWARD_SHARE * probe.val) + FORWARD_SHARE * (probe.val + probe.test)
            seconds = runs * bags * sum(step.seconds for step in steps) / side_by_side
            amount = f"{len(steps)} methods and encoders, {runs} runs each of {epochs} epochs"
            size = runs * sum(step.bytes for step in steps)
            items.append(Item("training", probe.name, amount, seconds, size, runs * len(steps) * FILES_PER_RUN))
    # the start of Python and torch often takes longer than a small job itself
    start = jobs * machine.start_seconds / machine.cores
    items.append(Item("jobs", "", f"start of about {jobs} jobs, {machine.start_seconds:.1f} s each", start))
    return Estimate(tuple(items), tuple(_basis(probes, machine)))


def _basis(probes: Sequence[DatasetProbe], machine: Machine) -> list[str]:
    lines = [f"machine: {machine.cores} cores, {machine.device}, as busy as it was while this was measured"]
    for probe in probes:
        counts = [bag.instances for bag in probe.sample]
        spread = "unknown" if math.isinf(probe.spread) else f"± {100 * probe.spread:.0f} %"
        tiles = f"{min(counts):,} to {max(counts):,} tiles" if min(counts) < max(counts) else f"{counts[0]:,} tiles"
        cut = "were cut" if probe.tiles_per_second else "are imported"
        lines.append(f"{probe.name}: {len(counts)} of {probe.bags:,} bags {cut} ({tiles}); error of the sum {spread}")
        if guessed := [method for method, step in probe.steps.items() if not step.measured]:
            lines.append(f"{probe.name}: not measured, counted as the slowest one: {', '.join(guessed)}")
    lines.append("one batch was encoded and one step trained per method; listing, tables and report are not included")
    return lines


def rounded(number: float) -> str:
    """Format a count with two significant digits."""
    return f"{float(f'{number:.2g}'):,.0f}"


def as_bytes(number: float) -> str:
    """Format a size on disk with two significant digits."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if number >= unit), (1e3, "kB"))
    return f"{number / unit:.1f} {name}" if name == "GB" and number < 1e10 else f"{rounded(number / unit)} {name}"
