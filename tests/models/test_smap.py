"""SmAP and the transformer variants: limits, equivalences and the authors' library as oracle."""

import dataclasses

import pytest
import torch

from bench.peers import copy, features
from smmil.layers.pooling import attend_reference
from smmil.models.base import graph_of
from smmil.sm.operator import dirichlet_energy, sm_steps
from tests.helpers.graphs import dense_normalised, make_bag, table
from tests.helpers.models import P, assert_outputs, batch_of, build

PLACEMENTS = ["early", "mid", "late"]


@pytest.mark.parametrize("gated", [False, True])
def test_early_by_algebra_equals_smoothing_the_features(gated):
    model, batch = build("smap_early", alpha=0.7, gated=gated), batch_of(12, 5)
    graph = graph_of(batch)
    h = sm_steps(model.embed(batch.x), graph, 0.7, 10)
    f, z = model.pool.forward_reference(model.embed(batch.x), batch.offsets, graph)
    hidden = torch.tanh(model.pool.W(h)) * (torch.sigmoid(model.pool.gate(h)) if gated else 1)
    torch.testing.assert_close(f, model.pool.w(hidden)[:, 0])
    torch.testing.assert_close(z, attend_reference(f, h, batch.offsets))
    assert_outputs(model(batch), model.classifier(z), f)


def test_late_lowers_the_energy_of_the_attention():
    model, batch = build("smap_late", alpha=0.5), batch_of(15)
    raw = build("abmil")
    raw.load_state_dict(model.state_dict(), strict=False)
    graph = graph_of(batch)
    smooth, rough = model(batch).instance_score[:, None], raw(batch).instance_score[:, None]
    assert dirichlet_energy(smooth, graph) <= dirichlet_energy(rough, graph)


def test_alpha_near_one_on_a_regular_graph_is_mean_pooling():
    ring = table([(i, (i + 1) % 7) for i in range(7)], 7)
    bag = make_bag(7, 0, features=P)
    batch = batch_of(7)
    batch = dataclasses.replace(batch, neighbors=ring, x=bag.x.double())
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


@pytest.mark.parametrize(("placement", "normalised"), [("early", {"W", "w"}), ("mid", {"w"}), ("late", set())])
def test_only_the_layers_after_sm_are_spectrally_normalised(placement, normalised):
    model, batch = build(f"smap_{placement}").train(), batch_of(8)
    for _ in range(150):
        model(batch)
    model.eval()
    actual = {layer for layer in ("W", "w") if hasattr(getattr(model.pool, layer), "parametrizations")}
    assert actual == normalised
    for layer in normalised:
        norm = torch.linalg.matrix_norm(getattr(model.pool, layer).weight, 2)
        assert norm.item() == pytest.approx(1, abs=2e-2)


def test_abmil_ignores_duplication_and_a_shift_of_f():
    model, bag = build("abmil"), make_bag(6, 0, features=P)
    batch = batch_of(6)
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
    torch.testing.assert_close(model(batch).instance_score, f)
    torch.testing.assert_close(model(batch).bag_logit, model.classifier(z)[:, 0])


def test_the_four_variants_are_four_models():
    batch = batch_of(14)
    logits, parameters = set(), set()
    for name in ("t_ap", "smt_ap", "t_smap", "smtap"):
        model = build(name)
        logits.add(round(model(batch).bag_logit.item(), 9))
        parameters.add(tuple(key for key, _ in model.named_parameters()))
    assert len(logits) == 4 and len(parameters) == 4


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_torchmil_agrees_on_smap(placement):
    from torchmil.models import SmABMIL

    ours, batch = build(f"smap_{placement}", spectral_norm=False), batch_of(13)
    settings = {"sm_mode": "approx", "sm_alpha": "trainable", "sm_steps": 10, "sm_where": placement}
    peer = SmABMIL(in_shape=(P,), att_dim=128, att_act="tanh", feat_ext=features(ours), **settings).double().eval()
    copy(peer.last_layer, ours.classifier)
    copy(peer.pool.proj1, ours.pool.W)
    copy(peer.pool.proj2, ours.pool.w)
    adjacency = dense_normalised(batch.neighbors)
    assert_outputs(ours(batch), *peer(batch.x[None], adjacency[None], return_att=True), rtol=0, atol=1e-5)
