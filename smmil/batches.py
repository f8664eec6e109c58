"""Bags held in memory for a whole job; an epoch reads nothing from disk.

The features (nearly all of the bytes) lie in device memory if they fit, else in host memory, from where the next batch
is packed and pinned while the current one computes; `to_host` brings them there later (`smmil.memory`). The geometry
(neighbours, grid, labels) travels with each batch. A batch is `smmil.data.pack` of the chosen bags, whichever way it
got to the device.
"""

import dataclasses
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from smmil.data import EVERYTHING, Bag, BagBatch, joined_features, pack
from smmil.memory import first_line, is_out_of_memory, release

log = logging.getLogger(__name__)

# the rest is for the model, its activations and the allocator's slack
DEVICE_SHARE = 0.6

# small batches are packed several at a time: between two training steps, which empty the processor's caches, packing
# one takes four times as long (8 MiB of float32)
AHEAD = 2**21


class BagCache:
    """A list of bags on (or for) a device.

    Args:
        bags: with at least one instance each.
        device: where batches are wanted.
        resident: keep the features on the device; None = if they fit into `DEVICE_SHARE` of the free memory.
    """

    def __init__(self, bags: Sequence[Bag], device: torch.device, *, resident: bool | None = None) -> None:
        self.device = device
        self.bags = list(bags)
        self._sizes = [len(bag.neighbors) for bag in bags]
        self.resident = fits(bags, device) if resident is None else resident
        self._features: list[Tensor] = []
        if self.resident and device.type != "cpu":
            self.to_device()

    def __len__(self) -> int:
        return len(self.bags)

    @property
    def in_features(self) -> int:
        """P, the width of the features."""
        return int((self._features[0] if self._features else self.bags[0].x).shape[1])

    def size(self, i: int) -> int:
        """N of the bag at a position."""
        return self._sizes[i]

    def rows(self, index: Sequence[int]) -> int:
        """M of the bags at the given positions."""
        return sum(self.size(i) for i in index)

    def largest(self, index: Sequence[int]) -> tuple[str, int, int]:
        """Id, N and P of the largest of the bags at the given positions (ties: the first)."""
        i = max(index, key=self.size)
        return self.bags[i].bag_id, self.size(i), self.in_features

    def to_device(self) -> None:
        """Moves the features of all bags into device memory; leaves them where they are if they do not fit."""
        told = ""
        try:
            self._features = [bag.x.to(self.device) for bag in self.bags]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            told = first_line(error)
        self.resident = not told
        if told:
            # other processes took what `fits` had seen
            log.warning("the features do not fit into device memory and stay in host memory (%s)", told)
            release(self.device)
            return
        # what is left on the host is geometry only, so that packing it costs nothing
        self.bags = [dataclasses.replace(bag, x=bag.x.new_empty((len(bag), 0))) for bag in self.bags]

    def to_host(self) -> bool:
        """Moves the features back into host memory; False if that is where they are."""
        if not self._features:
            return False
        while self._features:
            # from the end, so that the device gets its memory back bag by bag
            i = len(self._features) - 1
            self.bags[i] = dataclasses.replace(self.bags[i], x=self._features.pop().cpu())
        self.resident = False
        release(self.device)
        return True

    def batch(self, index: Sequence[int], fields: Collection[str] = EVERYTHING) -> BagBatch:
        """Packs the bags at the given positions, on the device."""
        if self._features:
            packed = pack([self.bags[i] for i in index], fields)
            return dataclasses.replace(packed.to(self.device), x=joined_features([self._features[i] for i in index]))
        return self._moved(self._host(index, fields))

    def packed(self, index: Sequence[int]) -> BagBatch:
        """Packs the bags at the given positions on the CPU."""
        return pack([dataclasses.replace(self.bags[i], x=self._x(i)) for i in index])

    def batches(self, indices: Iterable[Sequence[int]], fields: Collection[str] = EVERYTHING) -> Iterator[BagBatch]:
        """The batches of an epoch, in the order given; host memory is read one batch ahead of the device.

        Args:
            indices: positions of the bags of each batch.
            fields: of a batch that are wanted, see `smmil.data.pack`.
        """
        if self.device.type == "cpu":
            for group in self.groups(indices):
                yield from [self.batch(index, fields) for index in group]
            return
        if self._features:
            yield from (self.batch(index, fields) for index in indices)
            return
        with ThreadPoolExecutor(1) as worker:
            waiting = None
            for index in indices:
                following = worker.submit(self._host, index, fields)
                if waiting is not None:
                    yield self._moved(waiting.result())
                waiting = following
            if waiting is not None:
                yield self._moved(waiting.result())

    def groups(self, indices: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Neighbouring batches of together at most `AHEAD` feature values, or one that has more."""
        group: list[Sequence[int]] = []
        values = 0
        for index in indices:
            more = self.rows(index) * self.in_features
            if group and values + more > AHEAD:
                yield group
                group, values = [], 0
            group.append(index)
            values += more
        if group:
            yield group

    def _x(self, i: int) -> Tensor:
        return self._features[i].cpu() if self._features else self.bags[i].x

    def _host(self, index: Sequence[int], fields: Collection[str]) -> BagBatch:
        packed = pack([self.bags[i] for i in index], fields)
        return _pinned(packed) if self.device.type == "cuda" else packed

    def _moved(self, packed: BagBatch) -> BagBatch:
        # copied when it is its turn: a batch ahead would take device memory that the one under way may need
        return packed.to(self.device, non_blocking=True) if self.device.type == "cuda" else packed


def chunks(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cuts an order of bags into batches of `size`; the last may be smaller, none is dropped."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def fits(bags: Sequence[Bag], device: torch.device) -> bool:
    """Whether the features of all bags may live on the device (always true on the CPU, where they already do)."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(bag.x.numel() * bag.x.element_size() for bag in bags) <= DEVICE_SHARE * free


def _pinned(batch: BagBatch) -> BagBatch:
    moved: dict[str, Any] = {
        field.name: value.pin_memory()
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **moved)
