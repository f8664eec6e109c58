"""Exact softmax attention with dropout and a positional bias, in bounded memory (SETMIL, IIB-MIL).

softmax(s Q K^T + bias) V, dropout on the weights. The fused attention of torch has neither dropout nor a bias that is
made on the fly, so long sequences are taken in slices of queries whose weights are computed again in the backward
pass: memory is linear in the length, time quadratic.

Shapes: (h,n,d), h heads of one sequence.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# float32 elements: weights kept for the backward pass below the first, slices of the second above it
KEEP, SLICE = 2**22, 2**24

Bias = Callable[[int, int], Tensor]


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Bias | None = None, dropout: float = 0.0
) -> Tensor:
    """Attends.

    Args:
        q: (h,n,d).
        k: (h,n,d).
        v: (h,n,d).
        scale: s.
        bias: `bias(start, stop)` gives (h, stop - start, n) for these queries; None = no bias.
        dropout: probability, 0 outside training.

    Returns:
        (h,n,d).
    """
    heads, n, _ = q.shape
    if bias is None and dropout == 0:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]

    def rows(q: Tensor, k: Tensor, v: Tensor, start: int, stop: int) -> Tensor:
        logits = scale * q[:, start:stop] @ k.mT
        weights = torch.softmax(logits if bias is None else logits + bias(start, stop), -1)
        return (_dropped(weights, dropout) if dropout else weights) @ v

    if heads * n * n <= KEEP:
        return rows(q, k, v, 0, n)
    step = max(1, SLICE // (heads * n))
    slices = [(start, min(start + step, n)) for start in range(0, n, step)]
    if not torch.is_grad_enabled():
        return torch.cat([rows(q, k, v, *bounds) for bounds in slices], 1)
    parts = [checkpoint(rows, q, k, v, *bounds, use_reentrant=False) for bounds in slices]
    return torch.cat(parts, 1)


def _dropped(weights: Tensor, p: float) -> Tensor:
    """Dropout; on the CPU with p in steps of 2^-16, as 16 of the generator's 64 bits decide on each weight."""
    least, most = torch.iinfo(torch.int16).min, round(p * 2**16)
    if weights.device.type != "cpu" or most == 2**16:
        return F.dropout(weights, p)
    # torch draws one number per weight, which takes longer than all else that is done to it here
    drawn = torch.empty(-(-weights.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = drawn.view(torch.int16)[: weights.numel()].view(weights.shape) >= least + most
    return weights * kept.to(weights.dtype).mul_(1 / (1 - most / 2**16))


def split_heads(t: Tensor, n_heads: int) -> Tensor:
    """(n, h d) -> (h,n,d)."""
    return t.reshape(len(t), n_heads, -1).transpose(0, 1)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: list[int],
    n_heads: int,
    *,
    scale: float,
    biases: list[Bias] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attention` inside every bag, heads concatenated.

    Args:
        q: (M, h d).
        k: (M, h d).
        v: (M, h d').
        bounds: B+1 row numbers, bag b is `bounds[b]:bounds[b+1]`.
        n_heads: h.
        scale: s.
        biases: one per bag, or None.
        dropout: probability, 0 outside training.

    Returns:
        (M, h d').
    """
    parts = []
    for bag, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        heads = (split_heads(t[start:stop], n_heads) for t in (q, k, v))
        bias = None if biases is None else biases[bag]
        parts.append(attention(*heads, scale=scale, bias=bias, dropout=dropout).transpose(0, 1).flatten(1))
    return torch.cat(parts)


def check_length(bounds: list[int], max_tokens: int, method: str) -> None:
    """Refuses bags whose quadratic attention would not end in reasonable time.

    Raises:
        ValueError: a bag with more than `max_tokens` tokens.
    """
    longest = max(stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True))
    if longest > max_tokens:
        raise ValueError(
            f"{method}: a bag has {longest} tokens, expected at most max_tokens = {max_tokens}; attention takes time "
            "in proportion to their square. Raise max_tokens, take larger tiles, or use another method"
        )
