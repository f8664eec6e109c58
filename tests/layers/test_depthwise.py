"""Depthwise convolution with a backward pass made of convolutions: torch's own as oracle, finite differences."""

import pytest
import torch
from torch.nn import functional as F

from smmil.layers.depthwise import depthwise


def inputs(g, c, height, width, side):
    torch.manual_seed(height * width + side)
    shapes = (g, c, height, width), (c, 1, side, side), (c,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("shape", [(1, 3, 5, 5, 3), (2, 2, 4, 6, 7), (3, 1, 1, 1, 7), (1, 4, 2, 9, 1)])
def test_equals_torch_with_gradients(shape):
    x, kernel, bias = leaves = inputs(*shape)
    actual = depthwise(*leaves)
    expected = F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=len(kernel))
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(actual)
    ours, theirs = (torch.autograd.grad(out, leaves, weight) for out in (actual, expected))
    torch.testing.assert_close(ours, theirs)


def test_gradients_by_finite_differences_together_and_one_by_one():
    leaves = inputs(2, 2, 3, 4, 5)
    assert torch.autograd.gradcheck(depthwise, leaves)
    for kept in range(3):
        fixed = [leaf if i == kept else leaf.detach() for i, leaf in enumerate(leaves)]
        assert torch.autograd.gradcheck(depthwise, fixed)


def test_in_float32_the_gradient_of_the_kernel_is_as_near_as_torchs():
    leaves = [t.detach().float().requires_grad_() for t in inputs(2, 8, 20, 20, 7)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    actual = torch.autograd.grad(depthwise(*leaves).square().sum(), leaves[1])[0]
    expected = torch.autograd.grad(depthwise(*exact).square().sum(), exact[1])[0]
    assert (actual - expected).norm() < 1e-6 * expected.norm()


def test_in_bfloat16_autocast_results_and_gradients_come_in_their_types():
    leaves = [t.detach().float().requires_grad_() for t in inputs(2, 2, 3, 4, 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = depthwise(*leaves)
    assert out.dtype == torch.bfloat16
    exact = depthwise(*leaves)
    assert (out.float() - exact).norm() < 0.02 * exact.norm()
    for ours, right in zip(
        torch.autograd.grad(out.float().sum(), leaves), torch.autograd.grad(exact.sum(), leaves), strict=True
    ):
        assert ours.dtype == torch.float32 and (ours - right).norm() <= 0.02 * right.norm()
