"""Depthwise convolution with a backward pass made of convolutions, torch's own as oracle."""

import pytest
import torch
from torch.nn import functional as F

from smmil.layers.depthwise import depthwise


def inputs(g, c, height, width, rows, columns):
    torch.manual_seed(height * width + rows)
    shapes = (g, c, height, width), (c, 1, rows, columns), (c,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def torchs(x, kernel, bias=None):
    """The convolution by torch, also backwards."""
    return F.conv2d(x, kernel, bias, padding=(kernel.shape[2] // 2, kernel.shape[3] // 2), groups=len(kernel))


@pytest.mark.parametrize(
    "shape", [(1, 3, 5, 5, 3, 3), (2, 2, 4, 6, 7, 7), (3, 1, 1, 1, 7, 7), (1, 4, 2, 9, 1, 1), (2, 3, 40, 4, 33, 1)]
)
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 1], [0], [1], [2]])
def test_equals_torch_with_the_gradients_of_all_arguments_or_of_some(shape, kept):
    leaves = [leaf if i in kept else leaf.detach() for i, leaf in enumerate(inputs(*shape))]
    leaves = leaves[:2] if kept == [0, 1] else leaves
    actual, expected = depthwise(*leaves), torchs(*leaves)
    torch.testing.assert_close(actual, expected)
    weight, wanted = torch.randn_like(actual), [leaves[i] for i in kept]
    ours, theirs = (torch.autograd.grad(out, wanted, weight) for out in (actual, expected))
    torch.testing.assert_close(ours, theirs)


# at these heights, the gradient of oneDNN's (33,1) kernel is off by 5 to 20 % of its largest entry
@pytest.mark.parametrize("height", [46, 61, 91])
@pytest.mark.parametrize(("autocast", "tolerance"), [(False, 1e-5), (True, 0.02)])
def test_the_gradient_of_the_kernel_is_right_in_float32_and_in_bfloat16_autocast(height, autocast, tolerance):
    exact = inputs(2, 8, height, 16, 33, 1)
    leaves = [t.detach().float().requires_grad_() for t in exact]
    weight = torch.randn(2, 8, height, 16, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = depthwise(*leaves)
    assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
    gradients = torch.autograd.grad(out, leaves, weight.to(out.dtype))
    for actual, expected in zip(gradients, torch.autograd.grad(torchs(*exact), exact, weight), strict=True):
        assert actual.dtype == torch.float32
        assert (actual - expected).abs().max() < tolerance * expected.abs().max()
