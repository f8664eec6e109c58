"""Resize and normalise 8-bit tiles with the compiled loops of `pixel_kernel.c`.

Callers fall back to torch where the loops cannot be compiled. The resize is bilinear with antialias and equals torch's
integer kernel to the bit: triangular weights as wide as the reduction, normalised in float64, then rounded to the most
fractional bits that fit into 16.
"""

import ctypes
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.common.compiled import library

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_SOURCE = Path(__file__).with_name("pixel_kernel.c")
_WEIGHT_BITS = 15
_MAX_PRECISION = 22


@cache
def can_resize() -> bool:
    """Return whether `resize` works on this machine."""
    loaded = library(_SOURCE)
    return loaded is not None and bool(loaded.resize_supported())


def available() -> bool:
    """Return whether `normalise` works on this machine."""
    return library(_SOURCE) is not None


def resize(tile: Image, out: Image) -> None:
    """Resize `tile` (H, W, 3) into `out` (h, w, 3); both contiguous uint8.

    Raises:
        ValueError: another shape, type or memory layout.
        MemoryError: no memory for a few rows.
    """
    for array in (tile, out):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.flags.c_contiguous:
            raise ValueError(f"resize: {array.dtype}{array.shape}, expected contiguous uint8 of shape (H, W, 3)")
    if 0 in tile.shape or 0 in out.shape or not out.flags.writeable:
        raise ValueError(f"resize: {tile.shape} into {out.shape}, expected at least one pixel and writable memory")
    sizes = [ctypes.c_int64(n) for n in (*tile.shape[:2], *out.shape[:2])]
    axes = (*_axis(tile.shape[1], out.shape[1])[0], *_axis(tile.shape[0], out.shape[0])[0])
    if _loaded().resize_u8(_pointer(tile), _pointer(out), *sizes, *axes):
        raise MemoryError(f"no memory to resize a tile of {tile.shape[1]} px")


def normalise(pixels: Image, shift: Floats, scale: Floats, out: Floats) -> None:
    """Write (pixels - shift) / scale into `out`, rounded to float32 after each step; all contiguous.

    Args:
        pixels: (..., 3) uint8.
        shift: (3,) float32, one per channel.
        scale: (3,) float32, one per channel.
        out: shape of `pixels`, float32.

    Raises:
        ValueError: another shape, type or memory layout.
    """
    shapes = pixels.shape[-1:] == shift.shape == scale.shape == (3,) and out.shape == pixels.shape
    types = pixels.dtype == np.uint8 and shift.dtype == scale.dtype == out.dtype == np.float32
    contiguous = all(array.flags.c_contiguous for array in (pixels, shift, scale, out))
    if not (shapes and types and contiguous and out.flags.writeable):
        raise ValueError(f"normalise: {pixels.dtype}{pixels.shape} -> {out.dtype}{out.shape}, expected (..., 3)")
    count = ctypes.c_int64(out.size // 3)
    _loaded().normalise_u8(_pointer(pixels), _pointer(out), count, _pointer(shift), _pointer(scale))


def _loaded() -> ctypes.CDLL:
    loaded = library(_SOURCE)
    if loaded is None:
        raise RuntimeError("pixel_kernel.c is not compiled; call can_resize() or available() first")
    return loaded


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@lru_cache(maxsize=64)
def _axis(size: int, out_size: int) -> tuple[tuple[Any, ...], Any]:
    """Return the kernel's arguments for one direction (first inputs, weights, pairs, precision) and their arrays.

    The pointers are valid as long as the arrays live; the cache keeps both.
    """
    scale = size / out_size
    support = max(scale, 1.0)
    centre = scale * (np.arange(out_size) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    offset = np.arange(int(count.max()))
    distance = (offset + first[:, None] - centre[:, None] + 0.5) * (1 / scale if scale >= 1 else 1.0)
    weight = np.where(offset < count[:, None], np.maximum(1 - np.abs(distance), 0), 0)
    # cumsum adds from left to right, as torch does; sum() adds in another order and rounds differently
    weight /= np.cumsum(weight, axis=1)[:, -1:]
    precision = 1
    while precision < _MAX_PRECISION and int(0.5 + weight.max() * 2 ** (precision + 1)) < 1 << _WEIGHT_BITS:
        precision += 1
    pairs = -(-len(offset) // 2)
    fixed = np.zeros((out_size, 2 * pairs), np.int16)
    fixed[:, : len(offset)] = weight * 2**precision + 0.5
    start = np.ascontiguousarray(first, np.int32)
    return (_pointer(start), _pointer(fixed), ctypes.c_int64(pairs), ctypes.c_int(precision)), (start, fixed)
