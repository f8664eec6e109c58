"""Custom manifests: both modalities, series, columns, and every problem reported at once."""

from pathlib import Path

import pytest

from preprocessing.bags.report import ListReport
from preprocessing.bags.rows import BagRow
from preprocessing.datasets import DATASETS
from tests.helpers.dataset_files import listed, table, touch
from tests.helpers.dicoms import write_slice

HEADER = "bag_id,image,label,split,annotation,mpp,group,modality,note\n"


def custom(root: Path, text: str, header: str = HEADER) -> tuple[dict[str, BagRow], ListReport]:
    (root / "manifest.csv").write_text(header + text)
    return listed("custom", root, {"manifest": "manifest.csv"})


def ct_folder(folder: Path, series: int = 1, patient: str = "SECRET1", slices: int = 3) -> None:
    for s in range(series):
        for z in range(slices):
            tags = {"SeriesInstanceUID": f"1.2.{s}", "SeriesNumber": s + 2, "PatientID": patient}
            tags |= {"SOPInstanceUID": f"1.3.{s}.{z}.{sum(folder.name.encode())}"}
            write_slice(folder / f"{s}_{(z * 2) % slices}.dcm", z=5 * z, **tags)


def test_custom_mixed_modalities(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.svs", "s/a.geojson", "s/odd.img")
    ct_folder(tmp_path / "scan")
    touch(tmp_path, "scan/readme.txt")
    write_slice(tmp_path / "one.dcm")
    table(tmp_path / "labels.csv", ["file", "label"], [["0_0.dcm", 1], ["scan/0_1.dcm", 0]])
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
    assert rows["c"].images == ("scan/0_0.dcm", "scan/0_2.dcm", "scan/0_1.dcm")
    assert rows["c"].annotation == "slices:1x0" and rows["c"].modality == "ct"
    assert rows["d"].images == ("one.dcm",) and rows["d"].label is None
    assert "anna" not in repr(rows)


def test_custom_two_series(tmp_path: Path) -> None:
    ct_folder(tmp_path / "scan", series=2)
    rows, report = custom(tmp_path, "a,scan,1,train,,,,,\n")
    text = "2 CT series, but one bag is one series; write 'scan#2' (3 CT images) or 'scan#3' (3 CT images)"
    assert text in rows["a"].note and text in report.notes[0] and len(rows["a"].images) == 6
    rows, _ = custom(tmp_path, "a,scan#3,1,train,,,,,\n")
    assert rows["a"].images == ("scan/1_0.dcm", "scan/1_2.dcm", "scan/1_1.dcm")
    with pytest.raises(ValueError, match="no CT series #7; write 'scan#2'"):
        custom(tmp_path, "a,scan#7,1,train,,,,,\n")


def test_custom_reports_every_problem(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "b.svs", "x.doc")
    with pytest.raises(ValueError) as caught:
        custom(
            tmp_path,
            "a,a.svs,1,train,,,anna,,\na,b.svs,0,test,,,anna,,\nc,gone.svs,1,train,,,,,\nd,a.svs,2,train,,,,,\n"
            "e,../out.svs,1,train,,,,,\nf,x.doc,1,train,,,,,\n"
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
        "decimal point",
        "label: empty, but split is test",
        "split: found 'dev'",
        "missing file 'no.xml'",
    ):
        assert part in text, part
    assert "anna" not in text and "Secretname" not in text


def test_custom_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown columns \['colour'\].*optional annotation"):
        custom(tmp_path, "a,a.svs,1,train,red\n", "bag_id,image,label,split,colour\n")
    with pytest.raises(ValueError, match=r"expected also \['split'\]"):
        custom(tmp_path, "a,a.svs,1\n", "bag_id,image,label\n")
    with pytest.raises(ValueError, match="no rows"):
        custom(tmp_path, "")
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
