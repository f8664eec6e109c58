"""GTP: min-cut limits, graph layer, GraphCAM's rules by conservation; all else by the original's numbers."""

import math

import pytest
import torch

from smmil.layers.graph_layers import mincut_pool, mincut_reference, plain_adjacency
from smmil.layers.graphcam import Block, addition_rule, clone_rule, graphcam, linear_rule, product_rule, safe_divide
from tests.helpers.graphs import random_table, table
from tests.helpers.models import F64, batch_of, build, randn


def pool(s, neighbors):
    n = len(neighbors)
    return mincut_pool(s, torch.zeros(n, 1, dtype=F64), plain_adjacency(neighbors, dtype=F64), torch.tensor([0, n]))


def test_uniform_clusters():
    _, cut, ortho = pool(torch.full((7, 100), 0.01, dtype=F64), random_table(7, 0, 0.5))
    assert cut.item() == pytest.approx(-1) and ortho.item() == pytest.approx(math.sqrt(2 - 2 / 10))


def test_balanced_one_hot_clusters_that_are_the_components_are_perfect():
    triangles = table([(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)], 6)
    s = torch.eye(2, dtype=F64).repeat_interleave(3, 0)
    _, cut, ortho = pool(s, triangles)
    assert cut.item() == pytest.approx(-1) and ortho.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_cut_loss_lies_between_minus_one_and_zero(seed):
    s = torch.softmax(3 * randn(9, 4, seed=seed), -1)
    assert -1 - 1e-12 <= pool(s, random_table(9, seed, 0.3))[1].item() <= 0


def test_pooling_and_both_losses_equal_the_definition_in_each_bag():
    batch, s, y = batch_of(9, 12), torch.softmax(randn(21, 6), -1), randn(21, 5, seed=1)
    graph = plain_adjacency(batch.neighbors, dtype=F64)
    dense, results = graph.dense(), mincut_pool(s, y, graph, batch.offsets)
    for bag, rows in enumerate((slice(0, 9), slice(9, 21))):
        reference = mincut_reference(s[rows], y[rows], dense[rows, rows])
        torch.testing.assert_close(tuple(part[bag] for part in results), reference)


@pytest.mark.parametrize("training", [False, True])
def test_the_graph_layer_by_dense_algebra_in_both_modes(training):
    batch = batch_of(9, 4)
    graph, (model, copy) = plain_adjacency(batch.neighbors, dtype=F64), (build("gtp").train(training) for _ in "ab")
    h = model.embed(batch.x)
    # A copy, because batch normalisation updates its running statistics in training mode.
    torch.testing.assert_close(model._nodes(h, graph), copy.nodes_reference(h, graph.dense()))


def test_a_lonely_node_has_a_self_loop_and_in_training_uses_the_running_statistics():
    model, batch = build("gtp").train(), batch_of(1)
    assert plain_adjacency(batch.neighbors, dtype=F64).dense().tolist() == [[1]]
    before = model.bn.running_mean.clone()
    output = model(batch)
    assert output.extra["cut"].item() == pytest.approx(-1) and torch.equal(model.bn.running_mean, before)
    torch.testing.assert_close(output.bag_logit, model.eval()(batch).bag_logit)


def test_every_rule_keeps_the_sum_of_the_relevance():
    x, w, r = randn(3, 4), randn(5, 4, seed=1), randn(3, 5, seed=2)
    # entry by entry: the share of each positive product among the positive products
    products = (x[:, None] * w).clamp(min=0)
    shares = (products / products.sum(-1, keepdim=True) * r[..., None]).sum(1)
    torch.testing.assert_close(linear_rule(x, w, r), shares)
    torch.testing.assert_close(shares.sum(-1), r.sum(-1))
    a, b, r = randn(2, 3, 4), randn(2, 4, 5, seed=1), randn(2, 3, 5, seed=2)
    ra, rb = product_rule(a, b, a @ b, r)
    torch.testing.assert_close((ra.sum((1, 2)) + rb.sum((1, 2))), r.sum((1, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ra.sum((1, 2)), rb.sum((1, 2)))
    c, d, r = randn(2, 3, 4, seed=3), randn(2, 3, 4, seed=4), randn(2, 3, 4, seed=5)
    rc, rd = addition_rule(c, d, r)
    raw = (c * r / (c + d)).sum((1, 2)).abs(), (d * r / (c + d)).sum((1, 2)).abs()
    torch.testing.assert_close(rc.sum((1, 2)), r.sum((1, 2)) * raw[0] / (raw[0] + raw[1]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rc.sum((1, 2)) + rd.sum((1, 2)), r.sum((1, 2)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(clone_rule(c, r, rd), r + rd, rtol=1e-6, atol=1e-6)


def test_a_division_adds_the_same_small_number_to_every_denominator_but_zero():
    b = torch.tensor([0.0, 1e-9, -1e-9, -3e-9, 2.0, -2.0], dtype=F64)
    expected = torch.tensor([0.0, 5e8, 1e9, -5e8, 0.5, -0.5], dtype=F64)
    torch.testing.assert_close(safe_divide(torch.ones_like(b), b), expected, rtol=1e-8, atol=0)


def modules(depth: int):
    torch.manual_seed(0)
    blocks = [Block(16, 2).double() for _ in range(depth)]
    return blocks, torch.nn.LayerNorm(16).double(), torch.nn.Linear(16, 1).double()


def test_a_traced_block_is_the_block():
    ((block,), _, _), x = modules(1), randn(2, 5, 16)
    trace = block.trace(x)
    torch.testing.assert_close(trace.middle + trace.out, block(x))


def test_the_rollout_of_gradient_times_attention_is_a_matrix_product_with_later_blocks_on_the_left(monkeypatch):
    blocks, norm, head = modules(3)
    tokens, maps = randn(2, 5, 16), []
    real = torch.autograd.grad

    def spy(output, inputs):
        gradients = real(output, inputs)
        maps.extend((g * w).clamp(min=0).mean(1).detach() for g, w in zip(gradients, inputs, strict=True))
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", spy)
    actual = graphcam(blocks, norm, head, tokens, rule="attention")
    eye = torch.eye(5, dtype=F64)
    expected = (eye + maps[2]) @ (eye + maps[1]) @ (eye + maps[0])
    torch.testing.assert_close(actual, expected[:, 0, 1:])


def test_the_logit_as_seed_scales_the_score_of_one_block_by_its_square_and_each_bag_has_its_own():
    blocks, norm, head = modules(1)
    tokens = randn(3, 6, 16)
    head.bias.data.sub_(0.5)
    logit = head(norm(blocks[0](tokens))[:, 0]).detach()
    assert logit.min() < 0 < logit.max()
    unit, seeded = (graphcam(blocks, norm, head, tokens, seed=seed) for seed in ("one", "logit"))
    torch.testing.assert_close(seeded, logit**2 * unit, rtol=1e-6, atol=1e-12)
    assert (unit >= 0).all() and (unit > 0).any()
    for bag in range(3):
        torch.testing.assert_close(graphcam(blocks, norm, head, tokens[bag : bag + 1])[0], seeded[bag])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_scores_are_the_same_with_and_without_gradients_around(context):
    model, batch = build("gtp"), batch_of(9, 4)
    expected = model(batch).instance_score
    with context():
        output = model(batch)
    torch.testing.assert_close(output.instance_score.clone(), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
