"""Device choice, precision, determinism and the state of every random generator.

- CPU: with a fixed thread count the same seed gives the same bits, also across a stop and a resume.
- CUDA: operations with a deterministic implementation use it, the others warn once; results repeat to a tolerance.
"""

import os
import random
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import numpy as np
import torch

# The driver, cuBLAS and the CPU allocator raise plain RuntimeErrors.
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device named `auto`, `cpu`, `cuda` or `cuda:1`; raise a ValueError if this machine has none such."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device: found {name!r}, expected auto, cpu, cuda or cuda:<index>")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device: found {name!r}, but {count} CUDA devices are visible here; use auto or cpu")
    return device


def device_name(device: torch.device) -> str:
    """Return the name of the hardware for provenance, e.g. `NVIDIA H100`; `cpu` for any processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory of this process in MiB: `memory_mib`, on a GPU also `device_memory_mib` (tensors)."""
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)}
    if device.type == "cuda":
        peak["device_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return peak


def flushes_denormals() -> bool:
    """Return whether this thread flushes denormal numbers (float32: below 1.2e-38) to zero."""
    return not bool(torch.tensor(1e-39) * 1.0)


@contextmanager
def numerics(
    device: torch.device, *, deterministic: bool = True, precision: str = "float32", threads: int | None = None
) -> Iterator[None]:
    """Set torch's global numerical switches inside the context and restore them afterwards.

    Args:
        device: device of the computation.
        deterministic: use deterministic implementations; where there is none, raise on the CPU and warn on CUDA, where
            some reductions have no deterministic form.
        precision: `float32`; `tf32` (CUDA matrix products and convolutions in TensorFloat-32); `bf16` (`autocast`).
        threads: torch threads inside one operation; None keeps the current number. Another number may change the last
            bits.
    """
    before = (
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        flushes_denormals(),
    )
    if deterministic:
        # cuBLAS reads this when it creates its first handle.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("warn" if device.type == "cuda" else "error")
        # Filling every empty() with NaN costs bandwidth.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cpu":
        # Attention weights and gradients become denormal as training converges, and some processors compute with
        # denormal numbers a hundred times slower. Threads started later inherit the setting.
        torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    # This also sets torch.backends.cuda.matmul.allow_tf32; cuDNN has a separate switch.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
        torch.set_num_threads(before[2])
        torch.set_float32_matmul_precision(before[3])
        torch.backends.cudnn.allow_tf32 = before[4]
        torch.set_flush_denormal(before[5])


def numerics_facts(device: torch.device, precision: str) -> dict[str, str | int | None]:
    """Return the current numerical settings for the record of a run, on CUDA also its version and memory (bytes)."""
    facts: dict[str, str | int | None] = {
        "device": device.type,
        "precision": precision,
        "autocast": "bfloat16" if precision == "bf16" else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda_matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "threads": torch.get_num_threads(),
        "denormals_flushed": flushes_denormals(),
    }
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        facts |= {"cuda": torch.version.cuda, "device_memory_bytes": total}
    return facts


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 autocast for `bf16`, otherwise one that does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy and `random`, as the authors' code does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class RngState(TypedDict):
    """The state of every global generator, loadable with `weights_only=True`."""

    python: tuple[Any, ...]
    numpy: tuple[str, list[int], int, int, float]
    torch: torch.Tensor
    cuda: list[torch.Tensor]


def rng_state() -> RngState:
    """Return the state of every global generator."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: RngState) -> None:
    """Restore every global generator from `rng_state`; CUDA only if the number of devices is the same."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of a compiled kernel means that memory is exhausted."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def release(device: torch.device) -> None:
    """Return unused blocks of the CUDA allocator to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
