"""The compiled Sm against dense matrices and against the torch path, on every kind of table it treats differently.

Rows of a lattice share their sums, other rows are gathered, weighted edges keep their weights; blocks, panels and tiles
end where they like. The dense side is G(T) = sum_s c[s] A^s U in float64 with autograd through every step. Everything
runs with every width of vectors that this machine has.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smmil import native
from smmil.sm import Graph, normalise_adjacency, sm_steps
from tests.graphs import dense_normalised, table
from tests.lattices import TABLES, cells, lines, packed

F64 = torch.float64

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler on this machine: only the torch path")


def ask_again() -> None:
    native.width.cache_clear()
    native._function.cache_clear()


@pytest.fixture(scope="module", autouse=True, params=native.widths())
def vectors(request):
    """The width of vectors in use, in bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMMIL_NATIVE_WIDTH", str(request.param))
        ask_again()
        yield request.param
    ask_again()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def with_gradients(smooth: Callable[[Tensor, Tensor], Tensor], u: Tensor, seed: int = 9) -> list[Tensor]:
    """G(T) and the gradients with respect to U and alpha, for a random incoming gradient."""
    u, alpha = u.clone().requires_grad_(), torch.tensor(0.6, dtype=u.dtype, requires_grad=True)
    out = smooth(u, alpha)
    incoming = randn(*u.shape, seed=seed).to(u.dtype)
    return [out.detach(), *torch.autograd.grad(out, (u, alpha), incoming)]


def by_dense(a: Tensor, u: Tensor, T: int = 10) -> list[Tensor]:
    def smooth(u: Tensor, alpha: Tensor) -> Tensor:
        out = u
        for _ in range(T):
            out = alpha * a @ out + (1 - alpha) * u
        return out

    return with_gradients(smooth, u)


def check(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    tolerance = {"rtol": 1e-10, "atol": 1e-11} if dtype == F64 else {"rtol": 1e-4, "atol": 2e-6}
    for ours, reference in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.to(F64), reference, **tolerance)
    # a sum over all elements, whose rounding grows with them
    slack = tolerance["atol"] * found[0].numel()
    torch.testing.assert_close(found[2].to(F64), expected[2], rtol=tolerance["rtol"], atol=slack)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_equals_the_dense_steps(name, dtype):
    neighbors = TABLES[name]()
    for width in (1, 3, 16, 17, 129, 512):
        u = randn(len(neighbors), width)
        graph = normalise_adjacency(neighbors, dtype=dtype)
        assert graph.scale is not None
        found = with_gradients(lambda u, alpha, g=graph: sm_steps(u, g, alpha, 10), u.to(dtype))
        check(found, by_dense(dense_normalised(neighbors), u), dtype)


@pytest.mark.parametrize("seed", range(12))
def test_small_lattices_with_holes_equal_the_dense_steps(seed):
    neighbors = cells(3 + seed % 5, 4 + seed % 4, holes=0.05 * seed, seed=seed)
    u = randn(len(neighbors), 5, seed=seed)
    found = with_gradients(lambda u, alpha: sm_steps(u, normalise_adjacency(neighbors, dtype=F64), alpha, 10), u)
    check(found, by_dense(dense_normalised(neighbors), u), F64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(3, 9)), max_size=5),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=2),
    st.integers(2, 6),
)
def test_outlines_of_tissue_equal_the_dense_steps(wide, narrow, T):
    spans = [*wide, *narrow]
    neighbors = lines(*((first, first + length) for first, length in spans))
    u = randn(len(neighbors), 3)
    graph = normalise_adjacency(neighbors, dtype=F64)
    got = with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, T), u)
    for ours, dense in zip(got, by_dense(dense_normalised(neighbors), u, T), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(3, 24), seed=st.integers(0, 10_000), p=st.floats(0.3, 1), reach=st.integers(1, 4))
def test_tables_that_only_look_like_lattice_lines_equal_the_dense_steps(n, seed, p, reach):
    # rows linked to their successors, and a few more links nearby: now and then three columns, mostly not
    rng = np.random.default_rng(seed)
    neighbors = table(
        [(i, j) for i in range(n) for j in range(max(0, i - reach), i) if j == i - 1 or rng.random() < p], n
    )
    u = randn(n, 2, seed=seed)
    found = with_gradients(lambda u, alpha: sm_steps(u, normalise_adjacency(neighbors, dtype=F64), alpha, 10), u)
    check(found, by_dense(dense_normalised(neighbors), u), F64)


@pytest.mark.parametrize("width", [15, 17, 33, 64, 129, 257, 513, 600])
def test_every_width_of_a_block_equals_its_columns_apart(width):
    graph = normalise_adjacency(cells(11, 12, holes=0.1), dtype=F64)
    u = randn(len(graph.index), width)
    whole = sm_steps(u, graph, 0.5)
    apart = torch.cat([sm_steps(column, graph, 0.5) for column in u.split(1, 1)], 1)
    torch.testing.assert_close(whole, apart, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("height", "width"), [(30, 40), (40, 70)])
def test_several_tiles_near_and_far_neighbours_equal_the_torch_path(height, width, monkeypatch):
    graph = normalise_adjacency(cells(height, width, holes=0.05), dtype=F64)
    u = randn(len(graph.index), 300)
    results = []
    for compiled in (True, False):
        monkeypatch.setattr(native, "usable", lambda u, use=compiled: use)
        results.append(with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, 10), u))
    check(*results, F64)


@pytest.mark.parametrize("T", [1, 2, 3, 25])
def test_any_number_of_steps(T):
    neighbors = cells(8, 9, holes=0.1)
    u = randn(len(neighbors), 20)
    graph = normalise_adjacency(neighbors, dtype=F64)
    found = with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, T), u)
    check(found, by_dense(dense_normalised(neighbors), u, T), F64)


def test_weighted_edges_of_a_lattice_keep_their_weights():
    neighbors = cells(8, 9, holes=0.1)
    position = randn(len(neighbors), 2)
    weight = torch.exp(-(position[:, None] - position[neighbors.clamp(min=0)]).norm(dim=2))
    graph = normalise_adjacency(neighbors, weight, dtype=F64)
    assert graph.scale is None
    u = randn(len(neighbors), 40)
    found = with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, 10), u)
    check(found, by_dense(graph.dense(), u), F64)
    plain = sm_steps(u, normalise_adjacency(neighbors, dtype=F64), 0.6)
    assert not torch.allclose(found[0], plain, atol=1e-3)


def test_scaled_rows_and_weights_of_one_give_the_same():
    neighbors = cells(10, 10, holes=0.2)
    graph = normalise_adjacency(neighbors, dtype=F64)
    u = randn(len(neighbors), 30)
    unscaled: Graph = dataclasses.replace(graph, scale=None)
    torch.testing.assert_close(sm_steps(u, graph, 0.7), sm_steps(u, unscaled, 0.7), rtol=1e-12, atol=1e-13)


def test_a_node_robbed_of_its_self_loop_shrinks():
    neighbors = packed(cells(4, 5), torch.full((2, 8), -1))
    graph = normalise_adjacency(neighbors, dtype=F64)
    robbed = dataclasses.replace(graph, self_weight=torch.zeros_like(graph.self_weight))
    u = randn(22, 3)
    torch.testing.assert_close(sm_steps(u, robbed, 0.6)[20:], 0.4 * u[20:])
    torch.testing.assert_close(sm_steps(u, robbed, 0.6)[:20], sm_steps(u, graph, 0.6)[:20])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_alpha_zero_gives_every_number_back(dtype):
    u = randn(63, 70).to(dtype)
    # times the scale of its row and divided by it
    back = sm_steps(u, normalise_adjacency(cells(7, 9), dtype=dtype), 0.0)
    torch.testing.assert_close(back, u, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_an_edge_named_twice_counts_twice():
    neighbors = cells(5, 5)
    doubled = torch.cat([neighbors, neighbors], 1)
    u = randn(25, 4)
    graphs = [normalise_adjacency(t, dtype=F64) for t in (neighbors, doubled)]
    torch.testing.assert_close(sm_steps(u, graphs[1], 0.5), sm_steps(u, graphs[0], 0.5))


def test_a_node_named_as_its_own_neighbour_counts():
    neighbors = torch.cat([cells(6, 7), torch.arange(42)[:, None]], 1)
    graph = normalise_adjacency(neighbors, dtype=F64)
    assert (graph.dense().diagonal() > 0).all()
    u = randn(42, 4)
    found = with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, 10), u)
    check(found, by_dense(graph.dense(), u), F64)


def test_no_bit_depends_on_the_number_of_threads():
    graph, u = normalise_adjacency(cells(20, 30, holes=0.1)), randn(800, 520).float()
    u = u[: len(graph.index)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            results.append(with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, 10), u))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_the_input_is_left_alone():
    graph, u = normalise_adjacency(cells(9, 9)), randn(81, 64).float()
    before = u.clone()
    sm_steps(u, graph, 0.5)
    assert torch.equal(u, before)


def test_the_width_of_vectors_is_chosen_by_the_environment_or_the_machine(vectors, monkeypatch):
    assert native.width() == vectors and 16 in native.widths()
    try:
        monkeypatch.delenv("SMMIL_NATIVE_WIDTH")
        ask_again()
        assert native.width() == max(native.widths())
        for wrong in ("8", "wide", "128"):
            monkeypatch.setenv("SMMIL_NATIVE_WIDTH", wrong)
            ask_again()
            with pytest.raises(ValueError, match=f"SMMIL_NATIVE_WIDTH: found '{wrong}'.*16"):
                sm_steps(randn(63, 2), normalise_adjacency(cells(7, 9), dtype=F64), 0.5)
    finally:
        monkeypatch.setenv("SMMIL_NATIVE_WIDTH", str(vectors))
        ask_again()
