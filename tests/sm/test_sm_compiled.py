"""The compiled Sm against the dense reference and the torch path, with every vector width of this machine."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smmil.sm import native
from smmil.sm.operator import normalise_adjacency, sm_steps, steps_reference
from tests.helpers.graphs import dense_normalised
from tests.helpers.lattices import TABLES, cells, packed
from tests.helpers.models import F64, randn

DTYPES = [torch.float32, F64]

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler on this machine: only the torch path")


def clear_caches() -> None:
    native.width.cache_clear()
    native._kernel.cache_clear()


@pytest.fixture(scope="module", autouse=True, params=native.widths())
def width(request):
    """The vector width in use, in bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMMIL_NATIVE_WIDTH", str(request.param))
        clear_caches()
        yield request.param
    clear_caches()


def with_gradients(smooth: Callable[[Tensor, Tensor], Tensor], u: Tensor) -> list[Tensor]:
    """G(T) and the gradients of U and alpha for a random incoming gradient."""
    u, alpha = u.clone().requires_grad_(), torch.tensor(0.6, dtype=u.dtype, requires_grad=True)
    out = smooth(u, alpha)
    return [out.detach(), *torch.autograd.grad(out, (u, alpha), randn(*u.shape, seed=9).to(u.dtype))]


def check(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    rtol, atol = (1e-10, 1e-11) if dtype == F64 else (1e-4, 2e-6)
    for ours, reference in zip(actual[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.to(F64), reference.to(F64), rtol=rtol, atol=atol)
    # The gradient of alpha is a sum over all elements, and its rounding grows with their number.
    slack = atol * actual[0].numel()
    torch.testing.assert_close(actual[2].to(F64), expected[2].to(F64), rtol=rtol, atol=slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TABLES)
def test_every_table_equals_the_reference_and_the_torch_path(name, dtype, monkeypatch):
    neighbors = TABLES[name]()
    graph, dense = normalise_adjacency(neighbors, dtype=dtype), dense_normalised(neighbors)
    for columns in (1, 17, 129):
        u = randn(len(neighbors), columns)
        expected = with_gradients(lambda u, alpha: steps_reference(u, dense, alpha), u)
        results = []
        for compiled in (True, False):
            monkeypatch.setattr(native, "usable", lambda u, use=compiled: use)
            results.append(with_gradients(lambda u, alpha: sm_steps(u, graph, alpha), u.to(dtype)))
            check(results[-1], expected, dtype)
        torch.testing.assert_close(results[0][0], results[1][0], rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("columns", [15, 33, 64, 129, 257, 513])
def test_every_number_of_columns_equals_its_columns_apart(columns):
    graph = normalise_adjacency(cells(11, 12, holes=0.1), dtype=F64)
    u = randn(len(graph.index), columns)
    apart = torch.cat([sm_steps(column, graph, 0.5) for column in u.split(1, 1)], 1)
    torch.testing.assert_close(sm_steps(u, graph, 0.5), apart, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("T", [1, 2, 3, 25])
def test_any_number_of_steps(T):
    neighbors = cells(8, 9, holes=0.1)
    graph, dense = normalise_adjacency(neighbors, dtype=F64), dense_normalised(neighbors)
    u = randn(len(neighbors), 20)
    actual = with_gradients(lambda u, alpha: sm_steps(u, graph, alpha, T), u)
    check(actual, with_gradients(lambda u, alpha: steps_reference(u, dense, alpha, T), u), F64)


def test_weighted_edges_and_self_loops_equal_the_reference():
    neighbors = torch.cat([cells(6, 7), torch.arange(42)[:, None]], 1)
    position = randn(len(neighbors), 2)
    weight = torch.exp(-(position[:, None] - position[neighbors.clamp(min=0)]).norm(dim=2))
    graph, u = normalise_adjacency(neighbors, weight, dtype=F64), randn(len(neighbors), 40)
    assert (graph.dense().diagonal() > 0).all()
    actual = with_gradients(lambda u, alpha: sm_steps(u, graph, alpha), u)
    check(actual, with_gradients(lambda u, alpha: steps_reference(u, graph.dense(), alpha), u), F64)
    unweighted = sm_steps(u, normalise_adjacency(neighbors, dtype=F64), 0.6)
    assert not torch.allclose(actual[0], unweighted, atol=1e-3)


def test_a_node_without_its_self_loop_shrinks():
    graph = normalise_adjacency(packed(cells(4, 5), torch.full((2, 8), -1)), dtype=F64)
    without = dataclasses.replace(graph, self_weight=torch.zeros_like(graph.self_weight))
    u = randn(22, 3)
    torch.testing.assert_close(sm_steps(u, without, 0.6)[20:], 0.4 * u[20:])
    torch.testing.assert_close(sm_steps(u, without, 0.6)[:20], sm_steps(u, graph, 0.6)[:20])


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_zero_is_the_identity_and_leaves_the_input_alone(dtype):
    u = randn(63, 70).to(dtype)
    before = u.clone()
    assert torch.equal(sm_steps(u, normalise_adjacency(cells(7, 9), dtype=dtype), 0.0), u)
    assert torch.equal(u, before)


def test_a_view_that_is_not_contiguous_equals_its_copy():
    graph, u = normalise_adjacency(cells(9, 9)), randn(64, 81).float().T
    assert not u.is_contiguous() and torch.equal(sm_steps(u, graph, 0.5), sm_steps(u.contiguous(), graph, 0.5))


def test_no_bit_depends_on_the_number_of_threads():
    graph = normalise_adjacency(cells(20, 30, holes=0.1))
    u = randn(len(graph.index), 520).float()
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            results.append(with_gradients(lambda u, alpha: sm_steps(u, graph, alpha), u))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(single, double) for single, double in zip(*results, strict=True))


def test_the_environment_or_the_machine_selects_the_vector_width(width, monkeypatch):
    assert native.width() == width and 16 in native.widths()
    try:
        monkeypatch.delenv("SMMIL_NATIVE_WIDTH")
        clear_caches()
        assert native.width() == max(native.widths())
        for wrong in ("8", "wide", "128"):
            monkeypatch.setenv("SMMIL_NATIVE_WIDTH", wrong)
            clear_caches()
            with pytest.raises(ValueError, match=f"SMMIL_NATIVE_WIDTH: found '{wrong}'.*16"):
                sm_steps(randn(63, 2), normalise_adjacency(cells(7, 9), dtype=F64), 0.5)
    finally:
        monkeypatch.setenv("SMMIL_NATIVE_WIDTH", str(width))
        clear_caches()
