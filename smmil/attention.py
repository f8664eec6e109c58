"""Exact softmax attention, with dropout and a learned positional bias if asked for, in bounded memory.

softmax(s Q K^T + bias) V, dropout on the weights. In float32 on a CPU the compiled kernel computes
(`smmil.fused_attention`). Elsewhere: torch's fused attention, where there is neither dropout nor a bias; else slices of
queries and heads. Of short sequences the slices' weights are kept for the backward pass; those of long ones are
computed again there, with the same random numbers: memory is linear in the length, time quadratic. With W the weights,
A those that dropout left (times its factor), L the logits and G the gradient of the result, that pass is, slice by
slice,

    dV += A^T G    P = A (G V^T)    dL = P - W rowsum(P)    dQ = s dL K    dK += s dL^T Q

Shapes: (h,n,d), h heads of one sequence; packed (M, h d), heads side by side.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from smmil.dropout import mask
from smmil.fused_attention import fused_attention, usable

# float32 elements: sequences with no more weights than the first keep them, slices have the second (2^24: twice as
# slow and more); a GPU wants long ones
KEEP, SLICE, SLICE_GPU = 2**22, 2**18, 2**25


@dataclass(frozen=True)
class Bias:
    """A learned addend of attention logits, one number per head and kind of pair.

    Attributes:
        table: (h,c).
        kinds: (n,n) uint8 below c, the kind of a query and a key; see `smmil.fused_attention.kinds_table`.
    """

    table: Tensor
    kinds: Tensor

    def __call__(self, start: int, stop: int) -> Tensor:
        """Of the queries start..stop, (h, stop - start, n)."""
        # a product with indicators: its backward is a product too, not millions of scattered additions
        return torch.einsum("hc,cij->hij", self.table, indicators(self.kinds[start:stop], self.table))


def indicators(kinds: Tensor, table: Tensor) -> Tensor:
    """(r,n) kinds below c -> (c,r,n) in the type of the table (h,c): 1 where a pair is of the kind, else 0."""
    return (kinds == torch.arange(table.shape[1], device=kinds.device)[:, None, None]).to(table.dtype)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Bias | None = None, dropout: float = 0.0
) -> Tensor:
    """Attends without the compiled kernel; can be differentiated once.

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
    if bias is None and dropout == 0:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
    table, kinds = (None, None) if bias is None else (bias.table, bias.kinds)
    out: Tensor = _Sliced.apply(q, k, v, table, kinds, scale, dropout)
    return out


class _Sliced(torch.autograd.Function):
    """`attention` in slices of queries and heads, in at least float32, and the gradients of q, k, v and the table."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        kinds: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, table)
        ctx.kinds, ctx.scale, ctx.dropout, ctx.random = kinds, scale, dropout, None
        ctx.kept = [] if any(ctx.needs_input_grad) and len(q) * q.shape[1] ** 2 <= KEEP else None
        if ctx.kept is None:
            ctx.random = _generator_states(q.device)
        with torch.autocast(q.device.type, enabled=False):
            q, k, wide_v, table = _wide(q, k, v, table)
            out = torch.empty_like(wide_v)
            for rows, own, pairs in _slices(q, table, ctx.kinds):
                weights, left = _weights(q[own, rows], k[own], scale, table, own, pairs, dropout)
                if ctx.kept is not None:
                    ctx.kept.append((weights, left))
                out[own, rows] = left @ wide_v[own]
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        q, k, v, table = _wide(*given)
        grad = grad.to(q.dtype)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dtable = None if table is None else torch.zeros_like(table)
        kept = None if ctx.kept is None else iter(ctx.kept)
        with nullcontext() if ctx.random is None else _again(ctx.random, q.device):
            for rows, own, pairs in _slices(q, table, ctx.kinds):
                if kept is None:
                    weights, left = _weights(q[own, rows], k[own], ctx.scale, table, own, pairs, ctx.dropout)
                else:
                    weights, left = next(kept)
                dv[own].baddbmm_(left.mT, grad[own, rows])
                dlogits = (grad[own, rows] @ v[own].mT).mul_(left)
                dlogits.addcmul_(weights, dlogits.sum(-1, keepdim=True), value=-1)
                if dtable is not None and pairs is not None:
                    dtable[own] += dlogits.flatten(1) @ pairs.flatten(1).T
                dq[own, rows] = ctx.scale * (dlogits @ k[own])
                dk[own].baddbmm_(dlogits.mT, q[own, rows], alpha=ctx.scale)
        found = zip((dq, dk, dv, dtable), given, strict=True)
        return *(None if d is None else d.to(t.dtype) for d, t in found), None, None, None


def _wide(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _slices(q: Tensor, table: Tensor | None, kinds: Tensor | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Slices of queries, within them of heads, and the kinds of their pairs (c, rows, n)."""
    heads, n, _ = q.shape
    most = SLICE if q.device.type == "cpu" else SLICE_GPU
    step = max(1, min(n, most // n))
    together = max(1, most // (step * n))
    for start in range(0, n, step):
        stop = min(start + step, n)
        # for all heads: it takes as long as several of them
        pairs = None if kinds is None or table is None else indicators(kinds[start:stop], table)
        for head in range(0, heads, together):
            yield slice(start, stop), slice(head, head + together), pairs


def _weights(
    q: Tensor, k: Tensor, scale: float, table: Tensor | None, own: slice, pairs: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Softmax weights of some heads and queries, (h', rows, n), and what dropout leaves of them."""
    if table is None or pairs is None:
        logits = scale * q @ k.mT
    else:
        logits = (table[own] @ pairs.flatten(1)).view(len(q), *pairs.shape[1:]).baddbmm_(q, k.mT, alpha=scale)
    weights = torch.softmax(logits, -1)
    return weights, mask(weights, dropout).mul_(weights) if dropout else weights


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
        biases: one per bag, of one table, or None.
        dropout: probability, 0 outside training.

    Returns:
        (M, h d').
    """
    table = None if biases is None else biases[0].table
    kinds = [] if biases is None else [bias.kinds for bias in biases]
    if usable((q, k, v, table), 0 if table is None else table.shape[1]):
        return fused_attention(q, k, v, bounds, n_heads, scale=scale, table=table, kinds=kinds, dropout=dropout)
    sizes = [stop - start for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    parts = []
    # not by row numbers: the gradient of every such slice is as large as all bags
    for bag, pieces in enumerate(zip(*(torch.split(t, sizes) for t in (q, k, v)), strict=True)):
        heads = (split_heads(t, n_heads) for t in pieces)
        bias = None if biases is None else biases[bag]
        parts.append(attention(*heads, scale=scale, bias=bias, dropout=dropout).transpose(0, 1).flatten(1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


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
