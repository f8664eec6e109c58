"""DSMIL: the streams by hand, limits, torchmil as oracle, and SmDSMIL's algebra against smoothing the features."""

import pytest
import torch

from smmil.data.batch import pack
from smmil.models import build_model
from smmil.models.base import graph_of
from smmil.sm.operator import sm_steps
from tests.helpers.graphs import make_bag
from tests.helpers.torchmil_weights import copy_linear

P = 10


def build(name: str = "dsmil", **options):
    torch.manual_seed(0)
    return build_model(name, P, **options).double().eval()


def batch_of(*sizes: int):
    batch = pack([make_bag(n, s, features=P, y=float(s % 2)) for s, n in enumerate(sizes)])
    return type(batch)(**{**batch.__dict__, "x": batch.x.double(), "y": batch.y.double()})


def query(model, h):
    return torch.tanh(model.query_2(torch.relu(model.query(h))))


def by_hand(model, h):
    """Bag logit, instance logits and critical row of one bag, from the definition."""
    s, q = model.instance(h)[:, 0], query(model, h)
    m = int(s.argmax())
    a = (q @ q[m] / q.shape[1] ** 0.5).softmax(0)
    return model.classifier(a @ h)[0], s, m


def test_both_streams_equal_the_definition():
    model, batch = build(), batch_of(7, 1, 12)
    output = model(batch)
    found = [by_hand(model, model.embed(single.x)) for single in batch.split()]
    torch.testing.assert_close(output.bag_logit, torch.stack([logit for logit, _, _ in found]))
    torch.testing.assert_close(output.instance_score, torch.cat([s for _, s, _ in found]))
    starts = batch.offsets[:-1]
    assert (output.extra["critical_row"] - starts).tolist() == [m for _, _, m in found]
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    terms = model.loss(batch, output)
    torch.testing.assert_close(terms["bce"], 0.5 * bce(output.bag_logit, batch.y))
    tops = torch.stack([s.max() for _, s, _ in found])
    torch.testing.assert_close(terms["critical"], 0.5 * bce(tops, batch.y))


def test_the_first_of_equal_instances_is_critical():
    model, batch = build(), batch_of(6, 4)
    torch.nn.init.zeros_(model.instance.weight)
    assert model(batch).extra["critical_row"].tolist() == [0, 6]


def test_one_instance_is_its_own_bag_embedding():
    model, batch = build(), batch_of(1)
    torch.testing.assert_close(model(batch).bag_logit, model.classifier(model.embed(batch.x))[:, 0])


def test_the_critical_row_attends_to_itself_with_a_value_not_below_zero():
    model, batch = build(score="attention"), batch_of(9, 5)
    output = model(batch)
    q = query(model, model.embed(batch.x))[output.extra["critical_row"]]
    own = output.instance_score[output.extra["critical_row"]]
    torch.testing.assert_close(own, q.square().sum(1) / 128**0.5)


def test_scaling_the_instance_head_leaves_critical_instance_and_embedding():
    model, batch = build(), batch_of(9, 5)
    torch.nn.init.zeros_(model.instance.bias)
    before = model(batch)
    with torch.no_grad():
        model.instance.weight.mul_(3)
    after = model(batch)
    torch.testing.assert_close(after.bag_logit, before.bag_logit)
    assert torch.equal(after.extra["critical_row"], before.extra["critical_row"])


def test_a_bag_with_negative_scores_keeps_its_own_maximum():
    model, batch = build(), batch_of(5, 8)
    with torch.no_grad():
        model.instance.bias.fill_(-50)
    output = model(batch)
    tops = torch.stack([part.max() for part in output.instance_score.split([5, 8])])
    torch.testing.assert_close(output.extra["critical"], tops)
    assert (tops < -40).all()


def test_the_gradient_reaches_the_critical_query_through_both_factors():
    model, batch = build(), batch_of(8)
    output = model(batch)
    m = int(output.extra["critical_row"])
    h = model.embed(batch.x).detach()

    def logit(own, critical):
        a = (query(model, own) @ query(model, critical) / 128**0.5).softmax(0)
        return model.classifier(a @ h)[0]

    both = h.clone().requires_grad_()
    (whole,) = torch.autograd.grad(logit(both, both[m]), both)
    left, right = h.clone().requires_grad_(), h[m].clone().requires_grad_()
    one, other = torch.autograd.grad(logit(left, right), (left, right))
    torch.testing.assert_close(whole[m], one[m] + other)
    model.embed = torch.nn.Identity()
    features = h.clone().requires_grad_()
    direct = model(type(batch)(**{**batch.__dict__, "x": features})).bag_logit[0]
    (ours,) = torch.autograd.grad(direct, features)
    # the values carry a_i c to h_i as well
    a = (query(model, h) @ query(model, h[m]) / 128**0.5).softmax(0).detach()
    torch.testing.assert_close(ours, whole + a[:, None] * model.classifier.weight.detach())


@pytest.mark.parametrize("predict", ["bag", "average"])
def test_prediction_is_the_bag_stream_or_the_mean_of_both(predict):
    model, batch = build(predict=predict), batch_of(6, 3)
    output = model(batch)
    bag, top = output.extra["bag"], output.extra["critical"]
    torch.testing.assert_close(output.bag_logit, bag if predict == "bag" else (bag + top) / 2)


@pytest.mark.parametrize("options", [{}, {"passing_v": True}, {"nonlinear_q": False}])
def test_smdsmil_by_algebra_equals_smoothing_the_features(options):
    model, batch = build("smdsmil", alpha=0.7, **options), batch_of(9, 4, 1)
    plain = build("dsmil", **options)
    state = {key: value for key, value in model.state_dict().items() if "parametrizations" not in key}
    state |= {f"{name}.{part}": getattr(getattr(model, name), part) for name, part in _query_parts(model)}
    plain.load_state_dict(state)
    smoothed = sm_steps(model.embed(batch.x), graph_of(batch), 0.7, 10)
    plain.embed = torch.nn.Identity()
    expected = plain(type(batch)(**{**batch.__dict__, "x": smoothed}))
    output = model(batch)
    torch.testing.assert_close(output.bag_logit, expected.bag_logit)
    torch.testing.assert_close(output.instance_score, expected.instance_score)


def _query_parts(model):
    layers = ["query"] if model.query_2 is None else ["query", "query_2"]
    return [(layer, part) for layer in layers for part in ("weight", "bias")]


def test_smdsmil_with_alpha_zero_is_dsmil():
    base, smooth = build(), build("smdsmil", alpha=0.0, spectral_norm=False)
    smooth.load_state_dict(base.state_dict())
    batch = batch_of(9, 4)
    torch.testing.assert_close(smooth(batch).bag_logit, base(batch).bag_logit)
    torch.testing.assert_close(smooth(batch).instance_score, base(batch).instance_score)


def test_only_query_layers_of_smdsmil_are_spectrally_normalised():
    model = build_model("smdsmil", P)
    normalised = {key.split(".parametrizations")[0] for key, _ in model.named_parameters() if "original" in key}
    assert normalised == {"query", "query_2"}


def test_torchmil_agrees_on_both_streams():
    from torchmil.models import DSMIL as Peer

    ours, batch = build(), batch_of(13)
    embed = torch.nn.Sequential(torch.nn.Linear(P, 512), torch.nn.GELU())
    peer = Peer(in_shape=(P,), att_dim=128, nonlinear_q=True, feat_ext=embed).double().eval()
    copy_linear(peer.feat_ext[0], ours.embed[0])
    copy_linear(peer.q_nn[0], ours.query)
    copy_linear(peer.q_nn[2], ours.query_2)
    copy_linear(peer.inst_classifier, ours.instance)
    copy_linear(peer.bag_classifier, ours.classifier)
    logit, scores = peer(batch.x[None], return_inst_pred=True)
    output = ours(batch)
    torch.testing.assert_close(output.bag_logit, logit, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.instance_score, scores[0], rtol=0, atol=1e-9)
