"""Dropout (Srivastava et al., JMLR 2014) with 16-bit random numbers, so sampling is cheaper than the preceding layer.

On a CPU, torch samples one number per element, which takes longer than the layers around it. Here 64 bits of the
generator serve four elements, with p in steps of 2^-16. Other devices use torch's dropout.

Shapes: any -> the same.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mask(like: Tensor, p: float) -> Tensor:
    """Sample a mask of any shape like a tensor: 0 with probability p, else 1 / (1 - p), which keeps the mean."""
    least, most = torch.iinfo(torch.int16).min, round(p * 2**16)
    if like.device.type != "cpu" or most == 2**16:
        return F.dropout(torch.ones_like(like), p)
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = bits.view(torch.int16)[: like.numel()].view(like.shape) >= least + most
    return kept.to(like.dtype).mul_(1 / (1 - most / 2**16))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that samples with `mask` on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout in training mode: any shape -> the same."""
        if x.device.type != "cpu" or not self.training or self.p == 0:
            return super().forward(x)
        return x * mask(x, self.p)
