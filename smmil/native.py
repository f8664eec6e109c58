"""The compiled Sm of `sm_kernel.c` and the files it includes: built once per machine where there is a C compiler.

Without a compiler, on a GPU, or in half precision the pure torch path of `smmil.sm` computes the same (to rounding;
tested). `preprocessing.compiled` says how it is switched off and where it is kept. It runs with the widest vectors the
processor has; `SMMIL_NATIVE_WIDTH` in the environment (16, 32 or 64 bytes) takes narrower ones.

Shapes: see `smmil.sm.sm_steps`.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preprocessing import compiled

SOURCE = Path(__file__).with_name("sm_kernel.c")
INCLUDED = ("sm_chains.c", "sm_panels.c", "sm_rows.c")
# no -march: the kernel carries a version for each width of vectors
FLAGS = (*compiled.FLAGS, "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
# bytes
WIDTHS = (16, 32, 64)
TYPES = {torch.float32: "float", torch.float64: "double"}

_TABLE, _SIZES = [ctypes.c_void_p] * 4, [ctypes.c_int64] * 3
ARGUMENTS: dict[str, Any] = {
    "sm_steps": [*[ctypes.c_void_p] * 2, *_TABLE, *_SIZES, ctypes.c_double, ctypes.c_int64, ctypes.c_int],
    "sm_gradients": [*[ctypes.c_void_p] * 6, *_TABLE, *_SIZES, ctypes.c_int64, ctypes.c_int],
}


def usable(u: Tensor) -> bool:
    """Whether the compiled path can take this tensor."""
    return u.is_cpu and u.dtype in TYPES and u.numel() > 0 and library() is not None


def steps(
    u: Tensor, index: Tensor, weight: Tensor, self_weight: Tensor, scale: Tensor | None, alpha: float, T: int
) -> Tensor:
    """T >= 1 steps of Sm.

    Args:
        u: (M,D), float32 or float64 on the CPU.
        index: (M,K) int32; padding is the row itself with weight 0.
        weight: (M,K), of u's type.
        self_weight: (M,), of u's type.
        scale: (M,), positive, of u's type, if the weight of every edge is scale[i] scale[j]: rows of a lattice then
            share sums.
        alpha: the trade-off.
        T: number of steps.

    Returns:
        (M,D).

    Raises:
        MemoryError: no memory for a block of columns.
    """
    u = u.contiguous()
    g = torch.empty_like(u)
    table = [None if t is None else t.contiguous() for t in (index, weight, self_weight, scale)]
    call = _function("sm_steps", u.dtype)
    if call(*_pointers(u, g, *table), *u.shape, index.shape[1], alpha, T, torch.get_num_threads()):
        raise MemoryError(f"Sm: no memory for {u.shape[0]} rows")
    return g


def gradients(
    grad: Tensor,
    u: Tensor,
    index: Tensor,
    weight: Tensor,
    self_weight: Tensor,
    scale: Tensor | None,
    c: Sequence[float],
    d: Sequence[float],
) -> tuple[Tensor, float]:
    """sum_s c[s] A^s grad and sum_s d[s] <A^s grad, u>, the gradients of T = len(c) - 1 >= 1 steps.

    Args:
        grad: (M,D), as u.
        u: (M,D), float32 or float64 on the CPU.
        index: (M,K) int32; padding is the row itself with weight 0.
        weight: (M,K), of u's type.
        self_weight: (M,), of u's type.
        scale: as in `steps`.
        c: T + 1 coefficients.
        d: T + 1 coefficients.

    Returns:
        (M,D) and a number.

    Raises:
        MemoryError: no memory for a block of columns.
    """
    grad, u = grad.contiguous(), u.contiguous()
    out, slope = torch.empty_like(u), ctypes.c_double()
    table = [None if t is None else t.contiguous() for t in (index, weight, self_weight, scale)]
    factors = [(ctypes.c_double * len(row))(*row) for row in (c, d)]
    call = _function("sm_gradients", u.dtype)
    first = (*_pointers(grad, u, out), ctypes.byref(slope), *factors)
    if call(*first, *_pointers(*table), *u.shape, index.shape[1], len(c) - 1, torch.get_num_threads()):
        raise MemoryError(f"Sm: no memory for {u.shape[0]} rows")
    return out, slope.value


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


# looked up once: after other work has filled the caches, a look-up takes as long as two steps on a small bag
@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled Sm is not available; ask `usable` first")
    function = loaded[f"{name}_{TYPES[dtype]}_{width()}"]
    function.argtypes = ARGUMENTS[name]
    return function


def widths() -> list[int]:
    """The widths of vectors that can run here, in bytes, ascending; empty without the library."""
    loaded = library()
    return [] if loaded is None else [width for width in WIDTHS if width <= loaded.sm_widest()]


@cache
def width() -> int:
    """The width of vectors in use, in bytes; asked once.

    Raises:
        ValueError: `SMMIL_NATIVE_WIDTH` names none that can run here.
    """
    possible, wished = widths(), os.environ.get("SMMIL_NATIVE_WIDTH")
    if not wished:
        return possible[-1]
    if wished not in map(str, possible):
        raise ValueError(f"SMMIL_NATIVE_WIDTH: found {wished!r}, this machine can run {possible} (bytes)")
    return int(wished)


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, built if need be; None where it cannot be had."""
    # a compiler without OpenMP makes the same library for one thread
    return compiled.library(SOURCE, flags=FLAGS, included=INCLUDED, wished=("-fopenmp",))
