"""Exact attention, compiled and not: the same numbers and gradients as the plain formula, whatever the bags."""

import pytest
import torch

from smmil import native
from smmil.attention import Bias, attention, packed_attention
from smmil.dense import product, works
from smmil.fused_attention import _function, fused_attention, kinds_table, usable

SIZES = [7, 1, 23, 12]
compiled = pytest.mark.skipif(not usable(()), reason="the compiled attention is not available on this machine")


def formula(q, k, v, bias=None, left=None, scale=0.3):
    logits = scale * q @ k.mT
    weights = torch.softmax(logits if bias is None else logits + bias, -1)
    return (weights if left is None else left * weights) @ v


@pytest.fixture(params=["kept", "computed again", "in slices"])
def slices(request, monkeypatch):
    """The paths without the kernel: weights kept or not, in one slice or many."""
    monkeypatch.setattr("smmil.attention.usable", lambda *given: False)
    if request.param != "kept":
        monkeypatch.setattr("smmil.attention.KEEP", 1)
    if request.param == "in slices":
        monkeypatch.setattr("smmil.attention.SLICE", 30)


@pytest.fixture(params=native.widths() or [0])
def width(request, monkeypatch):
    """Every width of vectors that this machine has."""
    monkeypatch.setattr(native, "width", lambda: request.param)
    _function.cache_clear()
    yield request.param
    _function.cache_clear()


def kinds_of(n: int, n_kinds: int = 3) -> torch.Tensor:
    return kinds_table(n, torch.device("cpu")).random_(n_kinds)


def packed(sizes: list[int], heads: int, d: int, value_d: int):
    """q, k, v that lie beside each other in memory, as a projection leaves them, and where the bags begin."""
    bounds = torch.tensor([0, *sizes]).cumsum(0).tolist()
    table = torch.randn(bounds[-1], heads * (2 * d + value_d) + 3, requires_grad=True)
    return table, table[:, 3:].split([heads * d, heads * d, heads * value_d], -1), bounds


def exactly(table: torch.Tensor, sizes: list[int], heads: int, d: int, value_d: int, biases=None, scale=0.3):
    """The formula in the table's type, bag by bag and head by head."""
    out = []
    for bag, rows in enumerate(table[:, 3:].split(sizes)):
        parts = rows.split([heads * d, heads * d, heads * value_d], -1)
        q, k, v = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in parts)
        out.append(formula(q, k, v, None if biases is None else biases[bag], scale=scale).transpose(0, 1).flatten(1))
    return torch.cat(out)


# one below, at and above a group of queries and a tile of keys; as many columns as vectors have numbers, and others
SHAPES = [
    ([1], 1, 1, 1),
    ([2, 1, 40], 2, 3, 5),
    ([63, 64, 65], 3, 12, 12),
    ([255, 256, 257], 1, 16, 17),
    ([600, 9], 2, 64, 33),
]


@compiled
@pytest.mark.parametrize("n_kinds", [0, 1, 5, 8])
@pytest.mark.parametrize(("sizes", "heads", "d", "value_d"), SHAPES)
def test_the_kernel_equals_the_formula_in_float64_with_gradients(width, sizes, heads, d, value_d, n_kinds):
    torch.manual_seed(n_kinds)
    table, parts, bounds = packed(sizes, heads, d, value_d)
    addends = torch.randn(heads, max(n_kinds, 1), requires_grad=True)
    kinds = [kinds_of(n, n_kinds) for n in sizes] if n_kinds else []
    leaves = [table, addends] if n_kinds else [table]
    found = fused_attention(*parts, bounds, heads, scale=0.3, table=addends if n_kinds else None, kinds=kinds)
    weight = torch.randn_like(found)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    biases = [exact[1][:, own.long()] for own in kinds] if n_kinds else None
    expected = exactly(exact[0], sizes, heads, d, value_d, biases)
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=1e-5)
    for ours, right in zip(grads, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=3e-5 * float(right.abs().max().clamp(min=1)), rtol=1e-4)


def left_by_dropout(n: int, heads: int, seed: int, p: float, bags: int = 1) -> torch.Tensor:
    """(bags, heads, n, n) factors of the weights: equal keys have equal weights, and the values tell them apart."""
    torch.manual_seed(seed)
    same, values = torch.zeros(bags * n, heads * 4), torch.eye(n).repeat(bags, heads)
    bounds = [n * bag for bag in range(bags + 1)]
    out = fused_attention(same, same, values, bounds, heads, scale=1.0, dropout=p)
    return n * out.view(bags, n, heads, n).transpose(1, 2)


@compiled
@pytest.mark.parametrize("n", [70, 300])
def test_dropout_leaves_out_the_same_weights_in_both_passes(width, n):
    """The factors are read off once; with them the formula has the same result and gradients."""
    factors = left_by_dropout(n, 2, seed=5, p=0.4)[0].double()
    q, k, v = (torch.randn(n, 2 * d, requires_grad=True) for d in (6, 6, n))
    table, kinds = torch.randn(2, 3, requires_grad=True), kinds_of(n)
    torch.manual_seed(5)
    found = fused_attention(q, k, v, [0, n], 2, scale=0.3, table=table, kinds=[kinds], dropout=0.4)
    weight, leaves = torch.randn_like(found), (q, k, v, table)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    heads = (t.unflatten(1, (2, -1)).transpose(0, 1) for t in exact[:3])
    expected = formula(*heads, exact[3][:, kinds.long()], factors).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    for ours, right in zip(grads, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5 * float(right.abs().max()), rtol=1e-4)


@compiled
def test_dropout_leaves_out_each_weight_by_itself_with_its_probability(width):
    n, p = 400, 0.2
    factors = left_by_dropout(n, 3, seed=1, p=p, bags=2)
    kept = factors > 0.5
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / (1 - p)))
    kept = kept.double()

    def near(rates: torch.Tensor, probability: float, draws: int) -> None:
        # five standard deviations of one rate, of at most a few thousand
        assert ((rates - probability).abs() < 5.5 * (probability * (1 - probability) / draws) ** 0.5).all()

    near(kept.mean(), 1 - p, kept.numel())
    for along in (2, 3):
        near(kept.mean(along), 1 - p, n)
    # neighbours in a row, in a column, heads, bags, and queries far apart hang together no more than chance has it
    both = (1 - p) ** 2
    for first, second in (
        (kept[..., :-1], kept[..., 1:]),
        (kept[..., :-1, :], kept[..., 1:, :]),
        (kept[..., :-1, :-1], kept[..., 1:, 1:]),
        (kept[..., :200, :], kept[..., 200:, :]),
        (kept[:, 0], kept[:, 1]),
        (kept[0], kept[1]),
        (kept, (left_by_dropout(n, 3, seed=2, p=p, bags=2) > 0.5).double()),
    ):
        near((first * second).mean(), both, first.numel())


@compiled
def test_kinds_may_lie_in_memory_as_they_like():
    _, parts, bounds = packed([40], 2, 3, 3)
    table, kinds = torch.randn(2, 3), kinds_of(40)
    expected = fused_attention(*parts, bounds, 2, scale=0.3, table=table, kinds=[kinds])
    for other in (kinds.contiguous(), kinds.T.contiguous().T):
        assert torch.equal(fused_attention(*parts, bounds, 2, scale=0.3, table=table, kinds=[other]), expected)


@compiled
def test_the_seed_is_drawn_from_torch_and_no_bit_hangs_on_threads():
    table, parts, bounds = packed([50, 300], 4, 12, 12)
    results = []
    for threads in (1, 2, 1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        out = fused_attention(*parts, bounds, 4, scale=0.3, dropout=0.3)
        results.append((out, *torch.autograd.grad(out.square().sum(), table)))
        torch.set_num_threads(before)
    for later in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], later, strict=True))
    assert not torch.equal(fused_attention(*parts, bounds, 4, scale=0.3, dropout=0.3), results[0][0])


@compiled
def test_logits_far_apart_neither_overflow_nor_vanish(width):
    """The largest logit of each query takes all the weight, wherever its tile is, and the gradients stay finite."""
    n = 600
    q = torch.full((n, 4), 100.0, requires_grad=True)
    k = torch.linspace(-1e4, 1e4, n)[torch.randperm(n)][:, None].repeat(1, 4).requires_grad_()
    v = torch.randn(n, 3, requires_grad=True)
    out = fused_attention(q, k, v, [0, n], 1, scale=1.0)
    torch.testing.assert_close(out, v[k[:, 0].argmax()].expand(n, 3))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum(), (q, k, v)))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("n", [1, 2, 23])
def test_slices_equal_the_formula_in_float64_with_gradients(slices, n, biased):
    torch.manual_seed(n)
    table = torch.randn(n, 3, 2, 6, requires_grad=True)
    q, k, v = table.permute(1, 2, 0, 3).unbind(0)
    of_kind, kinds = torch.randn(2, 3, requires_grad=True), kinds_of(n)
    weight, leaves = torch.randn(2, n, 6), [table, of_kind] if biased else [table]
    found = attention(q, k, v, scale=0.3, bias=Bias(of_kind, kinds) if biased else None)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    bias = exact[-1][:, kinds.long()] if biased else None
    expected = formula(*exact[0].permute(1, 2, 0, 3).unbind(0), bias)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, right in zip(grads, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
        torch.testing.assert_close(ours.double(), right, atol=1e-5, rtol=1e-5)


def test_dropout_leaves_the_same_weights_out_in_both_passes_of_slices(slices):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 23, 6).unbind(0)
    v.requires_grad_()

    def seeded(v):
        torch.manual_seed(5)
        return attention(q, k, v, scale=0.3, dropout=0.4)

    # linear in v: its gradient against any direction is the change of the result
    direction, weight = torch.randn_like(v), torch.randn(2, 23, 6)
    (grad,) = torch.autograd.grad((seeded(v) * weight).sum(), v)
    change = ((seeded(v + direction) - seeded(v)) * weight).sum()
    torch.testing.assert_close((grad * direction).sum(), change, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("without", [True, False])
def test_a_bag_attends_to_nothing_outside_it(monkeypatch, without):
    if without:
        monkeypatch.setattr("smmil.attention.usable", lambda *given: False)
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


@pytest.mark.skipif(not works(), reason="oneDNN's linear layer is not usable on this machine")
def test_products_of_matrices_that_lie_across():
    a, b = torch.randn(60, 50), torch.randn(70, 50)
    expected = (a.double() @ b.double().T).float()
    for first in (a, a.T.contiguous().T):
        for second in (b, b.T.contiguous().T):
            torch.testing.assert_close(product(first, second), expected, atol=1e-4, rtol=1e-5)
