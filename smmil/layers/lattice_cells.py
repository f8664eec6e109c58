"""The lattice cells of a packed batch: which instance lies in which cell, and which cells surround a cell.

Cells are sorted keys, neighbours are found by binary search: no map of the bounding boxes is made, however far apart
the cells lie.

Shapes: C cells in all, M instances; see `Cells`.
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
        """(C, K*K) int64 cells around each cell, row by row; C where the box or the tokens end."""
        reach = torch.arange(K, device=self.keys.device) - K // 2
        wanted = self.keys[:, None] + (reach[:, None] * self.stride + reach).flatten()
        found = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[found] == wanted, found, len(self.keys))


def lattice(batch: BagBatch, *, occupied: bool = True, margin: int = 3) -> Cells:
    """Cells of a batch: the occupied ones, or all of every bounding box; `margin` >= K // 2 of any neighbourhood."""
    bag = batch.bag_index
    where = bag[:, None].expand(-1, 2)
    empty = batch.grid.new_zeros((batch.n_bags, 2))
    low = empty.scatter_reduce(0, where, batch.grid, "amin", include_self=False)
    shifted = batch.grid - low[bag]
    extent = empty.scatter_reduce(0, where, shifted, "amax", include_self=False) + 1
    height, stride = (int(side) + 2 * margin for side in extent.amax(0))

    def key(bag: Tensor, row: Tensor, col: Tensor) -> Tensor:
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
