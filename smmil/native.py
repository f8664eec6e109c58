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
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("sm_kernel.c")
# no -march: the kernel carries a version for each vector width and the loader picks one
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi")
NAMES = {torch.float32: "sm_steps_f32", torch.float64: "sm_steps_f64"}


def usable(u: Tensor) -> bool:
    """Whether the compiled path can take this tensor."""
    return u.device.type == "cpu" and u.dtype in NAMES and u.numel() > 0 and library() is not None


def steps(
    u: Tensor, index: Tensor, weight: Tensor, self_weight: Tensor, alpha: float, T: int, *, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """T steps of Sm, and their derivative with respect to alpha.

    Args:
        u: (M,D), float32 or float64 on the CPU.
        index: (M,K) int32.
        weight: (M,K), of u's type.
        self_weight: (M,), of u's type.
        alpha: in [0,1).
        T: number of steps.
        slope: whether the derivative is wanted.

    Returns:
        (M,D) result, and (M,D) derivative or None.

    Raises:
        MemoryError: no memory for a block of columns.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError("the compiled Sm is not available; ask `usable` first")
    u, index, weight, self_weight = (t.contiguous() for t in (u, index, weight, self_weight))
    g = torch.empty_like(u)
    k = torch.empty_like(u) if slope else None
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (u, g)] + [
        ctypes.c_void_p(k.data_ptr() if k is not None else None)
    ]
    pointers += [ctypes.c_void_p(t.data_ptr()) for t in (index, weight, self_weight)]
    sizes = [ctypes.c_int64(n) for n in (*u.shape, index.shape[1])]
    call = getattr(loaded, NAMES[u.dtype])
    if call(*pointers, *sizes, ctypes.c_double(alpha), ctypes.c_int64(T), ctypes.c_int(torch.get_num_threads())):
        raise MemoryError(f"Sm: no memory for {u.shape[0]} rows")
    return g, k


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
