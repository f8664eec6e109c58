"""Exact softmax attention (Vaswani et al., NeurIPS 2017) in memory linear in the sequence length.

softmax(s Q K^T + bias) V, with dropout on the weights. Without bias and dropout, torch's fused attention computes it.
Otherwise short sequences store their weights; long ones are cut into chunks of queries, and the backward pass
recomputes the weights of a chunk with the same random numbers. `attention_reference` is the formula.

Shapes: (h,n,d), h heads of one sequence; packed (M, h d), heads concatenated.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from smmil.layers.dropout import mask

# Numbers of attention weights: a sequence with more than KEEP is cut into chunks of about CHUNK. A chunk has at least
# QUERIES queries, because each adds to the gradients of all keys and values.
KEEP, CHUNK, CHUNK_GPU, QUERIES = 2**22, 2**20, 2**25, 32
# Addend of the logits of the queries start..stop, broadcastable to (h, stop - start, n).
Bias = Callable[[int, int], Tensor]


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Bias | None = None, dropout: float = 0.0
) -> Tensor:
    """Compute multi-head attention of one sequence: q, k (h,n,d), v (h,n,d') -> (h,n,d')."""
    if bias is None and dropout == 0:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
    heads, n, _ = q.shape

    def attend(queries: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        """Compute rows start..start+m: queries (h,m,d), keys (h,n,d), values (h,n,d') -> (h,m,d')."""
        # Softmax needs at least float32, also under autocast.
        with torch.autocast(q.device.type, enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            addend = q.new_zeros((), dtype=wide) if bias is None else bias(start, start + queries.shape[1])
            logits = torch.baddbmm(addend, queries.to(wide), k.to(wide).mT, alpha=scale)
            weights = torch.softmax(logits, -1)
            if dropout:
                weights = weights * mask(weights, dropout)
            return (weights @ v.to(wide)).to(v.dtype)

    if heads * n * n <= KEEP:
        return attend(q, k, v, 0)
    step = max(QUERIES, (CHUNK if q.device.type == "cpu" else CHUNK_GPU) // (heads * n))
    chunks = [
        checkpoint(attend, q[:, start : start + step], k, v, start, use_reentrant=False) for start in range(0, n, step)
    ]
    return torch.cat(chunks, 1)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    """Compute softmax(s Q K^T + bias) V as written: q, k (h,n,d), v (h,n,d'), bias (h,n,n) -> (h,n,d')."""
    return torch.softmax(scale * q @ k.mT + bias, -1) @ v


def split_heads(t: Tensor, n_heads: int) -> Tensor:
    """Separate concatenated heads: (n, h d) -> (h,n,d)."""
    return t.reshape(len(t), n_heads, -1).transpose(0, 1)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: list[int],
    n_heads: int,
    *,
    scale: float,
    biases: Sequence[Bias | None] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute `attention` inside every bag, rows `bounds[b]:bounds[b+1]`: q, k (M, h d), v (M, h d') -> (M, h d').

    `biases` has one addend per bag.
    """
    sizes = [stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    parts = []
    # The gradient of every row slice would be as large as the batch; torch.split avoids that.
    for bag, rows in enumerate(zip(*(torch.split(t, sizes) for t in (q, k, v)), strict=True)):
        heads = (split_heads(t, n_heads) for t in rows)
        bias = None if biases is None else biases[bag]
        parts.append(attention(*heads, scale=scale, bias=bias, dropout=dropout).transpose(0, 1).flatten(1))
    return torch.cat(parts)


def check_length(bounds: list[int], max_tokens: int, method: str) -> None:
    """Raise a ValueError if quadratic attention would not end in reasonable time."""
    longest = max(stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True))
    if longest > max_tokens:
        raise ValueError(
            f"{method}: a bag has {longest} tokens, expected at most max_tokens = {max_tokens}; attention takes time "
            "in proportion to their square. Raise max_tokens, take larger tiles, or use another method"
        )
