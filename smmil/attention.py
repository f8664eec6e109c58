"""Exact softmax attention with dropout and a learned positional bias, in bounded memory (SETMIL, IIB-MIL).

softmax(s Q K^T + bias) V, dropout on the weights. The fused attention of torch has neither dropout nor a bias that is
made on the fly, so long sequences are taken in slices of queries whose weights are computed again, with the same random
numbers, in the backward pass: memory is linear in the length, time quadratic. With W the weights, M the scaled mask of
dropout, L the logits and G the gradient of the result, that pass is, slice by slice,

    dV += (W M)^T G    dW = M (G V^T)    dL = W (dW - rowsum(W dW))    dQ = s dL K    dK += s dL^T Q

Shapes: (h,n,d), h heads of one sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# float32 elements: weights kept for the backward pass below the first, slices of the second above it, which a
# processor's caches hold (2^24: four times as slow)
KEEP, SLICE = 2**22, 2**20


@dataclass(frozen=True)
class Bias:
    """A learned addend of attention logits, one number per head and kind of pair.

    Attributes:
        table: (h,c).
        kinds: `kinds(start, stop)` gives (c, stop - start, n): 1 where a query and a key make such a pair, else 0.
    """

    table: Tensor
    kinds: Callable[[int, int], Tensor]

    def __call__(self, start: int, stop: int) -> Tensor:
        """(h, stop - start, n)."""
        # a product with indicators: its backward is a product too, not millions of scattered additions
        return torch.einsum("hc,cij->hij", self.table, self.kinds(start, stop))


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Bias | None = None, dropout: float = 0.0
) -> Tensor:
    """Attends; long sequences can be differentiated once.

    Args:
        q: (h,n,d).
        k: (h,n,d).
        v: (h,n,d').
        scale: s.
        bias: of the logits, or None.
        dropout: probability, 0 outside training.

    Returns:
        (h,n,d').
    """
    heads, n, _ = q.shape
    if bias is None and dropout == 0:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
    if heads * n * n > KEEP:
        table, kinds = (None, None) if bias is None else (bias.table, bias.kinds)
        out: Tensor = _Sliced.apply(q, k, v, table, kinds, scale, dropout)
        return out
    logits = scale * q @ k.mT
    weights = torch.softmax(logits if bias is None else logits + bias(0, n), -1)
    return (weights * _mask(weights, dropout) if dropout else weights) @ v


class _Sliced(torch.autograd.Function):
    """`attention` in slices of queries, and the gradients of q, k, v and the bias's table."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        kinds: Callable[[int, int], Tensor] | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, table)
        ctx.kinds, ctx.scale, ctx.dropout, ctx.random = kinds, scale, dropout, _generator_states(q.device)
        out = v.new_empty((*q.shape[:2], v.shape[2]))
        with torch.autocast(q.device.type, enabled=False):
            for start, stop in _slices(q):
                weights, _ = _weights(ctx, q[:, start:stop], k, table, start, stop)
                if dropout:
                    weights.mul_(_mask(weights, dropout))
                out[:, start:stop] = weights.to(v.dtype) @ v
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(t, dtype=wide) for t in (k, v))
        dtable = None if table is None else torch.zeros_like(table, dtype=wide)
        with _again(ctx.random, q.device):
            for start, stop in _slices(q):
                own, g = q[:, start:stop], grad[:, start:stop]
                weights, kinds = _weights(ctx, own, k, table, start, stop)
                dlogits = (g @ v.mT).to(wide)
                if ctx.dropout:
                    mask = _mask(weights, ctx.dropout)
                    dlogits.mul_(mask)
                    dv += mask.mul_(weights).to(g.dtype).mT @ g
                else:
                    dv += weights.to(g.dtype).mT @ g
                dlogits.sub_((dlogits * weights).sum(-1, keepdim=True)).mul_(weights)
                if dtable is not None:
                    dtable += torch.einsum("hij,cij->hc", dlogits, kinds)
                dlogits = dlogits.mul_(ctx.scale).to(q.dtype)
                dq[:, start:stop] = dlogits @ k
                dk += dlogits.mT @ own
        done = dtable if table is None or dtable is None else dtable.to(table.dtype)
        return dq, dk.to(k.dtype), dv.to(v.dtype), done, None, None, None


def _slices(q: Tensor) -> list[tuple[int, int]]:
    heads, n, _ = q.shape
    step = max(1, SLICE // (heads * n))
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _weights(
    ctx: Any, q: Tensor, k: Tensor, table: Tensor | None, start: int, stop: int
) -> tuple[Tensor, Tensor | None]:
    """Softmax weights (h, stop - start, n) in at least float32, and the kinds of these pairs."""
    logits = (ctx.scale * q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
    kinds = None
    if table is not None:
        kinds = ctx.kinds(start, stop).to(logits.dtype)
        logits += torch.einsum("hc,cij->hij", table.to(logits.dtype), kinds)
    return torch.softmax(logits, -1), kinds


def _mask(weights: Tensor, p: float) -> Tensor:
    """0 with probability p, else 1 / (1 - p); on the CPU with p in steps of 2^-16, of 16 of the generator's 64 bits."""
    least, most = torch.iinfo(torch.int16).min, round(p * 2**16)
    if weights.device.type != "cpu" or most == 2**16:
        return F.dropout(torch.ones_like(weights), p)
    # torch draws one number per weight, which takes longer than all else that is done to it here
    drawn = torch.empty(-(-weights.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = drawn.view(torch.int16)[: weights.numel()].view(weights.shape) >= least + most
    return kept.to(weights.dtype).mul_(1 / (1 - most / 2**16))


def _generator_states(device: torch.device) -> tuple[Tensor, ...]:
    cuda = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return (torch.get_rng_state(), *cuda)


@contextmanager
def _again(states: tuple[Tensor, ...], device: torch.device) -> Iterator[None]:
    """Draws what was drawn from these states on, and leaves the generators as they are."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield


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
