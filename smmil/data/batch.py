"""Bags and packed batches.

A batch is packed, never padded: the instances of B bags are concatenated, M = sum of the bag sizes.

| field | shape, dtype | meaning |
|---|---|---|
| `x` | (M,P) float32 | instance features |
| `offsets` | (B+1,) int64 | rows of bag b are `offsets[b]:offsets[b+1]` |
| `neighbors` | (M,K) int64 | row numbers in the batch, -1 padded, symmetric, no self |
| `grid` | (M,2) int64 | lattice cell (row, col) within its bag |
| `coords` | (M,2) or (M,1) | level-0 px, or mm along the slice normal |
| `y` | (B,) float32 | bag label in {0,1}, NaN = unlabelled |
| `y_inst` | (M,) int64 | instance label in {0,1}, -1 = unknown; never seen by training |
| `edge_weight` | (M,K) float32 or None | weight of each neighbour, None = 1 |
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

# Fields of a batch that are packed only for methods that need them (`MILModel.needs`).
EVERYTHING = frozenset({"neighbors", "grid", "coords", "y_inst"})


@dataclass(frozen=True)
class Bag:
    """One bag in memory; shapes as in the table above with N for M, neighbours as indices within the bag.

    Attributes:
        x: (N,P) features, float32 or, as most stores keep them, float16; a batch has float32.
        coverage: (N,) float32 lesion fraction, NaN = not annotated.
        split: "train", "val", "test" or "".
        group: patient or study; "" = the bag itself.
    """

    bag_id: str
    x: Tensor
    neighbors: Tensor
    grid: Tensor
    coords: Tensor
    y: float
    y_inst: Tensor
    coverage: Tensor
    split: str = ""
    group: str = ""
    edge_weight: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]


@dataclass(frozen=True)
class BagBatch:
    """B packed bags; see the table at the top of this file for the fields."""

    x: Tensor
    offsets: Tensor
    neighbors: Tensor
    grid: Tensor
    coords: Tensor
    y: Tensor
    y_inst: Tensor
    bag_ids: tuple[str, ...]
    edge_weight: Tensor | None = None

    @classmethod
    def pack(cls, bags: Sequence[Bag]) -> "BagBatch":
        """Pack B bags with x (N,P), in the given order, to x (M,P); see `smmil.data.batch.pack`."""
        return pack(bags)

    @property
    def n_bags(self) -> int:
        """Number of bags B."""
        return len(self.bag_ids)

    @property
    def sizes(self) -> Tensor:
        """Number of instances per bag, (B,) int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def bag_index(self) -> Tensor:
        """Index of the bag of each row, (M,) int64."""
        bags = torch.arange(self.n_bags, device=self.offsets.device)
        return torch.repeat_interleave(bags, self.sizes, output_size=self.x.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "BagBatch":
        """Move every tensor to a device; x stays (M,P), and so do all shapes."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def apply(self, function: Callable[[Tensor], Tensor]) -> "BagBatch":
        """Apply a function that keeps shapes, x (M,P) -> (M,P), to every tensor."""

        def applied(item: Any) -> Any:
            return function(item) if isinstance(item, Tensor) else item

        return BagBatch(**{name: applied(item) for name, item in vars(self).items()})

    def split(self) -> list["BagBatch"]:
        """Return B batches with x (N,P), one bag each, as views; `neighbors` (N,K) are copied and count from 0."""
        bounds = self.offsets.tolist()
        return [
            BagBatch(
                x=self.x[start:stop],
                offsets=self.offsets.new_tensor([0, stop - start]),
                neighbors=torch.where(self.neighbors[start:stop] >= 0, self.neighbors[start:stop] - start, -1),
                grid=self.grid[start:stop],
                coords=self.coords[start:stop],
                y=self.y[b : b + 1],
                y_inst=self.y_inst[start:stop],
                bag_ids=self.bag_ids[b : b + 1],
                edge_weight=None if self.edge_weight is None else self.edge_weight[start:stop],
            )
            for b, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        ]


def pack(bags: Sequence[Bag], fields: Collection[str] = EVERYTHING) -> BagBatch:
    """Pack bags into one batch, in the given order.

    Args:
        bags: at least one bag; every bag has at least one instance, and all share P.
        fields: fields of `EVERYTHING` to pack; the others get no column, `y_inst` gets -1.

    Returns:
        The packed batch, x (M,P), neighbors (M,K); K is the largest K of the bags.

    Raises:
        ValueError: no bag, an empty bag, differing feature widths, or edge weights on some bags only.
    """
    _check(bags)
    sizes = [len(bag) for bag in bags]
    starts = [0, *accumulate(sizes)]
    linked, no_column = "neighbors" in fields, torch.empty((starts[-1], 0), dtype=torch.int64)
    weights = [bag.edge_weight for bag in bags if linked and bag.edge_weight is not None]
    return BagBatch(
        x=joined_features([bag.x for bag in bags]),
        offsets=torch.tensor(starts),
        neighbors=_neighbors(bags, starts, sizes) if linked else no_column,
        grid=torch.cat([bag.grid for bag in bags]) if "grid" in fields else no_column,
        coords=torch.cat([bag.coords for bag in bags]) if "coords" in fields else no_column,
        y=torch.tensor([bag.y for bag in bags], dtype=torch.float32),
        y_inst=torch.cat([bag.y_inst for bag in bags]) if "y_inst" in fields else torch.full((starts[-1],), -1),
        bag_ids=tuple(bag.bag_id for bag in bags),
        edge_weight=_joined(weights, fill=0) if weights else None,
    )


def _neighbors(bags: Sequence[Bag], starts: list[int], sizes: list[int]) -> Tensor:
    neighbors = _joined([bag.neighbors for bag in bags], fill=-1).long()
    # Rows within a bag become rows within the batch, in place; NumPy has less overhead per call than torch.
    table = neighbors.numpy()
    table += np.repeat(starts[:-1], sizes)[:, None] * (table >= 0)
    return neighbors


def joined_features(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate features (n_b,P) to (M,P); float16 becomes float32."""
    x = torch.cat(list(parts))
    return x.float() if x.dtype == torch.float16 else x


def _joined(tables: Sequence[Tensor], fill: int) -> Tensor:
    """Concatenate tables (n_b,k_b) to a new (M,K), padded to the largest k_b."""
    width = max(table.shape[1] for table in tables)
    return torch.cat(
        [pad(table, (0, width - table.shape[1]), value=fill) if table.shape[1] < width else table for table in tables]
    )


def _check(bags: Sequence[Bag]) -> None:
    if not bags:
        raise ValueError("pack: found no bag, expected at least one")
    for bag in bags:
        if len(bag) == 0:
            raise ValueError(f"bag {bag.bag_id!r} has no instance; leave empty bags out before packing")
        if bag.x.shape[1] != bags[0].x.shape[1]:
            raise ValueError(
                f"bag {bag.bag_id!r} has {bag.x.shape[1]} features per instance, {bags[0].bag_id!r} has "
                f"{bags[0].x.shape[1]}; bags of one batch must come from the same encoder"
            )
        if (bag.edge_weight is None) != (bags[0].edge_weight is None):
            raise ValueError(f"bag {bag.bag_id!r}: edge weights on some bags of the batch and not on others")
