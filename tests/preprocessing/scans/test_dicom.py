"""CT reading: order, Hounsfield units, windows, errors; pydicom's LUT functions are the oracles."""

import logging
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.pixels import apply_rescale, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from preprocessing.bags.rows import BagRow
from preprocessing.common.options import CtOptions, ct_options
from preprocessing.instances.scan_bag import ct_instances, read_slices
from preprocessing.scans.dicom import read_header, read_slice
from preprocessing.scans.series import check_series, slice_order
from preprocessing.scans.windows import to_hu, window, window_channels
from preprocessing.store.attrs import InstanceAttrs
from tests.helpers.dicoms import PATIENT, slice_dataset, write_slice

BSB = [(40.0, 80.0), (80.0, 200.0), (40.0, 380.0)]


def hu_of(path: Path) -> np.ndarray:
    return to_hu(*read_slice(path))


def row_of(files: list[str], **kwargs: object) -> BagRow:
    return BagRow("bag", "ct", tuple(files), **{"label": 1, **kwargs})  # type: ignore[arg-type]


@given(
    level=st.floats(-600, 600),
    width=st.floats(1, 3000),
    values=st.lists(st.integers(-1024, 3071), min_size=1, max_size=50),
)
@settings(max_examples=60, deadline=None)
def test_window_is_linear_exact(level: float, width: float, values: list[int]) -> None:
    hu = np.array([values], dtype=np.float32)
    data = slice_dataset(np.zeros((2, 2), np.int16), RescaleIntercept=0)
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = round(level, 3), round(width, 3), "LINEAR_EXACT"
    data.BitsStored = 8
    data.PixelRepresentation = 0
    del data.RescaleSlope, data.RescaleIntercept
    expected = apply_windowing(hu.astype(np.float64), data) / 255
    got = window(hu, round(level, 3), round(width, 3))
    assert got.dtype == np.float32 and got.min() >= 0 and got.max() <= 1
    np.testing.assert_allclose(got, np.clip(expected, 0, 1), atol=2e-5 * max(1, 3000 / width))


def test_window_limits_and_middle() -> None:
    hu = np.array([[0, 40, 80, -5000, 5000]], dtype=np.float32)
    np.testing.assert_array_equal(window(hu, 40, 80), [[0, 0.5, 1, 0, 1]])
    assert window_channels(hu, BSB).shape == (1, 5, 3)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.uint32])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (2, -500), (0.5, -100.5)])
def test_rescale_equals_pydicom(tmp_path: Path, dtype: type, slope: float, intercept: float) -> None:
    low = 0 if np.iinfo(dtype).min == 0 else -1000
    pixels = np.arange(low, low + 256).astype(dtype).reshape(16, 16)
    # a display that inverts does not invert Hounsfield units
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "PhotometricInterpretation": "MONOCHROME1"}
    path = write_slice(tmp_path / "a.dcm", pixels, **tags)
    raw, header = read_slice(path)
    before, data = raw.copy(), dcmread(path)
    np.testing.assert_allclose(to_hu(raw, header), apply_rescale(data.pixel_array, data), rtol=1e-6)
    np.testing.assert_array_equal(raw, before)


def test_12bit_values_that_wrapped_are_repaired(tmp_path: Path) -> None:
    # air (-1000), water (0) and bone (1000) as the faulty export wrote them: HU, modulo 4096, intercept near 0
    hu = np.array([[-1000, -1, 0, 1000, 2000, 3095]])
    pixels = (hu % 4096).astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11}
    path = write_slice(tmp_path / "a.dcm", pixels, RescaleIntercept=0, **tags)
    np.testing.assert_array_equal(hu_of(path), hu)
    scaled = write_slice(
        tmp_path / "c.dcm", np.full((4, 4), 80, np.uint16), RescaleIntercept=0, RescaleSlope=0.5, **tags
    )
    assert not read_header(scaled).needs_repair and (hu_of(scaled) == 40).all()
    sound = write_slice(tmp_path / "b.dcm", (hu[:, :5] + 1024).astype(np.uint16), RescaleIntercept=-1024, **tags)
    np.testing.assert_array_equal(hu_of(sound), hu[:, :5])


@pytest.mark.parametrize(("dtype", "fill"), [(np.int16, -2000), (np.uint16, 63536), (np.uint16, 30768)])
@pytest.mark.parametrize("bits", [12, 16])
def test_out_of_field_is_air_before_windowing(tmp_path: Path, dtype: type, fill: int, bits: int) -> None:
    pixels = np.full((4, 4), 1060, dtype=dtype)
    pixels[0, 0] = fill
    path = write_slice(tmp_path / "a.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    hu = hu_of(path)
    assert hu[0, 0] == -1000 and hu[1, 1] == 36
    assert window_channels(hu, BSB)[0, 0].max() == 0


@pytest.mark.parametrize(
    ("dtype", "stored", "slope", "intercept", "hu"),
    [
        (np.int16, -2000, 0.1, 0, -200),
        (np.int16, -2000, 1, 1500, -500),
        (np.uint16, 30768, 0.1, -1024, 2052.8),
        (np.uint16, 63536, 0.05, -1000, 2176.8),
        (np.int16, -2000, 1, 0, -1000),
        (np.int16, -2000, 0.5, -24, -1000),
        (np.uint16, 30768, 1, -1024, -1000),
    ],
)
def test_a_fill_value_is_air_only_where_the_scale_makes_it_so(
    tmp_path: Path, dtype: type, stored: int, slope: float, intercept: float, hu: float
) -> None:
    pixels = np.full((4, 4), stored, dtype)
    path = write_slice(tmp_path / "a.dcm", pixels, RescaleSlope=slope, RescaleIntercept=intercept)
    np.testing.assert_allclose(hu_of(path), hu, rtol=1e-6)
    data = dcmread(path)
    if hu != -1000:
        np.testing.assert_allclose(hu_of(path), apply_rescale(data.pixel_array, data), rtol=1e-6)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_floating_point_pixels_are_refused_by_name(tmp_path: Path, keyword: str, dtype: type) -> None:
    data = slice_dataset(np.zeros((4, 4), np.int16))
    del data.PixelData
    setattr(data, keyword, np.zeros((4, 4), dtype).tobytes())
    data.save_as(tmp_path / "f.dcm", enforce_file_format=True)
    with pytest.raises(ValueError, match=r"f\.dcm: floating-point pixels"):
        read_slice(tmp_path / "f.dcm")


def test_declared_padding_is_believed_only_outside_tissue(tmp_path: Path) -> None:
    pixels = np.array([[-1500, 0], [40, 60]], dtype=np.int16)
    outside = write_slice(tmp_path / "a.dcm", pixels, RescaleIntercept=0, PixelPaddingValue=-1500)
    np.testing.assert_array_equal(hu_of(outside), [[-1000, 0], [40, 60]])
    water = write_slice(tmp_path / "b.dcm", pixels, RescaleIntercept=0, PixelPaddingValue=0)
    assert hu_of(water)[0, 1] == 0
    several = write_slice(
        tmp_path / "c.dcm", pixels, RescaleIntercept=0, PixelPaddingValue=-1500, PixelPaddingRangeLimit=-1200
    )
    assert hu_of(several)[0, 0] == -1000


@given(st.permutations(range(6)), st.floats(-0.5, 0.5), st.booleans())
@settings(max_examples=10, deadline=None)
def test_order_is_along_the_normal(tmp_path_factory, order, tilt, shear):
    folder = tmp_path_factory.mktemp("series")
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(tilt), -np.sin(tilt)])
    normal = np.cross(row, column)
    at = np.array([0, 1.1, 5, 12, 12.5, 30])
    for i in order:
        # a tilted gantry moves slices along z, so that positions shear within the slice plane
        origin = np.array([0, 0, at[i] / normal[2]]) if shear else at[i] * normal
        write_slice(
            folder / f"{order.index(i)}.dcm",
            ImagePositionPatient=[round(float(v), 9) for v in origin],
            ImageOrientationPatient=[round(float(v), 9) for v in (*row, *column)],
        )
    headers = [read_header(folder / f"{k}.dcm") for k in range(6)]
    check_series(headers)
    index, along = slice_order(headers)
    assert [order[k] for k in index] == list(range(6))
    np.testing.assert_allclose(along, at - at[0], atol=1e-6)


REFUSED = {
    "no position": ({"ImagePositionPatient": None}, "no ImagePositionPatient or ImageOrientationPatient"),
    "directions not perpendicular": (
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        "ImageOrientationPatient is not two perpendicular unit vectors",
    ),
    "MR": ({"Modality": "MR"}, "Modality is 'MR', expected CT"),
    "several frames": ({"NumberOfFrames": 2}, "2 frames in one file (enhanced CT), expected one file per slice"),
    "no rescale": ({"RescaleIntercept": None}, "no RescaleSlope or RescaleIntercept"),
    "enhanced CT": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "enhanced CT"),
    "slope of 0": ({"RescaleSlope": 0}, "RescaleSlope is 0, expected more than 0"),
    "units other than HU": ({"RescaleType": "US"}, "RescaleType is 'US', expected HU"),
    "HighBit that does not fit": ({"BitsStored": 12, "HighBit": 15}, "HighBit is 15, expected 11"),
    "8 bits (an export as a picture)": ({"BitsStored": 8, "HighBit": 7}, "the values span 256 HU"),
    "palette": (
        {"PhotometricInterpretation": "PALETTE COLOR"},
        "PhotometricInterpretation is 'PALETTE COLOR', expected MONOCHROME1",
    ),
    "position of two numbers": ({"ImagePositionPatient": [0, 0]}, "ImagePositionPatient has 2 values, expected 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_file(tmp_path: Path, case: str) -> None:
    tags, text = REFUSED[case]
    path = write_slice(tmp_path / "slice_7.dcm", **tags)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slice_7.dcm") as caught:
        check_series([read_header(path)])
    assert text in str(caught.value)
    with pytest.raises(ValueError, match="slice_7.dcm"):
        read_slice(path)


def test_colour_mixed_sizes_and_two_series_are_refused(tmp_path: Path) -> None:
    first = read_header(write_slice(tmp_path / "a.dcm"))
    colour = write_slice(tmp_path / "rgb.dcm", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"rgb\.dcm.*colour"):
        check_series([read_header(colour)])
    small = write_slice(tmp_path / "small.dcm", np.zeros((8, 8), np.int16), z=1)
    with pytest.raises(ValueError, match=r"small\.dcm.*one size"):
        check_series([first, read_header(small)])
    other = write_slice(tmp_path / "other.dcm", SeriesInstanceUID="1.2.99")
    with pytest.raises(ValueError, match=r"other\.dcm.*another series.*2 series"):
        check_series([first, read_header(other)])
    scout = write_slice(tmp_path / "scout.dcm", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    with pytest.raises(ValueError, match=r"scout\.dcm.*orientation"):
        check_series([first, read_header(scout)])
    with pytest.raises(ValueError, match="without slices"):
        check_series([])


@pytest.mark.parametrize("kind", ["FD", "SQ", "US"])
def test_a_value_of_another_kind_is_one_clear_error(tmp_path: Path, kind: str) -> None:
    path = write_slice(tmp_path / "a.dcm")
    content, element = path.read_bytes(), b"\x28\0\0\1US\2\0\x10\0"
    assert content.count(element) == 1, "BitsAllocated"
    odd = b"\x28\0\0\1SQ\0\0\2\0\0\0\x10\0" if kind == "SQ" else element.replace(b"US", kind.encode())
    path.write_bytes(content.replace(element, odd))
    if kind == "US":
        assert read_slice(path)[0].shape == (16, 16)
    else:
        with pytest.raises(ValueError, match=r"a\.dcm: "):
            read_slice(path)


def test_a_deflated_file_that_is_damaged_is_one_clear_error(tmp_path: Path) -> None:
    data = slice_dataset(np.zeros((16, 16), np.int16))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    assert read_slice(tmp_path / "a.dcm")[0].shape == (16, 16)
    (tmp_path / "a.dcm").write_bytes(content[:-40] + b"\xff" * 40)
    with pytest.raises(ValueError, match=r"a\.dcm: truncated or unreadable DICOM file"):
        read_slice(tmp_path / "a.dcm")


@pytest.mark.parametrize("keep", [0, 60, 200, 600, -100])
def test_truncated_files_are_one_clear_error(tmp_path: Path, keep: int) -> None:
    path = write_slice(tmp_path / "cut_9.dcm", np.zeros((32, 32), np.int16))
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"cut_9\.dcm"):
        read_slice(path)


@pytest.mark.parametrize(("length", "rows"), [(510, 16), (0, 16), (512, 17)])
def test_wrong_lengths_are_one_clear_error(tmp_path: Path, length: int, rows: int) -> None:
    path = write_slice(tmp_path / "a.dcm", Rows=rows)
    content, element = path.read_bytes(), b"\xe0\x7f\x10\0OW\0\0"
    assert content.count(element + struct.pack("<I", 512)) == 1
    path.write_bytes(content.replace(element + struct.pack("<I", 512), element + struct.pack("<I", length)))
    with pytest.raises(ValueError, match=r"a\.dcm: pixel data truncated"):
        read_slice(path, "a.dcm")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_damage_is_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = write_slice(tmp_path_factory.mktemp("damage") / "a.dcm", np.arange(16, dtype=np.int16).reshape(4, 4))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_slice(path, "a.dcm")
    except ValueError as error:
        assert "a.dcm" in str(error)


def test_links_out_of_the_root_are_refused_for_every_slice(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_slice(root / "scan" / "a.dcm")
    write_slice(tmp_path / "secret" / "b.dcm")
    (root / "scan" / "b.dcm").symlink_to(tmp_path / "secret" / "b.dcm")
    (root / "scan" / "inside.dcm").symlink_to(root / "scan" / "a.dcm")
    (root / "linked").symlink_to(tmp_path / "secret")
    attrs = InstanceAttrs(windows=BSB, slice_px=16)
    for name in ("scan/b.dcm", "linked/b.dcm", "../secret/b.dcm", "scan/../../secret/b.dcm"):
        with pytest.raises(ValueError, match="leaves the dataset's root"):
            list(read_slices(root, attrs.updated(files=("scan/a.dcm", name))))
    names = ["scan/a.dcm", "scan/inside.dcm", str(root / "scan" / "a.dcm")]
    assert len(list(read_slices(root, attrs.updated(files=names)))) == 3


@pytest.mark.parametrize("tag", ["SeriesDescription", "RescaleType", "Modality"])
def test_a_damaged_length_shows_no_name(tmp_path: Path, tag: str) -> None:
    path = write_slice(tmp_path / "a.dcm", **{"SeriesDescription": "Head", "RescaleType": "HU", tag: "AB"})
    content = path.read_bytes()
    at = content.index({"SeriesDescription": b"LO\2\0AB", "RescaleType": b"LO\2\0AB", "Modality": b"CS\2\0AB"}[tag])
    path.write_bytes(content[: at + 2] + (400).to_bytes(2, "little") + content[at + 4 :])
    try:
        text = repr(read_header(path, "a.dcm"))
    except ValueError as error:
        text = str(error)
    assert "Secretname" not in text and "SECRETID" not in text


def test_missing_and_foreign_files_and_empty_headers(tmp_path: Path) -> None:
    """A header without anything must not pass for an object that is no image."""
    contents = {"not a DICOM file": b"not an image" * 50, "neither Modality nor SOPClassUID": bytes(128) + b"DICM"}
    for message, content in contents.items():
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.dcm: {message}"):
            read_header(tmp_path / "a.dcm", "a.dcm")
    with pytest.raises(ValueError, match="no such file"):
        read_header(tmp_path / "none.dcm")


UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", UNCOMPRESSED)
def test_every_uncompressed_syntax(tmp_path: Path, syntax: str) -> None:
    pixels = np.arange(-128, 128, dtype=np.int16).reshape(16, 16)
    data = slice_dataset(pixels)
    data.PixelData = pixels.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
    data.file_meta.TransferSyntaxUID = syntax
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_slice(tmp_path / "a.dcm")[0], pixels)
    bag = ct_instances(CtOptions(slice_px=16), row_of(["a.dcm"]), tmp_path)
    (channels,) = read_slices(tmp_path, bag.attrs)
    np.testing.assert_array_equal(channels, window_channels(pixels.astype(np.float32) - 1024, BSB))


def test_no_identity_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    names = [f"{k}.dcm" for k in range(3)]
    for k, name in enumerate(names):
        write_slice(tmp_path / name, z=2 * k)
    bag = ct_instances(CtOptions(), row_of(names), tmp_path)
    list(read_slices(tmp_path, bag.attrs))
    texts = [repr(bag.attrs), repr(bag.outlines), repr(read_header(tmp_path / "0.dcm"))]
    # an identity where a number belongs, and a file cut inside its header
    write_slice(tmp_path / "odd.dcm", PatientID="SECRETID77" * 8)
    broken = (tmp_path / "odd.dcm").read_bytes().replace(b"SECRETID77", b"\xff\xfeSECRETID7")
    (tmp_path / "odd.dcm").write_bytes(broken[:-50])
    with pytest.raises(ValueError) as caught:
        read_slice(tmp_path / "odd.dcm")
    texts += [str(caught.value), repr(caught.value.__cause__)]
    texts += [caplog.text, *capsys.readouterr()]
    for secret in ("Secretname", "SECRETID", PATIENT["PatientBirthDate"]):
        assert not any(secret in text for text in texts)


def test_instances_of_a_scan(tmp_path: Path) -> None:
    heights = {"x.dcm": 7.0, "a.dcm": 0.0, "m.dcm": 2.5}
    for name, z in heights.items():
        write_slice(tmp_path / "scan" / name, np.full((16, 16), 1024 + int(z * 10), np.int16), z=z)
    files = [f"scan/{name}" for name in heights]
    row = row_of(files, annotation="slices:10x")
    bag = ct_instances(ct_options({"slice_px": 32}), row, tmp_path)
    assert bag.attrs.files == ("scan/a.dcm", "scan/m.dcm", "scan/x.dcm")
    assert bag.coords.dtype == np.float32 and bag.coords.tolist() == [[0.0], [2.5], [7.0]]
    assert bag.grid.tolist() == [[0, 0], [1, 0], [2, 0]]
    assert [sorted(n for n in line if n >= 0) for line in bag.neighbors.tolist()] == [[1], [0, 2], [1]]
    np.testing.assert_array_equal(bag.coverage, np.array([0, np.nan, 1], np.float32))
    slices = list(read_slices(tmp_path, bag.attrs))
    assert [s.shape for s in slices] == [(32, 32, 3)] * 3 and slices[0].dtype == np.float32
    # the brain window maps 0, 25 and 70 HU to 0, 25/80 and 70/80, in anatomical order
    np.testing.assert_allclose([s[5, 5, 0] for s in slices], [0, 25 / 80, 70 / 80], atol=1e-6)
    assert bag.thumbnail is not None and bag.thumbnail.dtype == np.uint8
    assert bag.outlines.montage.slices == [0, 1, 2]


@pytest.mark.parametrize(("label", "expected"), [(0, 0.0), (1, np.nan), (None, np.nan)])
def test_coverage_without_slice_labels(tmp_path: Path, label: int | None, expected: float) -> None:
    write_slice(tmp_path / "a.dcm")
    bag = ct_instances(CtOptions(), row_of(["a.dcm"], label=label), tmp_path)
    np.testing.assert_array_equal(bag.coverage, np.array([expected], np.float32))
    assert len(bag) == 1 and bag.attrs.spacing_mm.slices_median is None


@pytest.mark.parametrize(
    ("options", "annotation", "message"),
    [
        ({}, "slices:01", "annotation: found 'slices:01', expected"),
        ({"resize_slices": False}, "", "resize_slices"),
        ({"windows": [(40, 80), (40, 0), (1, 1)]}, "", "windows: .*a width above 0 HU"),
    ],
)
def test_settings_that_do_not_fit_the_scan_are_refused(tmp_path: Path, options, annotation: str, message: str) -> None:
    write_slice(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=message):
        ct_instances(CtOptions(**options), row_of(["a.dcm"], annotation=annotation), tmp_path)


def test_resize_averages_after_windowing(tmp_path: Path) -> None:
    pixels = np.full((64, 64), 1024 - 1000, np.int16)
    pixels[:, 32:] = 1024 + 3000
    write_slice(tmp_path / "a.dcm", pixels)
    bag = ct_instances(CtOptions(slice_px=16), row_of(["a.dcm"]), tmp_path)
    (image,) = read_slices(tmp_path, bag.attrs)
    # window first: the step stays between 0 and 1; HU first would put a grey rim only where 0..80 HU is crossed
    np.testing.assert_allclose(image[:, :, 0].mean(), 0.5, atol=1e-3)
    assert image[:, :7].max() < 0.01 and image[:, 9:].min() > 0.99


def test_real_head_ct(tmp_path: Path, shared_data: Path) -> None:
    files = sorted((shared_data / "ct" / "ge_head").glob("*.dcm"))
    assert len(files) == 28
    # names that say nothing about the order
    names = [f"{(k * 11) % 28:02d}_slice.dcm" for k in range(28)]
    for name, path in zip(names, files, strict=True):
        shutil.copy(path, tmp_path / name)
    bag = ct_instances(CtOptions(), row_of(sorted(names)), tmp_path)
    along = np.array([dcmread(tmp_path / n).SliceLocation for n in bag.attrs.files], dtype=float)
    assert (np.diff(along) > 0).all()
    assert (np.diff(bag.coords[:, 0]) > 0).all()
    spacing = bag.attrs.spacing_mm
    assert spacing.slices_min == pytest.approx(1.081, abs=1e-3)
    assert spacing.slices_max == pytest.approx(6.999, abs=1e-3)
    raw, header = read_slice(tmp_path / bag.attrs.files[14])
    assert header.padding == (-1500, -1500) and raw.min() == -1500
    hu = to_hu(raw, header)
    assert hu.min() >= -1024 and (hu[raw == -1500] == -1000).all()
    data = dcmread(tmp_path / bag.attrs.files[14])
    inside = raw != -1500
    np.testing.assert_array_equal(hu[inside], apply_rescale(data.pixel_array, data)[inside])
    brain = window(hu, 40, 80)
    assert 0.02 < ((brain > 0) & (brain < 1)).mean() < 0.5


def test_real_rsna_slice(shared_data: Path) -> None:
    path = shared_data / "rsna" / "ID_000012eaf.dcm"
    raw, header = read_slice(path)
    hu = to_hu(raw, header)
    assert raw.min() == -2000 and (hu[raw == -2000] == -1000).all()
    assert not header.needs_repair and header.intercept == -1024
    inside = hu[raw != -2000]
    assert inside.min() >= -1024 - 24 and 900 < inside.max() < 3072
    assert window_channels(hu, BSB).shape == (512, 512, 3)
