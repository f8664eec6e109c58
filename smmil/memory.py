"""When the device has too little memory: smaller passes, then features in host memory, then one error that helps.

Out of memory is caught once per level; the level holds for the rest of the run and is part of its resumable state:

1. A training step works through its bags in passes of half as many, a quarter, ... one. Each pass adds its share of the
   gradient: loss terms are means over bags, so sum_i (n_i / B) loss_i is the loss of the B bags, and one optimiser step
   follows. Power iterations of spectral normalisation advance in the first pass only, as in a whole step.
2. The features of all bags leave the device for host memory; batches are copied as they are needed. Same bits.
3. `OutOfMemory` names the largest bag, the method and the device, and says what can be done.

What the failed step had moved (random generators, buffers, soft labels) is put back first. A step in passes equals the
whole step up to the rounding of a sum in another order (float32: 1e-6 of loss and gradient), except for
- methods that draw random numbers in training (dropout, DFTD's pseudo-bags): the same distribution, other draws;
- IIB-MIL, whose prototypes move after every pass, so that later passes of a step see moved ones;
- GTP, whose BatchNorm runs over the nodes of a pass; methods with one go to level 2 first.

Predictions, which take bags one by one, have levels of their own: `smmil.each_bag`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from smmil.devices import device_name
from smmil.undo import Undo

if TYPE_CHECKING:
    from smmil.batches import BagCache

log = logging.getLogger(__name__)
T = TypeVar("T")

# allocations outside torch's caching allocator fail with plain errors: the driver, cuBLAS, the CPU
MESSAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


class OutOfMemory(ValueError):
    """Too little memory, and nothing is left to try; the message says what can be done."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, or of a compiled kernel (`MemoryError`), says that memory is exhausted."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in MESSAGES)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def release(device: torch.device) -> None:
    """Gives the allocator's unused blocks back to the device. To be called when nothing holds the failed tensors."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass
class Relief:
    """What one run does to get by with the memory there is.

    Attributes:
        bags_per_pass: bags of one forward and backward pass; None = a whole batch.
        host: the features had to leave the device.
        events: one entry per level taken: where, the largest bag of the pass, what followed.
    """

    bags_per_pass: int | None = None
    host: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)

    def passes(self, index: Sequence[int]) -> list[Sequence[int]]:
        """The passes of one batch."""
        size = self.bags_per_pass or len(index)
        return [index[start : start + size] for start in range(0, len(index), size)]

    def lower(self, failed: Sequence[int], cache: "BagCache", model: nn.Module, place: dict[str, Any]) -> bool:
        """Takes the next level.

        Args:
            failed: the bags of the pass that did not fit.
            cache: may lose its place on the device.
            model: says whether bags of a batch depend on each other.
            place: where it happened, for the record.

        Returns:
            False if there is no further level.
        """
        whole = has_batch_norm(model)
        if whole and cache.to_host():
            self.host = True
        elif len(failed) > 1:
            self.bags_per_pass = (len(failed) + 1) // 2
        elif cache.to_host():
            self.host = True
        else:
            return False
        bag_id, n, p = cache.largest(failed)
        bag = {"largest_bag": bag_id, "instances": n, "features": p, "bags": len(failed)}
        self.events.append({**place, **bag, "then": self.settings})
        return True

    @property
    def settings(self) -> dict[str, Any]:
        """The level, as it is recorded; empty at the start."""
        size = {} if self.bags_per_pass is None else {"bags_per_pass": self.bags_per_pass}
        return size | ({"features_in_host_memory": True} if self.host else {})

    @property
    def words(self) -> str:
        """The level, for people."""
        size = "whole batches" if self.bags_per_pass is None else f"{self.bags_per_pass} bag(s) per pass"
        return f"{size}, features in host memory" if self.host else size


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the bags of a training batch see each other."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def advice(where: str, failed: Sequence[int], cache: "BagCache", method: str, tried: str) -> str:
    """The message of `OutOfMemory`.

    Args:
        where: run, epoch and step, or the like.
        failed: bags that did not fit.
        cache: holds them.
        method: its name.
        tried: what the last attempt ran with.
    """
    bag_id, n, p = cache.largest(failed)
    size, device = n * p * 4 / 2**30, device_name(cache.device) + _memory_of(cache.device)
    return (
        f"{where}: out of memory on {device} with {tried}; method {method}, largest bag {bag_id} with {n} x {p}"
        f" features ({size:.2f} GiB). Free the device of other processes or take a larger one; or lower batch_size, the"
        " steps T of Sm, or the number of instances (larger tiles, lower resolution); or take precision bf16, device"
        " cpu, or a method that is linear in the instances (abmil, smap_early). What is finished or saved stays: the"
        " same command goes on from there"
    )


def _memory_of(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f" ({total / 2**30:.1f} GiB, {free / 2**30:.1f} free)"


class Frugal:
    """Does the work of one run with less and less memory, until it is done.

    Args:
        model: in training.
        cache: of its bags; may lose its place on the device.
        method: name, for messages.
        run: name, for messages.

    Attributes:
        relief: the level.
        under_way: bags of the pass that is computed now.
        undo: what the step under way has moved; None outside steps.
        updating: the optimiser is at work: weights may be half new, so that nothing can be tried again.
    """

    def __init__(self, model: nn.Module, cache: "BagCache", method: str, run: str) -> None:
        self.model, self.cache, self.method, self.run = model, cache, method, run
        self.relief = Relief()
        self.under_way: Sequence[int] = []
        self.undo: Undo | None = None
        self.updating = False

    def resume(self, saved: dict[str, Any]) -> None:
        """Takes the level of a saved state."""
        self.relief = Relief(**saved)
        if self.relief.host:
            self.cache.to_host()

    def until_done(self, work: Callable[[], T], place: Callable[[], dict[str, Any]]) -> T:
        """Calls `work`, which goes on where it failed, until it returns.

        Args:
            work: e.g. the steps that are left of an epoch.
            place: where the run is, asked after a failure.

        Raises:
            OutOfMemory: no level is left.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                told = first_line(error)
            # only here, without the traceback, is the failed pass's memory free
            self._lower(told, place())

    def _lower(self, told: str, place: dict[str, Any]) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.undo is not None:
            self.undo.restore()
        release(self.cache.device)
        where = f"run {self.run}, " + ", ".join(f"{name} {value}" for name, value in place.items())
        tried = f"{self.relief.words} ({told})"
        if self.updating or not self.relief.lower(self.under_way, self.cache, self.model, place):
            raise OutOfMemory(advice(where, self.under_way, self.cache, self.method, tried))
        bag_id, n, p = self.cache.largest(self.under_way)
        log.warning(
            "%s: out of memory with %s; largest bag of the pass %s with %d x %d features. From here to the end of the"
            " run: %s (same losses and steps, see smmil.memory)",
            *(where, tried, bag_id, n, p, self.relief.words),
        )
