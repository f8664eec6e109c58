"""Turn stored CT values into Hounsfield units and windowed channels.

HU = stored * RescaleSlope + RescaleIntercept, per slice. 12-bit values that wrapped around (BitsStored 12, unsigned,
intercept > -100) are repaired first: add 1000, subtract 4096 from what reaches 4096, and use an intercept of -1000. A
window (level L, width W) is clip((HU - (L - W/2)) / W, 0, 1), DICOM's LINEAR_EXACT.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.scans.dicom import Header, check_slice

FloatArray = npt.NDArray[np.float32]
Windows = tuple[tuple[float, float], ...]

AIR_HU = -1000.0
# out-of-field values seen in head CT with slope 1: -2000 as signed 16-bit, the same bits read unsigned, and with the
# top bit lost
FILL_VALUES = (-2000, 63536, 30768)


def to_hu(raw: npt.NDArray[Any], header: Header) -> FloatArray:
    """Turn stored values into Hounsfield units; values outside the field of view become air.

    Args:
        raw: (H, W) integers of `read_slice`; not changed.
        header: the slice's header.

    Returns:
        (H, W) float32, HU.

    Raises:
        ValueError: the header fails `check_slice`.
    """
    check_slice(header)
    assert header.slope is not None and header.intercept is not None
    raw = raw.astype(np.int64 if raw.dtype.itemsize > 2 else np.int32)
    bits = header.bits_stored
    stored = raw & ((1 << bits) - 1)
    if header.signed:
        stored = np.where(stored >= 1 << (bits - 1), stored - (1 << bits), stored)
    values, intercept = stored, header.intercept
    if header.needs_repair:
        values = values + 1000
        values = np.where(values >= 4096, values - 4096, values)
        intercept = -1000.0
    hu = values.astype(np.float32) * np.float32(header.slope) + np.float32(intercept)
    fill = np.isin(raw, [value for value in FILL_VALUES if value not in kept_values(header)])
    if header.padding is not None:
        padded = (stored >= header.padding[0]) & (stored <= header.padding[1])
        # some scanners declare a value that occurs in tissue (0 with intercept 0 is water)
        fill |= padded & _implausible(hu)
    hu[fill] = AIR_HU
    return hu


def _implausible(hu: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where values (any shape, HU) are air or denser than any material in a scan."""
    implausible: npt.NDArray[np.bool_] = (hu <= -900) | (hu >= 10_000)
    return implausible


def kept_values(header: Header) -> tuple[int, ...]:
    """Return the fill values that are plausible HU with the slope and intercept of a slice, so they are not fill."""
    assert header.slope is not None and header.intercept is not None
    return tuple(v for v in FILL_VALUES if not _implausible(np.array(v * header.slope + header.intercept)))


def window(hu: FloatArray, level: float, width: float) -> FloatArray:
    """Map level - width/2 to 0 and level + width/2 to 1, linear in between and clipped outside.

    Args:
        hu: (H, W) or any shape, HU.
        level: centre of the window, HU.
        width: width of the window, HU.

    Returns:
        float32 in [0, 1] of the same shape.

    Raises:
        ValueError: a width of 0 or less.
    """
    if not width > 0:
        raise ValueError(f"window: found level {level}, width {width}; expected a width above 0 HU")
    scaled: FloatArray = (hu - np.float32(level - width / 2)) / np.float32(width)
    return np.clip(scaled, np.float32(0), np.float32(1))


def window_channels(hu: FloatArray, windows: Sequence[tuple[float, float]]) -> FloatArray:
    """Stack one channel per (level, width): (H, W) HU -> (H, W, C) float32 in [0, 1]."""
    return np.stack([window(hu, level, width) for level, width in windows], axis=-1)


def window_slice(raw: npt.NDArray[Any], header: Header, windows: Sequence[tuple[float, float]]) -> FloatArray:
    """Compute `window_channels(to_hu(raw, header), windows)` with a table of all 16-bit values.

    Args:
        raw: (H, W) integers of `read_slice`; not changed.
        header: the slice's header.
        windows: (level, width) of each channel, HU.

    Returns:
        (H, W, C) float32 in [0, 1].

    Raises:
        ValueError: the header fails `check_slice`, or a width of 0 or less.
    """
    if raw.dtype.itemsize > 2:
        return window_channels(to_hu(raw, header), windows)
    check_slice(header)
    values = raw.astype(np.int16 if header.signed else np.uint16, copy=False).view(np.uint16)
    return np.take(_table(header.rescaling, tuple(windows)), values, axis=0)


@lru_cache(maxsize=64)
def _table(rescaling: Header, windows: Windows) -> FloatArray:
    """Return the (65536, C) channels of every 16-bit value, indexed by its bits read as unsigned."""
    values = np.arange(1 << 16, dtype=np.uint16).view(np.int16 if rescaling.signed else np.uint16)
    return window_channels(to_hu(values, rescaling), windows)
