"""DTFD-MIL: the split, the tiers by hand, what trains what, and Sm inside pseudo-bags."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.data.batch import pack
from smmil.models.base import graph_of
from smmil.models.dftd import induced_graph, split_bags, split_keys
from tests.helpers.graphs import dense_normalised, make_bag
from tests.helpers.models import batch_of, build


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 11), min_size=1, max_size=5), groups=st.integers(1, 5))
def test_the_split_is_a_partition_as_even_as_numpys(sizes, groups):
    batch = batch_of(*sizes)
    order, offsets, counts = split_bags(batch, split_keys(batch), groups)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert counts.tolist() == [min(groups, n) for n in sizes]
    expected = [len(p) for n in sizes for p in np.array_split(np.arange(n), min(groups, n))]
    assert offsets.diff().tolist() == expected
    assert torch.equal(batch.bag_index[order], batch.bag_index)


def test_the_split_of_evaluation_belongs_to_the_bag_and_spreads_rows():
    batch = batch_of(50, 60)
    assert torch.equal(split_keys(batch)[50:], split_keys(batch.split()[1]))
    many = pack([make_bag(4, seed, features=2) for seed in range(3000)])
    many = dataclasses.replace(many, bag_ids=tuple(map(str, range(3000))))
    order, _, _ = split_bags(many, split_keys(many), 4)
    first = (order.view(-1, 4)[:, 0] % 4).bincount(minlength=4) / 3000
    # four equal shares, five standard deviations of 3,000 draws
    torch.testing.assert_close(first, torch.full((4,), 0.25), rtol=0, atol=0.04)


def test_training_draws_new_splits_and_evaluation_does_not():
    model, batch = build("dftd"), batch_of(30, 12)
    assert torch.equal(model(batch).bag_logit, model(batch).bag_logit)
    model.train()
    assert not torch.equal(model(batch).bag_logit, model(batch).bag_logit)


def by_hand(model, h, chunks, *, distill="afs", k=1):
    """Bag logit and pseudo-logits of one bag from its pseudo-bags, by loops."""
    pooled, tokens = [], []
    c = model.classifier.weight[0]
    for rows in chunks:
        part = h[rows]
        pool = model.pool
        a = (pool.w(torch.tanh(pool.W(part)) * torch.sigmoid(pool.gate(part)))[:, 0]).softmax(0)
        pooled.append(a @ part)
        order = (a * (part @ c)).argsort(descending=True)
        tokens += [pooled[-1]] if distill == "afs" else [part[i] for i in order[:k]]
        if distill == "maxmin":
            tokens += [part[i] for i in order[-k:]]
    tokens = torch.stack(tokens)
    pool = model.bag_pool
    a = (pool.w(torch.tanh(pool.W(tokens)) * torch.sigmoid(pool.gate(tokens)))[:, 0]).softmax(0)
    return model.bag_classifier(a @ tokens)[0], model.classifier(torch.stack(pooled))[:, 0]


def chunks_of(batch):
    order, offsets, _ = split_bags(batch, split_keys(batch), 4)
    return [order[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


@pytest.mark.parametrize(("distill", "k"), [("afs", 1), ("maxmin", 2), ("max", 3)])
def test_both_tiers_equal_loops_over_pseudo_bags(distill, k):
    model, batch = build("dftd", distill=distill, k=k), batch_of(13, 3, 1, 9)
    output = model(batch)
    logits, pseudo = [], []
    for single in batch.split():
        results = by_hand(model, model.embed(single.x), chunks_of(single), distill=distill, k=k)
        logits.append(results[0])
        pseudo.append(results[1])
    torch.testing.assert_close(output.bag_logit, torch.stack(logits))
    torch.testing.assert_close(output.extra["pseudo_logit"], torch.cat(pseudo))
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    per_bag = [bce(p, y.expand_as(p)) for p, y in zip(pseudo, batch.y, strict=True)]
    terms = model.loss(batch, output)
    torch.testing.assert_close(terms["pseudo"], torch.stack(per_bag).mean())
    torch.testing.assert_close(terms["bce"], bce(output.bag_logit, batch.y))


def test_the_score_is_the_class_activation_whatever_the_split():
    model, batch = build("dftd"), batch_of(20, 6)
    expected = model.embed(batch.x) @ model.classifier.weight[0]
    torch.testing.assert_close(model(batch).instance_score, expected)
    model.train()
    torch.testing.assert_close(model(batch).instance_score, expected)


@pytest.mark.parametrize("distill", ["afs", "maxmin", "max"])
def test_tier_two_trains_nothing_of_tier_one(distill):
    model, batch = build("dftd", distill=distill), batch_of(12, 9)
    model.loss(batch, model(batch))["bce"].backward()
    trained = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"bag_pool", "bag_classifier"}


def test_sub_graphs_lose_the_edges_between_pseudo_bags_and_are_normalised_anew():
    batch = batch_of(14, 6)
    order, offsets, _ = split_bags(batch, split_keys(batch), 3)
    neighbors = batch.neighbors
    pseudo = torch.empty_like(order)
    pseudo[order] = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    kept = torch.where(pseudo[neighbors.clamp(min=0)] == pseudo[:, None], neighbors, -1)
    expected = dense_normalised(kept)[order][:, order]
    torch.testing.assert_close(induced_graph(batch, order, offsets).dense().double(), expected)


@pytest.mark.parametrize("distill", ["afs", "maxmin"])
def test_smdftd_with_one_pseudo_bag_smooths_on_the_whole_graph(distill):
    model, batch = build("smdftd", alpha=0.6, n_pseudo=1, distill=distill, k=2), batch_of(11, 7)
    h = model.pool.sm(model.embed(batch.x), graph_of(batch), batch.offsets)
    results = [by_hand(model, part, [torch.arange(len(part))], distill=distill, k=2)[0] for part in h.split([11, 7])]
    output = model(batch)
    torch.testing.assert_close(output.bag_logit, torch.stack(results))
    torch.testing.assert_close(output.instance_score, model.score_reference(batch))
