"""The compiled pixel loops of `pixel_kernel.c`: resizing and normalising bytes, looking up CT values.

Without them: torch and NumPy.

Resizing is bilinear with antialias and gives the bits of torch's integer kernel (its weights: triangles as wide as the
reduction, float64, summed to 1, rounded to the most binary digits that 16 bits hold), tested for equality.
(H, W, 3) uint8 -> (h, w, 3) uint8; (..., 3) uint8 -> (..., 3) float32; (M,) uint16 -> (M, 3) float32.
"""

import ctypes
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.compiled import library

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_SOURCE = Path(__file__).with_name("pixel_kernel.c")
_WEIGHT_BITS = 15
_MOST_DIGITS = 22


@cache
def can_resize() -> bool:
    """Whether `resize` works on this machine."""
    loaded = library(_SOURCE)
    return loaded is not None and bool(loaded.resize_supported())


def available() -> bool:
    """Whether `normalise` and `look_up` work on this machine."""
    return library(_SOURCE) is not None


def resize(tile: Image, out: Image) -> None:
    """Fills `out` (h, w, 3) with `tile` (H, W, 3) resized; both contiguous uint8.

    Raises:
        ValueError: arrays of another kind.
        MemoryError: no memory for a few rows.
    """
    for array in (tile, out):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.flags.c_contiguous:
            raise ValueError(f"resize: {array.dtype}{array.shape}, expected contiguous uint8 of shape (H, W, 3)")
    if 0 in tile.shape or 0 in out.shape or not out.flags.writeable:
        raise ValueError(f"resize: {tile.shape} into {out.shape}, expected pixels, and memory that may be written")
    sizes = [ctypes.c_int64(n) for n in (*tile.shape[:2], *out.shape[:2])]
    axes = (*_axis(tile.shape[1], out.shape[1])[0], *_axis(tile.shape[0], out.shape[0])[0])
    if _loaded().resize_u8(_pointer(tile), _pointer(out), *sizes, *axes):
        raise MemoryError(f"no memory to resize a tile of {tile.shape[1]} px")


def normalise(pixels: Image, shift: Floats, scale: Floats, out: Floats) -> None:
    """Fills `out` with (pixels - shift) / scale, rounded to float32 after each step; all contiguous.

    Args:
        pixels: (..., 3) uint8.
        shift: (3,) float32, of the channels.
        scale: likewise.
        out: as `pixels`, float32.

    Raises:
        ValueError: arrays of another kind.
    """
    shapes = pixels.shape[-1:] == shift.shape == scale.shape == (3,) and out.shape == pixels.shape
    types = pixels.dtype == np.uint8 and shift.dtype == scale.dtype == out.dtype == np.float32
    whole = all(array.flags.c_contiguous for array in (pixels, shift, scale, out))
    if not (shapes and types and whole and out.flags.writeable):
        raise ValueError(f"normalise: {pixels.dtype}{pixels.shape} -> {out.dtype}{out.shape}, expected (..., 3)")
    count = ctypes.c_int64(out.size // 3)
    _loaded().normalise_u8(_pointer(pixels), _pointer(out), count, _pointer(shift), _pointer(scale))


def look_up(table: Floats, values: npt.NDArray[np.uint16], out: Floats) -> None:
    """Puts the first three numbers of each value's record (65536, 4) into `out` (M, 3); all contiguous.

    Raises:
        ValueError: arrays of another kind.
    """
    shapes = table.shape == (1 << 16, 4) and values.ndim == 1 and out.shape == (len(values), 3)
    types = table.dtype == out.dtype == np.float32 and values.dtype == np.uint16
    if not (shapes and types and all(a.flags.c_contiguous for a in (table, values, out)) and out.flags.writeable):
        raise ValueError(f"look_up: {table.dtype}{table.shape}, {values.dtype}{values.shape} -> {out.dtype}{out.shape}")
    _loaded().look_up_f32(_pointer(values), _pointer(table), _pointer(out), ctypes.c_int64(len(values)))


def _loaded() -> ctypes.CDLL:
    loaded = library(_SOURCE)
    if loaded is None:
        raise RuntimeError("the compiled pixel loops are not available; ask `can_resize` or `available` first")
    return loaded


def _pointer(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@lru_cache(maxsize=64)
def _axis(size: int, wanted: int) -> tuple[tuple[Any, ...], Any]:
    """One direction as the kernel takes it (first inputs, weights, pairs, digits), and what keeps its memory alive."""
    scale = size / wanted
    support = max(scale, 1.0)
    centre = scale * (np.arange(wanted) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), size) - first
    offset = np.arange(int(count.max()))
    away = (offset + first[:, None] - centre[:, None] + 0.5) * (1 / scale if scale >= 1 else 1.0)
    weight = np.where(offset < count[:, None], np.maximum(1 - np.abs(away), 0), 0)
    # one after the other, as a sum in another order would end in other bits
    weight /= np.cumsum(weight, axis=1)[:, -1:]
    digits = 1
    while digits < _MOST_DIGITS and int(0.5 + weight.max() * 2 ** (digits + 1)) < 1 << _WEIGHT_BITS:
        digits += 1
    pairs = -(-len(offset) // 2)
    whole = np.zeros((wanted, 2 * pairs), np.int16)
    whole[:, : len(offset)] = weight * 2**digits + 0.5
    start = np.ascontiguousarray(first, np.int32)
    return (_pointer(start), _pointer(whole), ctypes.c_int64(pairs), ctypes.c_int(digits)), (start, whole)
