"""Neighbour tables of lattices (holes, outlines, several bags), and some that are none: what Sm's kernel meets."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from preprocessing.graph import grid_neighbors
from tests.graphs import path, random_table, table


def cells(height: int, width: int, *, holes: float = 0.0, seed: int = 0) -> Tensor:
    """Neighbour table of a lattice stored line by line, a share of its cells missing."""
    kept = np.argwhere(np.random.default_rng(seed).random((height, width)) >= holes)
    return torch.from_numpy(grid_neighbors(kept.astype(np.int32)).astype(np.int64))


def lines(*spans: tuple[int, int]) -> Tensor:
    """Neighbour table of a lattice whose line i has the cells first..last - 1 of spans[i]: the outline of tissue."""
    kept = [(row, column) for row, (first, last) in enumerate(spans) for column in range(first, last)]
    return torch.from_numpy(grid_neighbors(np.array(kept, np.int32)).astype(np.int64))


def packed(*tables: Tensor) -> Tensor:
    """The tables of several bags as that of one batch."""
    starts = np.cumsum([0, *map(len, tables[:-1])])
    return torch.cat([torch.where(t >= 0, t + int(s), -1) for t, s in zip(tables, starts, strict=True)])


def shuffled(neighbors: Tensor, seed: int = 0) -> Tensor:
    """The same graph, its rows in another order; the columns of the table are then in no order."""
    order = torch.randperm(len(neighbors), generator=torch.Generator().manual_seed(seed))
    inverse = torch.argsort(order)
    return torch.where(neighbors[order] >= 0, inverse[neighbors[order].clamp(min=0)], -1)


TABLES: dict[str, Callable[[], Tensor]] = {
    "one": lambda: torch.full((1, 8), -1),
    "two": lambda: cells(1, 2),
    "line": lambda: cells(1, 20),
    "column": lambda: cells(20, 1),
    "two_wide": lambda: cells(15, 2),
    "three_wide": lambda: cells(9, 3),
    "square": lambda: cells(9, 9),
    "few_holes": lambda: cells(12, 13, holes=0.1),
    "many_holes": lambda: cells(14, 14, holes=0.45),
    "crumbs": lambda: cells(16, 16, holes=0.8),
    # the line above goes on where the last row of the table has ended, as at the lower edge of tissue
    "last_line_short": lambda: lines((0, 12), (0, 12), (0, 12), (0, 4)),
    "last_line_one": lambda: lines((0, 12), (0, 12), (6, 7)),
    "last_line_inside": lambda: lines((0, 14), (1, 13), (4, 9)),
    "two_bags": lambda: packed(cells(5, 7), cells(6, 4, holes=0.2), torch.full((1, 8), -1), cells(3, 3)),
    "shuffled": lambda: shuffled(cells(9, 9)),
    "columns_reversed": lambda: cells(8, 8, holes=0.1).flip(1),
    "chain_table": lambda: path(30),
    "random": lambda: random_table(50, 3),
    # nine and more neighbours: no column of three rows can be told apart
    "band": lambda: table([(i, j) for i in range(30) for j in range(max(0, i - 6), i)], 30),
}
