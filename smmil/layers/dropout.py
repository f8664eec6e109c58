"""Dropout whose random numbers cost less than the layer it follows.

torch draws one number of its generator per element on a CPU, which takes longer than all else that is done to attention
weights or hidden layers of that size. Here 64 bits of the generator make four of them, with p in steps of 2^-16. On
other devices torch's own dropout computes.

Shapes: any -> the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mask(like: Tensor, p: float) -> Tensor:
    """0 with probability p, else the factor that keeps the mean, 1 / (1 - p).

    Args:
        like: gives shape, type and device.
        p: probability, in [0,1].
    """
    least, most = torch.iinfo(torch.int16).min, round(p * 2**16)
    if like.device.type != "cpu" or most == 2**16:
        return F.dropout(torch.ones_like(like), p)
    drawn = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = drawn.view(torch.int16)[: like.numel()].view(like.shape) >= least + most
    return kept.to(like.dtype).mul_(1 / (1 - most / 2**16))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, drawn by `mask` on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        if x.device.type != "cpu" or not self.training or self.p == 0:
            return super().forward(x)
        return x * mask(x, self.p)
