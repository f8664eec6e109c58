"""CT slices from DICOM: headers, anatomical order, Hounsfield units, windows. Arrays in, arrays out.

Order: ImagePositionPatient projected on the slice normal (cross product of the two ImageOrientationPatient vectors);
unequal spacing and a tilted gantry are normal. Units: HU = stored * RescaleSlope + RescaleIntercept, per slice, after
the repair of 12-bit data that wrapped around (BitsStored 12, unsigned, intercept > -100: add 1000, subtract 4096 from
what reaches 4096, intercept -1000). Window (level L, width W): v = clip((HU - (L - W/2)) / W, 0, 1), which is DICOM's
LINEAR_EXACT.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.dicom_header import (
    HEADER_TAGS,
    UNDECODABLE,
    Header,
    header_of,
    open_file,
    read_header,
    read_identity,
)
from preprocessing.dicom_raw import read_plain
from preprocessing.limits import MAX_SLICE_PX

__all__ = [
    "Header",
    "check_series",
    "check_slice",
    "read_header",
    "read_identity",
    "read_slice",
    "read_stored",
    "slice_order",
    "to_hu",
    "window",
    "window_channels",
]

FloatArray = npt.NDArray[np.float32]

AIR_HU = -1000.0
# out-of-field values seen in head CT: -2000 as signed 16-bit, the same bits read unsigned, and with the top bit lost
FILL_VALUES = (-2000, 63536, 30768)


def read_slice(path: Path | str, name: str | None = None) -> tuple[npt.NDArray[np.int32], Header]:
    """Reads one slice's stored values, every bit as in the file.

    Returns:
        (H,W) int32 (bits above BitsStored not yet masked, see `to_hu`), and the header.

    Raises:
        ValueError: no CT image, truncated, colour, or a compression without a decoder here; the file is named.
    """
    values, header = read_stored(path, name)
    return values.astype(np.int32), header


def read_stored(path: Path | str, name: str | None = None) -> tuple[npt.NDArray[Any], Header]:
    """Reads one slice's stored values as `read_slice` does, in the file's own type.

    Returns:
        (H,W) integers, 16 bits for almost every CT, possibly read-only, and the header.

    Raises:
        ValueError: as `read_slice`.
    """
    name = name or str(path)
    plain = read_plain(path, name)
    if plain is None:
        return _decoded(path, name)
    check_slice(plain[1])
    return plain


def _decoded(path: Path | str, name: str) -> tuple[npt.NDArray[Any], Header]:
    """Any slice, through pydicom."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    data = open_file(path, name, [*HEADER_TAGS, "PixelData"], pixels=True)
    header = header_of(data, name)
    check_slice(header)
    syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
    try:
        decoder = get_decoder(syntax) if syntax else None
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        label = getattr(syntax, "name", syntax) or "no transfer syntax"
        raise ValueError(
            f"{name}: no decoder for {label}; decompress the series (e.g. gdcmconv --raw) or install a pydicom codec "
            "(pylibjpeg-libjpeg, pyjpegls or python-gdcm)"
        )
    try:
        # unmasked: the fill values below live in the bits that a mask of BitsStored would cut off
        values = pixel_array(data, correct_unused_bits=False)
    except UNDECODABLE as error:
        raise ValueError(
            f"{name}: pixel data truncated or unreadable ({type(error).__name__}); copy the file again from its source"
        ) from None
    return values, header


def check_slice(header: Header) -> None:
    """Refuses what is not one slice of a CT.

    Raises:
        ValueError: wrong modality, colour, several frames, no geometry or no rescale values; the file is named.
    """
    problem = ""
    if header.modality != "CT":
        problem = f"Modality is {header.modality or 'absent'!r}, expected CT"
    elif header.frames != 1:
        problem = f"{header.frames} frames in one file, expected one file per slice (convert enhanced CT to classic CT)"
    elif header.samples != 1:
        problem = f"{header.samples} samples per pixel (colour), expected 1: a screenshot is no CT slice"
    elif header.rows < 1 or header.columns < 1:
        problem = "no Rows or Columns, expected an image"
    elif header.rows * header.columns > MAX_SLICE_PX:
        problem = f"{header.rows} x {header.columns} px, expected at most {MAX_SLICE_PX} px: the header is damaged"
    elif header.position is None or header.orientation is None:
        problem = "no ImagePositionPatient or ImageOrientationPatient, the slice cannot be put in anatomical order"
    elif abs(_area(header.orientation) - 1) > 0.01:
        problem = "ImageOrientationPatient is not two perpendicular unit vectors"
    elif header.slope is None or header.intercept is None:
        problem = "no RescaleSlope or RescaleIntercept, the values cannot be turned into Hounsfield units"
    if problem:
        raise ValueError(f"{header.name}: {problem}")


def check_series(headers: Sequence[Header]) -> None:
    """Refuses slices that do not form one series with one geometry.

    Raises:
        ValueError: no slice, a slice refused by `check_slice`, two series, or mixed sizes or orientations; an
            offending file is named.
    """
    if not headers:
        raise ValueError("a scan without slices: expected at least one DICOM file")
    for header in headers:
        check_slice(header)
    series = Counter((h.study, h.series) for h in headers)
    first = headers[0]
    if len(series) > 1:
        other = next(h for h in headers if (h.study, h.series) != (first.study, first.series))
        raise ValueError(
            f"{other.name}: belongs to another series than {first.name} "
            f"({len(series)} series of {', '.join(map(str, series.values()))} files); one bag is one series"
        )
    for header in headers:
        if (header.rows, header.columns) != (first.rows, first.columns):
            raise ValueError(
                f"{header.name}: {header.rows} x {header.columns} px, but {first.name} has {first.rows} x "
                f"{first.columns}; expected one size in a series"
            )
        assert header.orientation is not None and first.orientation is not None
        if np.abs(np.subtract(header.orientation, first.orientation)).max() > 0.01:
            raise ValueError(f"{header.name}: another slice orientation than {first.name}; is a localizer among them?")


def slice_order(headers: Sequence[Header]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Puts the slices of one series in anatomical order.

    Args:
        headers: slices that passed `check_series`, in any order.

    Returns:
        Indices into `headers` along the slice normal, and the (N,) positions in mm in that order, starting at 0. Equal
        positions keep the order of InstanceNumber, then of the name.
    """
    first = headers[0].orientation
    assert first is not None
    normal = _normal(first)
    along = np.array([float(np.dot(normal, h.position or (0, 0, 0))) for h in headers])
    keys = [(along[i], h.instance_number or 0, h.name) for i, h in enumerate(headers)]
    order = np.array(sorted(range(len(headers)), key=lambda i: keys[i]), dtype=np.intp)
    return order, along[order] - along[order[0]]


def to_hu(raw: npt.NDArray[np.int32], header: Header) -> FloatArray:
    """Turns stored values into Hounsfield units; what lies outside the field of view becomes air.

    Args:
        raw: (H,W) values of `read_slice`; not changed.
        header: the slice's header.

    Returns:
        (H,W) float32, HU.

    Raises:
        ValueError: no rescale values.
    """
    check_slice(header)
    assert header.slope is not None and header.intercept is not None
    fill = np.isin(raw, FILL_VALUES)
    bits = header.bits_stored
    values = raw & ((1 << bits) - 1)
    if header.signed:
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    stored, intercept = values, header.intercept
    if header.needs_repair:
        values = values + 1000
        values = np.where(values >= 4096, values - 4096, values)
        intercept = -1000.0
    hu = values.astype(np.float32) * np.float32(header.slope) + np.float32(intercept)
    if header.padding is not None:
        padded = (stored >= header.padding[0]) & (stored <= header.padding[1])
        # some scanners declare a value that tissue has as well (0 with intercept 0 is water): believe only the absurd
        fill |= padded & ((hu <= -900) | (hu >= 10_000))
    hu[fill] = AIR_HU
    return hu


def window(hu: FloatArray, level: float, width: float) -> FloatArray:
    """Maps level - width/2 to 0 and level + width/2 to 1, linear between, clipped beyond.

    Raises:
        ValueError: a width of 0 or less.
    """
    if not width > 0:
        raise ValueError(f"window: found level {level}, width {width}; expected a width above 0 HU")
    scaled: FloatArray = (hu - np.float32(level - width / 2)) / np.float32(width)
    return np.clip(scaled, np.float32(0), np.float32(1))


def window_channels(hu: FloatArray, windows: Sequence[tuple[float, float]]) -> FloatArray:
    """One channel per (level, width): (H,W) HU -> (H,W,C) in [0,1]."""
    return np.stack([window(hu, level, width) for level, width in windows], axis=-1)


def _normal(orientation: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.cross(np.asarray(orientation[:3], dtype=np.float64), np.asarray(orientation[3:], dtype=np.float64))


def _area(orientation: Sequence[float]) -> float:
    """Length of the normal; plain numbers, because NumPy takes longer over three of them than reading the header."""
    a, b, c, d, e, f = orientation
    return math.hypot(b * f - c * e, c * d - a * f, a * e - b * d)
