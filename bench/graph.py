"""Neighbour tables against torchmil 1.0.2: eight neighbours on a lattice with gaps, as tissue has.

In: nothing. Out: a table, or with `--json` a list of {name, ours, peer, ratio, target, unit}; milliseconds of CPU time.
The peer builds its adjacency at every load with a tree and a loop (`torchmil.utils.build_adj`, distance up to sqrt 2 in
grid units); ours looks all cells up at once and stores the table. The edges must be equal before anything is timed.
`normalised` adds the symmetric normalisation on both sides, compared to 1e-6.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import Case, Different, Step, make_parser, run, scale_of
from preprocessing.common.cli import guard

SIZES = (1_000, 10_000, 50_000)
FILLED, REACH, TARGET = 0.8, 1.42, 50.0
Grid = npt.NDArray[np.int32]


def grid_cells(n: int) -> Grid:
    """Return (n, 2) cells of a square lattice of which a fifth is empty, row by row."""
    side = int(np.ceil((n / FILLED) ** 0.5))
    chosen = np.sort(np.random.default_rng(0).permutation(side * side)[:n])
    return np.stack([chosen // side, chosen % side], axis=1).astype(np.int32)


def build(grid: Grid) -> tuple[Step, Step]:
    """Build the edges only."""
    from torchmil.utils import build_adj

    from preprocessing.instances.graph import grid_neighbors

    return lambda: grid_neighbors(grid), lambda: build_adj(grid, None, dist_thr=REACH)


def normalised(grid: Grid) -> tuple[Step, Step]:
    """Build the edges and weights of the symmetrically normalised adjacency."""
    import torch
    from torchmil.utils import build_adj, normalize_adj

    from preprocessing.instances.graph import grid_neighbors
    from smmil.sm.operator import normalise_adjacency

    def ours() -> object:
        table = torch.from_numpy(grid_neighbors(grid).astype(np.int64))
        return table, normalise_adjacency(table)

    def theirs() -> object:
        edges, weights = build_adj(grid, None, dist_thr=REACH)
        return edges, normalize_adj(edges, weights, n_nodes=len(grid))

    return ours, theirs


def edges_of(table: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return the sorted edges i * N + j of a neighbour table."""
    source, slot = np.nonzero(table >= 0)
    return np.sort(source * len(table) + table[source, slot].astype(np.int64))


def same_edges(n: int, ours: Any, theirs: Any) -> None:
    """Raise `Different` unless both sides have the same edges."""
    index, _ = theirs
    if not np.array_equal(edges_of(ours), np.sort(index[0] * n + index[1])):
        raise Different(f"graph of {n} instances: other edges than torchmil's")


def same_weights(n: int, ours: Any, theirs: Any) -> None:
    """Raise `Different` unless edges and weights agree."""
    (table, graph), (index, weights) = ours, theirs
    same_edges(n, table.numpy(), theirs)
    dense = {(int(i), int(j)): float(w) for i, j, w in zip(index[0], index[1], weights, strict=True)}
    weight = graph.weight.numpy()
    for i in np.random.default_rng(0).permutation(n)[:200].tolist():
        for slot, j in enumerate(table[i].tolist()):
            if j >= 0 and abs(weight[i, slot] - dense[i, j]) > 1e-6:
                raise Different(f"graph of {n} instances: weight of edge ({i}, {j}) differs from torchmil's")


def cases(scale: float) -> list[Case]:
    """List all sizes; the target is for 10,000 instances."""
    out = []
    for full in SIZES:
        grid = grid_cells(max(2, round(full * scale)))
        n, least = len(grid), TARGET if full == 10_000 else None
        key = f"{full // 1000}k"
        out.append(Case(f"build/{key}", f"edges, {n} instances", partial(build, grid), least, partial(same_edges, n)))
        if full == 10_000:
            work, check = partial(normalised, grid), partial(same_weights, n)
            out.append(Case(f"normalised/{key}", f"edges and normalisation, {n} instances", work, None, check))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = make_parser("graph", __doc__).parse_args(argv)
    return run(cases(scale_of(arguments)), arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
