"""PENALTY rows: the base method at lambda = 0, the energy's algebra, and prediction without a graph. Pooling limits."""

import dataclasses

import pytest
import torch

from smmil.models.base import graph_of
from smmil.models.penalty import raw_penalty, softmax_penalty
from smmil.sm.operator import dirichlet_energy, energy_reference
from tests.helpers.graphs import dense_normalised
from tests.helpers.models import F64, batch_of, build

ROWS = [("abmil_penalty", "abmil"), ("t_penalty", "t_ap")]


@pytest.mark.parametrize(("name", "base"), ROWS)
def test_lambda_zero_is_the_base_method(name, base):
    ours, plain, batch = build(name, penalty=0.0), build(base), batch_of(9, 4)
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(batch).bag_logit, plain(batch).bag_logit)
    torch.testing.assert_close(ours(batch).instance_score, plain(batch).instance_score)
    total = sum(ours.loss(batch, ours(batch)).values())
    torch.testing.assert_close(total, plain.loss(batch, plain(batch))["bce"])


@pytest.mark.parametrize(("name", "base"), ROWS)
def test_prediction_needs_no_graph(name, base):
    model, batch = build(name), batch_of(9, 4)
    edgeless = dataclasses.replace(batch, neighbors=torch.full((13, 1), -1))
    assert torch.equal(model(edgeless).bag_logit, model(batch).bag_logit)
    assert torch.equal(model(edgeless).instance_score, model(batch).instance_score)
    assert model.loss(edgeless, model(edgeless))["penalty"] == 0


def test_penalty_is_the_mean_over_bags_of_energy_per_instance():
    model, batch = build("abmil_penalty", penalty=0.7), batch_of(9, 4, 1)
    output = model(batch)
    expected = []
    for single, f in zip(batch.split(), output.instance_score.split([9, 4, 1]), strict=True):
        expected.append(energy_reference(f[:, None], dense_normalised(single.neighbors)) / len(f))
    torch.testing.assert_close(raw_penalty(output.instance_score, batch), torch.stack(expected))
    torch.testing.assert_close(model.loss(batch, output)["penalty"], 0.7 * torch.stack(expected).mean())
    total = sum(e * n for e, n in zip(expected, (9, 4, 1), strict=True))
    torch.testing.assert_close(dirichlet_energy(output.instance_score[:, None], graph_of(batch)), total)


def test_penalty_is_quadratic_and_ignores_the_root_of_the_degree():
    batch = batch_of(12)
    f = torch.randn(12, dtype=F64)
    torch.testing.assert_close(raw_penalty(3 * f, batch), 9 * raw_penalty(f, batch))
    degree = (batch.neighbors >= 0).sum(1).clamp(min=1)
    torch.testing.assert_close(raw_penalty(degree.double().sqrt(), batch), torch.zeros(1, dtype=F64))


@pytest.mark.parametrize("power", [1, 2])
def test_softmax_penalty_equals_the_dense_laplacian(power):
    batch = batch_of(8, 5)
    f = torch.randn(13, dtype=F64)
    expected = []
    for single, values in zip(batch.split(), f.split([8, 5]), strict=True):
        n = len(values)
        adjacency = torch.zeros(n, n, dtype=F64)
        for i, row in enumerate(single.neighbors.tolist()):
            adjacency[i, [j for j in row if j >= 0]] = 1
        laplacian = torch.diag(adjacency.sum(1) + 1) - adjacency
        a = values.softmax(0)
        expected.append(a @ torch.linalg.matrix_power(laplacian, power) @ a)
    torch.testing.assert_close(softmax_penalty(f, batch, power), torch.stack(expected))


def test_softmax_penalty_shares_one_unit_of_weight_with_the_bag_loss():
    model, batch = build("abmil_penalty", penalty=0.25, on="softmax"), batch_of(8, 5)
    terms, output = model.loss(batch, model(batch)), model(batch)
    torch.testing.assert_close(terms["bce"], 0.75 * model.bag_loss(output.bag_logit, batch.y))
    torch.testing.assert_close(terms["penalty"], 0.25 * softmax_penalty(output.instance_score, batch).mean())


def test_mean_pooling_is_uniform_attention():
    abmil, mean, batch = build("abmil"), build("mean_pool"), batch_of(6, 3)
    torch.nn.init.zeros_(abmil.pool.W.weight)
    mean.load_state_dict({k: v for k, v in abmil.state_dict().items() if not k.startswith("pool.")})
    torch.testing.assert_close(mean(batch).bag_logit, abmil(batch).bag_logit)
    parts = mean(batch).instance_score.split([6, 3])
    torch.testing.assert_close(mean(batch).bag_logit, torch.stack([part.mean() for part in parts]))


def test_max_pooling_takes_the_most_positive_instance():
    model, batch = build("max_pool"), batch_of(6, 3)
    parts = model(batch).instance_score.split([6, 3])
    torch.testing.assert_close(model(batch).bag_logit, torch.stack([part.max() for part in parts]))
    columns = build("max_pool", pool="max_embedding")
    z = torch.stack([columns.embed(part).amax(0) for part in batch.x.split([6, 3])])
    torch.testing.assert_close(columns(batch).bag_logit, columns.classifier(z)[:, 0])
