"""DSMIL: the streams by hand, limits, torchmil as oracle, and SmDSMIL's algebra against smoothing the features."""

import dataclasses

import pytest
import torch

from bench.peers import PEERS
from tests.helpers.models import P, assert_outputs, assert_same, batch_of, build


def query(model, h):
    return torch.tanh(model.query_2(torch.relu(model.query(h))))


@pytest.mark.parametrize("options", [{}, {"passing_v": True}, {"nonlinear_q": False}])
@pytest.mark.parametrize("sm", [False, True])
def test_both_streams_equal_the_definition(sm, options):
    model, batch = build("dsmil", sm=sm, **({"alpha": 0.7} if sm else {}), **options), batch_of(9, 1, 12)
    assert_same(model(batch), model.forward_reference(batch))


def test_the_loss_compares_both_streams_with_the_bag_label():
    model, batch = build("dsmil"), batch_of(7, 1, 12)
    output, bce = model(batch), torch.nn.functional.binary_cross_entropy_with_logits
    tops, places = zip(*(part.max(0) for part in output.instance_score.split([7, 1, 12])), strict=True)
    assert (output.extra["critical_row"] - batch.offsets[:-1]).tolist() == [int(place) for place in places]
    terms = model.loss(batch, output)
    torch.testing.assert_close(terms["bce"], 0.5 * bce(output.bag_logit, batch.y))
    torch.testing.assert_close(terms["critical"], 0.5 * bce(torch.stack(tops), batch.y))


def test_the_first_of_equal_instances_is_critical():
    model, batch = build("dsmil"), batch_of(6, 4)
    torch.nn.init.zeros_(model.instance.weight)
    assert model(batch).extra["critical_row"].tolist() == [0, 6]


def test_one_instance_is_its_own_bag_embedding():
    model, batch = build("dsmil"), batch_of(1)
    torch.testing.assert_close(model(batch).bag_logit, model.classifier(model.embed(batch.x))[:, 0])


def test_the_critical_row_attends_to_itself_with_a_value_not_below_zero():
    model, batch = build("dsmil", score="attention"), batch_of(9, 5)
    output = model(batch)
    q = query(model, model.embed(batch.x))[output.extra["critical_row"]]
    f = output.instance_score[output.extra["critical_row"]]
    torch.testing.assert_close(f, q.square().sum(1) / 128**0.5)


def test_scaling_the_instance_head_leaves_critical_instance_and_embedding():
    model, batch = build("dsmil"), batch_of(9, 5)
    torch.nn.init.zeros_(model.instance.bias)
    before = model(batch)
    with torch.no_grad():
        model.instance.weight.mul_(3)
    after = model(batch)
    torch.testing.assert_close(after.bag_logit, before.bag_logit)
    assert torch.equal(after.extra["critical_row"], before.extra["critical_row"])


def test_a_bag_with_negative_scores_keeps_its_own_maximum():
    model, batch = build("dsmil"), batch_of(5, 8)
    with torch.no_grad():
        model.instance.bias.fill_(-50)
    output = model(batch)
    tops = torch.stack([part.max() for part in output.instance_score.split([5, 8])])
    torch.testing.assert_close(output.extra["critical"], tops)
    assert (tops < -40).all()


def test_the_gradient_reaches_the_critical_query_through_both_factors():
    model, batch = build("dsmil"), batch_of(8)
    output = model(batch)
    m = int(output.extra["critical_row"])
    h = model.embed(batch.x).detach()

    def logit(rows, critical):
        a = (query(model, rows) @ query(model, critical) / 128**0.5).softmax(0)
        return model.classifier(a @ h)[0]

    both = h.clone().requires_grad_()
    (whole,) = torch.autograd.grad(logit(both, both[m]), both)
    left, right = h.clone().requires_grad_(), h[m].clone().requires_grad_()
    through_rows, through_critical = torch.autograd.grad(logit(left, right), (left, right))
    torch.testing.assert_close(whole[m], through_rows[m] + through_critical)
    model.embed = torch.nn.Identity()
    features = h.clone().requires_grad_()
    direct = model(dataclasses.replace(batch, x=features)).bag_logit[0]
    (ours,) = torch.autograd.grad(direct, features)
    # the values carry a_i c to h_i as well
    a = (query(model, h) @ query(model, h[m]) / 128**0.5).softmax(0).detach()
    torch.testing.assert_close(ours, whole + a[:, None] * model.classifier.weight.detach())


@pytest.mark.parametrize("predict", ["bag", "average"])
def test_prediction_is_the_bag_stream_or_the_mean_of_both(predict):
    model, batch = build("dsmil", predict=predict), batch_of(6, 3)
    output = model(batch)
    bag, top = output.extra["bag"], output.extra["critical"]
    torch.testing.assert_close(output.bag_logit, bag if predict == "bag" else (bag + top) / 2)


def test_torchmil_agrees_on_both_streams():
    ours, batch = build("dsmil"), batch_of(13)
    peer = PEERS["dsmil"](ours, P).double().eval()
    assert_outputs(ours(batch), *peer(batch.x[None], return_inst_pred=True), rtol=0, atol=1e-9)
