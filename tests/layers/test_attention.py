"""Exact attention: the numbers and gradients of the plain formula, whole or in chunks, inside each bag; dropout."""

import math

import pytest
import torch

from smmil.layers.attention import attention, attention_reference, packed_attention
from tests.helpers.models import F64

SIZES = [7, 1, 23, 12]


@pytest.fixture(params=["whole", "in chunks"])
def chunks(request, monkeypatch):
    if request.param == "in chunks":
        monkeypatch.setattr("smmil.layers.attention.KEEP", 1)
        monkeypatch.setattr("smmil.layers.attention.CHUNK", 30)
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
    expected = attention_reference(q, k, v, 0.3, exact[1][:, kinds] if biased else 0.0)
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


def heads_of(n: int, wide: int = 4) -> list[torch.Tensor]:
    return [torch.randn(2, n, d, dtype=F64, requires_grad=True) for d in (3, 3, wide)]


def random_bias(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, dtype=F64, requires_grad=True), torch.randint(3, (n, n))


@pytest.mark.parametrize("biased", [True, False])
def test_the_backward_pass_of_chunks_leaves_out_the_weights_that_the_forward_pass_left_out(chunks, biased):
    """Finite differences of a function whose mask hangs on the seed alone; only the forward pass draws."""
    (q, k, v), (table, kinds) = heads_of(7), random_bias(7)

    def seeded(q, k, v, table):
        torch.manual_seed(5)
        return attention(q, k, v, scale=0.6, bias=bias_of(table, kinds) if biased else None, dropout=0.4)

    table = table if biased else table.detach()
    assert torch.autograd.gradcheck(seeded, (q, k, v, table))
    seeded(q, k, v, table)
    expected, out = torch.rand(3), seeded(q, k, v, table)
    out.sum().backward()
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        assert torch.equal(seeded(q, k, v, table), out)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_dropout_leaves_out_its_share_of_the_weights_and_keeps_their_mean(p):
    # values are the identity, so that what comes out are the weights themselves
    n, heads = 90, 4
    torch.manual_seed(0)
    q, k = (torch.randn(heads, n, 5, requires_grad=True) for _ in range(2))
    eye = torch.eye(n).expand(heads, n, n)
    whole = attention(q, k, eye, scale=0.1)
    actual = attention(q, k, eye, scale=0.1, dropout=p)
    left_out = actual == 0
    spread = math.sqrt(p * (1 - p) / actual.numel())
    assert abs(left_out.double().mean() - p) < 4 * spread + 2**-17
    # neighbours, and weights four apart that come from one number, are left out independently
    for step in (1, 4):
        both = (left_out.flatten()[:-step] & left_out.flatten()[step:]).double().mean()
        assert abs(both - p * p) < 8 * spread
    torch.testing.assert_close(actual, torch.where(left_out, 0, whole / (1 - p)), rtol=2e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(actual.sum(), k)
    noise = (~left_out).float() / (1 - p)
    (expected,) = torch.autograd.grad((whole * noise).sum(), k)
    torch.testing.assert_close(slope, expected, rtol=2e-3, atol=1e-6)
