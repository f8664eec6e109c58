"""CLAM: its instance losses and the chosen instances by hand, limits; all else by the original's numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.layers.segments import segment_rank
from smmil.models.base import graph_of
from smmil.models.clam import instance_losses
from smmil.sm.operator import sm_steps
from tests.helpers.models import batch_of, build

LOGITS, TARGETS = torch.tensor([[2, 0], [0.5, 1], [0, 0.3]]), torch.tensor([1, 0, 1])


@pytest.mark.parametrize(("kind", "expected"), [("ce", 1.218453), ("svm", 1.951062)])
def test_instance_losses_match_the_measured_fixture(kind, expected):
    assert instance_losses(LOGITS, TARGETS, kind).mean().item() == pytest.approx(expected, abs=1e-6)


def test_smooth_svm_is_the_smoothed_margin_over_both_classes():
    # temperature-1 smooth maximum of (margin + other, own) minus own
    rows = torch.arange(3)
    branch, other = LOGITS[rows, TARGETS], LOGITS[rows, 1 - TARGETS]
    expected = torch.logsumexp(torch.stack([other + 1, branch]), 0) - branch
    torch.testing.assert_close(instance_losses(LOGITS, TARGETS, "svm"), expected)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data())
def test_rank_in_a_bag_equals_a_stable_sort_of_each_bag(sizes, data):
    values = [data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)) for n in sizes]
    expected = []
    for bag in values:
        order = sorted(range(len(bag)), key=lambda i: -bag[i])
        expected += [order.index(i) for i in range(len(bag))]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    assert segment_rank(torch.tensor(sum(values, [])), offsets).tolist() == expected


def test_clusters_of_four_instances_by_hand():
    model, batch = build("clam"), batch_of(4, 5, 1)
    output = model(batch)
    output.extra["attention"] = torch.tensor([0.1, 3, -2, 0.5, 1, 2, 5, 4, 3, 9])[:, None]
    top, bottom = model.clusters(batch, output, batch.y.long())
    assert top.nonzero()[:, 0].tolist() == [1, 3, 6, 7]
    assert bottom.nonzero()[:, 0].tolist() == [0, 2, 4, 5]


def test_without_instance_loss_and_dropout_it_is_gated_abmil():
    clam, abmil = build("clam", bag_weight=1.0, dropout=0.0), build("abmil", gated=True, attention_dim=256)
    names = (("attention.V", "pool.W"), ("attention.U", "pool.gate"), ("attention.w", "pool.w"))
    state = clam.state_dict()
    state |= {key.replace(theirs, ours): state[key] for theirs, ours in names for key in state if theirs in key}
    abmil.load_state_dict({key: state[key] for key in abmil.state_dict()})
    batch = batch_of(9, 4)
    clam_out, abmil_out = clam(batch), abmil(batch)
    torch.testing.assert_close(clam_out.bag_logit, abmil_out.bag_logit)
    torch.testing.assert_close(clam_out.instance_score - clam.attention.w.bias, abmil_out.instance_score)
    terms, base = clam.loss(batch, clam_out), abmil.loss(batch, abmil_out)
    assert terms["instance"] == 0
    torch.testing.assert_close(terms["bce"], base["bce"])


def test_smclam_pools_attends_and_clusters_smoothed_instances():
    model, batch = build("smclam", alpha=0.6), batch_of(9, 4)
    h = sm_steps(model.embed(batch.x), graph_of(batch), 0.6, 10)
    output = model(batch)
    torch.testing.assert_close(output.extra["h"], h)
    torch.testing.assert_close(output.instance_score, model.attention(h)[:, 0])
