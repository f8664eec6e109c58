"""Neighbour tables that Sm's kernel meets: lattices, chains, several bags, rows without neighbours, wide tables."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from preprocessing.instances.graph import grid_neighbors
from tests.helpers.graphs import path, random_table, table


def cells(height: int, width: int, *, holes: float = 0.0, seed: int = 0) -> Tensor:
    """Neighbour table of a lattice stored line by line, a share of its cells missing."""
    kept = np.argwhere(np.random.default_rng(seed).random((height, width)) >= holes)
    return torch.from_numpy(grid_neighbors(kept.astype(np.int32)).astype(np.int64))


def packed(*tables: Tensor) -> Tensor:
    """The tables of several bags as that of one batch."""
    starts, width = np.cumsum([0, *map(len, tables[:-1])]), max(t.shape[1] for t in tables)
    rows = [torch.where(t >= 0, t + int(start), -1) for t, start in zip(tables, starts, strict=True)]
    return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=-1) for t in rows])


TABLES: dict[str, Callable[[], Tensor]] = {
    "one": lambda: torch.full((1, 8), -1),
    "chain": lambda: path(30),
    "lattice": lambda: cells(14, 14, holes=0.3),
    "bags": lambda: packed(cells(5, 7), cells(6, 4, holes=0.2), torch.full((1, 8), -1), cells(3, 3)),
    "random": lambda: random_table(50, 3),
    "twelve": lambda: table([(i, j) for i in range(30) for j in range(max(0, i - 6), i)], 30),
}
