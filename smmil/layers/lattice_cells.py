"""Lattice cells of a packed batch for SETMIL (Zhao et al., MICCAI 2022): instances to cells, neighbourhoods of cells.

Cells have sorted keys and a binary search returns their neighbours, so memory does not depend on the size of the
bounding boxes.

Shapes: grid (M,2) -> C cells in all; see `Cells`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from smmil.data.batch import BagBatch


@dataclass(frozen=True)
class Cells:
    """The lattice cells of a batch, C in all, raster order inside every bag.

    Attributes:
        keys: (C,) int64, ascending; one row down is `stride`, one column right is 1.
        stride: of the keys.
        place: (C,2) int64 row and column within the bag's box.
        number: (C,) int64, row * box width + column.
        of_instance: (M,) int64, the cell of each instance.
        bounds: B+1 cell numbers, bag b is `bounds[b]:bounds[b+1]`.
    """

    keys: Tensor
    stride: int
    place: Tensor
    number: Tensor
    of_instance: Tensor
    bounds: list[int]

    def neighbourhood(self, K: int) -> Tensor:
        """Return the K x K cells around each cell, row by row: (C, K*K) int64, C where there is no cell."""
        reach = torch.arange(K, device=self.keys.device) - K // 2
        keys = self.keys[:, None] + (reach[:, None] * self.stride + reach).flatten()
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, place, len(self.keys))


def lattice(batch: BagBatch, *, occupied: bool = True, margin: int = 3) -> Cells:
    """Return the cells of a batch.

    Args:
        batch: bags with grid (M,2).
        occupied: list the occupied cells only, instead of every cell of each bounding box.
        margin: empty cells around a box, at least K // 2 of any neighbourhood.
    """
    bag = batch.bag_index
    where = bag[:, None].expand(-1, 2)
    empty = batch.grid.new_zeros((batch.n_bags, 2))
    low = empty.scatter_reduce(0, where, batch.grid, "amin", include_self=False)
    shifted = batch.grid - low[bag]
    extent = empty.scatter_reduce(0, where, shifted, "amax", include_self=False) + 1
    height, stride = (int(side) + 2 * margin for side in extent.amax(0))

    def key(bag: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Return numbers of cells that sort by bag, row and column: each (n,) -> (n,)."""
        return (bag * height + row + margin) * stride + col + margin

    keys = key(bag, *shifted.unbind(1))
    if not occupied:
        boxes = [torch.cartesian_prod(*(torch.arange(int(side)) for side in box)) for box in extent.tolist()]
        numbers = [key(torch.tensor(b), *box.view(-1, 2).unbind(1)) for b, box in enumerate(boxes)]
        every = torch.cat(numbers).to(keys.device)
        of_instance = torch.searchsorted(every, keys)
    else:
        every, of_instance = torch.unique(keys, return_inverse=True)
    owner = every // stride // height
    place = torch.stack([every // stride % height, every % stride], 1) - margin
    counts = torch.bincount(owner, minlength=batch.n_bags).cumsum(0).tolist()
    return Cells(every, stride, place, place[:, 0] * extent[owner, 1] + place[:, 1], of_instance, [0, *counts])
