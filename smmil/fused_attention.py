"""Attention of packed bags by the kernel of `attention_kernel.c`: float32 on a CPU, memory linear in the length.

Built once per machine where there is a C compiler (`preprocessing.compiled`); elsewhere, on a GPU and in other types
`smmil.attention` computes the same (to rounding, and with other random numbers of dropout).

Shapes: q, k (M, h d), v (M, h d'), heads side by side, bounds (B+1) row numbers of the bags -> (M, h d').
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from preprocessing import compiled
from smmil import native

SOURCE = Path(__file__).with_name("attention_kernel.c")
INCLUDED = ("attention_tiles.c",)
# kinds of pairs that a table may tell apart, and what a row of a bag's kinds is padded to (the keys of a tile)
MOST_KINDS, PADDED = 8, 256

_NUMBERS = ("q_stride", "k_stride", "v_stride", "out_stride", "bags", "heads", "width", "value_width", "n_kinds")


class _Job(ctypes.Structure):
    """`attention_job` of attention_kernel.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "table", "kinds", "bounds", "kinds_stride")),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("seed", ctypes.c_uint64),
        ("below", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("keep", ctypes.c_float),
    ]


class _Gradients(ctypes.Structure):
    """`attention_gradients` of attention_kernel.c."""

    _fields_ = [
        ("grad", ctypes.c_void_p),
        ("grad_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("dq", "dk", "dv", "dtable")),
    ]


def usable(tensors: Sequence[Tensor | None], n_kinds: int = 0) -> bool:
    """Whether the kernel can take these tensors and so many kinds of pairs."""
    fit = all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
    return fit and n_kinds <= MOST_KINDS and not torch.is_autocast_enabled("cpu") and library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, built if need be; None where it cannot be had."""
    # asked which vectors the machine has
    if native.library() is None:
        return None
    return compiled.library(SOURCE, flags=native.FLAGS, included=INCLUDED, wished=("-fopenmp",))


@cache
def _function(name: str) -> Any:
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled attention is not available; ask `usable` first")
    function = loaded[f"{name}_{native.width()}"]
    function.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_int]
    return function


def kinds_table(n: int, device: torch.device) -> Tensor:
    """(n,n) uint8 zeros, the view of a wider table: the kernel reads rows to the end of a tile."""
    return torch.zeros((n, _padded(n)), dtype=torch.uint8, device=device)[:, :n]


def _padded(n: int) -> int:
    return -(-n // PADDED) * PADDED


def _readable(kinds: Tensor) -> Tensor:
    """The kinds where their rows may be read to the end of a tile."""
    if kinds.stride() == (_padded(len(kinds)), 1):
        return kinds
    return kinds_table(len(kinds), kinds.device).copy_(kinds)


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Sequence[int],
    n_heads: int,
    *,
    scale: float,
    table: Tensor | None = None,
    kinds: Sequence[Tensor] = (),
    dropout: float = 0.0,
) -> Tensor:
    """(softmax(scale q k^T + table[:, kinds]), less what dropout leaves out) v inside every bag and head.

    Args:
        q: (M, h d).
        k: (M, h d).
        v: (M, h d').
        bounds: B+1 row numbers.
        n_heads: h.
        scale: of the products.
        table: (h,c), one addend per head and kind of pair, or None.
        kinds: per bag (n,n) uint8 below c, quickest as a `kinds_table`; with a table.
        dropout: probability, 0 outside training; its seed is drawn from torch's generator.

    Returns:
        (M, h d').

    Raises:
        MemoryError: no memory for the keys of a head.
    """
    out: Tensor = _Fused.apply(q, k, v, table, tuple(bounds), n_heads, scale, [_readable(t) for t in kinds], dropout)
    return out


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor | None,
        bounds: tuple[int, ...],
        n_heads: int,
        scale: float,
        kinds: list[Tensor],
        dropout: float,
    ) -> Tensor:
        q, k, v = (_rows(t) for t in (q, k, v))
        table = None if table is None else table.contiguous()
        out, lse = torch.empty(v.shape), torch.empty((len(q), n_heads))
        seed = int(torch.empty((), dtype=torch.int64).random_()) if dropout else 0
        ctx.facts = bounds, n_heads, scale, kinds, dropout, seed
        job, kept = _job(q, k, v, out, table, *ctx.facts)
        call = _function("attention_forward")
        if call(ctypes.byref(job), out.data_ptr(), lse.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"attention: no memory for the keys of {max(bounds)} rows")
        del kept
        ctx.save_for_backward(q, k, v, table, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, table, out, lse = ctx.saved_tensors
        grad = _rows(grad)
        bounds, n_heads = ctx.facts[:2]
        dq, dk, dv = (torch.empty(t.shape) for t in (q, k, v))
        dtable = None if table is None else torch.empty((len(bounds) - 1, *table.shape))
        job, kept = _job(q, k, v, out, table, *ctx.facts)
        to = _Gradients(grad.data_ptr(), grad.stride(0), *(_pointer(t) for t in (dq, dk, dv, dtable)))
        call = _function("attention_backward")
        if call(ctypes.byref(job), ctypes.byref(to), lse.data_ptr(), torch.get_num_threads()):
            raise MemoryError(f"attention: no memory for the keys of {max(bounds)} rows")
        del kept
        return dq, dk, dv, None if dtable is None else dtable.sum(0), *[None] * 5


def _rows(t: Tensor) -> Tensor:
    """The numbers of a row side by side."""
    return t if t.stride(1) == 1 else t.contiguous()


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _job(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    table: Tensor | None,
    bounds: tuple[int, ...],
    n_heads: int,
    scale: float,
    kinds: list[Tensor],
    dropout: float,
    seed: int,
) -> tuple[_Job, list[Any]]:
    """What both passes are told, and what has to live as long as they run."""
    n_bags = len(bounds) - 1
    rows = (ctypes.c_int64 * (n_bags + 1))(*bounds)
    tables = (ctypes.c_void_p * n_bags)(*(t.data_ptr() for t in kinds))
    strides = (ctypes.c_int64 * n_bags)(*(t.stride(0) for t in kinds))
    below = min(round(dropout * 2**32), 2**32 - 1)
    job = _Job(
        *(_pointer(t) for t in (q, k, v, out, table)),
        *(ctypes.cast(array, ctypes.c_void_p) for array in (tables, rows, strides)),
        *(t.stride(0) for t in (q, k, v, out)),
        *(n_bags, n_heads, q.shape[1] // n_heads, v.shape[1] // n_heads),
        *(0 if table is None else table.shape[1], seed, below, scale, 1 / (1 - below / 2**32)),
    )
    return job, [rows, tables, strides]
