"""Device choice, precision, determinism and the state of every random generator.

One place decides on what a model runs and how exactly it repeats itself:

- CPU: with a fixed thread count the same seed gives the same bits, also across a stop and a resume;
- CUDA: operations with a deterministic implementation use it, the others warn once; results repeat to a tolerance.
"""

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "tf32", "bf16")
# bytes; the second is the most that older versions of glibc take
KEPT = (2**28, 2**25)
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str = "auto") -> "torch.device":
    """Turns `auto`, `cpu`, `cuda` or `cuda:1` into a device that exists.

    Raises:
        ValueError: the device is unknown or not present on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: found {name!r}, expected auto, cpu, cuda or cuda:<index>") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: found {name!r}, expected auto, cpu, cuda or cuda:<index>")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"device: found {name!r}, but {count} CUDA devices are visible here; use auto or cpu")
    return device


def device_name(device: "torch.device") -> str:
    """The hardware's name for provenance, e.g. `NVIDIA H100`; plain `cpu` for the processor (never a host name)."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_memory(device: "torch.device") -> dict[str, int]:
    """The most memory this process has held so far, MiB: `memory_mib`, on a GPU also `device_memory_mib` (tensors)."""
    import resource

    # Linux counts in KiB, macOS in bytes
    unit = 2**20 if sys.platform == "darwin" else 2**10
    found = {"memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)}
    if device.type == "cuda":
        import torch

        found["device_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return found


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, up to 256 MiB, where the C library is glibc.

    glibc gives large blocks back to the system at once: every step of a training then gets thousands of new pages,
    a tenth of its time on a CPU. No number depends on it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return  # Windows, macOS, musl
    for threshold in (TRIM_THRESHOLD, MMAP_THRESHOLD):
        any(mallopt(threshold, size) for size in KEPT)


def flushes_denormals() -> bool:
    """Whether arithmetic of this thread takes numbers below the normal ones (float32: 1.2e-38) for 0."""
    import torch

    return not bool(torch.tensor(1e-39) * 1.0)


def _set_deterministic(mode: bool, *, warn_only: bool) -> None:
    """`torch.use_deterministic_algorithms` without its import of torch's compiler, which costs a job 5 s of CPU."""
    import torch

    torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)


@contextmanager
def numerics(
    device: "torch.device", *, deterministic: bool = True, precision: str = "float32", threads: int | None = None
) -> Iterator[None]:
    """Sets torch's global numerical switches for a block and puts them back after it; see also `keep_freed_memory`.

    Args:
        device: where the block computes.
        deterministic: prefer deterministic implementations (an error on CPU where there is none, a warning on CUDA,
            where some reductions have no deterministic form).
        precision: `float32`; `tf32` (CUDA matrix products and convolutions in TensorFloat-32, which no other precision
            allows); `bf16` (see `autocast`).
        threads: torch threads inside one operation; None leaves them. Another count may change the last bits.

    Raises:
        ValueError: unknown precision.
    """
    import torch

    if precision not in PRECISIONS:
        raise ValueError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        flushes_denormals(),
    )
    if deterministic:
        # cuBLAS reads this when its first handle is made; harmless without CUDA
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _set_deterministic(True, warn_only=device.type == "cuda")
        # filling every empty() with NaN guards against reading it, at a price in bandwidth; our code never does
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cpu":
        keep_freed_memory()
        # weights of attention and gradients fall below the normal numbers as a training fits its bags; some processors
        # take a hundred times as long over those, a whole epoch six times. Threads begun later do as this one
        torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    # also sets torch.backends.cuda.matmul.allow_tf32; cuDNN has a switch of its own, on by default
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        _set_deterministic(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.set_num_threads(before[3])
        torch.set_float32_matmul_precision(before[4])
        torch.backends.cudnn.allow_tf32 = before[5]
        torch.set_flush_denormal(before[6])


def numerics_facts(device: "torch.device", precision: str) -> dict[str, Any]:
    """What `numerics` has set, read back from torch: for the record of a run.

    Args:
        device: where it computes.
        precision: asked for.

    Returns:
        JSON-able; on CUDA also its version and the memory of the device.
    """
    import torch

    facts: dict[str, Any] = {
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


def autocast(device: "torch.device", precision: str) -> AbstractContextManager[Any]:
    """The context a forward pass runs in: bfloat16 autocast for `bf16`, nothing otherwise."""
    import torch

    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices), numpy and `random` (methods.md section 3, "Seeding")."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of every global generator as tensors and plain numbers, loadable with `weights_only=True`."""
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Puts every global generator back to what `rng_state` saw; CUDA only if as many devices are visible."""
    import numpy as np
    import torch

    python, numeric = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numeric["keys"].numpy().astype(np.uint32)
    np.random.set_state((numeric["kind"], keys, numeric["position"], numeric["has_gauss"], numeric["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])
