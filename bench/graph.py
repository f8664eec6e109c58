"""Neighbour tables against torchmil 1.0.2: eight neighbours on a lattice with gaps, as tissue has.

In: nothing. Out: a table, or with `--json` a list of {name, ours, peer, ratio, target, unit}; milliseconds of CPU time.
The peer builds its adjacency at every load with a tree and a loop (`torchmil.utils.build_adj`, distance up to sqrt 2 in
grid units); ours looks cells up at once and stores the table. Before anything is timed the edges are compared: equal
sets. `normalised` adds the symmetric normalisation on both sides, compared to 1e-6.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.timing import Step, add_arguments, scale_of
from bench.trials import Different, Trial, run_trials
from preprocessing.cli import guard, setup_logging

SIZES = (1_000, 10_000, 50_000)
FILLED, REACH, TARGET = 0.8, 1.42, 50.0
Grid = npt.NDArray[np.int32]


def cells(n: int, seed: int = 0) -> Grid:
    """(n, 2) cells of a square lattice of which a fifth is empty, row by row."""
    side = int(np.ceil((n / FILLED) ** 0.5))
    chosen = np.sort(np.random.default_rng(seed).permutation(side * side)[:n])
    return np.stack([chosen // side, chosen % side], axis=1).astype(np.int32)


def build(grid: Grid) -> tuple[Step, Step]:
    """The edges alone."""
    from torchmil.utils import build_adj

    from preprocessing.graph import grid_neighbors

    return lambda: grid_neighbors(grid), lambda: build_adj(grid, None, dist_thr=REACH)


def normalised(grid: Grid) -> tuple[Step, Step]:
    """Edges and the weights of the symmetrically normalised adjacency."""
    import torch
    from torchmil.utils import build_adj, normalize_adj

    from preprocessing.graph import grid_neighbors
    from smmil.sm import normalise_adjacency

    def ours() -> object:
        table = torch.from_numpy(grid_neighbors(grid).astype(np.int64))
        return table, normalise_adjacency(table)

    def theirs() -> object:
        edges, weights = build_adj(grid, None, dist_thr=REACH)
        return edges, normalize_adj(edges, weights, n_nodes=len(grid))

    return ours, theirs


def edges_of(table: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Sorted edges i * N + j of a neighbour table."""
    source, slot = np.nonzero(table >= 0)
    return np.sort(source * len(table) + table[source, slot].astype(np.int64))


def same_edges(n: int, ours: Any, theirs: Any) -> None:
    """Raises `Different` unless both sides have the same edges."""
    index, _ = theirs
    if not np.array_equal(edges_of(ours), np.sort(index[0] * n + index[1])):
        raise Different(f"graph of {n} instances: other edges than torchmil's")


def same_weights(n: int, ours: Any, theirs: Any) -> None:
    """Raises `Different` unless edges and weights agree."""
    (table, graph), (index, weights) = ours, theirs
    same_edges(n, table.numpy(), theirs)
    dense = {(int(i), int(j)): float(w) for i, j, w in zip(index[0], index[1], weights, strict=True)}
    own = graph.weight.numpy()
    for i in np.random.default_rng(0).permutation(n)[:200].tolist():
        for slot, j in enumerate(table[i].tolist()):
            if j >= 0 and abs(own[i, slot] - dense[i, j]) > 1e-6:
                raise Different(f"graph of {n} instances: weight of edge ({i}, {j}) differs from torchmil's")


def trials(scale: float) -> list[Trial]:
    """All sizes; the target is stated for 10,000 instances."""
    out = []
    for full in SIZES:
        grid = cells(max(2, round(full * scale)))
        n, least = len(grid), TARGET if full == 10_000 else None
        key = f"{full // 1000}k"
        out.append(Trial(f"build/{key}", f"edges, {n} instances", partial(build, grid), least, partial(same_edges, n)))
        if full == 10_000:
            work, check = partial(normalised, grid), partial(same_weights, n)
            out.append(Trial(f"normalised/{key}", f"edges and normalisation, {n} instances", work, None, check))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.graph", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    setup_logging()
    return run_trials(trials(scale_of(arguments)), arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
