"""Sm against the equations as written and its theory (paper, Equations 3 to 9)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smmil.sm.operator import (
    Sm,
    dirichlet_energy,
    energy_reference,
    exact_reference,
    normalise_adjacency,
    sm_exact,
    sm_steps,
    steps_reference,
)
from tests.helpers.graphs import dense_normalised, path, random_table, table
from tests.helpers.lattices import packed
from tests.helpers.models import F64, randn

ALPHAS = [0.0, 0.1, 0.5, 0.7, 0.9]


def graph(neighbors: Tensor):
    return normalise_adjacency(neighbors, dtype=F64)


def whole(n: int) -> Tensor:
    return torch.tensor([0, n])


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_the_neighbour_table_equals_dense_algebra(seed):
    neighbors, u = random_table(15, seed), randn(15, 4)
    dense = dense_normalised(neighbors)
    torch.testing.assert_close(graph(neighbors).dense(), dense)
    torch.testing.assert_close(graph(neighbors).matmul(u), dense @ u)
    torch.testing.assert_close(dirichlet_energy(u, graph(neighbors)), energy_reference(u, dense))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_exact_equals_equation_7_as_written_and_many_steps_converge_to_it(alpha):
    neighbors, u = random_table(30, 1), randn(30, 3)
    exact = sm_exact(u, graph(neighbors), alpha, whole(30))
    torch.testing.assert_close(exact, exact_reference(u, dense_normalised(neighbors), alpha))
    torch.testing.assert_close(sm_steps(u, graph(neighbors), alpha, 400), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [0, 1, 10])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_steps_equal_equation_8_as_written(alpha, T):
    neighbors, u = random_table(13, 5), randn(13, 3)
    expected = steps_reference(u, dense_normalised(neighbors), alpha, T)
    torch.testing.assert_close(sm_steps(u, graph(neighbors), alpha, T), expected)


def test_exact_minimises_equation_5():
    neighbors, u = random_table(10, 5), randn(10, 2)
    g = sm_exact(u, graph(neighbors), 0.6, whole(10)).requires_grad_()
    objective = 0.6 * dirichlet_energy(g, graph(neighbors)) + 0.4 * ((u - g) ** 2).sum()
    (slope,) = torch.autograd.grad(objective, g)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("alpha", "exact", "ten"), [(0.1, 0.818182, 0.818182), (0.9, 0.052632, 0.382959)])
def test_fixed_alpha_is_not_swapped_with_one_minus_alpha(alpha, exact, ten):
    two, u = graph(path(2)), column(1, -1)
    assert sm_exact(u, two, alpha, whole(2))[0, 0].item() == pytest.approx(exact, abs=1e-6)
    assert sm_steps(u, two, alpha, 10)[0, 0].item() == pytest.approx(ten, abs=1e-6)


def test_the_square_root_of_the_degree_is_the_fixed_signal():
    neighbors = path(6)
    signal = (neighbors >= 0).sum(1).to(F64).sqrt()[:, None]
    torch.testing.assert_close(sm_steps(signal, graph(neighbors), 0.8, 10), signal)


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, 0.705000), (0.9, 0.135279)])
def test_energy_bound_of_equation_9(alpha, expected):
    six = graph(path(6))
    eigenvalues = torch.linalg.eigvalsh(torch.eye(6, dtype=F64) - six.dense())
    shrink = (1 + alpha / (1 - alpha) * eigenvalues[1:]) ** -2
    assert shrink.max().item() == pytest.approx(expected, abs=1e-6)
    u = randn(6, 4)
    smoothed = sm_exact(u, six, alpha, whole(6))
    assert dirichlet_energy(smoothed, six) <= shrink.max() * dirichlet_energy(u, six) * (1 + 1e-12)


def test_response_on_an_eigenvector_is_the_geometric_sum():
    neighbors, alpha, T = random_table(14, 4), 0.7, 10
    mu, vectors = torch.linalg.eigh(dense_normalised(neighbors))
    a = alpha * mu
    response = a**T + (1 - alpha) * torch.where(a == 1, T * torch.ones_like(a), (1 - a**T) / (1 - a))
    torch.testing.assert_close(sm_steps(vectors, graph(neighbors), alpha, T), vectors * response)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 20),
    seed=st.integers(0, 10_000),
    p=st.floats(0, 1),
    alpha=st.floats(0, 0.99),
    T=st.integers(0, 15),
)
def test_steps_never_raise_the_energy_and_commute_with_permutations(n, seed, p, alpha, T):
    neighbors, u = random_table(n, seed, p), randn(n, 2, seed=seed)
    g, smoothed = graph(neighbors), sm_steps(u, graph(neighbors), alpha, T)
    assert dirichlet_energy(smoothed, g) <= dirichlet_energy(u, g) * (1 + 1e-9) + 1e-12
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    inverse = torch.argsort(order)
    renumbered = torch.where(neighbors[order] >= 0, inverse[neighbors[order].clamp(min=0)], -1)
    torch.testing.assert_close(sm_steps(u[order], graph(renumbered), alpha, T), smoothed[order])


def test_the_exact_solution_of_a_batch_is_that_of_its_bags():
    neighbors, u = packed(random_table(7, 1, 0.5), random_table(5, 2, 0.5)), randn(12, 3)
    expected = exact_reference(u, dense_normalised(neighbors), 0.6)
    torch.testing.assert_close(sm_exact(u, graph(neighbors), 0.6, torch.tensor([0, 7, 12])), expected)


def test_isolated_nodes_are_left_alone():
    u = randn(4, 2)
    smoothed = sm_steps(u, graph(table([(0, 1), (1, 2)], 4)), 0.9, 10)
    torch.testing.assert_close(smoothed[3], u[3])
    assert not torch.allclose(smoothed[0], u[0])
    torch.testing.assert_close(sm_steps(u, graph(torch.empty(4, 0, dtype=torch.int64)), 0.9, 10), u)


@pytest.mark.parametrize("T", [0, 1, 4, "exact"])
def test_gradients_in_u_and_alpha(T):
    g, alpha = graph(random_table(6, 7)), torch.tensor(0.6, dtype=F64, requires_grad=True)
    smooth = (lambda u, a: sm_exact(u, g, a, whole(6))) if T == "exact" else lambda u, a: sm_steps(u, g, a, T)
    assert torch.autograd.gradcheck(smooth, (randn(6, 2).requires_grad_(), alpha))


def test_the_layer_is_the_functions_with_a_fixed_alpha_or_the_sigmoid_of_its_parameter():
    u, g, trainable = randn(8, 2), graph(random_table(8, 0)), Sm()
    torch.testing.assert_close(Sm(0.3)(u, g, whole(8)), sm_steps(u, g, 0.3, 10))
    torch.testing.assert_close(Sm(0.3, "exact")(u, g, whole(8)), sm_exact(u, g, 0.3, whole(8)))
    assert not list(Sm(0.3).parameters()) and trainable.alpha.item() == 0.5
    with torch.no_grad():
        trainable.a.fill_(2.0)
    assert trainable.alpha.item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_half_precision_is_smoothed_in_float32():
    neighbors, u = random_table(10, 1), randn(10, 3).bfloat16()
    single = normalise_adjacency(neighbors)
    for smooth in (lambda u: sm_steps(u, single, 0.6), lambda u: sm_exact(u, single, 0.6, whole(10))):
        assert torch.equal(smooth(u), smooth(u.float()).bfloat16())


def test_weighted_edges_enter_the_normalisation():
    neighbors = path(3)
    weight = torch.tensor([[2.0, 0.0], [2.0, 5.0], [5.0, 0.0]], dtype=F64)
    a = torch.tensor([[0, 2, 0], [2, 0, 5], [0, 5, 0]], dtype=F64)
    d = a.sum(1)
    got = normalise_adjacency(neighbors, weight, dtype=F64).dense()
    torch.testing.assert_close(got, a / torch.sqrt(d[:, None] * d))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sm(1.0), r"alpha: found 1\.0"),
        (lambda: Sm("learned"), "alpha: found 'learned'"),
        (lambda: Sm(0.5, -1), "T: found -1"),
        (lambda: sm_steps(torch.zeros(3), normalise_adjacency(path(3)), 0.5), r"u: found shape \(3,\)"),
        (lambda: sm_steps(torch.zeros(4, 1), normalise_adjacency(path(3)), 0.5), r"expected \(3, D\)"),
        (lambda: normalise_adjacency(torch.tensor([[5]])), "largest index 5"),
        (lambda: sm_exact(torch.zeros(9, 1), normalise_adjacency(path(9)), 0.5, whole(9), max_nodes=8), "at most 8"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
