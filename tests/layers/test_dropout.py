"""Dropout: what it leaves out, what it keeps, and when it does nothing."""

import math

import pytest
import torch

from smmil.layers.dropout import Dropout, mask


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (400, 301)])
def test_a_mask_has_two_values_and_its_share_of_zeros(p, shape):
    torch.manual_seed(0)
    actual = mask(torch.zeros(shape), p)
    assert actual.shape == shape and ((actual == 0) | torch.isclose(actual, torch.tensor(1 / (1 - p)), rtol=2e-4)).all()
    spread = math.sqrt(p * (1 - p) / actual.numel())
    assert abs((actual == 0).double().mean() - p) <= 4 * spread + 2**-17


def test_p_of_one_leaves_nothing():
    assert not Dropout(1.0)(torch.ones(50)).any()


def test_it_does_nothing_when_predicting():
    x = torch.randn(5, 6)
    assert torch.equal(Dropout(0.7).eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_is_the_mask(dtype):
    torch.manual_seed(1)
    x = torch.randn(60, 9, dtype=dtype, requires_grad=True)
    out = Dropout(0.4)(x)
    out.sum().backward()
    assert out.dtype == dtype and x.grad is not None
    torch.manual_seed(1)
    torch.randn(60, 9, dtype=dtype)
    torch.testing.assert_close(x.grad, mask(x, 0.4))
    torch.testing.assert_close(out, x * x.grad)
