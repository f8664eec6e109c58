"""Recognise errors that mean a device is out of memory, and release what it caches."""

import torch

# The driver, cuBLAS and the CPU allocator raise plain RuntimeErrors.
MESSAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch or of a compiled kernel means that memory is exhausted."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in MESSAGES)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def release(device: torch.device) -> None:
    """Return unused blocks of the CUDA allocator to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
