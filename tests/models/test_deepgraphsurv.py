"""DeepGraphSurv: Chebyshev closed forms, limits, and the nodes that the authors' library mixes up."""

import pytest
import torch

from smmil.layers.graph_layers import chebyshev_basis, chebyshev_reference, largest_eigenvalue, propagate
from smmil.models.base import graph_of
from smmil.sm.operator import normalise_adjacency
from tests.helpers.graphs import dense_normalised, make_bag, path, permute, random_table, table
from tests.helpers.models import F64, batch_of, build, randn


def graph(neighbors):
    return normalise_adjacency(neighbors, dtype=F64)


def test_two_nodes_give_the_known_polynomials():
    basis = chebyshev_basis(torch.tensor([[1.0], [0.0]], dtype=F64), graph(path(2)), 5)
    assert basis.T.tolist() == [[1, 0], [0, -1], [1, 0], [0, -1], [1, 0]]


def test_the_basis_is_the_cosine_form_of_the_shifted_laplacian():
    neighbors, x = random_table(9, 4, 0.4), randn(9, 3)
    expected = chebyshev_reference(x, -dense_normalised(neighbors), 5)
    torch.testing.assert_close(chebyshev_basis(x, graph(neighbors), 5), expected, rtol=0, atol=1e-7)


def test_without_edges_the_sign_alternates():
    x = torch.randn(4, 2, dtype=F64)
    for k, z in enumerate(chebyshev_basis(x, graph(torch.full((4, 1), -1)), 5).split(2, 1)):
        torch.testing.assert_close(z, (-1) ** k * x)


def test_one_polynomial_is_a_plain_linear_layer():
    model, batch = build("deepgraphsurv", K=1), batch_of(7)
    h = model.embed(batch.x)
    f = model.w(torch.relu(model.attention(h)))[:, 0]
    torch.testing.assert_close(model(batch).instance_score, f)
    z = torch.softmax(f, 0) @ torch.relu(model.represent(h))
    torch.testing.assert_close(model(batch).bag_logit, model.classifier(z))


def test_ours_is_equivariant_where_the_library_mixes_nodes():
    from torchmil.nn.gnns.chebconv import ChebConv

    bag, order = make_bag(9, 2, features=4), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    mixed = permute(bag, order)

    def ours(b):
        return chebyshev_basis(b.x.double(), graph(b.neighbors), 3)

    torch.testing.assert_close(ours(mixed), ours(bag)[order])
    torch.manual_seed(0)
    peer = ChebConv(4, 5, K=3, compute_lambda_max=False).double()

    def theirs(b):
        adjacency = dense_normalised(b.neighbors)
        return peer(b.x.double()[None], adjacency[None])[0]

    assert not torch.allclose(theirs(mixed), theirs(bag)[order], atol=1e-2)
    # its filter on the basis of ours, node by node, is what its own formula asks for
    dense = dense_normalised(bag.neighbors)
    x = bag.x.double()
    z1 = -dense @ x
    torch.testing.assert_close(ours(bag), torch.cat([x, z1, -2 * dense @ z1 - x], 1))


@pytest.mark.parametrize("neighbors", [path(6), table([(i, (i + 1) % 5) for i in range(5)], 5)])
def test_exact_lambda_max_is_that_of_the_laplacian(neighbors):
    n = len(neighbors)
    expected = torch.linalg.eigvalsh(torch.eye(n, dtype=F64) - dense_normalised(neighbors)).max()
    actual = largest_eigenvalue(graph(neighbors), torch.tensor([0, n]))
    torch.testing.assert_close(actual, expected.expand(n))


def test_exact_lambda_max_stretches_the_spectrum_to_one():
    neighbors = table([(0, 1), (1, 2), (0, 2)], 3)
    stretch = 2 / largest_eigenvalue(graph(neighbors), torch.tensor([0, 3]))[:, None]
    z1 = chebyshev_basis(torch.eye(3, dtype=F64), graph(neighbors), 2, stretch)[:, 3:]
    values = torch.linalg.eigvalsh(z1)
    torch.testing.assert_close(values[[0, -1]], torch.tensor([-1.0, 1.0], dtype=F64))
    batch = batch_of(6, 1)
    assert torch.isfinite(build("deepgraphsurv", lambda_max="exact")(batch).bag_logit).all()


def test_propagation_variant_by_dense_algebra():
    model, batch = build("deepgraphsurv", variant="propagation"), batch_of(8)
    a, y = dense_normalised(batch.neighbors), model.embed(batch.x)
    for _ in range(3):
        y = torch.relu(a @ y + y)
    linear = model.attention(y)
    f = model.w(torch.relu(a @ linear + linear))[:, 0]
    torch.testing.assert_close(model(batch).instance_score, f)
    torch.testing.assert_close(model(batch).bag_logit, model.classifier(torch.softmax(f, 0) @ y))


def test_the_gradient_of_propagation_is_propagation():
    batch = batch_of(6, 3)
    x = torch.randn(9, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: propagate(u, graph_of(batch)), (x,))
