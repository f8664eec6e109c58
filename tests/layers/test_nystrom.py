"""Nystrom attention: the exact limit, the pseudo-inverse, padding, independence of the batch."""

import pytest
import torch
from torch.nn import functional as F

from smmil.layers.nystrom import NystromAttention, iterative_pinv, landmarks, nystrom
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


def test_landmarks_are_means_of_consecutive_segments():
    t = torch.arange(12, dtype=F64).view(1, 1, 6, 2)
    assert landmarks(t, 3)[0, 0].tolist() == [[1, 2], [5, 6], [9, 10]]


@pytest.mark.parametrize(
    "options", [{"n_landmarks": 4}, {"n_landmarks": 64}, {"n_landmarks": 64, "pad_to_landmarks": True}]
)
def test_a_sequence_gives_the_same_numbers_in_any_batch(options):
    module, x = layer(**options), randn(3, 11, 16)
    x[1] *= 20
    together, row = module(x, with_row=True)
    for i in range(3):
        alone, row_alone = module(x[i : i + 1], with_row=True)
        torch.testing.assert_close(together[i], alone[0])
        torch.testing.assert_close(row[i], row_alone[0])


def test_small_bags_get_exact_attention_and_padding_is_a_switch():
    exact, padded, x = layer(n_landmarks=32), layer(n_landmarks=32, pad_to_landmarks=True), randn(1, 9, 16)
    q, k, v = exact.qkv(x).view(1, 9, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v) + exact.conv(v)
    torch.testing.assert_close(exact(x)[0], exact.out(expected.transpose(1, 2).flatten(2)))
    assert not torch.allclose(exact(x)[0], padded(x)[0], atol=1e-3)
    row = exact(x, with_row=True)[1]
    torch.testing.assert_close(row, torch.softmax(q[:, :, 0:1] @ k.mT / 8**0.5, -1).mean(1)[:, 0])
    torch.testing.assert_close(row.sum(), torch.ones((), dtype=F64))


def test_the_row_is_the_matrix_that_was_applied():
    module, x = layer(n_landmarks=4, value_conv=0, out_proj=False), randn(1, 10, 16)
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


def test_more_tokens_than_landmarks_approximates_attention_well_when_segments_are_alike():
    repeated = randn(1, 4, 16).repeat_interleave(5, 1)
    approximate = layer(n_landmarks=4, pinv_iterations=30)
    exact = layer(n_landmarks=20, pinv_iterations=30)
    torch.testing.assert_close(approximate(repeated)[0], exact(repeated)[0])


def test_bfloat16_autocast_keeps_the_inverse_finite():
    module = layer(n_landmarks=4).float()
    with torch.autocast("cpu", torch.bfloat16):
        out, row = module(randn(1, 30, 16).float(), with_row=True)
    assert torch.isfinite(out).all() and torch.isfinite(row).all()
