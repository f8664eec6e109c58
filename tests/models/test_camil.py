"""CAMIL: similarity, neighbour attention and fusion by their formulas, torchmil where it is right."""

import dataclasses

import pytest
import torch

from bench.peers import copy_pool
from smmil.models.camil import feature_similarity, fuse, neighbour_weights, neighbour_weights_reference
from tests.helpers.graphs import path
from tests.helpers.models import F64, apart, assert_same, batch_of, build


def test_similarity_by_hand():
    x = torch.tensor([[0.0, 0], [3, 0], [3, 4]], dtype=F64)
    similarity, self_similarity = feature_similarity(x, path(3))
    # node 1: distances 3 and 4, norm 5
    expected = torch.exp(-torch.tensor([0.6, 0.8], dtype=F64))
    torch.testing.assert_close(similarity[1], expected)
    torch.testing.assert_close(
        self_similarity, torch.tensor([torch.exp(torch.tensor(-1.0)), expected[0], similarity[2, 0]], dtype=F64)
    )
    assert similarity[0, 1] == 0


def test_equal_features_are_alike_and_a_lonely_node_only_like_itself():
    similarity, self_similarity = feature_similarity(torch.ones(3, 2), torch.tensor([[1], [0], [-1]]))
    assert similarity.tolist() == [[1], [1], [0]] and self_similarity.tolist() == [1, 1, 1]


def dense_similarity(similarity, self_similarity, neighbors):
    """S (M,M) with s_ii on its diagonal."""
    s = torch.diag(self_similarity)
    for i, row in enumerate(neighbors.tolist()):
        for j, value in zip(row, similarity[i], strict=True):
            if j >= 0:
                s[i, j] += value
    return s


def test_the_score_does_not_see_the_neighbours_unless_read_from_m():
    batch = batch_of(12)
    lonely = dataclasses.replace(batch, neighbors=torch.full_like(batch.neighbors, -1))
    model, released = build("camil"), build("camil", code="released_without_convolution")
    torch.testing.assert_close(model(batch).instance_score, model(lonely).instance_score)
    assert not torch.allclose(model(batch).bag_logit, model(lonely).bag_logit)
    assert not torch.allclose(released(batch).instance_score, released(lonely).instance_score, atol=1e-9)


def test_the_whole_method_by_its_formulas():
    model, batch = build("camil"), batch_of(10)
    h = model.embed(batch.x)
    t = h + model.transformer(h[None])[0][0]
    s = dense_similarity(*feature_similarity(batch.x, batch.neighbors), batch.neighbors)
    w = neighbour_weights_reference(model.q(t), model.k(t), s)
    local = w[:, None] * model.v(t)
    share = torch.sigmoid(local)
    m = share * local + (1 - share) * t
    f = model.pool.w(torch.tanh(model.pool.W(t)) * torch.sigmoid(model.pool.gate(t)))[:, 0]
    torch.testing.assert_close(model(batch).instance_score, f)
    torch.testing.assert_close(model(batch).bag_logit, model.classifier(torch.softmax(f, 0) @ m))


@pytest.mark.parametrize("options", [{}, {"n_landmarks": 4}, {"small_bags": "exact"}])
def test_similar_sizes_share_a_batch_and_change_nothing(options):
    model, batch = build("camil", **options), batch_of(7, 3, 7, 12)
    assert_same(model(batch), apart(model, batch))


def test_torchmil_agrees_on_neighbour_attention_fusion_and_pool():
    from torchmil.models.camil import CAMILAttentionPool, CAMILSelfAttention

    model, batch = build("camil"), batch_of(9)
    t = torch.randn(9, 512, dtype=F64)
    attention = CAMILSelfAttention(512, 256).double()
    pool = CAMILAttentionPool(512, 128, gated=True).double()
    with torch.no_grad():
        model.v.bias.zero_()
        attention.qk_nn.weight.copy_(torch.cat([model.q.weight, model.k.weight]))
        attention.v_nn.weight.copy_(model.v.weight)
        copy_pool(pool, model.pool.W, model.pool.w, model.pool.gate)
    similarity = feature_similarity(batch.x, batch.neighbors)
    local = attention(t[None], dense_similarity(*similarity, batch.neighbors)[None])[0]
    w = neighbour_weights(model.q(t), model.k(t), batch.neighbors, *similarity, batch.offsets)
    torch.testing.assert_close(w[:, None] * model.v(t), local)
    z, f = pool(t[None], fuse(local, t)[None], return_att=True)
    torch.testing.assert_close(model.pool(t, batch.offsets)[0], f[0])
    torch.testing.assert_close(torch.softmax(f[0], 0) @ fuse(local, t), z[0])
