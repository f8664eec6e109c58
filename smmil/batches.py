"""Bags held in memory for a whole job; an epoch reads nothing from disk.

The features (nearly all of the bytes) lie in device memory if they fit, else in host memory, from where the next batch
is packed, pinned and copied while the current one computes. The geometry (neighbours, grid, labels) travels with
each batch. A batch is `smmil.data.pack` of the chosen bags, whichever way it got to the device.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from smmil.data import Bag, BagBatch, pack

# the rest is for the model, its activations and the allocator's slack
DEVICE_SHARE = 0.6


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
        self.resident = fits(bags, device) if resident is None else resident
        self._features: list[Tensor] = []
        if self.resident and device.type != "cpu":
            self._features = [bag.x.to(device) for bag in bags]
            # what is left on the host is geometry only, so that packing it costs nothing
            self.bags = [dataclasses.replace(bag, x=bag.x.new_empty((len(bag), 0))) for bag in bags]

    def __len__(self) -> int:
        return len(self.bags)

    @property
    def in_features(self) -> int:
        """P, the width of the features."""
        return int((self._features[0] if self._features else self.bags[0].x).shape[1])

    def batch(self, index: Sequence[int]) -> BagBatch:
        """Packs the bags at the given positions, on the device."""
        packed = pack([self.bags[i] for i in index])
        if self._features:
            return dataclasses.replace(packed.to(self.device), x=torch.cat([self._features[i] for i in index]))
        if self.device.type == "cuda":
            return _pinned(packed).to(self.device, non_blocking=True)
        return packed

    def batches(self, indices: Iterable[Sequence[int]]) -> Iterator[BagBatch]:
        """The batches of an epoch, in the order given; from host memory one batch ahead of the device."""
        if self._features or self.device.type == "cpu":
            yield from map(self.batch, indices)
            return
        with ThreadPoolExecutor(1) as worker:
            waiting = None
            for index in indices:
                following = worker.submit(self.batch, index)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()


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
