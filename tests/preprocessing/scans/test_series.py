"""Slices that are there twice, that alternate or that are missing, and series that cannot be told apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.scans.dicom import read_header
from preprocessing.scans.series import FaultyScan, NoSuchSeries, Scan, choose_scan, order_series
from tests.helpers.dicoms import write_slice


def pixels(z: float) -> np.ndarray:
    return np.full((16, 16), 1024 + int(10 * z), np.int16)


def read(folder: Path, number: int | None = None) -> Scan:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.dcm"))}
    return choose_scan([read_header(path, name) for name, path in paths.items()], paths, number, "exam")


def add(folder: Path, prefix: str, heights: list[float], **tags: Any) -> None:
    for i, z in enumerate(heights):
        write_slice(
            folder / f"{prefix}{i}.dcm", pixels(z), z=z, **{"SOPInstanceUID": f"1.2.{ord(prefix[0])}.{i}", **tags}
        )


def names(scan: Scan) -> list[str]:
    return [header.name for header in scan.slices]


def test_identical_copies_are_dropped_and_counted(tmp_path: Path) -> None:
    add(tmp_path, "a", [0, 5, 10])
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a1.dcm").read_bytes())
    # exported again under a new name and UID
    write_slice(tmp_path / "c.dcm", pixels(10), z=10, SOPInstanceUID="1.2.77")
    scan = read(tmp_path)
    assert names(scan) == ["a0.dcm", "a1.dcm", "a2.dcm"] and scan.along.tolist() == [0, 5, 10]
    assert scan.left_out == {"b.dcm": "copy of a1.dcm", "c.dcm": "copy of a2.dcm"}
    assert scan.note == "left out: 1 x copy of a1.dcm (b.dcm), 1 x copy of a2.dcm (c.dcm)"


SAME_UID = r"a1\.dcm, b\.dcm: 2 files with one SOPInstanceUID but different content"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"z": 7.0}, SAME_UID),
        ({"RescaleIntercept": -1000}, SAME_UID),
        ({"pixels": pixels(99)}, SAME_UID),
        (
            {"pixels": pixels(50), "SOPInstanceUID": "1.3"},
            r"1 of 3 places.*a1\.dcm and b\.dcm; no header value tells them apart",
        ),
    ],
)
def test_one_uid_or_place_with_different_content_is_refused(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    add(tmp_path, "a", [0, 5, 10])
    write_slice(tmp_path / "b.dcm", **{"pixels": pixels(5), "z": 5.0, "SOPInstanceUID": "1.2.97.1", **other})
    with pytest.raises(FaultyScan, match=message):
        read(tmp_path)


RECONSTRUCTIONS: dict[str, tuple[str, Any, Any]] = {
    "two kernels": ("ConvolutionKernel", "H31s", "H70h"),
    "two acquisitions": ("AcquisitionNumber", 1, 2),
    "originals and reformats": ("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
    "two slice thicknesses": ("SliceThickness", 1.5, 5.0),
    "two voltages": ("KVP", 80, 140),
    "two cardiac phases": ("NominalPercentageOfCardiacPhase", 30, 70),
}


@pytest.mark.parametrize("case", RECONSTRUCTIONS)
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_two_reconstructions_are_never_interleaved(tmp_path: Path, case: str, shift: float) -> None:
    """At the same places, and between them; one after the other they are one scan."""
    tag, one, two = RECONSTRUCTIONS[case]
    add(tmp_path, "a", [0, 5, 10, 15], **{tag: one})
    for i, z in enumerate([0, 5, 10, 15]):
        write_slice(tmp_path / f"b{i}.dcm", pixels(z + 50), z=z + shift, SOPInstanceUID=f"1.3.{i}", **{tag: two})
    with pytest.raises(FaultyScan, match=f"{tag}.*two reconstructions or acquisitions in one series") as caught:
        read(tmp_path)
    assert ("4 of 4 places" in str(caught.value)) == (shift == 0) and "(4 " in str(caught.value)
    for path in tmp_path.glob("b*"):
        path.unlink()
    add(tmp_path, "b", [20, 25, 30, 35], **{tag: two})
    scan = read(tmp_path)
    assert len(scan.slices) == 8
    changes = (f"{tag} changes along the scan: {one} (4 slices), {two} (4 slices)",)
    assert scan.remarks == (changes if tag == "ConvolutionKernel" else ())


@pytest.mark.parametrize(
    ("first", "second", "odd"),
    [
        ([1, 2, 3, 4], [5, 6, 7, 8], True),
        ([1, 2, 3, 4], [1, 2, 3, 4], True),
        ([1, 3, 5, 7], [2, 4, 6, 8], False),
        ([8, 6, 4, 2], [7, 5, 3, 1], False),
        ([3, 1, 8, 5], [2, 7, 4, 6], False),
    ],
    ids=["one after the other", "repeated", "rising", "falling", "arbitrary"],
)
def test_two_numberings_in_turn_are_told(tmp_path: Path, first: list[int], second: list[int], odd: bool) -> None:
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        write_slice(tmp_path / f"a{i}.dcm", pixels(i), 10.0 * i, InstanceNumber=a)
        write_slice(tmp_path / f"b{i}.dcm", pixels(i + 9), 10.0 * i + 5, InstanceNumber=b)
    assert bool(read(tmp_path).remarks) is odd


def test_a_gap_is_told_but_a_change_of_spacing_is_none(tmp_path: Path) -> None:
    add(tmp_path / "gap", "a", [0, 5, 10, 20, 25])
    assert read(tmp_path / "gap").remarks == ("slices missing? 1 gaps: 10 mm after a2.dcm (beside it 5 mm)",)
    add(tmp_path / "two", "a", [0, 2.5, 5, 7.5, 15, 22.5, 30])
    assert read(tmp_path / "two").remarks == ()
    add(tmp_path / "one", "a", [0])
    assert read(tmp_path / "one").note == ""


LEFT_OUT: dict[str, tuple[dict[str, Any], str]] = {
    "structured report (SR)": (
        {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Rows": None},
        "Modality SR, X-Ray Radiation Dose SR",
    ),
    "presentation state (PR)": (
        {"Modality": "PR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1", "Rows": None},
        "Modality PR, Grayscale Softcopy Presentation State",
    ),
    "key images (KO)": (
        {"Modality": "KO", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.59", "Rows": None},
        "Modality KO, Key Object Selection Document",
    ),
    "contours for radiotherapy (RTSTRUCT)": (
        {"Modality": "RTSTRUCT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.3"},
        "Modality RTSTRUCT, RT Structure Set",
    ),
    "segmentation (SEG)": (
        {"Modality": "SEG", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "NumberOfFrames": 9},
        "Modality SEG",
    ),
    "PDF, e.g. a dose sheet": (
        {"Modality": "DOC", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Rows": None},
        "Modality DOC, Encapsulated PDF",
    ),
    "raw data": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66", "Rows": None}, "Raw Data, no pixels"),
    "image of another modality, e.g. PET": ({"Modality": "PT"}, "Modality PT"),
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "secondary capture": (
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None, "RescaleSlope": None},
        "secondary capture",
    ),
    "colour picture": ({"pixels": np.zeros((8, 8, 3), np.uint8)}, "colour picture"),
    "whole-slide image": ({"Modality": "SM"}, "whole-slide image"),
}


@pytest.mark.parametrize("same_series", [True, False])
@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_no_slice_is_left_out_by_name(tmp_path: Path, case: str, same_series: bool) -> None:
    tags, reason = LEFT_OUT[case]
    add(tmp_path, "a", [0, 5, 10], SeriesNumber=2)
    other = {"SeriesNumber": 2} if same_series else {"SeriesNumber": 1, "SeriesInstanceUID": "1.2.0"}
    write_slice(tmp_path / "odd.dcm", **{"z": 50.0, **other, **tags})
    for number in (None, 2):
        scan = read(tmp_path, number)
        assert names(scan) == ["a0.dcm", "a1.dcm", "a2.dcm"] and [*scan.left_out] == ["odd.dcm"]
        assert scan.left_out["odd.dcm"].startswith(reason)
    if not same_series:
        with pytest.raises(NoSuchSeries, match=r"no CT series #1; write 'exam#2' \(3 CT images\)"):
            read(tmp_path, 1)
    for path in tmp_path.glob("a*"):
        path.unlink()
    with pytest.raises(FaultyScan, match=f"no CT slice, only 1 x {reason}"):
        read(tmp_path)


def test_a_slice_cut_off_within_its_class_is_damaged_and_not_left_out(tmp_path: Path) -> None:
    add(tmp_path, "a", [0, 5, 10])
    write_slice(tmp_path / "cut.dcm", z=15, SOPClassUID="1.2", Modality=None, Rows=None, Columns=None)
    with pytest.raises(FaultyScan, match=r"cut\.dcm: Modality is 'absent'"):
        read(tmp_path)


def test_the_advice_names_series_that_can_be_used(tmp_path: Path) -> None:
    add(tmp_path, "a", [0, 5, 10], SeriesNumber=5, SeriesInstanceUID="1.5", SeriesDescription="Head 5.0 H31s")
    add(tmp_path, "b", [0, 5], SeriesNumber=4, SeriesInstanceUID="1.4")
    add(tmp_path, "c", [0, 5, 10, 15], SeriesNumber=3, SeriesInstanceUID="1.3", RescaleSlope=None)
    add(tmp_path, "d", [0, 5, 10, 15], SeriesNumber=None, SeriesInstanceUID="1.2")
    with pytest.raises(FaultyScan) as caught:
        read(tmp_path)
    advice = "write 'exam#5' (3 CT images, 'Head 5.0 H31s') or 'exam#4' (2 CT images)"
    assert str(caught.value) == f"'exam': 4 CT series, but one bag is one series; {advice}"
    assert len(caught.value.files) == 13
    scan = read(tmp_path, 4)
    assert names(scan) == ["b0.dcm", "b1.dcm"]
    assert scan.note == "left out: 4 x CT image without SeriesNumber (d0.dcm, d1.dcm, d2.dcm, ...)"
    with pytest.raises(FaultyScan, match="c0.dcm: no RescaleSlope") as caught:
        read(tmp_path, 3)
    assert caught.value.files == ("c0.dcm", "c1.dcm", "c2.dcm", "c3.dcm")


def test_the_advice_names_folders_that_hold_one_series(tmp_path: Path) -> None:
    add(tmp_path / "a", "i", [0, 5], SeriesNumber=None, SeriesInstanceUID="1.2.1")
    add(tmp_path / "b", "i", [0, 5], SeriesNumber=None, SeriesInstanceUID="1.2.2")
    with pytest.raises(FaultyScan, match=r"write '\S*a' \(2 CT images.*\) or '\S*b' \(2"):
        read(tmp_path)
    add(tmp_path / "a", "x", [0, 5], SeriesNumber=None, SeriesInstanceUID="1.2.2")
    with pytest.raises(FaultyScan, match="none can be used.*give it a folder of its own"):
        read(tmp_path)


def test_a_number_that_two_series_share_chooses_none(tmp_path: Path) -> None:
    add(tmp_path, "a", [0, 5, 10], SeriesNumber=2, StudyInstanceUID="1.5")
    add(tmp_path, "b", [0, 5], SeriesNumber=2, StudyInstanceUID="1.6")
    with pytest.raises(FaultyScan, match=r"3 files such as a0\.dcm, 2 files such as b0\.dcm share SeriesNumber 2"):
        read(tmp_path, 2)
    with pytest.raises(
        FaultyScan, match=r"2 CT series.*none can be used: 3 CT images such as a0\.dcm: no SeriesNumber"
    ):
        read(tmp_path)
    for path in tmp_path.glob("b*"):
        path.unlink()
    add(tmp_path, "b", [15, 20], SeriesNumber=None, StudyInstanceUID="1.5")
    assert len(read(tmp_path).slices) == 5
    with pytest.raises(FaultyScan, match="give each series a folder of its own"):
        read(tmp_path, 2)


def test_slices_of_a_real_scan_have_no_remark(shared_data: Path) -> None:
    paths = {path.name: path for path in sorted((shared_data / "ct" / "ge_head").glob("*.dcm"))}
    scan = order_series([read_header(path, name) for name, path in paths.items()], paths)
    assert len(scan.slices) == 28 and not scan.left_out and not scan.remarks
