"""IIB-MIL: encoder layer, prototypes and soft labels by closed form, and their state."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from smmil.models.iibmil import EncoderLayer, SoftLabels, moved_prototype_reference
from tests.helpers import models
from tests.helpers.models import F64, batch_of, randn

Z = 64


def build(**options):
    return models.build("iibmil", **{"depth": 1, "z": Z, "width": 128, **options}).train()


def test_the_encoder_layer_is_torchs():
    torch.manual_seed(0)
    ours = EncoderLayer(16, n_heads=2, hidden=24).double().eval()
    peer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).double().eval()
    state = ours.state_dict()
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias"}
    names |= {f"out.{k}": f"self_attn.out_proj.{k}" for k in ("weight", "bias")}
    peer.load_state_dict({names.get(key, key): value for key, value in state.items()})
    x = torch.randn(9, 16, dtype=F64)
    expected = torch.cat([peer(x[None, :4])[0], peer(x[None, 4:])[0]])
    torch.testing.assert_close(ours(x, [0, 4, 9]), expected)


@pytest.mark.parametrize("n", [9, 25, 60])
@pytest.mark.parametrize(("share", "m"), [(1.0, 0.75), (0.5, 0.5), (0.25, 0.0), (0.01, 0.0)])
def test_prototypes_take_the_most_probable_tenth_most_probable_first(n, share, m):
    model, x, probability = build(prototype_momentum=0.75), randn(n, Z), torch.rand(n, dtype=F64)
    model.prototypes[0] = start = randn(Z, seed=1)
    model._move_prototype(0, x, probability, share)
    torch.testing.assert_close(model.prototypes[0], moved_prototype_reference(start, x, probability, m))


def test_prototypes_take_a_tenth_of_all_bags_of_a_label_and_weigh_it_by_their_share_of_the_batch():
    model, batch = build(), batch_of(24, 33, 27, 8)
    output = model(batch)
    model.loss(batch, output)
    probability, encoded = output.extra["instance_logits"].softmax(-1), output.extra["encoded"].detach()
    # bags 1 and 3 are positive; two bags of four double the step
    positive = torch.cat([torch.arange(24, 57), torch.arange(84, 92)])
    negative = torch.cat([torch.arange(24), torch.arange(57, 84)])
    for label, rows in enumerate((negative, positive)):
        expected = moved_prototype_reference(torch.zeros(Z, dtype=F64), encoded[rows], probability[rows, label], 0.98)
        torch.testing.assert_close(model.prototypes[label], expected)


def test_soft_labels_follow_their_closed_form_after_the_warm_up():
    model = build()
    model.prototypes[1] = torch.ones(Z)
    encoded = torch.cat([torch.ones(2, Z, dtype=F64), -torch.ones(3, Z, dtype=F64), torch.zeros(1, Z, dtype=F64)])
    like = torch.zeros(6, dtype=F64)
    for epoch in (1, 2):
        model.start_epoch(epoch)
        assert (model._soft_label("a", encoded, like) == 0.5).all()
    for visit, epoch in enumerate((3, 4, 5), 1):
        model.start_epoch(epoch)
        q = model._soft_label("a", encoded, like)
        up, down = 1 - 0.5 * 0.94**visit, 0.5 * 0.94**visit
        torch.testing.assert_close(q, torch.tensor([up, up, down, down, down, 0.5], dtype=F64))
    model.eval()
    torch.testing.assert_close(model._soft_label("a", encoded, like), q)
    # another bag, and the same with another number of instances
    assert (model._soft_label("b", encoded, like) == 0.5).all()
    assert (model._soft_label("a", encoded[:4], like[:4]) == 0.5).all()
    # prototypes that are still zero leave every label as it is
    fresh = build()
    fresh.start_epoch(9)
    assert (fresh._soft_label("a", encoded, like) == 0.5).all()


def test_the_instance_loss_by_hand_and_only_training_changes_state_without_gradient():
    model, batch = build().eval(), batch_of(6, 12)
    output = model(batch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    terms = model.loss(batch, output)
    log = torch.log_softmax(output.extra["instance_logits"], -1)
    expected = (-log[:6, 0].mean() - log[6:].mean(1).mean()) / 2
    torch.testing.assert_close(terms["instance"], expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.train().start_epoch(3)
    for _ in range(2):
        sum(model.loss(batch, model(batch)).values()).backward()
    assert not torch.equal(model.prototypes, before["prototypes"]) and model.prototypes.grad_fn is None
    assert set(model.labels.values) == {SoftLabels.key("bag1")}
    assert not any(q.requires_grad for q in model.labels.values.values())


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_run_resumed_from_a_file_gives_the_same_bits(kind, tmp_path):
    def steps(model, epochs):
        for epoch in epochs:
            model.start_epoch(epoch)
            torch.manual_seed(epoch)
            terms = model.loss(batch, model(batch))
        return terms["instance"].item()

    batch, straight, broken, resumed = batch_of(20, 15, 8, 30), build(), build(), build()
    expected = steps(straight, range(1, 7))
    steps(broken, range(1, 5))
    if kind == "torch":
        torch.save({"model": broken.state_dict()}, tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)["model"]
    else:
        save_file(broken.state_dict(), tmp_path / "state")
        state = load_file(tmp_path / "state")
    resumed.load_state_dict(build().state_dict())
    assert resumed.labels.values == {}
    resumed.load_state_dict(state)
    assert len(resumed.labels.values) == 2 and steps(resumed, (5, 6)) == expected
