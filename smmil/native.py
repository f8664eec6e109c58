"""The compiled Sm of `sm_kernel.c`: built once per machine with the C compiler that is there, or left out.

Without a compiler, on a GPU, or in half precision the pure torch path of `smmil.sm` computes the same (to rounding;
tested). `SMMIL_NATIVE=0` in the environment switches the compiled path off; `SMMIL_CACHE` moves the built library.

Shapes: see `smmil.sm.sm_steps`.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("sm_kernel.c")
# no -march: the kernel carries a version for each vector width and the loader picks one
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def usable(u: Tensor) -> bool:
    """Whether the compiled path can take this tensor."""
    return u.device.type == "cpu" and u.dtype in SUFFIX and u.numel() > 0 and library() is not None


def steps(u: Tensor, index: Tensor, weight: Tensor, self_weight: Tensor, alpha: float, T: int) -> Tensor:
    """T >= 1 steps of Sm.

    Args:
        u: (M,D), float32 or float64 on the CPU.
        index: (M,K) int32.
        weight: (M,K), of u's type.
        self_weight: (M,), of u's type.
        alpha: the trade-off.
        T: number of steps.

    Returns:
        (M,D).

    Raises:
        MemoryError: no memory for a block of columns.
    """
    u = u.contiguous()
    g = torch.empty_like(u)
    table = [t.contiguous() for t in (index, weight, self_weight)]
    call = getattr(_loaded(), f"sm_steps_{SUFFIX[u.dtype]}")
    numbers = (ctypes.c_double(alpha), ctypes.c_int64(T), ctypes.c_int(torch.get_num_threads()))
    if call(*_pointers(u, g, *table), *_sizes(u, index), *numbers):
        raise MemoryError(f"Sm: no memory for {u.shape[0]} rows")
    return g


def gradients(
    grad: Tensor, u: Tensor, index: Tensor, weight: Tensor, self_weight: Tensor, c: Sequence[float], d: Sequence[float]
) -> tuple[Tensor, float]:
    """sum_s c[s] A^s grad and sum_s d[s] <A^s grad, u>, the gradients of T = len(c) - 1 >= 1 steps.

    Args:
        grad: (M,D), as u.
        u: (M,D), float32 or float64 on the CPU.
        index: (M,K) int32.
        weight: (M,K), of u's type.
        self_weight: (M,), of u's type.
        c: T + 1 coefficients.
        d: T + 1 coefficients.

    Returns:
        (M,D) and a number.

    Raises:
        MemoryError: no memory for a block of columns.
    """
    grad, u = grad.contiguous(), u.contiguous()
    out, slope = torch.empty_like(u), ctypes.c_double()
    table = [t.contiguous() for t in (index, weight, self_weight)]
    factors = [(ctypes.c_double * len(row))(*row) for row in (c, d)]
    call = getattr(_loaded(), f"sm_gradients_{SUFFIX[u.dtype]}")
    numbers = (ctypes.c_int64(len(c) - 1), ctypes.c_int(torch.get_num_threads()))
    first = (*_pointers(grad, u, out), ctypes.byref(slope), *factors)
    if call(*first, *_pointers(*table), *_sizes(u, index), *numbers):
        raise MemoryError(f"Sm: no memory for {u.shape[0]} rows")
    return out, slope.value


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _sizes(u: Tensor, index: Tensor) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(n) for n in (*u.shape, index.shape[1])]


def _loaded() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled Sm is not available; ask `usable` first")
    return loaded


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library, built if need be; None where it cannot be had (logged once)."""
    if os.environ.get("SMMIL_NATIVE", "1") == "0":
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("no compiled Sm (%s); the torch path is used", str(error).strip().splitlines()[-1:])
        return None


def _built() -> Path:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    source = SOURCE.read_bytes()
    key = hashlib.sha256(source + " ".join(FLAGS).encode() + platform.platform().encode()).hexdigest()[:16]
    folder = Path(os.environ.get("SMMIL_CACHE") or Path.home() / ".cache" / "smmil")
    target = folder / f"sm-{key}.so"
    if target.exists():
        return target
    if compiler is None:
        raise OSError("no C compiler found")
    folder.mkdir(parents=True, exist_ok=True)
    # built under a name of its own and renamed, so that jobs that start together never load half a library
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for openmp in (["-fopenmp"], []):
            made = Path(scratch) / "sm.so"
            command = [compiler, *FLAGS, *openmp, str(SOURCE), "-o", str(made)]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            if run.returncode == 0:
                os.replace(made, target)
                return target
    raise OSError(f"{compiler}: {run.stderr.strip() or 'failed'}")
