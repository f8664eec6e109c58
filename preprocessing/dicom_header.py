"""Headers of DICOM files: the few tags that a CT slice needs, typed, and nothing else.

Only the tags named here are read, so a patient's name or birth date never enters the process; messages name the file
and the tag, never a value found in it.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.limits import MAX_INFLATED

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

HEADER_TAGS = [
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "Modality",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "PixelSpacing",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ImagePositionPatient",
    "ImageOrientationPatient",
]
DEFLATED = b"1.2.840.10008.1.2.1.99"
BROKEN = (EOFError, OSError, struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError)
UNDECODABLE = (*BROKEN, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Header:
    """What one slice's header says; absent values are None.

    Attributes:
        name: how messages call the file (a path relative to the dataset's root).
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
        """Whether the values wrapped around at 12 bits (see the module)."""
        return self.bits_stored == 12 and not self.signed and self.intercept is not None and self.intercept > -100


def read_identity(path: Path | str, name: str | None = None) -> tuple[str, str, str]:
    """Reads study, series and patient identifiers, for grouping only; never store or print the third.

    Raises:
        ValueError: not a DICOM file, or without study or series; the file is named.
    """
    name = name or str(path)
    values = open_file(path, name, ["StudyInstanceUID", "SeriesInstanceUID", "PatientID"], pixels=False)
    study, series = _text(values, "StudyInstanceUID", name), _text(values, "SeriesInstanceUID", name)
    if not study or not series:
        raise ValueError(f"{name}: no StudyInstanceUID or SeriesInstanceUID, the slice belongs to no scan")
    return study, series, _text(values, "PatientID", name)


def read_header(path: Path | str, name: str | None = None) -> Header:
    """Reads the tags of `Header`, no pixels.

    Args:
        path: the file.
        name: how messages call it; the path if not given.

    Raises:
        ValueError: not a DICOM file, or one whose header is broken; the file is named, its content is not.
    """
    name = name or str(path)
    return header_of(open_file(path, name, HEADER_TAGS, pixels=False), name)


def open_file(path: Path | str, name: str, tags: list[str], *, pixels: bool) -> "Dataset":
    """Reads some tags of a file.

    Raises:
        ValueError: no such file, not DICOM, or truncated; the file is named.
    """
    import pydicom
    from pydicom import config
    from pydicom.errors import InvalidDicomError

    # pydicom's remarks on odd values quote them, identity included; what matters here is checked by check_slice
    config.settings.reading_validation_mode = config.IGNORE
    _check_deflated(path, name)
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except InvalidDicomError:
        raise ValueError(f"{name}: not a DICOM file") from None
    except BROKEN as error:
        raise ValueError(f"{name}: truncated or unreadable DICOM file ({type(error).__name__})") from None


def _check_deflated(path: Path | str, name: str) -> None:
    """Refuses a deflated file that would unpack to more than `MAX_INFLATED` bytes: pydicom unpacks it whole."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(1024)
            if DEFLATED not in head:
                return
            # the meta group states its length in its first element; what follows is deflated
            stream.seek(144 + int.from_bytes(head[140:144], "little"))
            unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
            while data := unpacker.unconsumed_tail or stream.read(1 << 16):
                total += len(unpacker.decompress(data, 1 << 20))
                if total > MAX_INFLATED:
                    raise ValueError(f"{name}: unpacks to more than {MAX_INFLATED} bytes, which no CT slice needs")
    except (OSError, zlib.error):
        return  # absent or damaged: pydicom's reader says which


def header_of(data: "Dataset", name: str) -> Header:
    """Types the tags of `HEADER_TAGS`; raises ValueError for a broken value, naming file and tag."""
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


def _value(data: "Dataset", tag: str, name: str) -> Any:
    try:
        return data.get(tag)
    except UNDECODABLE:
        raise ValueError(f"{name}: {tag} cannot be read; the header is broken") from None


def _text(data: "Dataset", tag: str, name: str) -> str:
    return str(_value(data, tag, name) or "").strip()


def _number(data: "Dataset", tag: str, name: str) -> float | None:
    found = _numbers(data, tag, 1, name)
    return None if found is None else found[0]


def _integer(data: "Dataset", tag: str, name: str) -> int | None:
    found = _number(data, tag, name)
    return None if found is None else int(found)


def _numbers(data: "Dataset", tag: str, count: int, name: str) -> tuple[float, ...] | None:
    value = _value(data, tag, name)
    if value is None or value == "" or (count > 1 and len(value) == 0):
        return None
    try:
        numbers = tuple(float(v) for v in value) if count > 1 else (float(value),)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {tag} is not a number; the header is broken") from None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: {tag} has {len(numbers)} values, expected {count} finite ones")
    return numbers


def _padding(data: "Dataset", bits: int, signed: bool, name: str) -> tuple[int, int] | None:
    value = _integer(data, "PixelPaddingValue", name)
    if value is None:
        return None
    return padding_range(value, _integer(data, "PixelPaddingRangeLimit", name), bits, signed)


def padding_range(value: int, limit: int | None, bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest stored value that PixelPaddingValue and PixelPaddingRangeLimit declare as padding."""
    ends = [value, value if limit is None else limit]
    # the tag's sign is ambiguous in the standard, so it is read modulo the stored bits like the pixels
    ends = [end & ((1 << bits) - 1) for end in ends]
    ends = [end - (1 << bits) if signed and end >= 1 << (bits - 1) else end for end in ends]
    return min(ends), max(ends)
