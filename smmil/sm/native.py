"""The compiled kernel of Sm, `kernel.c` (paper, Equation 8): built once per machine where there is a C compiler.

Without a compiler, on a GPU and in half precision, the torch path of `smmil.sm.operator` computes the same up to
rounding. `smmil.sm.compiled` describes where the library is kept and how it is switched off. The kernel
uses the widest vectors of the processor; the environment variable `SMMIL_NATIVE_WIDTH` (16, 32 or 64 bytes) selects
narrower ones.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from smmil.sm import compiled

SOURCE = Path(__file__).with_name("kernel.c")
# No -march: the library has every vector width, so machines can share it.
FLAGS = (*compiled.FLAGS, "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
WIDTHS = (16, 32, 64)  # bytes
TYPES = {torch.float32: "float", torch.float64: "double"}


def usable(u: Tensor) -> bool:
    """Return whether the kernel takes u (M,D): not empty, on the CPU, float32 or float64."""
    return u.is_cpu and u.dtype in TYPES and u.numel() > 0 and library() is not None


def polynomial(
    u: Tensor, table: Sequence[Tensor], factor: float, c: Sequence[float], other: Tensor | None = None
) -> Tensor:
    """Evaluate P(A) U = sum_s c[s] factor^s A^s U, or <P(A) U, other> without storing P(A) U.

    Args:
        u: (M,D), float32 or float64, on the CPU.
        table: A as `smmil.sm.operator.Graph.table`, in u's type.
        factor: scales A.
        c: the T + 1 >= 2 coefficients.
        other: (M,D), of u's type.

    Returns:
        (M,D), or with `other` a scalar, the sum of the products of all elements.

    Raises:
        MemoryError: no memory for a panel of columns.
    """
    out = None if other is not None else torch.empty_like(u, memory_format=torch.contiguous_format)
    product, coefficients = ctypes.c_double(), (ctypes.c_double * len(c))(*c)
    # The list keeps contiguous copies alive until the kernel returns.
    arrays = [None if tensor is None else tensor.contiguous() for tensor in (u, other, out, *table)]
    u_pointer, other_pointer, out_pointer, *pointers = (None if a is None else a.data_ptr() for a in arrays)
    if _kernel(u.dtype)(
        *(u_pointer, other_pointer, out_pointer, ctypes.byref(product), *pointers, *u.shape, table[0].shape[1]),
        *(factor, coefficients, len(c) - 1, torch.get_num_threads()),
    ):
        raise MemoryError(f"Sm: no memory for {u.shape[0]} rows")
    return u.new_tensor(product.value) if out is None else out


# Cached, as preparing the function takes as long as two steps on a small bag.
@cache
def _kernel(dtype: torch.dtype) -> Callable[..., int]:
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled Sm is not available; call `usable` first")
    function = loaded[f"sm_polynomial_{TYPES[dtype]}_{width()}"]
    function.argtypes = [
        *[ctypes.c_void_p] * 7,
        *[ctypes.c_int64] * 3,
        *(ctypes.c_double, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int),
    ]
    return function


def widths() -> list[int]:
    """Return the vector widths that can run here, in bytes, ascending; empty without the library."""
    loaded = library()
    return [] if loaded is None else [width for width in WIDTHS if width <= loaded.sm_widest()]


@cache
def width() -> int:
    """Return the vector width in use, in bytes.

    Raises:
        ValueError: `SMMIL_NATIVE_WIDTH` is not a width that can run here.
    """
    possible, requested = widths(), os.environ.get("SMMIL_NATIVE_WIDTH")
    if not requested:
        return possible[-1]
    if requested not in map(str, possible):
        raise ValueError(f"SMMIL_NATIVE_WIDTH: found {requested!r}, this machine can run {possible} (bytes)")
    return int(requested)


@cache
def library() -> ctypes.CDLL | None:
    """Return the loaded library, built if necessary; None where it cannot be built."""
    # A compiler without OpenMP builds the same library for one thread.
    return compiled.library(SOURCE, flags=FLAGS, wished=("-fopenmp",))
