"""Uncompressed CT slices read straight from the file's bytes; whatever is unusual is left to pydicom.

A plain slice (DICOM PS3.5, Explicit or Implicit VR Little Endian, one frame, one sample of 16 bits) is a list of
elements with their lengths, then Rows x Columns numbers. Its few tags are typed here as
`preprocessing.dicom_header.header_of` types them and the numbers are viewed where they lie, (H, W) int16 or uint16.
Nothing is repaired or reported: another transfer syntax, tags out of order, a value in another form than the standard's
or lengths that do not add up give None, and pydicom reads the file, or says what is wrong with it.
"""

import math
import os
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.dicom_header import Header, padding_range
from preprocessing.limits import MAX_SLICE_PX

Found = dict[int, tuple[bytes, bytes]]

_HEAD, _LENGTH = struct.Struct("<HH2sH"), struct.Struct("<I")
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SYNTAXES = {b"1.2.840.10008.1.2.1": True, b"1.2.840.10008.1.2": False}  # explicit or implicit VR
_META, _SYNTAX, _META_END, _PIXELS = 0x00020000, 0x00020010, 0x0002FFFF, 0x7FE00010
_ITEM, _ITEM_END, _SEQUENCE_END, _UNDEFINED = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFFFFFF
_MAX_DEPTH = 16
# beyond any slice's own tags: a file that large is none, and is not read whole
_MAX_FILE = 2 * MAX_SLICE_PX + (32 << 20)

_VR = {
    **dict.fromkeys((0x0020000D, 0x0020000E), b"UI"),
    **dict.fromkeys((0x00080060, 0x00280004), b"CS"),
    **dict.fromkeys((0x00200011, 0x00200013, 0x00280008), b"IS"),
    **dict.fromkeys((0x00200032, 0x00200037, 0x00280030, 0x00281052, 0x00281053), b"DS"),
    **dict.fromkeys((0x00280002, 0x00280010, 0x00280011), b"US"),
    **dict.fromkeys((0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121), b"US"),
}
_PADDING = (0x00280120, 0x00280121)
_WORD = re.compile(rb"([A-Za-z0-9._-]*)[ \0]?")
_CODE = re.compile(rb"([A-Z0-9_]*) ?")
_INTEGER = re.compile(r" *[+-]?[0-9]{1,12} *")
_DECIMAL = re.compile(r" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})? *")


class _UnusualError(Exception):
    """The file is one for pydicom."""


def read_plain(path: Path | str, name: str) -> tuple[npt.NDArray[Any], Header] | None:
    """Reads a plain slice.

    Args:
        path: the file.
        name: how messages call it.

    Returns:
        (H, W) int16 or uint16, read-only, every bit as in the file, and the header, not yet checked for being a CT's;
        None for a file that pydicom has to read.
    """
    try:
        data = _content(path)
        at, explicit = _data_set(data)
        found, start = _tags(data, at, explicit)
        header = _header(found, name)
        if len(data) - start != 2 * header.rows * header.columns:
            return None
    except (OSError, ValueError, struct.error, _UnusualError):
        return None
    values = np.frombuffer(data, "<i2" if header.signed else "<u2", offset=start)
    return values.reshape(header.rows, header.columns), header


def _content(path: Path | str) -> bytes:
    """All bytes of a file of sensible size; by the system's calls, as a file object costs as much as the header."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(handle).st_size
        if size > _MAX_FILE:
            raise _UnusualError
        # a short read, as network drives may give, does not end with the pixels: pydicom reads the file again
        return os.read(handle, size)
    finally:
        os.close(handle)


def _element(data: bytes, at: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """Tag, value representation (empty if implicit), start and length of the value of the element at `at`."""
    group, element, vr, short = _HEAD.unpack_from(data, at)
    tag = group << 16 | element
    if explicit and group != 0xFFFE:
        if vr in _SHORT:
            return tag, vr, at + 8, short
        if vr not in _LONG:
            raise _UnusualError
        return tag, vr, at + 12, _LENGTH.unpack_from(data, at + 8)[0]
    return tag, b"", at + 8, _LENGTH.unpack_from(data, at + 4)[0]


def _data_set(data: bytes) -> tuple[int, bool]:
    """Where the data set begins, and whether its value representations are explicit."""
    if data[128:132] != b"DICM":
        raise _UnusualError
    tag, vr, at, length = _element(data, 132, True)
    if (tag, vr, length) != (_META, b"UL", 4):
        raise _UnusualError
    end, syntax = at + 4 + _LENGTH.unpack_from(data, at)[0], b""
    at, last = at + 4, tag
    while at < end:
        tag, _, start, length = _element(data, at, True)
        if not last < tag < _META_END:
            raise _UnusualError
        at, last = start + length, tag
        if tag == _SYNTAX:
            syntax = data[start:at].rstrip(b"\0 ")
    if at != end or syntax not in _SYNTAXES:
        raise _UnusualError
    explicit = _SYNTAXES[syntax]
    # some writers name one syntax and use the other; in a length these bytes would mean more than 16 kB
    if not explicit and data[at + 4 : at + 6].isalpha():
        raise _UnusualError
    return at, explicit


def _tags(data: bytes, at: int, explicit: bool) -> tuple[Found, int]:
    """Values of the tags of `_VR` with their representation, and where the pixels begin, which end the file."""
    found: Found = {}
    last, end = _META_END, len(data)
    while True:
        tag, vr, start, length = _element(data, at, explicit)
        if tag <= last:
            raise _UnusualError
        if tag >= _PIXELS:
            # nothing may follow them either: pydicom would read it
            if tag != _PIXELS or vr not in (b"OW", b"") or start + length != end:
                raise _UnusualError
            return found, start
        if length == _UNDEFINED:
            if vr not in (b"SQ", b""):
                raise _UnusualError
            at = _after_sequence(data, start, explicit, 0)
        else:
            at = start + length
            if tag in _VR:
                found[tag] = vr, data[start:at]
        last = tag


def _after_sequence(data: bytes, at: int, explicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends."""
    if depth > _MAX_DEPTH:
        raise _UnusualError
    while True:
        tag, _, at, length = _element(data, at, explicit)
        if tag == _SEQUENCE_END and length == 0:
            return at
        if tag != _ITEM:
            raise _UnusualError
        at = _after_item(data, at, explicit, depth) if length == _UNDEFINED else at + length


def _after_item(data: bytes, at: int, explicit: bool, depth: int) -> int:
    """Where an item of undefined length ends."""
    while True:
        tag, vr, at, length = _element(data, at, explicit)
        if tag == _ITEM_END and length == 0:
            return at
        if length != _UNDEFINED:
            at += length
        elif vr in (b"SQ", b""):
            at = _after_sequence(data, at, explicit, depth + 1)
        else:
            raise _UnusualError


def _header(found: Found, name: str) -> Header:
    """Types the values; only what pydicom could not read in another way."""
    samples, allocated, bits, high, sign = (_short(found, 0x00280000 | e) for e in (0x2, 0x100, 0x101, 0x102, 0x103))
    if bits is None or not 1 <= bits <= 16 or (samples, allocated, high) != (1, 16, bits - 1) or sign not in (0, 1):
        raise _UnusualError
    if _text(found, 0x00280004) not in ("MONOCHROME1", "MONOCHROME2") or _integer(found, 0x00280008) not in (None, 1):
        raise _UnusualError
    rows, columns = _short(found, 0x00280010), _short(found, 0x00280011)
    if not rows or not columns:
        raise _UnusualError
    slope, intercept = _decimals(found, 0x00281053, 1), _decimals(found, 0x00281052, 1)
    padding = [_short(found, tag) for tag in _PADDING]
    return Header(
        name=name,
        study=_text(found, 0x0020000D),
        series=_text(found, 0x0020000E),
        series_number=_integer(found, 0x00200011),
        instance_number=_integer(found, 0x00200013),
        modality=_text(found, 0x00080060),
        frames=1,
        samples=1,
        rows=rows,
        columns=columns,
        bits_stored=bits,
        signed=sign == 1,
        slope=None if slope is None else slope[0],
        intercept=None if intercept is None else intercept[0],
        position=_decimals(found, 0x00200032, 3),
        orientation=_decimals(found, 0x00200037, 6),
        pixel_spacing=_decimals(found, 0x00280030, 2),
        padding=None if padding[0] is None else padding_range(padding[0], padding[1], bits, sign == 1),
    )


def _bytes(found: Found, tag: int) -> bytes:
    """An element's bytes, none if it is absent."""
    vr, value = found.get(tag, (b"", b""))
    if vr and vr != _VR[tag] and not (vr == b"SS" and tag in _PADDING):
        raise _UnusualError
    return value


def _short(found: Found, tag: int) -> int | None:
    """Reads 16 bits, without their sign."""
    if tag not in found:
        return None
    value = _bytes(found, tag)
    if len(value) != 2:
        raise _UnusualError
    return int.from_bytes(value, "little")


def _text(found: Found, tag: int) -> str:
    match = (_CODE if _VR[tag] == b"CS" else _WORD).fullmatch(_bytes(found, tag))
    if not match:
        raise _UnusualError
    return match[1].decode("ascii")


def _integer(found: Found, tag: int) -> int | None:
    value = _bytes(found, tag)
    if not value:
        return None
    text = value.decode("latin-1")
    if not _INTEGER.fullmatch(text):
        raise _UnusualError
    return int(text)


def _decimals(found: Found, tag: int, count: int) -> tuple[float, ...] | None:
    value = _bytes(found, tag)
    return _numbers(value, count) if value else None


@lru_cache(maxsize=256)
def _numbers(value: bytes, count: int) -> tuple[float, ...]:
    """Decimal strings; most are those of the slice before."""
    parts = value.decode("latin-1").split("\\")
    if len(parts) != count or not all(map(_DECIMAL.fullmatch, parts)):
        raise _UnusualError
    numbers = tuple(map(float, parts))
    if not all(map(math.isfinite, numbers)):
        raise _UnusualError
    return numbers
