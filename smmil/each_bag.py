"""Bags one by one or small ones together, whatever their size.

On the device, from host memory, and where even that fails on the CPU.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from smmil.memory import OutOfMemory, advice, first_line, is_out_of_memory, release

if TYPE_CHECKING:
    from smmil.batches import BagCache
    from smmil.data import BagBatch
    from smmil.models.base import MILModel

log = logging.getLogger(__name__)
T = TypeVar("T")


def each_bag(
    model: "MILModel", cache: "BagCache", index: Sequence[int], work: "Callable[[MILModel, BagBatch], T]"
) -> Iterator[T]:
    """Does something with bags one by one, in order, whatever their size.

    If a bag does not fit, all features go to host memory and it is tried again; if it still does not, it and every bag
    as large are worked on by the CPU, with a copy of the model: same arithmetic, rounded in another order.

    Args:
        model: on the device of the cache.
        cache: holds the bags.
        index: their positions.
        work: gets the model and a batch of one bag, on the same device.

    Raises:
        OutOfMemory: the CPU cannot hold a bag either.
    """
    at, limit = 0, math.inf
    while at < len(index):
        fitting = _below(limit, cache, index[at:])
        if not fitting:
            yield _on_cpu(model, cache, index[at], work)
            at += 1
            continue
        try:
            # no name for the batch: it would outlive the failure
            for found in map(partial(work, model), cache.batches([[i] for i in fitting])):
                at += 1
                yield found
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            told = first_line(error)
        # only here, without the traceback, is the failed pass's memory free
        limit = _make_room(cache, index[at], type(model).__name__, told, limit)


def in_groups(
    model: "MILModel", cache: "BagCache", index: Sequence[int], work: "Callable[[MILModel, BagBatch], T]"
) -> Iterator[T]:
    """Does something with bags in order, small ones several in a pass; whatever their size.

    Args:
        model: on the device of the cache.
        cache: holds the bags.
        index: their positions.
        work: gets the model and a batch of one or more bags; how bags are grouped must not matter to it.

    Raises:
        OutOfMemory: as `each_bag`, to which a group goes that does not fit.
    """
    for group in cache.groups([i] for i in index):
        positions = [i for one in group for i in one]
        try:
            if len(positions) > 1:
                yield work(model, cache.batch(positions))
                continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        yield from each_bag(model, cache, positions, work)


def _below(limit: float, cache: "BagCache", index: Sequence[int]) -> list[int]:
    """The bags before the first with `limit` instances or more."""
    return list(takewhile(lambda i: cache.size(i) < limit, index))


def _make_room(cache: "BagCache", failed: int, method: str, told: str, limit: float) -> float:
    """Features to the host, else the number of instances from which on the CPU takes over."""
    release(cache.device)
    bag_id, n, p = cache.largest([failed])
    if cache.to_host():
        log.warning("bag %s (%d x %d): out of memory; features go to host memory (%s)", bag_id, n, p, told)
        return limit
    if cache.device.type == "cpu":
        raise OutOfMemory(advice(f"bag {bag_id}", [failed], cache, method, f"one bag at a time ({told})"))
    log.warning("bag %s (%d x %d): out of memory; bags as large go to the CPU (%s)", bag_id, n, p, told)
    return n


def _on_cpu(model: "MILModel", cache: "BagCache", i: int, work: "Callable[[MILModel, BagBatch], T]") -> T:
    cpu = copy.deepcopy(model).cpu()
    try:
        return work(cpu, cache.packed([i]))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        told = first_line(error)
    bag_id = cache.largest([i])[0]
    where = f"bag {bag_id}, tried on the device and on the CPU"
    raise OutOfMemory(advice(where, [i], cache, type(model).__name__, f"one bag at a time ({told})"))
