"""Custom manifests: both modalities, series, columns, and every problem reported at once."""

from pathlib import Path

import pytest

from preprocessing.bags.report import ListReport
from preprocessing.bags.rows import BagRow
from preprocessing.datasets import DATASETS
from preprocessing.datasets.patients import Labelled, draw_splits
from tests.helpers.dataset_files import listed, table, touch
from tests.helpers.dicoms import write_slice

HEADER = "bag_id,image,label,split,annotation,mpp,group,modality,note\n"


def custom(root: Path, text: str, header: str = HEADER) -> tuple[dict[str, BagRow], ListReport]:
    (root / "manifest.csv").write_text(header + text)
    return listed("custom", root, {"manifest": "manifest.csv"})


def ct_folder(folder: Path, patient: str = "SECRET1") -> None:
    """A scan of three slices, named in another order."""
    for z, number in enumerate((0, 2, 1)):
        uid = f"1.3.{z}.{sum(folder.name.encode())}"
        write_slice(folder / f"{number}.dcm", z=5 * z, PatientID=patient, SOPInstanceUID=uid)


def test_custom_mixed_modalities(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.svs", "s/a.geojson", "s/odd.img")
    ct_folder(tmp_path / "scan")
    touch(tmp_path, "scan/readme.txt")
    write_slice(tmp_path / "one.dcm")
    table(tmp_path / "labels.csv", ["file", "label"], [["0.dcm", 1], ["scan/1.dcm", 0]])
    rows, _ = custom(
        tmp_path,
        "a,s/a.svs,1,train,s/a.geojson,0.25,anna,,first\n"
        f"b,{tmp_path / 's' / 'odd.img'},0,test,,,bob,wsi,\n"
        "c,scan,1,test,labels.csv,,carl,,\n"
        "d,one.dcm,,,,,,,\n",
    )
    assert rows["a"] == BagRow(
        "a", "wsi", ("s/a.svs",), 1, "train", group="g00000", annotation="s/a.geojson", mpp=0.25, note="first"
    )
    assert rows["b"].images == ("s/odd.img",) and rows["b"].annotation_complete
    assert rows["c"].images == ("scan/0.dcm", "scan/2.dcm", "scan/1.dcm")
    assert rows["c"].annotation == "slices:1x0" and rows["c"].modality == "ct"
    assert rows["d"].images == ("one.dcm",) and rows["d"].label is None
    assert "anna" not in repr(rows)


def test_custom_reports_every_problem_of_every_line_at_once(tmp_path: Path) -> None:
    """Each of them is in `test_manifest_faults`."""
    touch(tmp_path, "a.svs", "b.svs")
    with pytest.raises(ValueError, match=r"4 problems") as caught:
        custom(
            tmp_path, "a,a.svs,1,train,,,anna,,\na,b.svs,0,test,,,anna,,\nc,gone.svs,1,train,,,,,\nj,b.svs,,test,,,,,\n"
        )
    for part in ("occurs 2 times", "same group", "line 4 ('c'): missing file", "label: empty, but split is test"):
        assert part in str(caught.value)
    assert "anna" not in str(caught.value)
    with pytest.raises(ValueError, match="manifest: absent"):
        DATASETS["custom"].count(tmp_path, {})


def test_custom_shared_patient_is_noted_without_naming_it(tmp_path: Path) -> None:
    ct_folder(tmp_path / "one", patient="SECRET1")
    ct_folder(tmp_path / "two", patient="SECRET1")
    ct_folder(tmp_path / "three", patient="SECRET2")
    text = "a,one,1,train\nb,two,0,test\nc,three,0,test\n"
    _, report = custom(tmp_path, text, "bag_id,image,label,split\n")
    assert len(report.notes) == 1 and report.notes[0].startswith("a, b: one PatientID")
    assert "SECRET" not in repr(report)


def test_drawn_test_bags_are_seeded_stratified_and_keep_patients_together() -> None:
    bags = [Labelled(f"b{i:03d}", i % 3 == 0, f"p{i // 2}" if i < 60 else "") for i in range(120)]
    splits = draw_splits(bags, share=0.25, seed=1)
    assert splits == draw_splits(bags[::-1], share=0.25, seed=1) != draw_splits(bags, share=0.25, seed=2)
    for i in range(0, 60, 2):
        assert splits[f"b{i:03d}"] == splits[f"b{i + 1:03d}"]
    for label in (0, 1):
        patients = {bag.group or bag.bag_id for bag in bags}
        positive = {bag.group or bag.bag_id for bag in bags if bag.label}
        same = positive if label else patients - positive
        test = {bag.group or bag.bag_id for bag in bags if splits[bag.bag_id] == "test"} & same
        assert len(test) == round(0.25 * len(same))
    # one more patient elsewhere changes no more than the count
    assert {*draw_splits(bags[:4], share=0.0, seed=1).values()} == {"train"}
    assert {*draw_splits(bags[60:62], share=0.25, seed=1).values()} == {"train"}


def test_a_manifest_without_a_column_split_says_what_was_drawn(tmp_path: Path) -> None:
    names = [f"s{i}" for i in range(9)]
    touch(tmp_path, *(f"{name}.svs" for name in names))
    text = "".join(f"{name},{name}.svs,{i % 2 if i < 8 else ''}\n" for i, name in enumerate(names))
    rows, report = custom(tmp_path, text, "bag_id,image,label\n")
    assert sorted(row.split for row in rows.values()) == ["", *["test"] * 2, *["train"] * 6]
    assert {row.label for row in rows.values() if row.split == "test"} == {0, 1} and rows["s8"].split == ""
    assert "no column split, so 25 % of the patients" in report.notes[0]
    with pytest.raises(ValueError, match="the column split names the test bags, so remove it or `test_share`"):
        (tmp_path / "manifest.csv").write_text("bag_id,image,label,split\ns0,s0.svs,1,train\n")
        listed("custom", tmp_path, {"manifest": "manifest.csv", "test_share": 0.5})
