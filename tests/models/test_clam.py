"""CLAM: fixtures of its instance losses, the chosen instances by hand, limits, and torchmil where it can be trusted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.peers import copy, copy_pool, features
from smmil.layers.segments import segment_rank
from smmil.models.base import graph_of
from smmil.models.clam import instance_losses
from smmil.sm.operator import sm_steps
from tests.helpers.models import F64, P, assert_outputs, batch_of, build

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


@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("name", ["clam", "clam_mb"])
def test_instance_loss_equals_a_loop_over_bags(name, subtyping):
    model, batch = build(name, subtyping=subtyping), batch_of(4, 40, 1, 7)
    output = model(batch)
    head = model.instance_classifiers
    expected = []
    for single in batch.split():
        n, y, out = len(single.x), int(single.y), model(single)
        k, h, f = min(8, n // 2), out.extra["h"], out.extra["attention"]
        if k == 0:
            expected.append(torch.zeros((), dtype=F64))
            continue
        branch, other = (f[:, c] if f.shape[1] == 2 else f[:, 0] for c in (y, 1 - y))
        order = branch.argsort(descending=True)
        rows = torch.cat([order[:k], order[-k:]])
        logits = [h @ head.weight[2 * c : 2 * c + 2].T + head.bias[2 * c : 2 * c + 2] for c in (0, 1)]
        target = torch.tensor([1] * k + [0] * k)
        loss = torch.nn.functional.cross_entropy(logits[y][rows], target)
        if subtyping:
            rows = other.argsort(descending=True)[:k]
            out_of_class = torch.nn.functional.cross_entropy(logits[1 - y][rows], torch.zeros(k, dtype=torch.int64))
            loss = (loss + out_of_class) / 2
        expected.append(loss)
    torch.testing.assert_close(model.instance_loss(batch, output), torch.stack(expected))
    terms = model.loss(batch, output)
    torch.testing.assert_close(terms["instance"], 0.3 * torch.stack(expected).mean())
    bce = torch.nn.functional.binary_cross_entropy_with_logits(output.bag_logit, batch.y)
    torch.testing.assert_close(terms["bce"], 0.7 * bce)


def test_targets_do_not_depend_on_the_instance_classifiers():
    model, batch = build("clam"), batch_of(12, 9)
    before = model.clusters(batch, model(batch), batch.y.long())
    torch.nn.init.normal_(model.instance_classifiers.weight)
    after = model.clusters(batch, model(batch), batch.y.long())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


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


def test_the_map_of_multi_branch_is_that_of_the_positive_class():
    model, batch = build("clam_mb"), batch_of(6)
    output = model(batch)
    torch.testing.assert_close(output.instance_score, output.extra["attention"][:, 1])
    h, f = output.extra["h"], output.extra["attention"]
    logits = [f[:, c].softmax(0) @ h @ model.classifier.weight[c] + model.classifier.bias[c] for c in (0, 1)]
    torch.testing.assert_close(output.bag_logit[0], logits[1] - logits[0])


def test_smclam_pools_attends_and_clusters_smoothed_instances():
    model, batch = build("smclam", alpha=0.6), batch_of(9, 4)
    h = sm_steps(model.embed(batch.x), graph_of(batch), 0.6, 10)
    output = model(batch)
    torch.testing.assert_close(output.extra["h"], h)
    torch.testing.assert_close(output.instance_score, model.attention(h)[:, 0])


def peer_of(ours):
    from torchmil.models import CLAM_SB

    peer = CLAM_SB(in_shape=(P,), att_dim=256, gated=True, feat_ext=features(ours), k_sample=2).double().eval()
    copy(peer.classifier, ours.classifier)
    copy_pool(peer.pool, ours.attention.V, ours.attention.w, ours.attention.U)
    return peer


def test_torchmil_agrees_on_logit_and_attention():
    ours, batch = build("clam"), batch_of(11)
    torch.nn.init.zeros_(ours.attention.w.bias)
    assert_outputs(ours(batch), *peer_of(ours)(batch.x[None], return_att=True), rtol=0, atol=1e-9)


def test_torchmil_misses_the_instance_loss_that_ours_gives():
    """Its smooth SVM broadcasts (R,1) targets against (R,2) logits; ours is the loss by hand."""
    ours, batch = build("clam", inst_loss="svm", k=2, bag_weight=0.0), batch_of(8, y=1.0)
    peer = peer_of(ours)
    with torch.no_grad():
        output = ours(batch)
        order = output.instance_score.argsort(descending=True)
        head, rows = ours.instance_classifiers, torch.cat([order[:2], order[-2:]])
        # every instance is taken for negative, so that targets and predictions differ
        head.weight[2], head.weight[3] = 0.01, -0.01
        logits = output.extra["h"][rows] @ head.weight[2:].T + head.bias[2:]
        classifier = getattr(peer.inst_classifiers[1], "module", peer.inst_classifiers[1])
        classifier.weight.copy_(head.weight[2:])
        classifier.bias.copy_(head.bias[2:])
        theirs, _, _ = peer.inst_eval(output.instance_score, output.extra["h"], peer.inst_classifiers[1])
    margins = [(b - a) * sign for (a, b), sign in zip(logits.tolist(), (1, 1, -1, -1), strict=True)]
    by_hand = sum(math.log1p(math.exp(1 - margin)) for margin in margins) / 4
    assert ours.loss(batch, output)["instance"].item() == pytest.approx(by_hand, abs=1e-9)
    assert abs(theirs.item() - by_hand) > 0.05
