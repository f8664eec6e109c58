"""Depthwise convolution: one K x K filter per channel, K odd, zero padding (PPEG of TransMIL, Shao et al. 2021).

out[c, i] = b[c] + sum_t k[c, t] x[c, i + t - (K-1)/2], i and t in two dimensions. The gradients are convolutions too:

    dx[c, i] = sum_t k[c, -t] dout[c, i + t - (K-1)/2]        dk[c, t] = sum_i dout[c, i] x[c, i + t - (K-1)/2]

where the second has dout, as large as the image, as its filter. This is about twenty times faster than torch's backward
pass on a CPU; other devices use torch's.

Shapes: x (G,C,H,W), kernel (C,1,K,K), bias (C,) -> (G,C,H,W).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolve every channel with its filter; differentiable once on a CPU.

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
        """Convolve x (G,C,H,W) with kernel (C,1,K,K) and bias (C,): -> (G,C,H,W)."""
        ctx.save_for_backward(x, kernel)
        return _convolve(x, kernel, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute the gradients of x (G,C,H,W), kernel (C,1,K,K) and bias (C,)."""
        x, kernel = ctx.saved_tensors
        need_x, need_kernel, need_bias = ctx.needs_input_grad
        height, width = x.shape[2:]
        dkernel = None
        if need_kernel:
            # Concatenate the channels of all images; the gradient of each is its filter.
            images, filters = x.reshape(1, -1, height, width), grad.reshape(-1, 1, height, width)
            gradients = F.conv2d(images, filters, padding=kernel.shape[-1] // 2, groups=len(filters))
            dkernel = gradients.view(len(x), *kernel.shape).sum(0)
        return (
            _convolve(grad, kernel.flip(2, 3), None) if need_x else None,
            dkernel,
            grad.sum((0, 2, 3)) if need_bias else None,
        )
