"""DeepGraphSurv: Chebyshev closed forms, limits, and the variant by dense algebra."""

import torch

from smmil.layers.graph_layers import chebyshev_basis, chebyshev_reference, propagate
from smmil.models.base import graph_of
from smmil.sm.operator import normalise_adjacency
from tests.helpers.graphs import dense_normalised, random_table
from tests.helpers.models import F64, batch_of, build, randn


def graph(neighbors):
    return normalise_adjacency(neighbors, dtype=F64)


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
