"""Synthetic bags of the shapes that the benches time, and the same bags as torchmil's collate returns them.

| shape | sizes | graph |
|---|---|---|
| panda | 32 bags, 10 to 300, evenly spaced on a logarithmic scale | square lattice, 8 neighbours |
| rsna | 32 bags, 24 to 57, evenly spaced | chain |
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from preprocessing.instances.graph import chain_neighbors, grid_neighbors
from smmil.data.batch import Bag, BagBatch, pack
from smmil.sm.operator import Graph, normalise_adjacency


def sizes_of(shape: str, n_bags: int = 32) -> list[int]:
    """Return bag sizes, smallest and largest included, in a fixed mixed order."""
    spaced = {"panda": np.geomspace(10, 300, n_bags), "rsna": np.linspace(24, 57, n_bags)}[shape]
    return [int(n) for n in np.random.default_rng(0).permutation(np.rint(spaced))]


def fill(sizes: Sequence[int]) -> float:
    """Return the share of real rows in the padded batch."""
    return sum(sizes) / (len(sizes) * max(sizes))


def square(n: int) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":
    """Return (n,2) cells that fill a square row by row."""
    side = math.isqrt(n - 1) + 1
    return np.stack(np.divmod(np.arange(n, dtype=np.int32), side), 1)


def lattice_table(n: int) -> Tensor:
    """Return the (n,8) neighbours of n cells that fill a square row by row."""
    return torch.from_numpy(grid_neighbors(square(n)).astype(np.int64))


def make_batch(sizes: Sequence[int], features: int, *, chain: bool = False) -> BagBatch:
    """Make random bags of these sizes with alternating labels."""
    generator = torch.Generator().manual_seed(0)
    bags = []
    for number, n in enumerate(sizes):
        grid = np.stack([np.arange(n), np.zeros(n, int)], 1) if chain else square(n)
        neighbors = torch.from_numpy(chain_neighbors(n).astype(np.int64)) if chain else lattice_table(n)
        bags.append(
            Bag(
                bag_id=f"bag{number}",
                x=torch.randn(n, features, generator=generator),
                neighbors=neighbors,
                grid=torch.from_numpy(grid.astype(np.int64)),
                coords=torch.from_numpy(256 * grid.astype(np.int64)),
                y=float(number % 2),
                y_inst=torch.full((n,), -1),
                coverage=torch.full((n,), math.nan),
            )
        )
    return pack(bags)


@dataclass(frozen=True)
class Padded:
    """The bags of a batch as torchmil takes them.

    Attributes:
        X: (B,N,P), zeros after the end of a bag.
        adj: (B,N,N) float32 normalised adjacency, COO.
        mask: (B,N) uint8, 1 = real; None for a single bag, which needs none.
        Y: (B,).
    """

    X: Tensor
    adj: Tensor
    mask: Tensor | None
    Y: Tensor


def pad(batch: BagBatch) -> Padded:
    """Pad a packed batch."""
    longest, singles = int(batch.sizes.max()), batch.split()
    X = batch.x.new_zeros((batch.n_bags, longest, batch.x.shape[1]))
    mask = torch.zeros((batch.n_bags, longest), dtype=torch.uint8)
    for i, single in enumerate(singles):
        real = slice(0, len(single.x))
        X[i, real], mask[i, real] = single.x, 1
    adj = coo([normalise_adjacency(single.neighbors) for single in singles], longest)
    return Padded(X, adj, None if batch.n_bags == 1 else mask, batch.y)


def coo(graphs: Sequence[Graph], n: int) -> Tensor:
    """Build the (B,n,n) float32 COO tensor of normalised graphs of at most n nodes each."""
    indices, values = [], []
    for bag, graph in enumerate(graphs):
        rows = torch.arange(len(graph.index))
        i, j = rows[:, None].expand_as(graph.index)[graph.weight > 0], graph.index[graph.weight > 0]
        alone = rows[graph.self_weight > 0]
        i, j = torch.cat([i, alone]), torch.cat([j, alone])
        indices.append(torch.stack([torch.full_like(i, bag), i, j]))
        values += [graph.weight[graph.weight > 0], graph.self_weight[graph.self_weight > 0]]
    # set for the whole process: torch 2.11 warns about `check_invariants=False` for a single tensor
    with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]
        return torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), (len(graphs), n, n)).coalesce()
