"""Plain slices read without pydicom: the same values, header, windows and refusals as through it, or left to it."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from preprocessing import ct, dicom
from preprocessing.ct_windows import windowed
from preprocessing.dicom import read_slice, read_stored, to_hu, window_channels
from preprocessing.dicom_raw import read_plain
from tests.dicoms import slice_dataset, write_slice

BSB = [(40.0, 80.0), (80.0, 200.0), (40.0, 380.0)]


def through_pydicom(path: Path) -> Any:
    return dicom._decoded(path, path.name)


def same(path: Path) -> bool:
    """Whether the file is read without pydicom; either way everything must be equal, errors too."""
    plain = read_plain(path, path.name)
    try:
        expected = through_pydicom(path)
    except ValueError as error:
        with pytest.raises(ValueError) as caught:
            read_stored(path, path.name)
        assert str(caught.value) == str(error)
        return plain is not None
    stored, header = read_stored(path, path.name)
    assert header == expected[1] and stored.dtype == expected[0].dtype
    assert repr(header) == repr(expected[1])  # 1 is not 1.0 here
    np.testing.assert_array_equal(stored, expected[0])
    hu = to_hu(expected[0].astype(np.int32), expected[1])
    found = windowed(stored, header, BSB)
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found.view(np.uint32), window_channels(hu, BSB).view(np.uint32))
    return plain is not None


def save(data: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    data.file_meta.TransferSyntaxUID = syntax  # type: ignore[assignment]
    data.save_as(path, enforce_file_format=True)
    return path


def nested(undefined: bool) -> Dataset:
    """A sequence with an item that holds one, and tags of the slice itself with other values."""
    inner, outer = Dataset(), Dataset()
    inner.Rows, inner.CodeValue = 9, "inner"
    outer.RescaleSlope, outer.RequestAttributesSequence = 77, Items([inner, inner])
    for item, owner in ((inner, outer), (outer, None)):
        item.is_undefined_length_sequence_item = undefined
        if owner is not None:
            owner["RequestAttributesSequence"].is_undefined_length = undefined
    return outer


numbers = st.sampled_from([1, 2, 0.5, -1, 0.75, 1.0009765625, 3.3e-2])
offsets = st.one_of(st.integers(-2000, 200), st.sampled_from([-1024.5, 0.25, -99.9, -100.0, 1e-3]))


@given(data=st.data(), slope=numbers, intercept=offsets, signed=st.booleans(), bits=st.integers(8, 16))
@settings(max_examples=120, deadline=None)
def test_every_kind_of_plain_slice(
    tmp_path_factory: Any, data: Any, slope: float, intercept: float, signed: bool, bits: int
) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size = rows * columns
    some = st.one_of(st.integers(0, 65535), st.sampled_from([63536, 30768, 4095, 4096, 3096, 0, 1 << (bits - 1)]))
    bytes_of = np.array(data.draw(st.lists(some, min_size=size, max_size=size)), np.uint16)
    pixels = bytes_of.view(np.int16 if signed else np.uint16).reshape(rows, columns)
    tags: dict[str, Any] = {"BitsStored": bits, "HighBit": bits - 1}
    limits = st.integers(-32768, 32767) if signed else st.integers(0, 65535)
    for name in data.draw(
        st.sampled_from([(), ("PixelPaddingValue",), ("PixelPaddingValue", "PixelPaddingRangeLimit")])
    ):
        tags[name] = data.draw(limits)
    slice_ = slice_dataset(pixels, z=1.5, RescaleSlope=slope, RescaleIntercept=intercept, **tags)
    # an implicit file of odd pixel count ends in a whole number of 16 bits as well
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    assert same(save(slice_, tmp_path_factory.mktemp("plain") / "a.dcm", syntax))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_and_private_tags_before_the_pixels(tmp_path: Path, syntax: str, undefined: bool) -> None:
    data = slice_dataset(np.arange(12, dtype=np.int16).reshape(3, 4), InstanceNumber=3, SeriesNumber="+7")
    data.ReferencedImageSequence = Items([nested(undefined)])
    data["ReferencedImageSequence"].is_undefined_length = undefined
    data.RequestAttributesSequence = Items([])
    data["RequestAttributesSequence"].is_undefined_length = undefined
    data.private_block(0x0029, "MAKER", create=True).add_new(1, "OB", b"\xe0\x7f\x10\x00OW\0\0")
    data.private_block(0x0043, "MAKER", create=True).add_new(2, "UN", b"1\\2 ")
    data.add_new(0x00280000, "UL", 20)
    assert same(save(data, tmp_path / "a.dcm", syntax))
    _, header = read_stored(tmp_path / "a.dcm")
    assert (header.rows, header.slope, header.series_number) == (3, 1.0, 7), "not those of the items"


PLAIN_TAGS: list[dict[str, Any]] = [
    {"PhotometricInterpretation": "MONOCHROME1"},
    {"NumberOfFrames": 1},
    {"StudyInstanceUID": "ID_5e8f", "SeriesInstanceUID": "1.2.840.1"},
    {"StudyInstanceUID": ""},
    {"ImagePositionPatient": ["-1.50", " 2e1", "+.5 "]},
    {"PixelSpacing": None},
    {"InstanceNumber": ""},
    {"RescaleSlope": None},
    {"RescaleIntercept": ""},
    {"Modality": "MR"},
    {"Modality": None},
    {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
]
ODD_TAGS: list[dict[str, Any]] = [
    {"NumberOfFrames": 2},
    {"ImagePositionPatient": [0, 0]},
    {"RescaleSlope": ["1", "2"]},
    {"StudyInstanceUID": ["1.2", "1.3"]},
    {"Modality": "C T"},
    {"SamplesPerPixel": 3},
    {"PhotometricInterpretation": "PALETTE COLOR"},
    {"PhotometricInterpretation": None},
    {"HighBit": 11},
    {"BitsStored": None},
    {"BitsStored": 17},
    {"PixelRepresentation": None},
    {"PixelRepresentation": 2},
    {"Rows": 17},
    {"Rows": [16, 16]},
    {"Columns": None},
    {"BitsAllocated": 32},
]


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("tags", PLAIN_TAGS + ODD_TAGS, ids=str)
def test_odd_tags(tmp_path: Path, tags: dict[str, Any]) -> None:
    """An odd value is never interpreted here."""
    assert same(write_slice(tmp_path / "a.dcm", **tags)) == (tags in PLAIN_TAGS)


@pytest.mark.parametrize("value", [b"1,5 ", b"0x10", b"1_0 ", b"nan ", b"1e999 ", b"\xb2\xb9", b"    ", b"1\0\0\0"])
def test_numbers_of_another_form_are_left_to_pydicom(tmp_path: Path, value: bytes) -> None:
    path = write_slice(tmp_path / "a.dcm", RescaleSlope="1.25")
    content = path.read_bytes()
    assert content.count(b"DS\4\x001.25") == 1
    path.write_bytes(content.replace(b"DS\4\x001.25", b"DS" + struct.pack("<H", len(value)) + value))
    assert not same(path)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_other_representations_and_orders_are_left_to_pydicom(tmp_path: Path) -> None:
    content = write_slice(tmp_path / "a.dcm", PixelPaddingValue=-2000).read_bytes()
    assert same(tmp_path / "a.dcm")
    rows, columns = b"\x28\0\x10\0US\2\0\x10\0", b"\x28\0\x11\0US\2\0\x10\0"
    pixels = b"\xe0\x7f\x10\0OW\0\0" + struct.pack("<I", 512)
    changes = {
        "order": (rows + columns, columns + rows),
        "twice": (rows, rows + rows),
        "another representation": (rows, rows.replace(b"US", b"UL").replace(b"\2\0\x10", b"\4\0\x10\0\0")),
        "bytes": (pixels, pixels.replace(b"OW", b"OB")),
        "length": (pixels, pixels.replace(struct.pack("<I", 512), struct.pack("<I", 510))),
        "undefined": (pixels, pixels.replace(struct.pack("<I", 512), b"\xff" * 4)),
    }
    for name, (old, new) in changes.items():
        assert content.count(old) == 1 and old != new, name
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(content.replace(old, new))
        assert not same(path), name
    for name, tail in {"padding": b"\xfc\xff\xfc\xffOB\0\0\0\0\0\0", "rubbish": b"\0\0"}.items():
        (tmp_path / f"{name}.dcm").write_bytes(content + tail)
        assert not same(tmp_path / f"{name}.dcm"), name


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_file_that_names_the_other_syntax(tmp_path: Path) -> None:
    explicit, implicit = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"
    content = write_slice(tmp_path / "a.dcm").read_bytes()
    (tmp_path / "b.dcm").write_bytes(content.replace(explicit, implicit))
    assert not same(tmp_path / "b.dcm")
    content = save(slice_dataset(np.ones((4, 4), np.int16)), tmp_path / "c.dcm", ImplicitVRLittleEndian).read_bytes()
    short = b"UI\x12\x00" + implicit[:18]
    assert content.count(short) == 1
    # the meta group grows by two bytes
    content = content.replace(short, b"UI\x14\x00" + explicit)
    length = int.from_bytes(content[140:144], "little") + 2
    (tmp_path / "d.dcm").write_bytes(content[:140] + struct.pack("<I", length) + content[144:])
    assert not same(tmp_path / "d.dcm")


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_never_gives_other_values(tmp_path_factory: Any, data: Any) -> None:
    """Cut or overwritten anywhere, a file is refused or read as pydicom reads it."""
    import warnings

    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(write_slice(folder / "a.dcm", np.arange(16, dtype=np.int16).reshape(4, 4)).read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a.dcm").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks
        plain = read_plain(folder / "a.dcm", "a.dcm")
        if plain is not None:
            assert same(folder / "a.dcm")


def test_hostile_nesting_ends(tmp_path: Path) -> None:
    content = write_slice(tmp_path / "a.dcm").read_bytes()
    start = content.index(b"\x18\0") if b"\x18\0" in content[:400] else content.index(b"\x20\0\x0d\0UI")
    bomb = (b"\x08\0\x40\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4) * 20_000
    (tmp_path / "bomb.dcm").write_bytes(content[:start] + bomb + content[start:])
    assert read_plain(tmp_path / "bomb.dcm", "bomb.dcm") is None


def test_other_syntaxes_go_through_pydicom(tmp_path: Path) -> None:
    pixels = np.arange(-128, 128, dtype=np.int16).reshape(16, 16)
    data = slice_dataset(pixels)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    big = slice_dataset(pixels.astype(">i2"), BitsStored=16, HighBit=15, PixelRepresentation=1, BitsAllocated=16)
    big.PixelData = pixels.astype(">i2").tobytes()
    save(big, tmp_path / "big.dcm", ExplicitVRBigEndian)
    eight = slice_dataset(np.arange(256, dtype=np.uint8).reshape(16, 16))
    eight["PixelData"].VR = "OB"
    save(eight, tmp_path / "eight.dcm")
    for name in ("rle", "big"):
        assert not same(tmp_path / f"{name}.dcm")
        np.testing.assert_array_equal(read_slice(tmp_path / f"{name}.dcm")[0], pixels)
    assert not same(tmp_path / "eight.dcm")


def test_pydicom_is_not_asked_for_a_plain_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slice(tmp_path / "a.dcm")
    monkeypatch.setattr(dicom, "open_file", lambda *_, **__: pytest.fail("read by pydicom"))
    raw, header = read_slice(path)
    assert raw.dtype == np.int32 and raw.flags.writeable and (raw == 1024).all() and header.name == str(path)


def test_a_file_beyond_any_slice_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocessing import dicom_raw

    path = write_slice(tmp_path / "a.dcm")
    assert read_plain(path, "a.dcm") is not None
    monkeypatch.setattr(dicom_raw, "_MAX_FILE", 300)
    assert read_plain(path, "a.dcm") is None


def test_links_out_of_the_root_are_refused_for_every_slice(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_slice(root / "scan" / "a.dcm")
    write_slice(tmp_path / "secret" / "b.dcm")
    (root / "scan" / "b.dcm").symlink_to(tmp_path / "secret" / "b.dcm")
    (root / "scan" / "inside.dcm").symlink_to(root / "scan" / "a.dcm")
    (root / "linked").symlink_to(tmp_path / "secret")
    attrs: dict[str, Any] = {"windows": BSB, "slice_px": 16}
    for name in ("scan/b.dcm", "linked/b.dcm", "../secret/b.dcm", "scan/../../secret/b.dcm"):
        with pytest.raises(ValueError, match="leaves the dataset's root"):
            list(ct.read_slices(root, {**attrs, "files": ["scan/a.dcm", name]}))
    names = ["scan/a.dcm", "scan/inside.dcm", str(root / "scan" / "a.dcm")]
    assert len(list(ct.read_slices(root, {**attrs, "files": names}))) == 3


@pytest.mark.parametrize("where", ["ct/ge_head", "rsna"])
def test_real_files(shared_data: Path, where: str) -> None:
    files = sorted((shared_data / where).glob("*.dcm"))
    assert files
    plain = [same(path) for path in files]
    syntaxes = [dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID for path in files]
    uncompressed = [s in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) for s in syntaxes]
    assert plain == uncompressed
