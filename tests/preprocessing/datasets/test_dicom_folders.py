"""Folders of DICOM files as scanners, archives and memory sticks leave them: what is read, left out, named, refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from preprocessing.bags.identity import raw_stamp
from preprocessing.bags.rows import printable, relative, resolve
from preprocessing.store.bags import read_instance_attrs
from tests.helpers.cohorts import WSI, Cohort, picture, write_scan, write_slide
from tests.helpers.dicoms import write_dicom_slide, write_slice

LATIN = os.fsdecode(b"Sch\xe4del.dcm")


def write_directory(path: Path) -> None:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.FileSetID = "X"
    data.DirectoryRecordSequence = []
    data.save_as(path, enforce_file_format=True)


def litter(folder: Path) -> dict[str, str]:
    """Write what else lies in such folders; name -> reason."""
    write_directory(folder / "DICOMDIR")
    write_slice(folder / "sr.dcm", Modality="SR")
    write_slice(folder / "scout.dcm", z=70, SeriesInstanceUID="1.2.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for name in (".DS_Store", "._1.dcm", "Thumbs.db", "desktop.ini", "__MACOSX/._2.dcm", "readme.txt", "DIRFILE"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7 nothing of use")
    (folder / "loop").symlink_to(folder)
    system = dict.fromkeys(
        [".DS_Store", "._1.dcm", "Thumbs.db", "desktop.ini", "__MACOSX/._2.dcm"], "file of an operating system"
    )
    others = {"readme.txt": "no DICOM file", "DIRFILE": "no DICOM file", "loop": "link to a folder, not followed"}
    dicom = {"DICOMDIR": "directory of DICOM files", "sr.dcm": "Modality SR", "scout.dcm": "localizer"}
    return system | others | dicom


def test_a_littered_folder_is_read_and_every_file_left_out_is_named(tmp_path: Path, caplog) -> None:
    cohort = Cohort(tmp_path)
    write_scan(cohort.raw / "exam/series/a", SeriesNumber=3)
    expected = {f"exam/series/{name}": reason for name, reason in litter(cohort.raw / "exam/series").items()}
    write_scan(cohort.raw / "clean")
    cohort.add("x", "exam", note="of the archive")
    cohort.add("x3", "exam#3")
    cohort.add("clean", "clean")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    bags = cohort.bags()
    assert bags["x"].images == bags["x3"].images == tuple(f"exam/series/a/{k}.dcm" for k in (4, 3, 2, 1))
    excluded = {entry["name"]: entry["reason"] for entry in cohort.status()["excluded"]}
    assert excluded.keys() == expected.keys()
    assert all(reason.startswith(expected[name]) for name, reason in excluded.items())
    (note,) = read_instance_attrs(cohort.results / "instances/store", "x").warnings
    assert (
        note == bags["x"].note
        and note in cohort.entries()["x"].warnings
        and note.startswith("of the archive; left out: ")
        and bags["clean"].note == ""
    )
    assert "1 x localizer (exam/series/scout.dcm)" in note and "5 x file of an operating system (" in note
    clean, littered = (read_instance_attrs(cohort.results / "instances/store", name) for name in ("clean", "x"))
    assert "warnings" not in clean.as_json() and littered.spacing_mm == clean.spacing_mm


def test_the_advice_stands_with_the_failure(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    write_scan(cohort.raw / "exam/a", SeriesNumber=2, SeriesInstanceUID="1.2.2", SeriesDescription="Head 5.0 H31s")
    write_scan(cohort.raw / "exam/b", slices=2, SeriesNumber=3, SeriesInstanceUID="1.2.3")
    litter(cohort.raw / "exam")
    cohort.add("x", "exam")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=1) == 0
    advice = "write 'exam#2' (4 CT images, 'Head 5.0 H31s') or 'exam#3' (2 CT images)"
    (problem,) = cohort.status()["problems"]
    assert advice in cohort.entries()["x"].reason and problem["reason"] == cohort.entries()["x"].reason
    assert advice in cohort.bags()["x"].note


def test_a_scan_repaired_since_the_listing_is_cut(tmp_path: Path) -> None:
    """A faulty scan keeps all its files in the list; what is no slice among them is left out again."""
    cohort = Cohort(tmp_path)
    sound = (write_scan(cohort.raw / "x") / "2.dcm").read_bytes()
    litter(cohort.raw / "x")
    (cohort.raw / "x/2.dcm").write_bytes(b"")
    cohort.add("x", "x")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=1) == 0
    assert cohort.entries()["x"].reason.startswith("x/2.dcm: not a DICOM file but an empty one")
    (cohort.raw / "x/2.dcm").write_bytes(sound)
    assert cohort.cut() == 0 and cohort.entries()["x"].n == 4
    left_out = "1 x directory of DICOM files (x/DICOMDIR), 1 x localizer (x/scout.dcm), 1 x Modality SR (x/sr.dcm)"
    assert f"left out: {left_out}" in cohort.entries()["x"].warnings


@pytest.mark.parametrize("modality", ["", "ct"])
def test_a_folder_without_dicom_stops_no_other_bag(tmp_path: Path, modality: str) -> None:
    cohort = Cohort(tmp_path)
    (cohort.raw / "x").mkdir()
    (cohort.raw / "x/head.nii.gz").write_bytes(b"\x1f\x8b")
    (cohort.raw / "damaged.dcm").write_bytes(b"")
    write_scan(cohort.raw / "good")
    cohort.add("x", "x", modality=modality)
    cohort.add("good", "good")
    cohort.add("damaged", "damaged.dcm")
    assert cohort.list_bags() == 0
    only = "no DICOM file in the folder 'x', only 1 x no DICOM file (x/head.nii.gz)"
    assert only in cohort.bags()["x"].note and cohort.cut(allowed=2) == 0
    states = {name: entry.state for name, entry in cohort.entries().items()}
    assert states == {"x": "failed", "good": "ok", "damaged": "failed"}
    assert cohort.entries()["x"].reason.startswith(only)
    write_scan(cohort.raw / "x")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=1) == 0 and cohort.entries()["x"].state == "ok"


NAMES = {
    "bytes that are not UTF-8": LATIN,
    "vertical bar": "a|b.dcm",
    "line break": "a\nb.dcm",
    "invisible characters": "a\u2028\u202e.dcm",
    "letters of any script": "Schädel 日本.dcm",
    "backslash": r"a\xe4.dcm",
    "comma, semicolon and quotes": "a,b;'\".dcm",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_file_names_of_any_bytes(tmp_path: Path, name: str, caplog) -> None:
    cohort = Cohort(tmp_path)
    write_scan(cohort.raw / "good")
    os.rename(write_scan(cohort.raw / "odd") / "2.dcm", cohort.raw / "odd" / name)
    os.rename(write_scan(cohort.raw / "bad") / "2.dcm", cohort.raw / "bad" / name)
    (cohort.raw / "bad" / name).write_bytes(b"")
    for bag in ("good", "odd", "bad"):
        cohort.add(bag, bag)
    assert cohort.list_bags() == 0 and cohort.cut(allowed=1) == 0
    assert {bag: entry.state for bag, entry in cohort.entries().items()} == {"good": "ok", "odd": "ok", "bad": "failed"}
    shown = printable(name)
    assert shown.isprintable() and f"bad/{shown}" in cohort.status()["problems"][0]["reason"]
    files = read_instance_attrs(cohort.results / "instances/store", "odd").files
    assert f"odd/{shown}" in files
    assert resolve(cohort.raw, f"odd/{shown}") == cohort.raw.resolve() / "odd" / name
    before = raw_stamp(cohort.raw, cohort.bags().values())
    (cohort.raw / "odd" / name).touch()
    assert raw_stamp(cohort.raw, cohort.bags().values()) != before
    for text in (json.dumps(files), (cohort.results / "bags.csv").read_text(encoding="utf-8"), shown):
        text.encode()


def test_two_names_that_look_alike_are_refused(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    shutil.copyfile(write_scan(cohort.raw / "x") / "2.dcm", cohort.raw / "x" / LATIN)
    os.rename(cohort.raw / "x/2.dcm", cohort.raw / "x" / r"Sch\xe4del.dcm")
    cohort.add("x", "x")
    assert cohort.list_bags() == 0 and r"Sch\xe4del.dcm: several files have this name" in cohort.bags()["x"].note


def test_escapes_do_not_lead_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    for name in (r"\x2e\x2e/secret", r"a/\x2e\x2e/\x2e\x2e/secret", r"\x2e./secret"):
        with pytest.raises(ValueError, match="leaves the dataset's root"):
            resolve(tmp_path / "root", name)
    assert relative(tmp_path / "root", resolve(tmp_path / "root", r"a\x00b")) == r"ab"


def test_links_to_nothing_are_named_and_leave_a_gap(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    folder = write_scan(cohort.raw / "x", slices=7)
    (folder / "3.dcm").unlink()
    (folder / "3.dcm").symlink_to(cohort.raw / "gone.dcm")
    (folder / "loop.dcm").symlink_to(folder / "loop.dcm")
    cohort.add("x", "x")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    note = "left out: 2 x link to nothing (x/3.dcm, x/loop.dcm); slices missing? 1 gaps: 10 mm after x/4.dcm"
    assert cohort.bags()["x"].note.startswith(note)
    assert any(entry["warning"].startswith(note) for entry in cohort.status()["warnings"])


def test_a_dicom_slide_is_a_slide_like_its_tiff(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    write_slide(cohort.raw / "a.tif")
    write_dicom_slide(cohort.raw / "slide/level.dcm", [picture(), picture()[::2, ::2]], 0.5)
    write_dicom_slide(cohort.raw / "single/one.dcm", [picture()], 0.5)
    cohort.options["wsi"] = {**WSI, "tissue": {**WSI["tissue"], "seg_level": -1}}
    for bag, image in (("tiff", "a.tif"), ("folder", "slide"), ("one", "single/one0.dcm"), ("number", "slide#1")):
        cohort.add(bag, image)
        cohort.add(f"{bag}_wsi", image, modality="wsi")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    bags = cohort.bags()
    assert {row.modality for row in bags.values()} == {"wsi"} and bags["folder"].images == ("slide/level0.dcm",)
    counts = {name: entry.n for name, entry in cohort.entries().items()}
    assert counts["tiff"] > 5 and set(counts.values()) == {counts["tiff"]}
    assert read_instance_attrs(cohort.results / "instances/store", "folder").mpp == pytest.approx(0.5)


def test_a_damaged_file_beside_a_slide_stops_no_other_bag(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    write_dicom_slide(cohort.raw / "slide/level.dcm", [picture()], 0.5)
    (cohort.raw / "slide/damaged.dcm").write_bytes(b"")
    write_scan(cohort.raw / "good")
    cohort.add("good", "good")
    cohort.add("x", "slide", modality="wsi")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=1) == 0
    assert cohort.entries()["good"].state == "ok" and cohort.entries()["x"].state == "failed"
    assert "damaged.dcm: not a DICOM file" in cohort.bags()["x"].note


def test_slides_among_scans(tmp_path: Path, capsys) -> None:
    cohort = Cohort(tmp_path)
    write_dicom_slide(write_scan(cohort.raw / "x") / "slide.dcm", [picture()], 0.5)
    cohort.add("ct", "x")
    cohort.add("wsi", "x", modality="wsi")
    cohort.add("not_ct", "x/slide0.dcm", modality="ct")
    assert cohort.list_bags() == 0
    bags = cohort.bags()
    assert (
        bags["ct"].modality == "ct"
        and bags["ct"].note == "left out: 1 x whole-slide image (modality wsi) (x/slide0.dcm)"
    )
    assert bags["wsi"].images == ("x/slide0.dcm",)
    assert "no CT slice, only 1 x whole-slide image (modality wsi)" in bags["not_ct"].note
    write_dicom_slide(cohort.raw / "x/two.dcm", [picture()], 0.5, SeriesInstanceUID="1.2.50", SeriesNumber=7)
    cohort.rows = [{**cohort.rows[1]}]
    assert cohort.list_bags() == 2
    error = capsys.readouterr().err
    assert "2 DICOM slides" in error and "'x#1' (x/slide0.dcm)" in error and "'x#7' (x/two0.dcm)" in error
    cohort.rows[0]["image"] = "x#7"
    assert cohort.list_bags() == 0 and cohort.bags()["wsi"].images == ("x/two0.dcm",)
