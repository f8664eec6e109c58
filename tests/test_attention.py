"""Exact attention head by head: the same numbers and gradients as the plain formula, whatever the order of strides."""

import pytest
import torch

from smmil.attention import Bias, attention, packed_attention
from smmil.dense import available, product

SIZES = [7, 1, 23, 12]


def formula(q, k, v, bias=None):
    logits = 0.3 * q @ k.mT
    return torch.softmax(logits if bias is None else logits + bias(0, q.shape[1]), -1) @ v


@pytest.fixture(params=["kept", "computed again", "in slices"])
def one_by_one(request, monkeypatch):
    """Heads go one by one however small they are (where the processor has what it takes), weights kept or not."""
    monkeypatch.setattr("smmil.dense.SMALL_HEAD", 0)
    if request.param != "kept":
        monkeypatch.setattr("smmil.attention.KEEP", 1)
    if request.param == "in slices":
        monkeypatch.setattr("smmil.attention.SLICE", 30)
        monkeypatch.setattr("smmil.attention.ROWS", 5)


def inputs(n: int, wide: int = 6):
    """Heads that lie between each other in memory, as a projection leaves them."""
    table = torch.randn(n, 3, 2, wide, requires_grad=True)
    return table, table.permute(1, 2, 0, 3).unbind(0)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("n", [1, 2, 23])
def test_heads_one_by_one_equal_the_formula_in_float64_with_gradients(one_by_one, n, biased):
    torch.manual_seed(n)
    table, (q, k, v) = inputs(n)
    kind, of_kind = torch.randint(3, (n, n)), torch.randn(2, 3, requires_grad=True)
    bias = Bias(of_kind, lambda start, stop: (kind[start:stop] == torch.arange(3)[:, None, None]).to(of_kind.dtype))
    weight = torch.randn(2, n, 6)
    leaves = [table, of_kind] if biased else [table]
    found = attention(q, k, v, scale=0.3, bias=bias if biased else None)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wide = Bias(exact[-1], lambda start, stop: bias.kinds(start, stop).double()) if biased else None
    expected = formula(*exact[0].permute(1, 2, 0, 3).unbind(0), wide)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, right in zip(grads, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


def test_dropout_leaves_the_same_weights_out_in_both_passes(one_by_one):
    torch.manual_seed(0)
    _, (q, k, v) = inputs(23)
    q, k = q.detach(), k.detach()
    v = v.detach().requires_grad_()

    def seeded(v):
        torch.manual_seed(5)
        return attention(q, k, v, scale=0.3, dropout=0.4)

    # linear in v: its gradient against any direction is the change of the result
    direction, weight = torch.randn_like(v), torch.randn(2, 23, 6)
    (grad,) = torch.autograd.grad((seeded(v) * weight).sum(), v)
    change = ((seeded(v + direction) - seeded(v)) * weight).sum()
    torch.testing.assert_close((grad * direction).sum(), change, atol=1e-3, rtol=1e-4)


def test_a_bag_attends_to_nothing_outside_it(one_by_one):
    torch.manual_seed(1)
    bounds = torch.tensor([0, *SIZES]).cumsum(0).tolist()
    qkv = torch.randn(sum(SIZES), 36, requires_grad=True)
    together = packed_attention(*qkv.chunk(3, -1), bounds, 2, scale=0.3)
    alone = [packed_attention(*part.chunk(3, -1), [0, len(part)], 2, scale=0.3) for part in qkv.split(SIZES)]
    torch.testing.assert_close(together, torch.cat(alone))
    # the gradient of one bag's result is zero elsewhere, in its own rows what the bag alone has
    (grad,) = torch.autograd.grad(together[8:31].square().sum(), qkv)
    assert not grad[:8].any() and not grad[31:].any()
    (own,) = torch.autograd.grad(alone[2].square().sum(), qkv)
    torch.testing.assert_close(grad, own)


@pytest.mark.skipif(not available(), reason="oneDNN's linear layer is not usable on this machine")
def test_products_of_matrices_that_lie_across():
    a, b = torch.randn(60, 50), torch.randn(70, 50)
    expected = (a.double() @ b.double().T).float()
    for first in (a, a.T.contiguous().T):
        for second in (b, b.T.contiguous().T):
            torch.testing.assert_close(product(first, second), expected, atol=1e-4, rtol=1e-5)
