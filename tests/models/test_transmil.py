"""TransMIL: position encoding, alignment of the scores, torchmil as oracle."""

import dataclasses

import pytest
import torch

from smmil.data.batch import pack
from smmil.models import build_model
from smmil.models.transmil import PPEG
from tests.helpers.graphs import make_bag

F64, P = torch.float64, 8


def build(**options):
    torch.manual_seed(0)
    return build_model("transmil", P, **options).double().eval()


def batch_of(*sizes: int):
    batch = pack([make_bag(n, seed, features=P) for seed, n in enumerate(sizes)])
    return dataclasses.replace(batch, x=batch.x.double())


def test_position_encoding_with_zero_kernels_is_the_identity_and_else_three_convolutions():
    encode, x = PPEG(6).double(), torch.randn(2, 9, 6, dtype=F64)
    picture = x.mT.reshape(2, 6, 3, 3)
    expected = picture + encode.dw7(picture) + encode.dw5(picture) + encode.dw3(picture)
    torch.testing.assert_close(encode(x, 3), expected.flatten(2).mT)
    for parameter in encode.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(encode(x, 3), x)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 17])
def test_the_square_is_filled_with_the_first_tokens(n, monkeypatch):
    model, batch, seen = build(), batch_of(n), []
    original = model._square
    monkeypatch.setattr(model, "_square", lambda tokens, side: (seen.append((tokens, side)), original(tokens, side))[1])
    model(batch)
    (tokens, side), h = seen[0], model.embed(batch.x)
    assert (side - 1) ** 2 < n <= side**2 and side * side - n <= n
    torch.testing.assert_close(tokens[0], torch.cat([h, h[: side * side - n]]))


def test_column_i_of_the_score_belongs_to_instance_i():
    # without position encoding and value convolution the class token's attention follows the instances
    model, batch = build(value_conv=0), batch_of(9)
    for parameter in model.ppeg.parameters():
        torch.nn.init.zeros_(parameter)
    before = model(batch).instance_score
    for i in (0, 4, 8):
        x = batch.x.clone()
        x[i] += 3 * torch.randn(P, dtype=F64, generator=torch.Generator().manual_seed(i))
        change = (model(dataclasses.replace(batch, x=x)).instance_score - before).abs()
        assert change.argmax() == i


def test_bags_of_one_square_run_together_and_change_nothing():
    model, batch = build(n_landmarks=4), batch_of(14, 3, 16, 10, 4)
    whole = model(batch)
    singles = [model(single) for single in batch.split()]
    torch.testing.assert_close(whole.bag_logit, torch.cat([s.bag_logit for s in singles]))
    torch.testing.assert_close(whole.instance_score, torch.cat([s.instance_score for s in singles]))


@pytest.mark.parametrize("n", [13, 40])
def test_torchmil_agrees(n):
    from torchmil.models import TransMIL

    features = torch.nn.Sequential(torch.nn.Linear(P, 512), torch.nn.GELU())
    peer = TransMIL((P,), n_heads=8, n_landmarks=16, feat_ext=features).eval()
    ours = build(n_landmarks=16, value_conv=0, out_proj=False, pad_to_landmarks=True).float()
    batch = batch_of(n)
    batch = dataclasses.replace(batch, x=batch.x.float())
    with torch.no_grad():
        features[0].load_state_dict(ours.embed[0].state_dict())
        peer.cls_token.copy_(ours.cls)
        for layer, attention, norm in zip(peer.layers, ours.layers, ours.norms, strict=True):
            layer.att_module.qkv_nn.load_state_dict(attention.qkv.state_dict())
            layer.norm1.load_state_dict(norm.state_dict())
        for theirs, mine in (("proj", "dw7"), ("proj1", "dw5"), ("proj2", "dw3")):
            getattr(peer.pos_layer, theirs).load_state_dict(getattr(ours.ppeg, mine).state_dict())
        peer.norm.load_state_dict(ours.norm.state_dict())
        peer.classifier.load_state_dict(ours.classifier.state_dict())
        logit, attention = peer(batch.x[None], return_att=True)
        output = ours(batch)
    torch.testing.assert_close(output.bag_logit, logit.reshape(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.instance_score, attention.reshape(-1), rtol=0, atol=1e-5)
