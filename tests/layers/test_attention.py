"""Exact attention: the numbers and gradients of the plain formula, whole or in chunks, inside each bag."""

import pytest
import torch

from smmil.layers.attention import attention, packed_attention

SIZES = [7, 1, 23, 12]


@pytest.fixture(params=["whole", "in chunks"])
def chunks(request, monkeypatch):
    if request.param == "in chunks":
        monkeypatch.setattr("smmil.layers.attention.KEEP", 1)
        monkeypatch.setattr("smmil.layers.attention.CHUNK", 140)
        monkeypatch.setattr("smmil.layers.attention.QUERIES", 1)


def bias_of(table, kinds):
    return lambda start, stop: table[:, kinds[start:stop]]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("n", [1, 2, 23])
def test_attention_equals_the_formula_in_float64_with_gradients(chunks, n, biased):
    torch.manual_seed(n)
    qkv = torch.randn(n, 3, 2, 6, requires_grad=True)
    q, k, v = qkv.permute(1, 2, 0, 3)
    table, kinds = torch.randn(2, 3, requires_grad=True), torch.randint(3, (n, n))
    weight, leaves = torch.randn(2, n, 6), [qkv, table] if biased else [qkv]
    result = attention(q, k, v, scale=0.3, bias=bias_of(table, kinds) if biased else None)
    grads = torch.autograd.grad((result * weight).sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    q, k, v = exact[0].permute(1, 2, 0, 3)
    expected = torch.softmax(0.3 * q @ k.mT + (exact[1][:, kinds] if biased else 0), -1) @ v
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, right in zip(grads, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("biased", [True, False])
def test_logits_far_apart_neither_overflow_nor_vanish(chunks, biased):
    """The largest logit of each query takes all the weight, and the gradients stay finite."""
    n = 60
    q = torch.full((1, n, 4), 100.0, requires_grad=True)
    k = torch.linspace(-1e4, 1e4, n)[torch.randperm(n)][None, :, None].repeat(1, 1, 4).requires_grad_()
    v = torch.randn(1, n, 3, requires_grad=True)
    bias = bias_of(torch.zeros(1, 1), torch.zeros(n, n, dtype=torch.int64)) if biased else None
    out = attention(q, k, v, scale=1.0, bias=bias)
    torch.testing.assert_close(out[0], v[0, k[0, :, 0].argmax()].expand(n, 3))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum(), (q, k, v)))


def test_a_bag_attends_to_nothing_outside_it():
    torch.manual_seed(1)
    bounds = torch.tensor([0, *SIZES]).cumsum(0).tolist()
    qkv = torch.randn(sum(SIZES), 36, requires_grad=True)
    together = packed_attention(*qkv.chunk(3, -1), bounds, 2, scale=0.3)
    alone = [packed_attention(*part.chunk(3, -1), [0, len(part)], 2, scale=0.3) for part in qkv.split(SIZES)]
    torch.testing.assert_close(together, torch.cat(alone))
    # the gradient of one bag's result is zero elsewhere, in its own rows what the bag alone has
    (grad,) = torch.autograd.grad(together[8:31].square().sum(), qkv)
    assert not grad[:8].any() and not grad[31:].any()
    (expected,) = torch.autograd.grad(alone[2].square().sum(), qkv)
    torch.testing.assert_close(grad, expected)
