"""Every compressed transfer syntax: stored values equal to those that were encoded, or within the bound of the loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from preprocessing.scans.dicom import read_slice
from preprocessing.scans.windows import to_hu
from tests.helpers.dicoms import slice_dataset

JPEG = "1.2.840.10008.1.2.4."
Encode = Callable[[np.ndarray, int], bytes]


def lossless_jpeg(predictor: int) -> Encode:
    return lambda a, bits: imagecodecs.jpeg8_encode(a, lossless=True, predictor=predictor, bitspersample=bits)


def lossy_jpeg(a: np.ndarray, bits: int) -> bytes:
    return imagecodecs.jpeg8_encode(a, level=98, bitspersample=bits)


def jpeg2000(a: np.ndarray, bits: int) -> bytes:
    return imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True, bitspersample=bits)


def htj2k(a: np.ndarray, bits: int) -> bytes:
    return imagecodecs.htj2k_encode(a, reversible=True)


LOSSLESS: dict[str, tuple[str, Encode]] = {
    **{f"57, predictor {p}": (f"{JPEG}57", lossless_jpeg(p)) for p in range(1, 8)},
    "70": (f"{JPEG}70", lossless_jpeg(1)),
    "80": (f"{JPEG}80", lambda a, bits: imagecodecs.jpegls_encode(a)),
    "90": (f"{JPEG}90", jpeg2000),
    "91": (f"{JPEG}91", jpeg2000),
    **{syntax: (f"{JPEG}{syntax}", htj2k) for syntax in ("201", "202", "203")},
}
LOSSY: dict[str, tuple[str, int, Encode, int]] = {
    "50": (f"{JPEG}50", 8, lossy_jpeg, 4),
    "51, 8 bit": (f"{JPEG}51", 8, lossy_jpeg, 4),
    "51, 12 bit": (f"{JPEG}51", 12, lossy_jpeg, 8),
    "81": (f"{JPEG}81", 12, lambda a, bits: imagecodecs.jpegls_encode(a, level=2), 2),
    "91": (
        f"{JPEG}91",
        12,
        lambda a, bits: imagecodecs.jpeg2k_encode(a, level=80, bitspersample=bits, codecformat="j2k"),
        8,
    ),
}


def picture(bits: int) -> np.ndarray:
    """A smooth surface with a corner at both ends of the range, (24, 20) unsigned."""
    y, x = np.mgrid[:24, :20]
    values = ((y + x) / 42 * ((1 << bits) - 1)).round()
    values[0, 0], values[-1, -1] = 0, (1 << bits) - 1
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def write(path: Path, pixels: np.ndarray, syntax: str, streams: list[bytes], fragments: int = 1, **tags: Any) -> Path:
    """Write streams, one per frame, under the header of `pixels`."""
    data = slice_dataset(pixels, **tags)
    data.PixelData = encapsulate(streams, fragments_per_frame=fragments)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return path


@pytest.mark.parametrize("bits", [10, 16])
@pytest.mark.parametrize("case", LOSSLESS)
def test_lossless_syntaxes_return_the_stored_values(tmp_path: Path, case: str, bits: int) -> None:
    syntax, encode = LOSSLESS[case]
    pixels = picture(bits)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleIntercept": -1024}
    path = write(tmp_path / "a.dcm", pixels, syntax, [encode(pixels, bits)], **tags)
    raw, header = read_slice(path)
    np.testing.assert_array_equal(raw, pixels)
    np.testing.assert_array_equal(to_hu(raw, header), np.where(np.isin(pixels, (63536, 30768)), -1000, pixels - 1024.0))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("case", LOSSLESS)
def test_negative_values_keep_their_sign(tmp_path: Path, case: str, bits: int) -> None:
    """Codecs know no sign or 12 bits in 16: HU equal those of the same values without compression."""
    syntax, encode = LOSSLESS[case]
    signed = (picture(bits).astype(np.int32) - (1 << (bits - 1))).astype(np.int16)
    coded = (signed.astype(np.int32) & ((1 << bits) - 1)).astype(np.uint16)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleIntercept": 0}
    path = write(tmp_path / "a.dcm", signed, syntax, [encode(coded, bits)], **tags)
    np.testing.assert_array_equal(to_hu(*read_slice(path)), np.where(signed == -2000, -1000, signed))


@pytest.mark.parametrize("case", LOSSY)
def test_lossy_syntaxes_stay_within_their_bound(tmp_path: Path, case: str) -> None:
    syntax, bits, encode, bound = LOSSY[case]
    pixels = picture(bits)
    slope = 16 if bits == 8 else 1
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleIntercept": -1024, "RescaleSlope": slope}
    raw, _ = read_slice(write(tmp_path / "a.dcm", pixels, syntax, [encode(pixels, bits)], **tags))
    assert raw.shape == pixels.shape and np.abs(raw.astype(int) - pixels).max() <= bound


@pytest.mark.parametrize("case", LOSSLESS)
def test_fragments_of_a_slice_are_joined(tmp_path: Path, case: str) -> None:
    syntax, encode = LOSSLESS[case]
    pixels = picture(16)
    path = write(tmp_path / "a.dcm", pixels, syntax, [encode(pixels, 16)], fragments=3)
    np.testing.assert_array_equal(read_slice(path)[0], pixels)


def test_run_lengths(tmp_path: Path) -> None:
    pixels = picture(16)
    data = slice_dataset(pixels)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_slice(tmp_path / "a.dcm")[0], pixels)


@pytest.mark.parametrize("case", [*LOSSLESS, *LOSSY])
def test_a_stream_that_is_cut_off_is_named(tmp_path: Path, case: str) -> None:
    syntax, bits, encode = (*LOSSLESS[case][:1], 12, LOSSLESS[case][1]) if case in LOSSLESS else LOSSY[case][:3]
    pixels = picture(bits)
    stream = encode(pixels, bits)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": 16}
    path = write(tmp_path / "cut.dcm", pixels, syntax, [stream[: len(stream) * 2 // 3]], **tags)
    with pytest.raises(ValueError, match=r"cut\.dcm: pixel data truncated"):
        read_slice(path)


def test_a_stream_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", picture(12), f"{JPEG}70", [lossless_jpeg(1)(picture(12).T.copy(), 12)])
    with pytest.raises(ValueError, match=r"a\.dcm: pixel data"):
        read_slice(path)


NO_DECODER = {f"{JPEG}100": "MPEG2", "1.2.3.4": r"1\.2\.3\.4", f"{JPEG}94": "JPIP"}


@pytest.mark.parametrize(("syntax", "name"), NO_DECODER.items())
def test_a_syntax_without_a_decoder_is_named_with_the_way_round(tmp_path: Path, syntax: str, name: str) -> None:
    path = write(tmp_path / "a.dcm", picture(12), syntax, [b"\0" * 8])
    with pytest.raises(ValueError, match=rf"a\.dcm: transfer syntax .*{name}.*gdcmconv --raw.*dcmdjpeg") as caught:
        read_slice(path)
    assert syntax in str(caught.value)


def test_a_signed_stream_of_jpeg_2000(tmp_path: Path) -> None:
    signed = (picture(12).astype(np.int32) - 2048).astype(np.int16)
    for syntax, stream in ((f"{JPEG}90", jpeg2000(signed, 16)), (f"{JPEG}201", htj2k(signed, 16))):
        np.testing.assert_array_equal(read_slice(write(tmp_path / "a.dcm", signed, syntax, [stream]))[0], signed)
