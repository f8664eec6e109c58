"""Nystrom attention: the exact limit, the pseudo-inverse, padding, independence of the batch."""

import pytest
import torch
from torch.nn import functional as F

from smmil.layers.nystrom import NystromAttention, iterative_pinv, nystrom
from tests.helpers.models import F64, randn


def layer(**options) -> NystromAttention:
    torch.manual_seed(0)
    return NystromAttention(16, n_heads=2, **options).double().eval()


@pytest.mark.parametrize(("iterations", "tolerance"), [(6, 5e-2), (20, 1e-12)])
def test_as_many_landmarks_as_tokens_is_exact_attention(iterations, tolerance):
    q, k, v = (randn(1, 2, 8, 4, seed=s) for s in range(3))
    actual = nystrom(q * 0.5, k, v, 8, iterations)[0]
    error = (actual - F.scaled_dot_product_attention(q, k, v)).abs().max()
    assert error < tolerance
    assert iterations > 6 or error > 1e-6


def test_the_pseudo_inverse_of_the_identity_is_the_identity_and_of_a_matrix_its_inverse():
    eye = torch.eye(5, dtype=F64).expand(2, 3, 5, 5)
    torch.testing.assert_close(iterative_pinv(eye), eye)
    a = torch.softmax(randn(2, 3, 5, 5) * 2, -1)
    torch.testing.assert_close(iterative_pinv(a, 40), torch.linalg.inv(a))


@pytest.mark.parametrize(
    "options", [{"n_landmarks": 4}, {"n_landmarks": 64}, {"n_landmarks": 64, "small_bags": "exact"}]
)
def test_a_sequence_gives_the_same_numbers_in_any_batch(options):
    module, x = layer(**options), randn(3, 11, 16)
    x[1] *= 20
    together, row = module(x, with_row=True)
    for i in range(3):
        alone, row_alone = module(x[i : i + 1], with_row=True)
        torch.testing.assert_close(together[i], alone[0])
        torch.testing.assert_close(row[i], row_alone[0])


def padded_reference(module, x):
    """Result and class token's row of a layer whose sequences are padded to a multiple of m, token by token."""
    n, front = x.shape[1], -x.shape[1] % module.m
    padded = F.pad(x, (0, 0, front, 0))
    q, k, v = module.qkv(padded).view(len(x), n + front, 3, module.n_heads, -1).permute(2, 0, 3, 1, 4)
    heads, far, inverse, near = nystrom(q * q.shape[-1] ** -0.5, k, v, module.m, module.iterations)
    out = module.out((heads + module.conv(v)).transpose(1, 2).flatten(2))
    return out[:, front:], (far[:, :, front : front + 1] @ inverse @ near).mean(1)[:, 0, front:]


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 24, 33, 50, 65, 79, 161])
def test_padding_counted_in_whole_segments_equals_padding_token_by_token(n):
    module, x = layer(n_landmarks=16), randn(2, n, 16, seed=n).requires_grad_()
    leaves, weights = [x, *module.parameters()], (randn(2, n, 16, seed=1), randn(2, n, seed=2))
    actual, expected = module(x, with_row=True), padded_reference(module, x)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(sum((part * weight).sum() for part, weight in zip(parts, weights, strict=True)), leaves)
        for parts in (actual, expected)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n", [1, 3, 8, 9, 16, 20, 41])
@pytest.mark.parametrize("small_bags", ["pad", "exact"])
def test_zeros_up_to_the_padded_length_change_nothing(n, small_bags):
    module, x = layer(n_landmarks=8, small_bags=small_bags), randn(1, n, 16)
    length = module.padded_length(n)
    assert length >= n and (length == n or small_bags == "pad" or n > 8)
    torch.testing.assert_close(module(F.pad(x, (0, 0, length - n, 0)))[0][:, length - n :], module(x)[0])


def test_small_bags_are_padded_unless_exact_attention_is_asked_for():
    padded, exact, x = layer(), layer(small_bags="exact"), randn(1, 9, 16)
    assert padded.m == 256
    q, k, v = exact.qkv(x).view(1, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v) + exact.conv(v)
    torch.testing.assert_close(exact(x)[0], exact.out(expected.transpose(1, 2).flatten(2)))
    assert not torch.allclose(exact(x)[0], padded(x)[0], atol=1e-3)
    row = exact(x, with_row=True)[1]
    torch.testing.assert_close(row, torch.softmax(q[:, :, 0:1] @ k.mT / 8**0.5, -1).mean(1)[:, 0])
    torch.testing.assert_close(row.sum(), torch.ones((), dtype=F64))


def test_the_row_is_the_matrix_that_was_applied():
    module, x = layer(n_landmarks=4, value_conv=0), randn(1, 10, 16)
    module.out = torch.nn.Identity()
    with torch.no_grad():
        # values that name their token: 8 columns of head 0 and 1 carry the first 8 tokens one-hot
        module.qkv.weight[32:] = torch.eye(16, dtype=F64)
    heads, row = module(x, with_row=True)
    v = x.view(1, 10, 2, 8)
    q, k = (t.view(1, 10, 2, 8).transpose(1, 2) for t in module.qkv(x).chunk(3, -1)[:2])
    front = F.pad(torch.eye(10, dtype=F64), (0, 0, 2, 0)).expand(1, 2, 12, 10)
    matrix = nystrom(F.pad(q * 8**-0.5, (0, 0, 2, 0)), F.pad(k, (0, 0, 2, 0)), front, 4)[0][:, :, 2:]
    torch.testing.assert_close(heads, torch.einsum("ghij,gjhd->gihd", matrix, v).flatten(2))
    torch.testing.assert_close(row, matrix.mean(1)[:, 0])


def test_bfloat16_autocast_keeps_the_inverse_finite():
    module = layer(n_landmarks=4).float()
    with torch.autocast("cpu", torch.bfloat16):
        out, row = module(randn(1, 30, 16).float(), with_row=True)
    assert torch.isfinite(out).all() and torch.isfinite(row).all()
