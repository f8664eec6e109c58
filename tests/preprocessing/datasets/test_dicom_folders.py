"""Folders of DICOM files as scanners, archives and memory sticks leave them: what is read, left out, named, refused."""

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
    names = (".DS_Store", "._1.dcm", "Thumbs.db", "desktop.ini", "__MACOSX/._2.dcm")
    system = dict.fromkeys(names, "file of an operating system")
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
    assert note == bags["x"].note and note in cohort.entries()["x"].warnings and bags["clean"].note == ""
    assert note.startswith("of the archive; left out: ")
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


def test_a_folder_without_dicom_stops_no_other_bag(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    (cohort.raw / "x").mkdir()
    (cohort.raw / "x/head.nii.gz").write_bytes(b"\x1f\x8b")
    (cohort.raw / "damaged.dcm").write_bytes(b"")
    write_scan(cohort.raw / "good")
    cohort.add("x", "x")
    cohort.add("stated", "x", modality="ct")
    cohort.add("good", "good")
    cohort.add("damaged", "damaged.dcm")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=3) == 0
    only = "no DICOM file in the folder 'x', only 1 x no DICOM file (x/head.nii.gz)"
    bags, entries = cohort.bags(), cohort.entries()
    states = {name: entry.state for name, entry in entries.items()}
    assert states == {"x": "failed", "stated": "failed", "good": "ok", "damaged": "failed"}
    assert all(only in bags[name].note and entries[name].reason.startswith(only) for name in ("x", "stated"))
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


def test_file_names_of_any_bytes(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    for number, name in enumerate(NAMES.values()):
        for bag in (f"odd{number}", f"bad{number}"):
            os.rename(write_scan(cohort.raw / bag) / "2.dcm", cohort.raw / bag / name)
            cohort.add(bag, bag)
        (cohort.raw / bag / name).write_bytes(b"")
    assert cohort.list_bags() == 0 and cohort.cut(allowed=len(NAMES)) == 0
    entries, problems = cohort.entries(), {entry["bag_id"]: entry["reason"] for entry in cohort.status()["problems"]}
    assert (cohort.results / "bags.csv").read_text(encoding="utf-8").encode()
    for number, name in enumerate(NAMES.values()):
        odd, bad, text = f"odd{number}", f"bad{number}", printable(name)
        assert (entries[odd].state, entries[bad].state) == ("ok", "failed"), name
        assert text.isprintable() and text.encode() and f"{bad}/{text}" in problems[bad]
        assert f"{odd}/{text}" in read_instance_attrs(cohort.results / "instances/store", odd).files
        path = cohort.raw.resolve() / odd / name
        assert resolve(cohort.raw, f"{odd}/{text}") == path
        before = raw_stamp(cohort.raw, cohort.bags().values())
        path.touch()
        assert raw_stamp(cohort.raw, cohort.bags().values()) != before


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
    cohort.add("tiff", "a.tif")
    for bag, image in (("folder", "slide"), ("one", "single/one0.dcm"), ("number", "slide#1")):
        cohort.add(bag, image)
    cohort.add("stated", "slide", modality="wsi")
    cohort.add("one_stated", "single/one0.dcm", modality="wsi")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    bags = cohort.bags()
    assert {row.modality for row in bags.values()} == {"wsi"} and bags["folder"].images == ("slide/level0.dcm",)
    counts = {name: entry.n for name, entry in cohort.entries().items()}
    assert counts["tiff"] > 5 and set(counts.values()) == {counts["tiff"]}
    assert read_instance_attrs(cohort.results / "instances/store", "folder").mpp == pytest.approx(0.5)


def test_slides_among_scans_and_damaged_files(tmp_path: Path, capsys) -> None:
    cohort = Cohort(tmp_path)
    write_dicom_slide(cohort.raw / "slide/level.dcm", [picture()], 0.5)
    (cohort.raw / "slide/damaged.dcm").write_bytes(b"")
    cohort.add("damaged", "slide", modality="wsi")
    write_dicom_slide(write_scan(cohort.raw / "x") / "slide.dcm", [picture()], 0.5)
    cohort.add("ct", "x")
    cohort.add("wsi", "x", modality="wsi")
    cohort.add("not_ct", "x/slide0.dcm", modality="ct")
    assert cohort.list_bags() == 0
    bags = cohort.bags()
    note = "left out: 1 x whole-slide image (modality wsi) (x/slide0.dcm)"
    assert bags["ct"].modality == "ct" and bags["ct"].note == note
    assert bags["wsi"].images == ("x/slide0.dcm",) and "damaged.dcm: not a DICOM file" in bags["damaged"].note
    assert "no CT slice, only 1 x whole-slide image (modality wsi)" in bags["not_ct"].note
    write_dicom_slide(cohort.raw / "x/two.dcm", [picture()], 0.5, SeriesInstanceUID="1.2.50", SeriesNumber=7)
    cohort.rows = [row for row in cohort.rows if row["bag_id"] == "wsi"]
    assert cohort.list_bags() == 2
    error = capsys.readouterr().err
    assert "2 DICOM slides" in error and "'x#1' (x/slide0.dcm)" in error and "'x#7' (x/two0.dcm)" in error
    cohort.rows[0]["image"] = "x#7"
    assert cohort.list_bags() == 0 and cohort.bags()["wsi"].images == ("x/two0.dcm",)
