"""Small graphs and bags that several test files share, and a dense, obvious normalised adjacency."""

import numpy as np
import torch
from torch import Tensor

from smmil.data.batch import Bag


def table(edges: list[tuple[int, int]], n: int) -> Tensor:
    """Neighbour table (N,K) of an undirected edge list."""
    lists: list[list[int]] = [[] for _ in range(n)]
    for a, b in edges:
        lists[a].append(b)
        lists[b].append(a)
    width = max([1, *map(len, lists)])
    return torch.tensor([sorted(row) + [-1] * (width - len(row)) for row in lists])


def path(n: int) -> Tensor:
    """The chain 0 - 1 - ... - (n-1)."""
    return table([(i, i + 1) for i in range(n - 1)], n)


def random_table(n: int, seed: int, p: float = 0.2) -> Tensor:
    """A random undirected graph, isolated nodes possible."""
    rng = np.random.default_rng(seed)
    return table([(i, j) for i in range(n) for j in range(i) if rng.random() < p], n)


def dense_normalised(neighbors: Tensor) -> Tensor:
    """(N,N) D^-1/2 A D^-1/2 with a self loop on isolated nodes, by loops, float64."""
    n = len(neighbors)
    a = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in neighbors[i].tolist():
            if j >= 0:
                a[i, j] = 1
        if not (neighbors[i] >= 0).any():
            a[i, i] = 1
    d = a.sum(1)
    return a / torch.sqrt(d[:, None] * d[None, :])


def make_bag(n: int, seed: int, *, features: int = 6, y: float = 1.0, p: float = 0.3) -> Bag:
    """A random bag of n instances."""
    generator = torch.Generator().manual_seed(seed)
    return Bag(
        bag_id=f"bag{seed}",
        x=torch.randn(n, features, generator=generator),
        neighbors=random_table(n, seed, p),
        grid=torch.stack([torch.arange(n) // 3, torch.arange(n) % 3], 1),
        coords=torch.arange(2 * n).view(n, 2),
        y=y,
        y_inst=torch.zeros(n, dtype=torch.int64),
        coverage=torch.zeros(n),
    )


def permute(bag: Bag, order: Tensor) -> Bag:
    """The same bag with its instances in another order, neighbours renumbered."""
    inverse = torch.argsort(order)
    neighbors = bag.neighbors[order]
    return Bag(
        bag_id=bag.bag_id,
        x=bag.x[order],
        neighbors=torch.where(neighbors >= 0, inverse[neighbors.clamp(min=0)], -1),
        grid=bag.grid[order],
        coords=bag.coords[order],
        y=bag.y,
        y_inst=bag.y_inst[order],
        coverage=bag.coverage[order],
    )
