"""TransMIL: position encoding, alignment of the scores, torchmil as oracle."""

import dataclasses

import pytest
import torch

from bench.peers import features
from smmil.models.transmil import PPEG
from tests.helpers.models import F64, P, assert_outputs, assert_same, batch_of, build


def test_position_encoding_is_three_convolutions_and_with_zero_kernels_the_identity():
    encode, x = PPEG(6).double(), torch.randn(2, 9, 6, dtype=F64)
    torch.testing.assert_close(encode(x, 3), encode.forward_reference(x, 3))
    for parameter in encode.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(encode(x, 3), x)


@pytest.mark.parametrize("options", [{}, {"n_landmarks": 4}, {"small_bags": "exact"}])
def test_bags_of_one_square_run_together_and_change_nothing(options):
    model, batch = build("transmil", **options), batch_of(14, 3, 16, 10, 4, 1)
    assert_same(model(batch), model.forward_reference(batch))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 17])
def test_the_square_is_filled_with_the_first_tokens(n, monkeypatch):
    model, batch, seen = build("transmil"), batch_of(n), []
    original = model._square
    monkeypatch.setattr(model, "_square", lambda tokens, side: (seen.append((tokens, side)), original(tokens, side))[1])
    model(batch)
    (tokens, side), h = seen[0], model.embed(batch.x)
    assert (side - 1) ** 2 < n <= side**2 and side * side - n <= n
    torch.testing.assert_close(tokens[0], torch.cat([h, h[: side * side - n]]))


def test_column_i_of_the_score_belongs_to_instance_i():
    # without position encoding and value convolution the class token's attention follows the instances
    model, batch = build("transmil", value_conv=0), batch_of(9)
    for parameter in model.ppeg.parameters():
        torch.nn.init.zeros_(parameter)
    before = model(batch).instance_score
    for i in (0, 4, 8):
        x = batch.x.clone()
        x[i] += 3 * torch.randn(P, dtype=F64, generator=torch.Generator().manual_seed(i))
        change = (model(dataclasses.replace(batch, x=x)).instance_score - before).abs()
        assert change.argmax() == i


@pytest.mark.parametrize("n", [13, 40])
def test_torchmil_agrees(n):
    from torchmil.models import TransMIL

    ours = build("transmil", n_landmarks=16, value_conv=0, out_proj=False).float()
    peer = TransMIL((P,), n_heads=8, n_landmarks=16, feat_ext=features(ours)).eval()
    batch = batch_of(n)
    batch = dataclasses.replace(batch, x=batch.x.float())
    with torch.no_grad():
        peer.cls_token.copy_(ours.cls)
        for layer, attention, norm in zip(peer.layers, ours.layers, ours.norms, strict=True):
            layer.att_module.qkv_nn.load_state_dict(attention.qkv.state_dict())
            layer.norm1.load_state_dict(norm.state_dict())
        for theirs, mine in (("proj", "dw7"), ("proj1", "dw5"), ("proj2", "dw3")):
            getattr(peer.pos_layer, theirs).load_state_dict(getattr(ours.ppeg, mine).state_dict())
        peer.norm.load_state_dict(ours.norm.state_dict())
        peer.classifier.load_state_dict(ours.classifier.state_dict())
        assert_outputs(ours(batch), *peer(batch.x[None], return_att=True), rtol=0, atol=1e-5)
