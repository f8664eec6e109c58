"""Dataset modules on hand-made folders and on the published label tables and splits."""

import csv
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.bags import BagRow, validate_bags
from preprocessing.datasets import DATASETS, BagTable, MissingRaw, camelyon16, get_dataset, panda, rsna
from preprocessing.datasets.base import read_table
from tests.dicoms import write_slice

PARTIAL = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def table(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def listed(kind: str, root: Path, options: dict[str, Any] | None = None) -> tuple[dict[str, BagRow], dict[str, Any]]:
    result: BagTable = DATASETS[kind].list_bags(root, options or {})
    validate_bags(result.rows, root, source=kind)
    assert len(result.rows) <= DATASETS[kind].count(root, options or {})
    return {row.bag_id: row for row in result.rows}, result.report


def names(items: list[dict[str, str]]) -> set[str]:
    return {item["name"] for item in items}


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


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="camelyon16"):
        get_dataset("mnist")


# CAMELYON16


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
    assert report["missing"] == [] and report["excluded"] == [] and report["notes"] == []
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
    assert names(report["excluded"]) == {
        "normal_086",
        "test_049",
        "test_002",
        "images/strange.tif",
        "images/tumor_200.tif",
        "training/normal/Normal_001.tif",
    }
    missing = names(report["missing"])
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
    assert any("no reference.csv" in note for note in report["notes"])


def test_camelyon16_bad_options_and_reference(tmp_path: Path) -> None:
    touch(tmp_path, "images/test_001.tif", "testing/lesion_annotations.zip", "annotations/test_001.xml")
    for options in ({"exclude": "test_114"}, {"exclude": ["slide_9"]}):
        with pytest.raises(ValueError, match="exclude"):
            DATASETS["camelyon16"].count(tmp_path, options)
    with pytest.raises(ValueError, match="no file 'labels.csv'"):
        DATASETS["camelyon16"].list_bags(tmp_path, {"reference": "labels.csv"})
    _, report = listed("camelyon16", tmp_path)
    assert any("lesion_annotations.zip is not unpacked" in note for note in report["notes"])
    (tmp_path / "labels.csv").write_text("test_001,Maybe\n")
    with pytest.raises(ValueError, match="expected Normal or Tumor"):
        DATASETS["camelyon16"].list_bags(tmp_path, {"reference": "labels.csv"})
    (tmp_path / "labels.csv").write_text("test_001,Normal\nTest_001,Tumor\n")
    with pytest.raises(ValueError, match="two different labels"):
        DATASETS["camelyon16"].list_bags(tmp_path, {"reference": "labels.csv"})


# PANDA


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
    rows, report = listed("panda", tmp_path, {"partition": str(source / "partition_PANDA.xlsx")})
    assert (
        set(rows)
        == set(slides) - {panda.BLANK}
        == set(parts) - {panda.BLANK} - {name.removesuffix(".tiff") for name in names(report["missing"])}
    )
    assert names(report["excluded"]) == {panda.BLANK}
    assert all((row.split == "test") == (parts[n] == "test") for n, row in rows.items())
    grades = {r["image_id"]: int(r["isup_grade"]) for r in read_table(source / "train.csv", ["isup_grade"])}
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
    assert names(report["excluded"]) == {"d", "extra"} and names(report["missing"]) == {"z"}


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


# RSNA


def small_rsna(root: Path, scans: int = 8, slices: int = 5) -> dict[str, list[str]]:
    """Scans of shuffled file names; odd ones positive on slice 2; two scans per patient. Scan -> names in order."""
    rng = np.random.default_rng(0)
    codes = [f"ID_{c:09x}" for c in rng.permutation(scans * slices)]
    rows, found = [], {}
    for s in range(scans):
        own = codes[s * slices : (s + 1) * slices]
        found[f"ID_study{s}"] = [f"{c}.dcm" for c in own]
        for z, code in enumerate(own):
            write_slice(
                root / "stage_2_train" / f"{code}.dcm",
                z=5.0 * z,
                StudyInstanceUID=f"ID_study{s}",
                SeriesInstanceUID=f"ID_series{s}",
                PatientID=f"ID_secret{s // 2}",
            )
            positive = int(s % 2 == 1 and z == 2)
            rows += [[f"{code}_{kind}", positive] for kind in ("epidural", "subdural", "any")]
    table(root / "stage_2_train.csv", ["ID", "Label"], rows + rows[:3])
    return found


def scan_list(path: Path, scans: dict[str, list[str]], reverse: bool = False) -> Path:
    header = ["instance_label", "instance_name", "bag_name", "bag_label", "order"]
    rows = []
    for name, slices in scans.items():
        positive = int(name[-1]) % 2
        for z, code in enumerate(slices):
            order = len(slices) - 1 - z if reverse else z
            rows.append([int(positive and z == 2), code, name, positive, order])
    return table(path, header, sorted(rows, key=lambda r: r[1]))


def test_rsna_sampled(tmp_path: Path) -> None:
    scans = small_rsna(tmp_path)
    rows, report = listed("rsna", tmp_path, {"scans": 8, "test_share": 0.25})
    assert len(rows) == 8 and Counter(r.split for r in rows.values()) == {"train": 6, "test": 2}
    assert any("sampled" in note for note in report["notes"])
    assert any("duplicate label rows" in note for note in report["notes"])
    by_first = {row.images: row for row in rows.values()}
    for study, slices in scans.items():
        row = by_first[tuple(f"stage_2_train/{n}" for n in slices)]
        assert row.label == int(study[-1]) % 2
        assert row.annotation == ("slices:00100" if row.label else "slices:00000") and row.annotation_complete
    groups: dict[str, set[str]] = {}
    for row in rows.values():
        groups.setdefault(row.group, set()).add(row.split)
    assert len(groups) == 4 and all(len(splits) == 1 for splits in groups.values())
    text = repr((rows, report))
    assert "secret" not in text.lower() and "Marker" not in text and "ID_study" not in text
    again, _ = listed("rsna", tmp_path, {"scans": 8, "test_share": 0.25})
    assert again == rows
    fewer, _ = listed("rsna", tmp_path, {"scans": 4, "seed": 3})
    assert len(fewer) == 4 and sum(r.label or 0 for r in fewer.values()) == 2
    assert DATASETS["rsna"].count(tmp_path, {}) == 8 and DATASETS["rsna"].count(tmp_path, {"scans": 3}) == 3


@pytest.mark.parametrize("reverse", [False, True])
def test_rsna_published_lists(tmp_path: Path, reverse: bool) -> None:
    scans = small_rsna(tmp_path)
    test = scan_list(tmp_path / "test.csv", {k: scans[k] for k in ("ID_study0", "ID_study3")}, reverse)
    rows, report = listed("rsna", tmp_path, {"test_list": "test.csv", "scans": 5})
    assert {n for n, r in rows.items() if r.split == "test"} == {"ID_study0", "ID_study3"}
    # the other scans of the two test patients may not be trained on
    assert len(rows) == 5 and len(report["excluded"]) == 2
    assert all("patient" in item["reason"] for item in report["excluded"])
    assert rows["ID_study3"].annotation == "slices:00100"
    assert not any("order" in note for note in report["notes"])
    order = rsna.read_list(test)[0].slices
    assert list(order) == (scans["ID_study0"][::-1] if reverse else scans["ID_study0"])
    scan_list(tmp_path / "train.csv", {k: scans[k] for k in ("ID_study5", "ID_study6", "ID_study2")})
    both, report = listed("rsna", tmp_path, {"test_list": "test.csv", "train_list": "train.csv"})
    assert {n: r.split for n, r in both.items()} == {
        "ID_study0": "test",
        "ID_study3": "test",
        "ID_study5": "train",
        "ID_study6": "train",
    }
    assert names(report["excluded"]) == {"ID_study2"}


def test_rsna_list_and_disk_differ(tmp_path: Path) -> None:
    scans = small_rsna(tmp_path)
    first = scans["ID_study0"]
    (tmp_path / "stage_2_train" / first[1]).unlink()
    broken = tmp_path / "stage_2_train" / scans["ID_study3"][0]
    broken.write_bytes(broken.read_bytes()[:150])
    wrong = {
        "ID_study0": first,
        "ID_study3": scans["ID_study3"][1:3][::-1] + scans["ID_study3"][3:],
        "gone9": ["x.dcm"],
    }
    scan_list(tmp_path / "test.csv", wrong)
    (tmp_path / "test.csv").write_text((tmp_path / "test.csv").read_text().replace("instance_label,", "unused,"))
    _ = write_slice(tmp_path / "stage_2_train" / "ID_6431af929.dcm", StudyInstanceUID="ID_study5")
    rows, report = listed("rsna", tmp_path, {"test_list": "test.csv"})
    assert first[1] in names(report["missing"]) and {"gone9"} <= names(report["missing"])
    assert {"ID_6431af929.dcm", broken.name} <= names(report["excluded"])
    assert len(rows["ID_study0"].images) == 4
    assert any("order differs" in note for note in report["notes"])
    assert not any("6431af929" in name for row in rows.values() for name in row.images)


def test_rsna_damaged_tables(tmp_path: Path) -> None:
    small_rsna(tmp_path)
    header = ["instance_name", "bag_name", "order"]
    for rows, text in (
        ([["a.dcm", "s", 0], ["a.dcm", "s", 1]], "listed twice"),
        ([["a.dcm", "s", 0], ["b.dcm", "s", 2]], "order is not 0 to 1"),
        ([["a.dcm", "s", "first"]], "not a number"),
    ):
        table(tmp_path / "list.csv", header, rows)
        with pytest.raises(ValueError, match=text):
            DATASETS["rsna"].list_bags(tmp_path, {"test_list": "list.csv"})
    for options, text in (
        ({"train_list": "list.csv"}, "train_list without test_list"),
        ({"scans": 0}, "scans"),
        ({"test_share": 1.5}, "test_share"),
    ):
        with pytest.raises(ValueError, match=text):
            DATASETS["rsna"].list_bags(tmp_path, options)
    labels = tmp_path / "stage_2_train.csv"
    for text, message in (("ID,Label\nID_0_any,0\nID_0_any,1\n", "two different"), ("ID,Label\nfoo,0\n", "line 2")):
        labels.write_text(text)
        with pytest.raises(ValueError, match=message):
            DATASETS["rsna"].list_bags(tmp_path, {})


def test_rsna_published_test_scans(shared_data: Path) -> None:
    scans = rsna.read_list(shared_data / "rsna" / "test_150_scans.csv")
    sizes = [len(scan.slices) for scan in scans]
    assert (len(scans), sum(sizes), min(sizes), max(sizes)) == (150, 5_254, 24, 57)
    assert sum(scan.label == "1" for scan in scans) == 72 and all(scan.ordered for scan in scans)


# own data


OWN = "bag_id,image,label,split,annotation,mpp,group,modality,note\n"


def own(root: Path, text: str, header: str = OWN) -> tuple[dict[str, BagRow], dict[str, Any]]:
    (root / "manifest.csv").write_text(header + text)
    return listed("own", root, {"manifest": "manifest.csv"})


def ct_folder(folder: Path, series: int = 1, patient: str = "SECRET1", slices: int = 3) -> None:
    for s in range(series):
        for z in range(slices):
            tags = {"SeriesInstanceUID": f"1.2.{s}", "SeriesNumber": s + 2, "PatientID": patient}
            write_slice(folder / f"{s}_{(z * 2) % slices}.dcm", z=5 * z, **tags)


def test_own_mixed_modalities(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.svs", "s/a.geojson", "s/odd.img")
    ct_folder(tmp_path / "scan")
    touch(tmp_path, "scan/readme.txt")
    write_slice(tmp_path / "one.dcm")
    table(tmp_path / "labels.csv", ["file", "label"], [["0_0.dcm", 1], ["scan/0_1.dcm", 0]])
    rows, _ = own(
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
    assert rows["c"].images == ("scan/0_0.dcm", "scan/0_2.dcm", "scan/0_1.dcm")
    assert rows["c"].annotation == "slices:1x0" and rows["c"].modality == "ct"
    assert rows["d"].images == ("one.dcm",) and rows["d"].label is None
    assert "anna" not in repr(rows)


def test_own_two_series(tmp_path: Path) -> None:
    ct_folder(tmp_path / "scan", series=2)
    rows, report = own(tmp_path, "a,scan,1,train,,,,,\n")
    text = "2 series, #2 (3 files, CT), #3 (3 files, CT); one bag is one series, write e.g. 'scan#2'"
    assert text in rows["a"].note and text in report["notes"][0] and len(rows["a"].images) == 6
    rows, _ = own(tmp_path, "a,scan#3,1,train,,,,,\n")
    assert rows["a"].images == ("scan/1_0.dcm", "scan/1_2.dcm", "scan/1_1.dcm")
    with pytest.raises(ValueError, match="no series #7"):
        own(tmp_path, "a,scan#7,1,train,,,,,\n")


def test_own_reports_every_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs", "x.doc")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as caught:
        own(
            tmp_path,
            "a,a.svs,1,train,,,anna,,\na,b.svs,0,test,,,anna,,\nc,gone.svs,1,train,,,,,\nd,a.svs,2,train,,,,,\n"
            "e,../out.svs,1,train,,,,,\nf,x.doc,1,train,,,,,\ng,empty,1,train,,,,,\n"
            'i,a.svs,1,train,,"0,25",,,\nj,a.svs,,test,,,,,\nk,a.svs,1,dev,,,,,\nl,a.svs,1,train,no.xml,,,,\n',
        )
    text = str(caught.value)
    for part in (
        "occurs 2 times",
        "same group",
        "line 4 ('c'): missing file 'gone.svs'",
        "label: found '2'",
        "leaves the dataset's root",
        "neither a known slide format",
        "no DICOM file in the folder 'empty'",
        "decimal point",
        "label: empty, but split is test",
        "split: found 'dev'",
        "missing file 'no.xml'",
    ):
        assert part in text, part
    assert "anna" not in text and "Secretname" not in text


def test_own_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown columns \['colour'\].*optional annotation"):
        own(tmp_path, "a,a.svs,1,train,red\n", "bag_id,image,label,split,colour\n")
    with pytest.raises(ValueError, match=r"expected also \['split'\]"):
        own(tmp_path, "a,a.svs,1\n", "bag_id,image,label\n")
    with pytest.raises(ValueError, match="no rows"):
        own(tmp_path, "")
    with pytest.raises(ValueError, match="manifest: absent"):
        DATASETS["own"].count(tmp_path, {})


def test_own_shared_patient_is_noted_without_naming_it(tmp_path: Path) -> None:
    ct_folder(tmp_path / "one", patient="SECRET1")
    ct_folder(tmp_path / "two", patient="SECRET1")
    ct_folder(tmp_path / "three", patient="SECRET2")
    text = "a,one,1,train\nb,two,0,test\nc,three,0,test\n"
    _, report = own(tmp_path, text, "bag_id,image,label,split\n")
    assert len(report["notes"]) == 1 and report["notes"][0].startswith("a, b: one PatientID")
    assert "SECRET" not in repr(report)
