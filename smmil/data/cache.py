"""Bags held in memory for a whole job; an epoch reads nothing from disk.

Features, nearly all of the bytes, are in device memory if they fit, otherwise in host memory, where the next batch is
packed and pinned while the current one computes. Geometry and labels travel with each batch.
"""

import dataclasses
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from smmil.compute.devices import first_line, is_out_of_memory, release
from smmil.data.batch import EVERYTHING, Bag, BagBatch, joined_features, pack

log = logging.getLogger(__name__)

# The rest is for the model, its activations and allocator overhead.
DEVICE_SHARE = 0.6

# Numbers of features of the small bags that are scored in one pass (8 MiB of float32).
AHEAD = 2**21


class BagCache:
    """Bags for a device."""

    def __init__(self, bags: Sequence[Bag], device: torch.device) -> None:
        self.device = device
        self.bags = list(bags)
        self._sizes = [len(bag.neighbors) for bag in bags]
        self.resident = fits(bags, device)
        self._features: list[Tensor] = []
        if self.resident and device.type != "cpu":
            self.to_device()

    def __len__(self) -> int:
        return len(self.bags)

    @property
    def in_features(self) -> int:
        """Number of features P."""
        return int((self._features[0] if self._features else self.bags[0].x).shape[1])

    def size(self, i: int) -> int:
        """Return the number of instances N of a bag."""
        return self._sizes[i]

    def rows(self, index: Sequence[int]) -> int:
        """Return the total number of instances M of bags."""
        return sum(self.size(i) for i in index)

    def largest(self, index: Sequence[int]) -> tuple[str, int, int]:
        """Return id, N and P of the largest of the given bags (ties: the first)."""
        i = max(index, key=self.size)
        return self.bags[i].bag_id, self.size(i), self.in_features

    def to_device(self) -> None:
        """Move the features of all bags into device memory, or leave them in host memory if they do not fit."""
        try:
            self._features = [bag.x.to(self.device) for bag in self.bags]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Other processes may have taken the memory since `fits`.
            log.warning("the features do not fit into device memory and stay in host memory (%s)", first_line(error))
            self.resident = False
        if not self._features:
            release(self.device)
            return
        self.resident = True
        self.bags = [dataclasses.replace(bag, x=bag.x.new_empty((len(bag), 0))) for bag in self.bags]

    def to_host(self) -> bool:
        """Move the features back into host memory; return False if they are there already."""
        if not self._features:
            return False
        while self._features:
            # One bag at a time from the end, so that the device memory is freed bag by bag.
            i = len(self._features) - 1
            self.bags[i] = dataclasses.replace(self.bags[i], x=self._features.pop().cpu())
        self.resident = False
        release(self.device)
        return True

    def batch(self, index: Sequence[int], fields: Collection[str] = EVERYTHING) -> BagBatch:
        """Pack the given bags, M rows in all, on the device: x (M,P) float32."""
        if self._features:
            packed = pack([self.bags[i] for i in index], fields)
            return dataclasses.replace(packed.to(self.device), x=joined_features([self._features[i] for i in index]))
        return self._moved(self._host(index, fields))

    def packed(self, index: Sequence[int]) -> BagBatch:
        """Pack the given bags, M rows in all, on the CPU: x (M,P) float32."""
        if not self._features:
            return pack([self.bags[i] for i in index])
        return pack([dataclasses.replace(self.bags[i], x=self._features[i].cpu()) for i in index])

    def batches(self, indices: Iterable[Sequence[int]], fields: Collection[str] = EVERYTHING) -> Iterator[BagBatch]:
        """Iterate over batches, x (M,P), in the given order; from host memory the next batch is packed in advance."""
        if self.device.type == "cpu" or self._features:
            yield from (self.batch(index, fields) for index in indices)
            return
        with ThreadPoolExecutor(1) as worker:
            pending = None
            for index in indices:
                following = worker.submit(self._host, index, fields)
                if pending is not None:
                    yield self._moved(pending.result())
                pending = following
            if pending is not None:
                yield self._moved(pending.result())

    def groups(self, indices: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """Group consecutive batches with at most `AHEAD` feature values in total; a larger batch is a group of one."""
        group: list[Sequence[int]] = []
        values = 0
        for index in indices:
            size = self.rows(index) * self.in_features
            if group and values + size > AHEAD:
                yield group
                group, values = [], 0
            group.append(index)
            values += size
        if group:
            yield group

    def _host(self, index: Sequence[int], fields: Collection[str]) -> BagBatch:
        packed = pack([self.bags[i] for i in index], fields)
        return packed.apply(Tensor.pin_memory) if self.device.type == "cuda" else packed

    def _moved(self, packed: BagBatch) -> BagBatch:
        # Copied only when it is due: the next batch would take device memory from the current one.
        return packed.to(self.device, non_blocking=True) if self.device.type == "cuda" else packed


def chunks(order: Sequence[int], size: int) -> list[Sequence[int]]:
    """Divide an order of bags into batches of `size`; the last may be smaller, none is dropped."""
    return [order[start : start + size] for start in range(0, len(order), size)]


def fits(bags: Sequence[Bag], device: torch.device) -> bool:
    """Return whether the features of all bags fit on the device (always true on the CPU)."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(bag.x.numel() * bag.x.element_size() for bag in bags) <= DEVICE_SHARE * free
