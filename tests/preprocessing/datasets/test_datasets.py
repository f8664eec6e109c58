"""CAMELYON16 and PANDA on hand-made folders and on the published label tables and splits; what all modules share."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from preprocessing.bags.report import ListReport
from preprocessing.common.csv_files import read_csv
from preprocessing.datasets import DATASETS, MissingRaw, camelyon16, panda
from preprocessing.datasets.listing import list_bags
from tests.helpers.dataset_files import listed, names, table, touch

PARTIAL = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)


@pytest.mark.parametrize("kind", sorted(DATASETS))
def test_missing_data_is_explained(tmp_path: Path, kind: str) -> None:
    for read in (DATASETS[kind].count, DATASETS[kind].list_bags):
        with pytest.raises(MissingRaw) as caught:
            read(tmp_path / "nowhere", {})
        text = str(caught.value)
        assert str(tmp_path / "nowhere") in text and "make demo" in text
        assert DATASETS[kind].source in text and DATASETS[kind].layout.strip().splitlines()[0] in text
        with pytest.raises(ValueError, match="unknown"):
            read(tmp_path / "nowhere", {"no_such_option": 1})


def whole_camelyon16(root: Path, gigadb: bool) -> None:
    groups = {"normal": (160, "training/normal"), "tumor": (111, "training/tumor"), "test": (130, "testing/images")}
    for group, (last, folder) in groups.items():
        where = folder if gigadb else "images"
        # the GigaDB copy spells names with capitals here, to see that case does not matter
        spelled = group.capitalize() if gigadb else group
        absent = {("normal", 86), ("test", 49)}
        touch(root, *(f"{where}/{spelled}_{n:03d}.tif" for n in range(1, last + 1) if (group, n) not in absent))
    xml = "training/lesion_annotations/" if gigadb else "annotations/"
    touch(root, *(f"{xml}tumor_{n:03d}.xml" for n in range(1, 112)))


@pytest.mark.parametrize("gigadb", [False, True])
def test_camelyon16_whole(tmp_path: Path, shared_data: Path, gigadb: bool) -> None:
    whole_camelyon16(tmp_path, gigadb)
    reference = tmp_path / ("testing/reference.csv" if gigadb else "evaluation/reference.csv")
    reference.parent.mkdir(exist_ok=True)
    shutil.copy(shared_data / "camelyon16" / "test_labels.csv", reference)
    labels = camelyon16.read_reference(reference)
    assert len(labels) == 130 and sum(labels.values()) == 50
    xml = "testing/lesion_annotations/" if gigadb else "annotations/"
    touch(tmp_path, *(f"{xml}{n.capitalize()}.xml" for n, y in labels.items() if y and n != "test_049"))
    rows, report = listed("camelyon16", tmp_path)
    counts = Counter((row.split, row.label) for row in rows.values())
    assert counts == {("train", 0): 159, ("train", 1): 111, ("test", 0): 80, ("test", 1): 49}
    assert report.missing == [] and report.excluded == [] and report.notes == []
    partial = {f"tumor_{n:03d}" for n in PARTIAL} | {"test_114"}
    assert {n for n, row in rows.items() if not row.annotation_complete} == partial
    assert all(bool(row.annotation) == (row.label == 1) for row in rows.values())
    assert DATASETS["camelyon16"].count(tmp_path, {}) == 399
    without, _ = listed("camelyon16", tmp_path, {"exclude": ["test_114", "normal_144"]})
    assert set(rows) - set(without) == {"test_114", "normal_144"}


def test_camelyon16_differences_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/normal_001.tif", "images/normal_086.tif", "images/tumor_001.TIF", "images/tumor_002.tif")
    touch(tmp_path, "images/test_001.tif", "images/test_002.tif", "images/test_049.tif", "images/strange.tif")
    touch(tmp_path, "training/normal/Normal_001.tif", "annotations/tumor_001.xml", "images/tumor_200.tif")
    (tmp_path / "reference.csv").write_text("test_001.tif,Tumor,IDC,Macro\ntest_049,Tumor,IDC,Micro\n")
    rows, report = listed("camelyon16", tmp_path)
    assert set(rows) == {"normal_001", "tumor_001", "tumor_002", "test_001"}
    excluded = {"normal_086", "test_049", "test_002", "images/strange.tif", "images/tumor_200.tif"}
    assert names(report.excluded) == excluded | {"training/normal/Normal_001.tif"}
    missing = names(report.missing)
    assert {"normal_002.tif", "tumor_111.tif", "tumor_002.xml", "test_001.xml"} <= missing
    assert not {"normal_086.tif", "test_049.tif", "normal_001.tif"} & missing
    assert rows["tumor_001"].annotation_complete and not rows["tumor_002"].annotation_complete


def test_camelyon16_test_labels_without_reference(tmp_path: Path) -> None:
    touch(tmp_path, "images/test_001.tif", "images/test_002.tif")
    with pytest.raises(MissingRaw, match="neither reference.csv nor XML"):
        DATASETS["camelyon16"].list_bags(tmp_path, {})
    touch(tmp_path, "annotations/Test_002.xml")
    rows, report = listed("camelyon16", tmp_path)
    assert (rows["test_001"].label, rows["test_002"].label) == (0, 1)
    assert any("no reference.csv" in note for note in report.notes)


def test_camelyon16_bad_options_and_reference(tmp_path: Path) -> None:
    touch(tmp_path, "images/test_001.tif", "testing/lesion_annotations.zip", "annotations/test_001.xml")
    _, report = listed("camelyon16", tmp_path)
    assert any("lesion_annotations.zip is not unpacked" in note for note in report.notes)
    (tmp_path / "maybe.csv").write_text("test_001,Maybe\n")
    (tmp_path / "twice.csv").write_text("test_001,Normal\nTest_001,Tumor\n")
    for option, value, text in (
        ("exclude", "test_114", "exclude"),
        ("exclude", ["slide_9"], "exclude"),
        ("reference", "labels.csv", "no file 'labels.csv'"),
        ("reference", "maybe.csv", "expected Normal or Tumor"),
        ("reference", "twice.csv", "two different labels"),
    ):
        with pytest.raises(ValueError, match=text):
            DATASETS["camelyon16"].list_bags(tmp_path, {option: value})


def test_bags_that_cannot_be_trained_on_are_refused_when_they_are_listed(tmp_path, caplog):
    touch(tmp_path, *(f"images/normal_00{n}.tif" for n in range(1, 4)), "images/tumor_001.tif", "annotations/x.txt")
    out = tmp_path / "bags.csv"
    with pytest.raises(ValueError, match="found 3 negative and 1 positive bags with split train, expected at least 2"):
        list_bags("c16", "camelyon16", tmp_path, {}, out, splits=5)
    assert not out.exists()
    # for contact sheets and scores any bag will do
    list_bags("c16", "camelyon16", tmp_path, {}, out)
    assert out.is_file() and "no bag has split test" not in caplog.text
    touch(tmp_path, "images/tumor_002.tif")
    list_bags("c16", "camelyon16", tmp_path, {}, out, splits=5)
    assert "c16: no bag has split test" in caplog.text and "training bags for 5 splits" in caplog.text


def test_panda_partition_and_labels_as_published(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "panda"
    parts = panda.read_partition(source / "partition_PANDA.xlsx")
    assert Counter(parts.values()) == {"train": 8_469, "val": 353, "test": 1_794}
    as_csv = table(tmp_path / "split.csv", ["slide_name", "Partition"], [list(item) for item in parts.items()])
    assert panda.read_partition(as_csv) == parts
    shutil.copy(source / "train.csv", tmp_path / "train.csv")
    # every sixteenth slide is enough to see labels and split; the blank one and the broken masks among them
    slides = sorted({*sorted(parts)[::16], panda.BLANK, *panda.BROKEN_MASKS})
    touch(tmp_path, *(f"train_images/{n}.tiff" for n in slides))
    touch(tmp_path, *(f"train_label_masks/{n}_mask.tiff" for n in slides[1:]))
    rows, report = listed("panda", tmp_path, {"partition": as_csv.name})
    missing = {name.removesuffix(".tiff") for name in names(report.missing)}
    assert set(rows) == set(slides) - {panda.BLANK} == set(parts) - {panda.BLANK} - missing
    assert names(report.excluded) == {panda.BLANK}
    assert all((row.split == "test") == (parts[n] == "test") for n, row in rows.items())
    grades = {r.cells["image_id"]: int(r.cells["isup_grade"]) for r in read_csv(source / "train.csv", ["isup_grade"])}
    assert all(row.label == (grades[n] > 0) for n, row in rows.items())
    assert {row.provider for row in rows.values()} == {"radboud", "karolinska"}
    assert {n for n, row in rows.items() if not row.annotation} == {slides[0], *panda.BROKEN_MASKS}
    assert all(row.annotation_complete == bool(row.annotation) for row in rows.values())


def small_panda(root: Path) -> None:
    rows = [["a", "radboud", 0], ["b", "Karolinska", 3], ["c", "radboud", 5], ["d", "radboud", 1]]
    table(root / "train.csv", ["image_id", "data_provider", "isup_grade"], rows)
    split = [["a", "train"], ["b", "val"], ["c", "test"], ["z", "test"]]
    table(root / "partition_PANDA.csv", ["slide_name", "Partition"], split)
    touch(root, "train_images/a.tiff", "train_images/b.tiff", "train_images/c.tiff", "train_images/d.tiff")
    touch(root, "train_images/extra.tiff", "train_label_masks/b_mask.tiff")


def test_panda_small(tmp_path: Path) -> None:
    small_panda(tmp_path)
    rows, report = listed("panda", tmp_path)
    assert {n: (r.label, r.split, r.provider) for n, r in rows.items()} == {
        "a": (0, "train", "radboud"),
        "b": (1, "train", "karolinska"),
        "c": (1, "test", "radboud"),
    }
    assert rows["b"].annotation == "train_label_masks/b_mask.tiff" and rows["a"].annotation == ""
    assert names(report.excluded) == {"d", "extra"} and names(report.missing) == {"z"}
    # a name in other bytes than UTF-8 is reported and stops nothing
    touch(tmp_path, os.fsdecode(b"train_images/Sch\xe4del.tiff"))
    list_bags("panda", "panda", tmp_path, {}, tmp_path / "bags.csv")
    assert r"Sch\xe4del" in names(ListReport.read(tmp_path / "bags.report.json").excluded)
    touch(tmp_path, "train_images/b.tif")
    with pytest.raises(ValueError, match=r"slides with two files, .tif and .tiff: \['b'\]"):
        DATASETS["panda"].count(tmp_path, {})


def test_duplicates_of_a_published_dataset_are_noted(tmp_path: Path) -> None:
    small_panda(tmp_path)
    for name in "abc":
        (tmp_path / f"train_images/{name}.tiff").write_bytes(b"one slide")
    list_bags("panda", "panda", tmp_path, {}, tmp_path / "bags.csv")
    (note,) = [n for n in ListReport.read(tmp_path / "bags.report.json").notes if "one image" in n]
    assert "several splits or with several labels: 'a' (train_images/a.tiff, train, label 0)" in note


def test_panda_damaged_tables(tmp_path: Path) -> None:
    small_panda(tmp_path)
    table(tmp_path / "split.csv", ["slide_name", "Partition"], [["a", "holdout"]])
    (tmp_path / "split.xlsx").write_text("no zip")
    for name, text in (("split.csv", "holdout"), ("split.xlsx", "xlsx"), ("train.csv", "slide_name")):
        with pytest.raises(ValueError, match=text):
            DATASETS["panda"].list_bags(tmp_path, {"partition": name})
    rows = [["a", "radboud", 9], ["b", "mars", 0], ["c", "radboud", 1], ["c", "radboud", 1]]
    table(tmp_path / "train.csv", ["image_id", "data_provider", "isup_grade"], rows)
    with pytest.raises(ValueError, match="3 problems"):
        DATASETS["panda"].list_bags(tmp_path, {})
    (tmp_path / "partition_PANDA.csv").unlink()
    with pytest.raises(MissingRaw, match="train/test split"):
        DATASETS["panda"].count(tmp_path, {})
