"""Neighbour tables against brute force, against torchmil's graph, and their promises under random lattices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.instances.graph import chain_neighbors, distance_neighbors, grid_neighbors
from preprocessing.store.schema import check_neighbors

cells = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), unique=True, max_size=60)
points = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=50)


def brute_force(distance_ok: np.ndarray) -> list[list[int]]:
    """Rows of neighbours from an (N, N) boolean matrix, self excluded."""
    return [[j for j in range(len(distance_ok)) if j != i and distance_ok[i, j]] for i in range(len(distance_ok))]


def as_lists(table: np.ndarray) -> list[list[int]]:
    return [[int(v) for v in row if v >= 0] for row in table]


@settings(max_examples=60, deadline=None)
@given(cells)
def test_grid_neighbors_are_the_cells_at_chebyshev_distance_one(chosen):
    grid = np.array(chosen, np.int32).reshape(-1, 2)
    table = grid_neighbors(grid)
    check_neighbors(table)
    assert table.shape == (len(grid), 8) and table.dtype == np.int32
    far = np.abs(grid[:, None].astype(int) - grid[None]).max(-1) if len(grid) else np.zeros((0, 0))
    assert as_lists(table) == brute_force(far <= 1)


@settings(max_examples=30, deadline=None)
@given(cells, st.randoms(use_true_random=False))
def test_a_permutation_of_the_instances_permutes_the_graph(chosen, random):
    grid = np.array(chosen, np.int32).reshape(-1, 2)
    order = list(range(len(grid)))
    random.shuffle(order)
    permuted = as_lists(grid_neighbors(grid[order]))
    original = as_lists(grid_neighbors(grid))
    assert [sorted(order[j] for j in row) for row in permuted] == [original[i] for i in order]


def test_two_instances_in_one_cell_are_refused():
    with pytest.raises(ValueError, match="share a lattice cell.*distance_neighbors"):
        grid_neighbors(np.array([[3, 4], [3, 4], [10**6, 10**6]], np.int32))


@settings(max_examples=60, deadline=None)
@given(points, st.floats(0.5, 30))
def test_distance_neighbors_are_all_points_within_reach(chosen, reach):
    coords = np.array(chosen, np.int32).reshape(-1, 2)
    table = distance_neighbors(coords, reach)
    check_neighbors(table)
    assert table.shape[1] >= 8
    squared = ((coords[:, None].astype(float) - coords[None]) ** 2).sum(-1) if len(coords) else np.zeros((0, 0))
    assert as_lists(table) == brute_force(squared <= reach**2 * (1 + 2e-9))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 57])
def test_a_chain_links_each_slice_to_the_one_before_and_after(n):
    table = chain_neighbors(n)
    check_neighbors(table)
    assert table.shape == (n, 2)
    assert as_lists(table) == [[j for j in (i - 1, i + 1) if 0 <= j < n] for i in range(n)]


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ([[0, -1], [-1, -1]], "self loop"),
        ([[1, -1], [-1, -1]], "symmetric"),
        ([[-1, 1], [0, -1]], "-1 before"),
        ([[1, 1], [0, -1]], "ascending"),
        ([[2, -1], [0, -1]], "expected indices"),
    ],
)
def test_broken_tables_are_named(table, what):
    with pytest.raises(ValueError, match=what):
        check_neighbors(np.array(table, np.int32))


def test_more_than_eight_neighbours_widen_the_table_and_none_is_dropped():
    lattice = np.argwhere(np.ones((4, 4), bool)) * 512
    coords = np.concatenate([lattice, lattice + 100]).astype(np.int32)
    table = distance_neighbors(coords, math.sqrt(2) * 512)
    check_neighbors(table)
    assert table.shape[1] > 8
    assert (table[5] >= 0).all()


@settings(max_examples=30, deadline=None)
@given(cells, st.sampled_from([224, 512, 1023]))
def test_on_one_lattice_distance_and_grid_agree(chosen, step):
    grid = np.array(chosen, np.int32).reshape(-1, 2)
    coords = grid[:, ::-1] * step
    assert np.array_equal(distance_neighbors(coords, math.sqrt(2) * step), grid_neighbors(grid))


@pytest.mark.filterwarnings("ignore")
def test_torchmil_builds_the_same_edges_on_a_plain_lattice():
    from torchmil.utils import build_adj

    rng = np.random.default_rng(4)
    grid = np.argwhere(rng.random((9, 11)) < 0.5).astype(np.int32)
    index, _ = build_adj(grid.astype(float), feat=None, dist_thr=math.sqrt(2), add_self_loops=False)
    ours = {(i, j) for i, row in enumerate(as_lists(grid_neighbors(grid))) for j in row}
    assert ours == {(int(i), int(j)) for i, j in zip(*index, strict=True)}
