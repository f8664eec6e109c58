"""Read CT slices from DICOM: typed headers and stored values.

Only the tags in `HEADER_TAGS` are read, so a patient's name or birth date never enters the process. Error messages name
the file and the tag, never an identifier.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.common.limits import MAX_INFLATED, MAX_SLICE_PX
from preprocessing.scans.codecs import decoder_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

# what differs between two reconstructions, acquisitions or phases of one place
TRAITS = (
    "ConvolutionKernel AcquisitionNumber TemporalPositionIdentifier NominalPercentageOfCardiacPhase ImageType "
    "SliceThickness KVP PixelSpacing"
).split()
HEADER_TAGS = (
    "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID SeriesNumber InstanceNumber "
    "SeriesDescription Modality NumberOfFrames SamplesPerPixel PhotometricInterpretation "
    "Rows Columns BitsAllocated BitsStored HighBit "
    "PixelRepresentation PlanarConfiguration PixelPaddingValue PixelPaddingRangeLimit RescaleSlope RescaleIntercept "
    "RescaleType ImagePositionPatient ImageOrientationPatient"
).split() + TRAITS
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
LEAST_SPAN_HU = 1000
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Header:
    """The header of one slice; absent values are None.

    Attributes:
        name: the file's name in error messages (a path relative to the dataset's root).
        study, series, instance: unique identifiers, used for grouping only.
        number: InstanceNumber, for remarks only.
        traits: texts of `TRAITS`.
        position: (x, y, z) of the first pixel's centre, mm.
        orientation: direction of a row (3), then of a column (3).
        pixel_spacing: mm between rows, between columns.
        padding: smallest and largest stored value declared as padding, inclusive.
    """

    name: str
    study: str
    series: str
    instance: str
    sop_class: str
    series_number: int | None
    number: int | None
    description: str
    traits: tuple[str, ...]
    modality: str
    frames: int
    samples: int
    photometric: str
    rows: int
    columns: int
    bits_stored: int
    high_bit: int
    signed: bool
    rescale_type: str
    slope: float | None
    intercept: float | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    padding: tuple[int, int] | None

    @property
    def needs_repair(self) -> bool:
        """Whether the values wrapped around at 12 bits (see `preprocessing.scans.windows`)."""
        rescale = self.slope == 1 and self.intercept is not None and self.intercept > -100
        return self.bits_stored == 12 and not self.signed and rescale

    @property
    def is_slide(self) -> bool:
        """Whether the file belongs to a whole-slide image."""
        return self.sop_class == WHOLE_SLIDE or self.modality == "SM"

    @property
    def is_localizer(self) -> bool:
        """Whether the image was made to plan a scan."""
        return "LOCALIZER" in dict(zip(TRAITS, self.traits, strict=True))["ImageType"].split("\\")

    @property
    def rescaling(self) -> Header:
        """The header without what identifies a slice: equal for slices whose stored values mean the same."""
        return replace(
            self,
            **dict.fromkeys(("name", "study", "series", "instance", "description"), ""),  # type: ignore[arg-type]
            series_number=None,
            number=None,
            position=(0.0, 0.0, 0.0),
            traits=(),
        )


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
    """Read a slice's header without its pixels; `name` stands for the path in error messages.

    Raises:
        ValueError: not a DICOM file, or a broken header; the message names the file.
    """
    name = name or str(path)
    header = _header(_open(path, name, HEADER_TAGS, pixels=False), name)
    if not header.modality and not header.sop_class:
        raise ValueError(f"{name}: neither Modality nor SOPClassUID, the header is damaged; copy the file again")
    return header


def read_slice(path: Path | str, name: str | None = None) -> tuple[npt.NDArray[Any], Header]:
    """Read a slice's stored values and header; `name` stands for the path in error messages.

    Returns:
        (H, W) integers of the file's own type, bits above BitsStored included, and the header.

    Raises:
        ValueError: no CT slice, truncated, or a compression without an installed decoder; the message names the file.
    """
    name = name or str(path)
    data = _open(path, name, [*HEADER_TAGS, *_PIXELS], pixels=True)
    header = _header(data, name)
    check_slice(header)
    if "PixelData" not in data:
        if any(keyword in data for keyword in _PIXELS):
            raise ValueError(f"{name}: floating-point pixels, expected PixelData: integers that are rescaled to HU")
        raise ValueError(f"{name}: no PixelData, the file is truncated; copy it again from its source")
    try:
        decoder, plugin = decoder_of(_text(data.file_meta, "TransferSyntaxUID", name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    try:
        # out-of-field values lie in the bits that a mask of BitsStored would remove
        options: Any = {"correct_unused_bits": False}
        return decoder.as_array(data, decoding_plugin=plugin, **options)[0], header
    except _damage() as error:
        raise ValueError(
            f"{name}: pixel data truncated or unreadable ({type(error).__name__}); copy the file again from its source"
        ) from None


def check_slice(header: Header) -> None:
    """Raise ValueError, with the file's name, unless the header describes one slice of a CT."""
    problem = ""
    if header.modality != "CT":
        problem = f"Modality is {header.modality or 'absent'!r}, expected CT"
    elif header.frames != 1 or header.sop_class in ENHANCED:
        problem = (
            f"{header.frames} frames in one file (enhanced CT), expected one file per slice; convert it to classic CT, "
            "e.g. with dcm4che's emf2sf"
        )
    elif header.samples != 1:
        problem = f"{header.samples} samples per pixel (colour), expected 1: a screenshot is no CT slice"
    elif header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        problem = f"PhotometricInterpretation is {header.photometric!r}, expected MONOCHROME1 or MONOCHROME2"
    elif header.rows < 1 or header.columns < 1:
        problem = "no Rows or Columns, expected an image"
    elif header.rows * header.columns > MAX_SLICE_PX:
        problem = f"{header.rows} x {header.columns} px, expected at most {MAX_SLICE_PX} px: the header is damaged"
    elif header.position is None or header.orientation is None:
        problem = "no ImagePositionPatient or ImageOrientationPatient, the slice cannot be put in anatomical order"
    elif abs(math.hypot(*slice_normal(header.orientation)) - 1) > 0.01:
        problem = "ImageOrientationPatient is not two perpendicular unit vectors"
    else:
        problem = _rescale_problem(header)
    if problem:
        raise ValueError(f"{header.name}: {problem}")


def _rescale_problem(header: Header) -> str:
    """Return why the stored values cannot be turned into Hounsfield units, or ""."""
    if header.slope is None or header.intercept is None:
        return (
            "no RescaleSlope or RescaleIntercept, the values cannot be turned into Hounsfield units; export the series "
            "again, or add them where they are known, e.g. `dcmodify -i RescaleSlope=1 -i RescaleIntercept=-1024 FILE`"
        )
    if header.slope <= 0:
        return f"RescaleSlope is {header.slope:g}, expected more than 0"
    if header.rescale_type not in ("HU", ""):
        return (
            f"RescaleType is {header.rescale_type!r}, expected HU: the values are no Hounsfield units; if they are, "
            "correct it, e.g. `dcmodify -m RescaleType=HU FILE`"
        )
    if header.high_bit != header.bits_stored - 1:
        return f"HighBit is {header.high_bit}, expected {header.bits_stored - 1} (BitsStored is {header.bits_stored})"
    if header.bits_stored > 32:
        return f"BitsStored is {header.bits_stored}, expected at most 32"
    span = header.slope * (1 << header.bits_stored)
    if span < LEAST_SPAN_HU:
        return (
            f"BitsStored is {header.bits_stored} and RescaleSlope {header.slope:g}: the values span {span:g} HU, but "
            f"air to bone needs {LEAST_SPAN_HU} or more; a screenshot or an export as a picture is no CT slice"
        )
    return ""


def slice_normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    """Return the cross product of the row and column directions."""
    ax, ay, az, bx, by, bz = orientation
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def _damage() -> tuple[type[Exception], ...]:
    """Return what pydicom and its decoders raise on damaged files."""
    from pydicom.errors import BytesLengthException

    values = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    return (*values, EOFError, OSError, struct.error, zlib.error, BytesLengthException)


def _open(path: Path | str, name: str, tags: Sequence[str], *, pixels: bool) -> Dataset:
    import pydicom
    from pydicom import config
    from pydicom.errors import InvalidDicomError

    # pydicom's warnings quote odd values, identifiers included; the values that matter are checked by check_slice
    config.settings.reading_validation_mode = config.IGNORE
    _check_deflated(path, name)
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=list(tags))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except InvalidDicomError:
        if not Path(path).stat().st_size:
            raise ValueError(
                f"{name}: not a DICOM file but an empty one (0 bytes); copy it again from its source"
            ) from None
        raise ValueError(
            f"{name}: not a DICOM file, there is no 'DICM' at byte 128; take it out of the folder, copy it again, or "
            "if it is DICOM without preamble, write it anew, e.g. `dcmconv +F IN OUT`"
        ) from None
    except _damage() as error:
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
    bits, high = _integer(data, "BitsStored", name) or 16, _integer(data, "HighBit", name)
    return Header(
        name=name,
        study=_text(data, "StudyInstanceUID", name),
        series=_text(data, "SeriesInstanceUID", name),
        instance=_text(data, "SOPInstanceUID", name),
        # a DICOMDIR has its class in the file's meta information alone
        sop_class=_text(data, "SOPClassUID", name) or _text(data.file_meta, "MediaStorageSOPClassUID", name),
        series_number=_integer(data, "SeriesNumber", name),
        number=int(number) if (number := _text(data, "InstanceNumber", name)).isdecimal() else None,
        description=_text(data, "SeriesDescription", name),
        traits=tuple(_text(data, trait, name) for trait in TRAITS),
        modality=_text(data, "Modality", name),
        frames=_integer(data, "NumberOfFrames", name) or 1,
        samples=_integer(data, "SamplesPerPixel", name) or 1,
        photometric=_text(data, "PhotometricInterpretation", name),
        rows=_integer(data, "Rows", name) or 0,
        columns=_integer(data, "Columns", name) or 0,
        bits_stored=bits,
        high_bit=bits - 1 if high is None else high,
        signed=signed,
        rescale_type=_text(data, "RescaleType", name).upper(),
        slope=_number(data, "RescaleSlope", name),
        intercept=_number(data, "RescaleIntercept", name),
        position=_numbers(data, "ImagePositionPatient", 3, name),
        orientation=_numbers(data, "ImageOrientationPatient", 6, name),
        pixel_spacing=_numbers(data, "PixelSpacing", 2, name),
        padding=_padding(data, bits, signed, name),
    )


def _values(data: Dataset, tag: str, name: str) -> Sequence[Any]:
    """Return the values of a tag, [None] if it is absent."""
    try:
        value = data.get(tag)
    except _damage():
        raise ValueError(f"{name}: {tag} cannot be read; the header is broken") from None
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]


def _text(data: Dataset, tag: str, name: str) -> str:
    """Return a value as text, several values joined by a backslash, "" if it is absent."""
    text = "\\".join("" if part is None else str(part) for part in _values(data, tag, name))
    # a damaged length makes the next elements, a patient's name among them, part of the value
    return re.split(r"[\x00-\x1f\x7f]", text, maxsplit=1)[0].strip()


def _number(data: Dataset, tag: str, name: str) -> float | None:
    numbers = _numbers(data, tag, 1, name)
    return None if numbers is None else numbers[0]


def _integer(data: Dataset, tag: str, name: str) -> int | None:
    number = _number(data, tag, name)
    return None if number is None else int(number)


def _numbers(data: Dataset, tag: str, count: int, name: str) -> tuple[float, ...] | None:
    values = _values(data, tag, name)
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
