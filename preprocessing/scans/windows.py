"""Turn stored CT values into Hounsfield units and windowed channels.

HU = stored * RescaleSlope + RescaleIntercept, per slice. 12-bit values that wrapped around (BitsStored 12, unsigned,
intercept > -100) are repaired first: add 1000, subtract 4096 from what reaches 4096, and use an intercept of -1000. A
window (level L, width W) is clip((HU - (L - W/2)) / W, 0, 1), DICOM's LINEAR_EXACT.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.scans.dicom import Header

FloatArray = npt.NDArray[np.float32]

AIR_HU = -1000.0
# out-of-field values seen in head CT with slope 1: -2000 as signed 16-bit, the same bits read unsigned, and with the
# top bit lost
FILL_VALUES = (-2000, 63536, 30768)


def to_hu(raw: npt.NDArray[Any], header: Header) -> FloatArray:
    """Turn stored values (H, W) of `read_slice` into HU, (H, W) float32; what lies outside the field of view is air."""
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
    """Map HU (any shape) to float32 of that shape: level - width/2 to 0, level + width/2 to 1, clipped outside."""
    scaled: FloatArray = (hu - np.float32(level - width / 2)) / np.float32(width)
    return np.clip(scaled, np.float32(0), np.float32(1))


def window_channels(hu: FloatArray, windows: Sequence[tuple[float, float]]) -> FloatArray:
    """Stack one channel per (level, width): (H, W) HU -> (H, W, C) float32 in [0, 1]."""
    return np.stack([window(hu, level, width) for level, width in windows], axis=-1)
