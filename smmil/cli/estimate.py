"""What a run will take, computed from a few seconds of measurements (`smmil.cli.probe`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from smmil.cli.jobs import as_duration
from smmil.config.experiment import Config
from smmil.config.outputs import all_pairings

# a forward pass alone beside a training step, which adds the backward pass of about twice its cost
FORWARD_SHARE = 1 / 3
# below it, the machine is busy with something else
BUSY_SHARE = 0.7
# arrays and attributes of a bag's features in the store
FILES_PER_FEATURES = 4
# config, log, weights, direction, done
FILES_PER_RUN = 5


@dataclass(frozen=True)
class BagProbe:
    """One bag that was cut: its instances, the seconds it took, and what it left on disk."""

    instances: int
    seconds: float
    bytes: int
    files: int


@dataclass(frozen=True)
class StepProbe:
    """One training step of a method.

    Attributes:
        seconds: per bag.
        bytes: of the weights.
        measured: False if the time was up, and the slowest of the others is assumed.
    """

    seconds: float
    bytes: int
    measured: bool = True


@dataclass(frozen=True)
class DatasetProbe:
    """Measurements on one dataset.

    Attributes:
        name: of the dataset.
        bags: all of it.
        train, val, test: labelled bags by part, of one split.
        sample: bags that were cut.
        tiles_per_second: read, resized and encoded by all encoders of the dataset in one job.
        steps: by method.
    """

    name: str
    bags: int
    train: int
    val: int
    test: int
    sample: tuple[BagProbe, ...]
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
    """What the jobs run on.

    Attributes:
        cores: used at once.
        device: name of the GPU, or "CPU".
        start_seconds: until a job that needs torch begins to work.
        share: of the elapsed time in which the measurements had a processor, at most 1.
    """

    cores: int
    device: str
    start_seconds: float
    share: float = 1.0

    @property
    def has_gpu(self) -> bool:
        """Return whether jobs share a GPU; a CPU is divided among them."""
        return self.device != "CPU"


@dataclass(frozen=True)
class Item:
    """A part of the work.

    Attributes:
        stage: cut, features, training or jobs.
        dataset: "" for all.
        amount: for people.
        seconds: on this machine, with all its cores.
        bytes, files: on disk.
    """

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
    side_by_side = 1 if machine.has_gpu else max(1, min(machine.cores, len(trainings)))
    feature_jobs = 1 if machine.has_gpu else max(1, machine.cores // config.features.workers)
    items, jobs = [], len(config.report.tables) + len(config.report.figures) + 1
    for probe in probes:
        dataset = config.datasets[probe.name]
        n, count, k = probe.bags, probe.instances, len(probe.sample)
        shards = math.ceil(n / dataset.bags_per_shard)
        seconds = n * sum(bag.seconds for bag in probe.sample) / k / min(machine.cores, shards)
        on_disk = [n * sum(getattr(bag, name) for bag in probe.sample) / k for name in ("bytes", "files")]
        items.append(Item("cut", probe.name, f"{n:,} bags, about {rounded(count)} tiles", seconds, *on_disk))
        size = count * instance_bytes[probe.name]
        seconds = count / probe.tiles_per_second / min(feature_jobs, shards)
        amount = f"{', '.join(dataset.encoders)} at {probe.tiles_per_second:.0f} tiles/s"
        files = n * FILES_PER_FEATURES * len(dataset.encoders)
        items.append(Item("features", probe.name, amount, seconds, size, files))
        methods = [method for name, _, method in trainings if name == probe.name]
        jobs += shards * (1 + len(dataset.encoders)) + 3 * len(methods) + 3
        if methods:
            steps = [probe.steps[method] for method in methods]
            epochs = config.training.epochs
            bags = epochs * (probe.train + FORWARD_SHARE * probe.val) + FORWARD_SHARE * (probe.val + probe.test)
            seconds = runs * bags * sum(step.seconds for step in steps) / side_by_side
            amount = f"{len(methods)} methods and encoders, {runs} runs each of {epochs} epochs"
            size = runs * sum(step.bytes for step in steps)
            items.append(Item("training", probe.name, amount, seconds, size, runs * len(methods) * FILES_PER_RUN))
    start = jobs * machine.start_seconds / machine.cores
    items.append(Item("jobs", "", f"start of about {jobs} jobs, {machine.start_seconds:.1f} s each", start))
    seconds = sum(item.seconds for item in items)
    return Estimate(tuple(items), tuple(_basis(probes, machine, seconds)))


def _basis(probes: Sequence[DatasetProbe], machine: Machine, seconds: float) -> list[str]:
    lines = [f"machine: {machine.cores} cores, {machine.device}, as busy as it was while this was measured"]
    if machine.share < BUSY_SHARE and not machine.has_gpu:
        alone = as_duration(seconds * machine.share)
        lines.append(
            f"the measurements had a processor in {100 * machine.share:.0f} % of the time; an idle machine takes "
            f"{alone} if other programs had the rest, and no less than this if they waited for the disk"
        )
    for probe in probes:
        counts = [bag.instances for bag in probe.sample]
        spread = "unknown" if math.isinf(probe.spread) else f"± {100 * probe.spread:.0f} %"
        tiles = f"{min(counts):,} to {max(counts):,} tiles" if min(counts) < max(counts) else f"{counts[0]:,} tiles"
        lines.append(
            f"{probe.name}: {len(counts)} of {probe.bags:,} bags were cut ({tiles}); error of the sum {spread}"
        )
        if guessed := [method for method, step in probe.steps.items() if not step.measured]:
            lines.append(f"{probe.name}: not measured, counted as the slowest one: {', '.join(guessed)}")
    lines.append("one batch was encoded and one step trained per method; listing, tables and report are not included")
    return lines


def rounded(number: float) -> str:
    """Format a count with two significant digits."""
    if number < 100:
        return f"{number:.0f}"
    digits = int(math.log10(number)) - 1
    return f"{round(number / 10**digits) * 10**digits:,}"


def as_bytes(number: float) -> str:
    """Format a size on disk with two significant digits."""
    if number < 1e6:
        return f"{number / 1e3:.0f} kB"
    if number < 1e9:
        return f"{rounded(number / 1e6)} MB"
    return f"{number / 1e9:.1f} GB" if number < 1e10 else f"{rounded(number / 1e9)} GB"
