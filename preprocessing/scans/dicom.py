"""Read CT slices from DICOM: typed headers, stored values, and the anatomical order of a series.

Slices are ordered by ImagePositionPatient projected on the slice normal, which is the cross product of the two vectors
of ImageOrientationPatient; uneven spacing and a tilted gantry are allowed. Only the tags in `HEADER_TAGS` are read, so
a patient's name or birth date never enters the process. Error messages name the file and the tag, never an identifier.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.limits import MAX_INFLATED, MAX_SLICE_PX

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pydicom.dataset import Dataset

HEADER_TAGS = (
    "StudyInstanceUID SeriesInstanceUID SeriesNumber InstanceNumber Modality NumberOfFrames SamplesPerPixel "
    "PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PlanarConfiguration "
    "PixelSpacing PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept ImagePositionPatient "
    "ImageOrientationPatient"
).split()
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# what pydicom and its decoders raise on damaged files, besides pydicom.errors.BytesLengthException
_DAMAGED = (EOFError, OSError, struct.error, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


@dataclass(frozen=True)
class Header:
    """The header of one slice; absent values are None.

    Attributes:
        name: the file's name in error messages (a path relative to the dataset's root).
        study, series: unique identifiers, used for grouping only.
        position: (x, y, z) of the first pixel's centre, mm.
        orientation: direction of a row (3), then of a column (3).
        pixel_spacing: mm between rows, between columns.
        padding: smallest and largest stored value declared as padding, inclusive.
    """

    name: str
    study: str
    series: str
    series_number: int | None
    instance_number: int | None
    modality: str
    frames: int
    samples: int
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    slope: float | None
    intercept: float | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    padding: tuple[int, int] | None

    @property
    def needs_repair(self) -> bool:
        """Whether the values wrapped around at 12 bits (see `preprocessing.scans.windows`)."""
        return self.bits_stored == 12 and not self.signed and self.intercept is not None and self.intercept > -100


def read_identity(path: Path | str, name: str | None = None) -> tuple[str, str, str]:
    """Read study, series and patient identifiers. They serve grouping only: never store or print the patient's.

    Raises:
        ValueError: not a DICOM file, or no study or series; the message names the file.
    """
    name = name or str(path)
    data = _open(path, name, ["StudyInstanceUID", "SeriesInstanceUID", "PatientID"], pixels=False)
    study, series = _text(data, "StudyInstanceUID", name), _text(data, "SeriesInstanceUID", name)
    if not study or not series:
        raise ValueError(f"{name}: no StudyInstanceUID or SeriesInstanceUID, the slice belongs to no scan")
    return study, series, _text(data, "PatientID", name)


def read_header(path: Path | str, name: str | None = None) -> Header:
    """Read a slice's header without its pixels.

    Args:
        path: the file.
        name: its name in error messages; default: the path.

    Raises:
        ValueError: not a DICOM file, or a broken header; the message names the file.
    """
    name = name or str(path)
    return _header(_open(path, name, HEADER_TAGS, pixels=False), name)


def read_slice(path: Path | str, name: str | None = None) -> tuple[npt.NDArray[Any], Header]:
    """Read a slice's stored values and header.

    Args:
        path: the file.
        name: its name in error messages; default: the path.

    Returns:
        (H, W) integers of the file's own type, bits above BitsStored included, and the header.

    Raises:
        ValueError: no CT slice, truncated, or a compression without an installed decoder; the message names the file.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    name = name or str(path)
    data = _open(path, name, [*HEADER_TAGS, "PixelData"], pixels=True)
    header = _header(data, name)
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
        # out-of-field values lie in the bits that a mask of BitsStored would remove
        return pixel_array(data, correct_unused_bits=False), header
    except _DAMAGED as error:
        raise ValueError(
            f"{name}: pixel data truncated or unreadable ({type(error).__name__}); copy the file again from its source"
        ) from None


def check_slice(header: Header) -> None:
    """Raise unless the header describes one slice of a CT.

    Raises:
        ValueError: wrong modality, colour, several frames, no geometry or no rescale values; the message names the
            file.
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
    elif abs(math.hypot(*_normal(header.orientation)) - 1) > 0.01:
        problem = "ImageOrientationPatient is not two perpendicular unit vectors"
    elif header.slope is None or header.intercept is None:
        problem = "no RescaleSlope or RescaleIntercept, the values cannot be turned into Hounsfield units"
    if problem:
        raise ValueError(f"{header.name}: {problem}")


def check_series(headers: Sequence[Header]) -> None:
    """Raise unless the slices form one series with one geometry.

    Raises:
        ValueError: no slices, a slice that fails `check_slice`, two series, or mixed sizes or orientations; the
            message names a file.
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
        if max(abs(a - b) for a, b in zip(header.orientation, first.orientation, strict=True)) > 0.01:
            raise ValueError(f"{header.name}: another slice orientation than {first.name}; is a localizer among them?")


def slice_order(headers: Sequence[Header]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Sort the slices of one series along the slice normal.

    Args:
        headers: N slices that passed `check_series`, in any order.

    Returns:
        (N,) indices into `headers`, and the (N,) positions in mm in that order, starting at 0. Slices at one position
        are sorted by InstanceNumber, then by name.
    """
    import numpy as np

    orientation = headers[0].orientation
    assert orientation is not None
    normal = _normal(orientation)
    along = np.array([float(np.dot(normal, h.position or (0, 0, 0))) for h in headers])
    keys = [(along[i], h.instance_number or 0, h.name) for i, h in enumerate(headers)]
    order = np.array(sorted(range(len(headers)), key=lambda i: keys[i]), dtype=np.intp)
    return order, along[order] - along[order[0]]


def _normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    """Return the cross product of the row and column directions."""
    ax, ay, az, bx, by, bz = orientation
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def _open(path: Path | str, name: str, tags: Sequence[str], *, pixels: bool) -> Dataset:
    import pydicom
    from pydicom import config
    from pydicom.errors import BytesLengthException, InvalidDicomError

    # pydicom's warnings quote odd values, identifiers included; the values that matter are checked by check_slice
    config.settings.reading_validation_mode = config.IGNORE
    _check_deflated(path, name)
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except InvalidDicomError:
        raise ValueError(f"{name}: not a DICOM file") from None
    except (*_DAMAGED, BytesLengthException) as error:
        raise ValueError(f"{name}: truncated or unreadable DICOM file ({type(error).__name__})") from None


def _check_deflated(path: Path | str, name: str) -> None:
    """Raise if a deflated file inflates to more than `MAX_INFLATED` bytes, because pydicom inflates it whole."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(1024)
            if _DEFLATED not in head:
                return
            # the first element of the meta group holds the group's length; the deflated data set follows the group
            stream.seek(144 + int.from_bytes(head[140:144], "little"))
            inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while data := inflater.unconsumed_tail or stream.read(1 << 16):
                total += len(inflater.decompress(data, 1 << 20))
                if total > MAX_INFLATED:
                    raise ValueError(f"{name}: unpacks to more than {MAX_INFLATED} bytes, which no CT slice needs")
    except (OSError, zlib.error):
        return  # absent or damaged: pydicom raises the precise error


def _header(data: Dataset, name: str) -> Header:
    signed = bool(_integer(data, "PixelRepresentation", name) or 0)
    bits = _integer(data, "BitsStored", name) or 16
    return Header(
        name=name,
        study=_text(data, "StudyInstanceUID", name),
        series=_text(data, "SeriesInstanceUID", name),
        series_number=_integer(data, "SeriesNumber", name),
        instance_number=_integer(data, "InstanceNumber", name),
        modality=_text(data, "Modality", name),
        frames=_integer(data, "NumberOfFrames", name) or 1,
        samples=_integer(data, "SamplesPerPixel", name) or 1,
        rows=_integer(data, "Rows", name) or 0,
        columns=_integer(data, "Columns", name) or 0,
        bits_stored=bits,
        signed=signed,
        slope=_number(data, "RescaleSlope", name),
        intercept=_number(data, "RescaleIntercept", name),
        position=_numbers(data, "ImagePositionPatient", 3, name),
        orientation=_numbers(data, "ImageOrientationPatient", 6, name),
        pixel_spacing=_numbers(data, "PixelSpacing", 2, name),
        padding=_padding(data, bits, signed, name),
    )


def _value(data: Dataset, tag: str, name: str) -> Any:
    from pydicom.errors import BytesLengthException

    try:
        return data.get(tag)
    except (*_DAMAGED, BytesLengthException):
        raise ValueError(f"{name}: {tag} cannot be read; the header is broken") from None


def _text(data: Dataset, tag: str, name: str) -> str:
    return str(_value(data, tag, name) or "").strip()


def _number(data: Dataset, tag: str, name: str) -> float | None:
    numbers = _numbers(data, tag, 1, name)
    return None if numbers is None else numbers[0]


def _integer(data: Dataset, tag: str, name: str) -> int | None:
    number = _number(data, tag, name)
    return None if number is None else int(number)


def _numbers(data: Dataset, tag: str, count: int, name: str) -> tuple[float, ...] | None:
    value = _value(data, tag, name)
    values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if not values or values[0] is None or values[0] == "":
        return None
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {tag} is not a number; the header is broken") from None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: {tag} has {len(numbers)} values, expected {count} finite ones")
    return numbers


def _padding(data: Dataset, bits: int, signed: bool, name: str) -> tuple[int, int] | None:
    """Return the stored values that PixelPaddingValue and PixelPaddingRangeLimit declare as padding, inclusive."""
    value, limit = _integer(data, "PixelPaddingValue", name), _integer(data, "PixelPaddingRangeLimit", name)
    if value is None:
        return None
    # the sign of these tags is ambiguous in the standard, so they are read modulo the stored bits, as pixels are
    ends = [end & ((1 << bits) - 1) for end in (value, value if limit is None else limit)]
    ends = [end - (1 << bits) if signed and end >= 1 << (bits - 1) else end for end in ends]
    return min(ends), max(ends)
