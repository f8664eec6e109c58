"""Depthwise convolution: a K x K filter for every channel of a picture, K odd, zeros around it (PPEG of TransMIL).

out[c, i] = b[c] + sum_t k[c, t] x[c, i + t - (K-1)/2], i and t in two dimensions. The gradients are convolutions, too:

    dx[c, i] = sum_t k[c, -t] dout[c, i + t - (K-1)/2]        dk[c, t] = sum_i dout[c, i] x[c, i + t - (K-1)/2]

the second one of every channel's x with a filter as large as the picture, its dout. On a CPU torch computes dk about
twenty times slower than that; elsewhere its own backward pass is taken.

Shapes: x (G,C,H,W), kernel (C,1,K,K), bias (C,) -> (G,C,H,W).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolves every channel with its own filter; can be differentiated once on a CPU.

    Args:
        x: (G,C,H,W).
        kernel: (C,1,K,K), K odd.
        bias: (C,).

    Returns:
        (G,C,H,W).
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return _convolve(x, kernel, bias)
    out: Tensor = _Depthwise.apply(x, kernel, bias)
    return out


def _convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=len(kernel))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return _convolve(x, kernel, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        need_x, need_kernel, need_bias = ctx.needs_input_grad
        height, width = x.shape[2:]
        dkernel = None
        if need_kernel:
            # channels of all pictures side by side, each with its gradient as the filter
            pictures, filters = x.reshape(1, -1, height, width), grad.reshape(-1, 1, height, width)
            each = F.conv2d(pictures, filters, padding=kernel.shape[-1] // 2, groups=len(filters))
            dkernel = each.view(len(x), *kernel.shape).sum(0)
        return (
            _convolve(grad, kernel.flip(2, 3), None) if need_x else None,
            dkernel,
            grad.sum((0, 2, 3)) if need_bias else None,
        )
