"""Stored CT values to windowed channels through a table: the same bits as `to_hu` and `window_channels`, faster.

A slice has 262,144 pixels but 65,536 possible values, and the slices of a series share their rescaling. So repair,
rescaling, padding and windows are computed once per possible value (by the functions of `preprocessing.dicom`) and
looked up per pixel, by a compiled loop where there is one. raw (H, W) integers -> (H, W, C) float32 in [0, 1].
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing import pixel_kernel
from preprocessing.dicom import Header, check_slice, to_hu, window_channels

_VALUES = 1 << 16
# rescalings whose tables are kept (1 MB each): as many series as are read at a time
_TABLES = 64
# NumPy copies records of 16 bytes with two instructions, those of 12 through a call, so that a record has four channels
_RECORD = np.dtype(np.complex128)
# pixels looked up at a time: the fewer, the more calls; the more, the less of their 24 bytes each stays in a cache
_BLOCK_PX = 1 << 17

Windows = tuple[tuple[float, float], ...]


def windowed(
    raw: npt.NDArray[Any],
    header: Header,
    windows: Sequence[tuple[float, float]],
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """One channel per (level, width).

    Args:
        raw: (H, W) values of `read_slice` or `read_stored`; not changed.
        header: the slice's header.
        windows: level and width of each channel, HU.
        out: memory that may be used for the result, if it fits; its content is lost.

    Returns:
        (H, W, C) float32 in [0, 1], contiguous; `out` or a new array.

    Raises:
        ValueError: no rescale values, or a width of 0 or less.
    """
    check_slice(header)
    if raw.dtype != (np.int16 if header.signed else np.uint16):
        raw = raw.astype(np.int32, copy=False)
        first = -_VALUES // 2 if header.signed else 0
        if raw.size == 0 or int(raw.min()) < first or int(raw.max()) >= first + _VALUES:
            return window_channels(to_hu(raw, header), windows)
        raw = raw.astype(np.uint16)  # the low 16 bits count from 0 for either sign
    assert header.slope is not None and header.intercept is not None
    key = (header.bits_stored, header.signed, header.slope, header.intercept, header.padding)
    flat = np.ascontiguousarray(raw).view(np.uint16).reshape(-1)
    shape = (*raw.shape, len(windows))
    if out is None or out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        out = np.empty(shape, dtype=np.float32)
    rows = out.reshape(flat.size, len(windows))
    for first in range(0, len(windows), 3):
        three = rows if len(windows) == 3 else np.empty((flat.size, 3), dtype=np.float32)
        chosen = tuple(windows[first : first + 3])
        table = _table(*key, chosen)
        if pixel_kernel.available():
            pixel_kernel.look_up(table, flat, three)
        else:
            _look_up(table, flat, three)
        if three is not rows:
            rows[:, first : first + 3] = three[:, : len(chosen)]
    return out


class _Scratch(threading.local):
    """A thread's indices and records of one block; fresh memory for every slice costs more than looking it up."""

    def __init__(self) -> None:
        self.index = np.empty(_BLOCK_PX, np.intp)
        self.records = np.empty(_BLOCK_PX, _RECORD)


_SCRATCH = _Scratch()


def _look_up(table: npt.NDArray[np.float32], values: npt.NDArray[np.uint16], out: npt.NDArray[np.float32]) -> None:
    """Puts the first three numbers of each value's record into `out` (M, 3)."""
    import cv2

    whole = table.view(_RECORD).reshape(-1)
    for start in range(0, len(values), _BLOCK_PX):
        count = min(_BLOCK_PX, len(values) - start)
        index, records = _SCRATCH.index[:count], _SCRATCH.records[:count]
        np.copyto(index, values[start : start + count])
        # 16 bits are never out of range, and only with "clip" are the records written where they belong at once
        whole.take(index, out=records, mode="clip")
        four = records.view(np.float32).reshape(1, count, 4)
        cv2.cvtColor(four, cv2.COLOR_RGBA2RGB, dst=out[None, start : start + count])


@lru_cache(maxsize=_TABLES)
def _table(
    bits: int, signed: bool, slope: float, intercept: float, padding: tuple[int, int] | None, windows: Windows
) -> npt.NDArray[np.float32]:
    """Records of every 16-bit value, (65536, 4), each up to three channels and filling; place = the low 16 bits."""
    numbers = np.arange(_VALUES, dtype=np.int32)
    values = np.where(numbers >= _VALUES // 2, numbers - _VALUES, numbers) if signed else numbers
    # what tells slices of one rescaling apart has no part in the table
    header = Header(
        **dict.fromkeys(("name", "study", "series"), ""),  # type: ignore[arg-type]
        **dict.fromkeys(("series_number", "instance_number", "pixel_spacing"), None),  # type: ignore[arg-type]
        **dict.fromkeys(("frames", "samples", "rows", "columns"), 1),  # type: ignore[arg-type]
        modality="CT",
        bits_stored=bits,
        signed=signed,
        slope=slope,
        intercept=intercept,
        position=(0.0, 0.0, 0.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        padding=padding,
    )
    table = np.zeros((_VALUES, 4), dtype=np.float32)
    table[:, : len(windows)] = window_channels(to_hu(values[None], header), windows)[0]
    table.flags.writeable = False
    return table
