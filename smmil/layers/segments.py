"""Reductions and softmax over the bags of a packed batch.

Shapes: (M, ...) instances and (B + 1,) offsets -> (B, ...) bags, or (M, ...) for a softmax within bags.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def segment_sum(x: Tensor, offsets: Tensor) -> Tensor:
    """Sum the rows of each bag: (M,D) -> (B,D)."""
    return weighted_sum(None, x, offsets)


def weighted_sum(weight: Tensor | None, h: Tensor, offsets: Tensor) -> Tensor:
    """Compute sum_i weight_i h_i of each bag without storing a product (M,D): (M,) or None = 1, (M,D) -> (B,D)."""
    if h.dtype in (torch.bfloat16, torch.float16) or (weight is not None and weight.dtype != h.dtype):
        product = h if weight is None else weight[:, None] * h
        return torch.segment_reduce(product, "sum", offsets=offsets, axis=0)
    out: Tensor = _WeightedSum.apply(weight, h, offsets)
    return out


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor | None, h: Tensor, offsets: Tensor) -> Tensor:
        """Sum rows: weight (M,) or None, h (M,D), offsets (B+1,) -> (B,D)."""
        ctx.save_for_backward(weight, h if weight is not None else None, offsets)
        ctx.rows = len(h)
        rows = torch.arange(len(h), device=h.device)
        return F.embedding_bag(rows, h, offsets[:-1], mode="sum", per_sample_weights=weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Compute the gradients of weight (M,) and h (M,D) from that of the sums (B,D)."""
        weight, h, offsets = ctx.saved_tensors
        of_row = grad.index_select(0, bag_index(offsets, ctx.rows))
        grad_weight = (of_row * h).sum(1) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_weight, None, None
        return grad_weight, of_row if weight is None else of_row.mul_(weight[:, None]), None


def segment_mean(x: Tensor, offsets: Tensor) -> Tensor:
    """Average the rows of each bag: (M,D) -> (B,D)."""
    return segment_sum(x, offsets) / (offsets[1:] - offsets[:-1])[:, None].to(x.dtype)


def segment_max(x: Tensor, offsets: Tensor) -> Tensor:
    """Return the largest value of each column in each bag: (M,D) -> (B,D)."""
    return torch.segment_reduce(x, "max", offsets=offsets, axis=0)


def bag_index(offsets: Tensor, n_rows: int) -> Tensor:
    """Return the bag of each row: (B+1,) -> (M,)."""
    bags = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(bags, offsets[1:] - offsets[:-1], output_size=n_rows)


def segment_rank(values: Tensor, offsets: Tensor) -> Tensor:
    """Rank the rows of each bag, 0 = largest value, ties in the order of the rows: (M,) -> (M,) int64."""
    bags = bag_index(offsets, len(values))
    order = values.argsort(descending=True, stable=True)
    order = order[bags[order].argsort(stable=True)]
    places = torch.arange(len(values), device=values.device) - offsets[bags]
    return torch.empty_like(places).index_copy_(0, order, places)


def segment_softmax(f: Tensor, offsets: Tensor) -> Tensor:
    """Compute the softmax inside each bag, after subtracting its maximum: (M,) -> (M,)."""
    bags = bag_index(offsets, len(f))
    # A constant does not change the softmax, so the maximum needs no gradient.
    top = torch.segment_reduce(f.detach(), "max", offsets=offsets, axis=0)
    raised = torch.exp(f - top[bags])
    return raised / torch.segment_reduce(raised, "sum", offsets=offsets, axis=0)[bags]


def plain_softmax(f: Tensor, offsets: Tensor) -> Tensor:
    """Compute exp(f) over its sum in each bag as the released code does, NaN for f above about 88: (M,) -> (M,)."""
    raised = torch.exp(f)
    return raised / torch.segment_reduce(raised, "sum", offsets=offsets, axis=0)[bag_index(offsets, len(f))]
