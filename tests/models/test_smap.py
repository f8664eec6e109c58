"""SmAP and the transformer variants: the plain form of "early", limits and equivalences."""

import dataclasses

import pytest
import torch

from smmil.models.base import graph_of
from smmil.sm.operator import dirichlet_energy
from tests.helpers.graphs import make_bag, table
from tests.helpers.models import P, assert_outputs, batch_of, build


@pytest.mark.parametrize("gated", [False, True])
def test_early_by_algebra_equals_smoothing_the_features(gated):
    model, batch = build("smap_early", alpha=0.7, gated=gated), batch_of(12, 5)
    f, z = model.pool.forward_reference(model.embed(batch.x), batch.offsets, graph_of(batch))
    assert_outputs(model(batch), model.classifier(z), f)


def test_late_lowers_the_energy_of_the_attention():
    model, raw, batch = build("smap_late", alpha=0.5), build("abmil"), batch_of(15)
    raw.load_state_dict(model.state_dict(), strict=False)
    graph = graph_of(batch)
    smooth, rough = model(batch).instance_score[:, None], raw(batch).instance_score[:, None]
    assert dirichlet_energy(smooth, graph) <= dirichlet_energy(rough, graph)


def test_alpha_near_one_on_a_regular_graph_is_mean_pooling():
    ring = table([(i, (i + 1) % 7) for i in range(7)], 7)
    batch = dataclasses.replace(batch_of(7), neighbors=ring)
    model = build("smap_late", alpha=1 - 1e-9, T="exact")
    expected = model.classifier(model.embed(batch.x).mean(0))
    torch.testing.assert_close(model(batch).bag_logit, expected, rtol=0, atol=1e-6)


def test_early_and_mid_agree_on_f_without_bias_and_differ_in_z():
    early, mid = (build(f"smap_{p}", alpha=0.5, spectral_norm=False) for p in ("early", "mid"))
    mid.load_state_dict(early.state_dict())
    for model in (early, mid):
        torch.nn.init.zeros_(model.pool.W.bias)
    batch = batch_of(11)
    torch.testing.assert_close(early(batch).instance_score, mid(batch).instance_score)
    assert not torch.allclose(early(batch).bag_logit, mid(batch).bag_logit)


def test_abmil_ignores_duplication_and_a_shift_of_f():
    model, bag, batch = build("abmil"), make_bag(6, 0, features=P), batch_of(6)
    double = dataclasses.replace(
        batch, x=batch.x.repeat(2, 1), offsets=torch.tensor([0, 12]), neighbors=batch.neighbors.repeat(2, 1)
    )
    torch.testing.assert_close(model(batch).bag_logit, model(double).bag_logit)
    torch.nn.init.zeros_(model.pool.W.weight)
    expected = model.classifier(model.embed(bag.x.double()).mean(0))
    torch.testing.assert_close(model(batch).bag_logit, expected)


def test_transformer_without_values_is_attention_pooling_of_the_normalised_embedding():
    model, batch = build("t_ap"), batch_of(9, 3)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.qkv.weight[2 * 512 :])
    f, z = model.pool(model.norm(model.embed(batch.x)), batch.offsets)
    assert_outputs(model(batch), model.classifier(z), f)
