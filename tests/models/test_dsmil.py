"""DSMIL: the streams by their definition, torchmil as oracle, and SmDSMIL's algebra against smoothing the features."""

import pytest
import torch

from bench.peers import PEERS
from tests.helpers.models import P, assert_outputs, assert_same, batch_of, build


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


def test_the_critical_row_attends_to_itself_with_a_value_not_below_zero():
    model, batch = build("dsmil", score="attention"), batch_of(9, 5)
    output = model(batch)
    q = torch.tanh(model.query_2(torch.relu(model.query(model.embed(batch.x)))))[output.extra["critical_row"]]
    f = output.instance_score[output.extra["critical_row"]]
    torch.testing.assert_close(f, q.square().sum(1) / 128**0.5)


def test_torchmil_agrees_on_both_streams():
    ours, batch = build("dsmil"), batch_of(13)
    peer = PEERS["dsmil"](ours, P).double().eval()
    assert_outputs(ours(batch), *peer(batch.x[None], return_inst_pred=True), rtol=0, atol=1e-9)
