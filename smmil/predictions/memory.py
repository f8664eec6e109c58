"""What happens when memory runs out: features move to host memory once, then one error says what to do.

Training (`with_host_fallback`) continues from the last saved state with the features in host memory; the numbers are
the same. Scoring (`each_bag`) also falls back to the CPU for a bag that the device cannot hold.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from smmil.compute.devices import device_name, first_line, is_out_of_memory, release
from smmil.data.batch import BagBatch
from smmil.data.cache import BagCache
from smmil.models.base import MILModel

log = logging.getLogger(__name__)
T = TypeVar("T")


class OutOfMemory(ValueError):
    """Memory is exhausted and no fallback is left; the message says what to change."""


def out_of_memory(where: str, cache: BagCache, index: Sequence[int], method: str, message: str) -> OutOfMemory:
    """Build the final error of a run or bag, `where`; `message` is what the allocator reported."""
    bag_id, n, p = cache.largest(index)
    memory = ""
    if cache.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(cache.device)
        memory = f" ({total / 2**30:.1f} GiB, {free / 2**30:.1f} free)"
    return OutOfMemory(
        f"{where}: out of memory on {device_name(cache.device)}{memory} with features in host memory ({message});"
        f" method {method}, largest bag {bag_id} with {n} x {p} features ({n * p * 4 / 2**30:.2f} GiB). Lower"
        " batch_size (1 needs the least), the steps T of Sm, or the number of instances (larger tiles, lower"
        " resolution); or use precision bf16, device cpu, or a method that is linear in the instances (abmil,"
        " smap_early). Saved states and finished runs are kept: the same command continues from there"
    )


def with_host_fallback(work: Callable[[], T], where: str, cache: BagCache, method: str) -> T:
    """Run a resumable job; after the first out-of-memory error, run it again with all features in host memory.

    `work` continues from its last saved state when called again; `where` names the run in messages.

    Raises:
        OutOfMemory: the features are in host memory already.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = first_line(error)
        # The traceback keeps the tensors of the failed step alive, so memory is only free from here on.
        release(cache.device)
        if not cache.to_host():
            raise out_of_memory(where, cache, range(len(cache)), method, message)
        log.warning("%s: out of memory (%s); features move to host memory, the last state continues", where, message)


def each_bag(
    model: MILModel, cache: BagCache, index: Sequence[int], work: Callable[[MILModel, BagBatch], T]
) -> Iterator[T]:
    """Apply a function to bags one by one, whatever their size.

    If a bag does not fit on the device, the features of all bags move to host memory and it is tried again. If it still
    does not fit, the CPU computes it with a copy of the model: same arithmetic, rounded in another order.

    Args:
        model: on the device of the cache.
        cache: holds the bags.
        index: positions of the bags.
        work: gets the model and a batch of one bag, x (N,P), on the same device.

    Raises:
        OutOfMemory: the CPU cannot hold a bag either.
    """
    done = 0
    while done < len(index):
        try:
            # The batch is not bound to a name, which would keep it alive after a failure.
            for result in map(partial(work, model), cache.batches([[i] for i in index[done:]])):
                done += 1
                yield result
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = first_line(error)
        release(cache.device)
        bag_id, n, p = cache.largest([index[done]])
        if cache.to_host():
            log.warning("bag %s (%d x %d): out of memory (%s); features move to host memory", bag_id, n, p, message)
            continue
        if cache.device.type == "cpu":
            raise out_of_memory(f"bag {bag_id}", cache, [index[done]], type(model).__name__, message)
        log.warning("bag %s (%d x %d): out of memory (%s); computed on the CPU", bag_id, n, p, message)
        yield _on_cpu(model, cache, index[done], work)
        done += 1


def in_groups(
    model: MILModel, cache: BagCache, index: Sequence[int], work: Callable[[MILModel, BagBatch], T]
) -> Iterator[T]:
    """Apply a function to bags in order, several small bags per batch; grouping must not affect the result.

    Args: see `each_bag`, which takes over for a group that does not fit; `work` gets x (M,P) of several bags.
    """
    for group in cache.groups([i] for i in index):
        positions = [i for single in group for i in single]
        try:
            if len(positions) > 1:
                yield work(model, cache.batch(positions))
                continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        yield from each_bag(model, cache, positions, work)


def _on_cpu(model: MILModel, cache: BagCache, i: int, work: Callable[[MILModel, BagBatch], T]) -> T:
    try:
        return work(copy.deepcopy(model).cpu(), cache.packed([i]))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = first_line(error)
    where = f"bag {cache.largest([i])[0]}, tried on the device and on the CPU"
    raise out_of_memory(where, cache, [i], type(model).__name__, message)
