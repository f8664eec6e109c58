"""Decode compressed DICOM pixels with imagecodecs, as a plugin of pydicom's decoders.

JPEG (8 and 12 bit, lossless) is read by libjpeg-turbo, JPEG-LS by CharLS, JPEG 2000 and HTJ2K by OpenJPEG; RLE is
pydicom's own. pydicom corrects the sign of JPEG-LS and JPEG 2000 values.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import Decoder, DecodeRunner

PLUGIN = "imagecodecs"
_SYNTAXES = {"jpeg8": (50, 51, 57, 70), "jpegls": (80, 81), "jpeg2k": (90, 91, 201, 202, 203)}
_CODECS = {f"1.2.840.10008.1.2.4.{number}": codec for codec, numbers in _SYNTAXES.items() for number in numbers}
_LOCK = Lock()
_END_OF_IMAGE = b"\xff\xd9"
# what pydicom reads from a plugin
DECODER_DEPENDENCIES = dict.fromkeys(_CODECS, (PLUGIN,))


def is_available(uid: str) -> bool:
    """Return whether the plugin decodes a transfer syntax."""
    return uid in _CODECS


@cache
def decoder_of(syntax: str) -> tuple[Decoder, str]:
    """Return pydicom's decoder of a transfer syntax and the plugin to use, "" = pydicom itself.

    Raises:
        ValueError: no decoder; the message names the syntax and the way round.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        name = f"{uid.name} ({uid})" if uid.name != uid else str(uid) or "absent"
        raise ValueError(
            f"transfer syntax {name} cannot be read; convert the files, e.g. `gdcmconv --raw IN OUT` or "
            "`dcmdjpeg IN OUT`"
        ) from None
    if uid not in _CODECS:
        return decoder, ""
    with _LOCK:
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))
    return decoder, PLUGIN


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode one grey frame into little-endian samples; called by pydicom. Colour is refused before (`check_slice`).

    Raises:
        ValueError: the stream is cut off, or its picture has another size than the header says.
        RuntimeError: the codec cannot decode it.
    """
    import imagecodecs
    import numpy as np

    codec = _CODECS[runner.transfer_syntax]
    # libjpeg fills what is missing with grey, and CharLS may search for its end for seconds
    if codec != "jpeg2k" and _END_OF_IMAGE not in src[-16:]:
        raise ValueError("the stream is cut off")
    frame = np.asarray(getattr(imagecodecs, f"{codec}_decode")(src))
    if frame.shape != (runner.rows, runner.columns):
        raise ValueError(f"the stream holds {frame.shape} samples, the header says {runner.rows} x {runner.columns}")
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    return np.ascontiguousarray(frame, frame.dtype.newbyteorder("<")).tobytes()
