"""What spreadsheets, file systems and people do to a manifest: read right, refused by line, or one bag that fails."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from preprocessing.bags.identity import image_identity
from preprocessing.bags.report import ListReport
from preprocessing.bags.rows import BagRow
from preprocessing.datasets.listing import list_bags
from tests.helpers.dataset_files import touch
from tests.helpers.dicoms import write_slice

HEAD = "bag_id,image,label,split"
NFC, NFD = (unicodedata.normalize(form, "schädel.svs") for form in ("NFC", "NFD"))


def listed(root: Path, text: str | bytes) -> tuple[dict[str, BagRow], ListReport]:
    """The rows and the report of a manifest: all of its bytes, or what follows the four columns in its first line."""
    content = (HEAD + text).encode() if isinstance(text, str) else text
    (root / "m.csv").write_bytes(content)
    rows = list_bags("mine", "custom", root, {"manifest": "m.csv"}, root / "bags.csv")
    return {row.bag_id: row for row in rows}, ListReport.read(root / "bags.report.json")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Slides of different sizes, a link, a hard link and a copy of the first one, and a scan in two folders."""
    for i, name in enumerate("abc"):
        (tmp_path / f"{name}.svs").write_bytes(bytes(range(100 + i)))
    (tmp_path / "link.svs").symlink_to("a.svs")
    (tmp_path / "out.svs").symlink_to(__file__)
    os.link(tmp_path / "a.svs", tmp_path / "hard.svs")
    (tmp_path / "copy.svs").write_bytes(bytes(range(100)))
    (tmp_path / "other.svs").write_bytes(bytes(range(99)) + b"z")
    (tmp_path / "sub").mkdir()
    touch(tmp_path, NFD, "a.geojson")
    for z in range(4):
        write_slice(tmp_path / f"cd/{z // 2}/{z % 2}.dcm", z=z, SOPInstanceUID=f"1.{z}")
    return tmp_path


REFUSED = {
    "semicolons instead of commas": (
        HEAD.replace(",", ";").encode() + b"\na;a.svs;1;train\n",
        "separated by semicolons, expected commas.*CSV UTF-8",
    ),
    "tabs instead of commas": (HEAD.replace(",", "\t").encode(), "separated by tabs"),
    "first line sep=;": (f"sep=;\n{HEAD}\n".encode(), "line 1: found 'sep=;'; remove this line"),
    "UTF-16": (f"{HEAD}\na,a.svs,1,train\n".encode("utf-16"), "m.csv: UTF-16.*expected UTF-8; save it as"),
    "workbook (.xlsx) instead of CSV": (
        b"PK\x03\x04" + bytes(99),
        "m.csv: a workbook of a spreadsheet program, expected a CSV",
    ),
    "Latin-1 (CSV of an old spreadsheet program)": (
        f"{HEAD}\n\na,schädel.svs,1,train\n".encode("latin-1"),
        r"not UTF-8 \(byte 0xe4.*Latin-1.*save it as",
    ),
    "quotes that are not closed": (
        '\na,"a.svs,1,train\nb,b.svs,0,test\n',
        "line 2: not a UTF-8 CSV file.*close every quotation mark",
    ),
    "row with too few cells": ("\na,a.svs\nb,b.svs\n", r"line 2 \('a'\): found 2 cells, expected 4.*line 3"),
    "row with too many cells": ("\na,a.svs,1,train,x,y\n", r"line 2 \('a'\): found 6 cells, expected 4.*in quotes"),
    "semicolons in the rows only": ("\na;a.svs;1;train\n", "found 1 cells, expected 4"),
    "column twice": (",label\na,a.svs,1,train,0\n", r"each once; twice: \['label'\]"),
    "unknown column": (",patient,Group\n", r"unknown columns \['patient', 'Group'\] \(did you mean 'group'\?\)"),
    "column in capitals": (b"bag_id,image,Label,split\n", r"also \['label'\]; unknown.*mean 'label'"),
    "no rows": ("\n\n,,,\n", "no rows, expected one per slide or scan"),
    "label 1.0": ("\na,a.svs,1.0,train\n", r"line 2 \('a'\): label: found '1.0', expected 0, 1 or nothing"),
    "label in words": ("\na,a.svs,yes,train\n", "label: found 'yes'"),
    "other name of a split": ("\na,a.svs,1,Training\n", "split: found 'Training', expected train, val, test"),
    "resolution with a decimal comma": (',mpp\na,a.svs,1,train,"0,25"\n', "mpp: found '0,25'.*decimal point"),
    "resolution with an underscore": (",mpp\na,a.svs,1,train,0_25\n", "mpp: found '0_25'"),
    "resolution nan": (",mpp\na,a.svs,1,train,nan\n", "mpp: found nan"),
    "skip without a reason": (",skip\na,a.svs,1,train,no\n", "skip: found 'no', expected a reason"),
    "slash or colon in an id": ("\na/b:c,a.svs,1,train\n", "bag_id: found 'a/b:c', expected letters"),
    "id that a spreadsheet turned into a number": (
        "\n1.2E+15,a.svs,1,train\n",
        r"bag_id: found '1\.2E\+15', expected letters",
    ),
    "id of more than 150 characters": (f"\n{'x' * 151},a.svs,1,train\n", "at most 150"),
    "row twice": ("\na,a.svs,1,train\n\na,a.svs,1,train\n", r"'a': bag_id occurs 2 times \(a\) \(lines 2, 4\)"),
    "ids that differ in case only": ("\na,a.svs,1,train\nA,b.svs,1,train\n", "occurs 2 times"),
    "one image in two splits": (
        "\na,a.svs,1,train\nb,sub/../a.svs,1,test\n",
        r"one image in several.*line 2,.*line 3,",
    ),
    "one image under two labels, through a link": (
        "\na,a.svs,1,train\nb,link.svs,0,train\n",
        "one image in several splits or.*'a'.*'b'",
    ),
    "one image in two splits, through a hard link": (
        "\na,a.svs,1,train\nb,hard.svs,1,val\n",
        "one image in several.*hard.svs, val",
    ),
    "one image in two splits, as a copy": (
        "\na,a.svs,1,train\nb,copy.svs,1,test\n",
        "one image in several.*copy.svs, test",
    ),
    "scan in one split, one of its slices in another": (
        "\na,cd,1,train\nb,cd/0/0.dcm,1,test\n",
        "one image in several",
    ),
    "patient in two splits, in another case": (
        ",group\na,a.svs,1,train,Kim\nb,b.svs,1,test,kim\n",
        "'b' \\(test\\), 'a' \\(train\\): the same",
    ),
    "patient in two splits, 007 and 7.0": (",group\na,a.svs,1,train,007\nb,b.svs,1,test,7.0\n", "the same group"),
    "patient n/a": (",group\na,a.svs,1,train,n/a\n", "line 2: group: found 'n/a'; leave it empty"),
    "label 0 and a positive slice": (",annotation\na,cd,0,train,slices:0100\n", "label: 0, but 1 of 4 slices"),
}


PATHS = {
    "file that is spelled with other capitals on disk": (
        "\na,A.SVS,1,train\n",
        r"missing file 'A.SVS'.*on disk it is called 'a.svs'",
    ),
    "backslash between folders": ("\na,s\\a.svs,1,train\n", "missing file.*write / between folders"),
    "file name of 300 characters": (f"\na,{'x' * 300}.svs,1,train\n", "missing file 'xxx"),
    "missing file": ("\na,gone.svs,1,train\n", r"line 2 \('a'\): missing file 'gone.svs'"),
    "path that leaves the root": ("\na,../out.svs,1,train\n", "leaves the dataset's root"),
    "link that leaves the root": ("\na,out.svs,1,train\n", "leaves the dataset's root"),
    "file of no known format": ("\na,m.csv,1,train\n", "neither a known slide format nor DICOM"),
    "series that the folder does not hold": ("\na,cd#7,1,train\n", "no CT series #7"),
    "missing annotation": (",annotation\na,a.svs,1,train,gone.xml\n", "missing file 'gone.xml'"),
    "empty cell image": ("\na,,1,train\n", "image: empty, expected a slide"),
}


@pytest.mark.parametrize("fault", [*REFUSED, *PATHS])
def test_refused_with_the_line(root: Path, fault: str) -> None:
    text, message = (REFUSED | PATHS)[fault]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        listed(root, text)
    assert not (root / "bags.csv").exists()


SLICE_LABELS = {
    "name that several slices have": (
        "0.dcm,1",
        "line 2: file '0.dcm' fits 2 slices, 'cd/0/0.dcm' and 'cd/1/0.dcm'; write the folder",
    ),
    "slice under two labels": ("0/0.dcm,1\ncd/0/0.dcm,0", "lines 2 and 3: 'cd/0/0.dcm' is labelled 1 and 0"),
    "slice label in words": ("0/0.dcm,yes", "label of '0/0.dcm': found 'yes'"),
    "names that no slice has": ("9.dcm,1\n8.dcm,1", "(?s)2 problems.*'9.dcm' is no file of the series.*'8.dcm'"),
}


@pytest.mark.parametrize(("lines", "message"), SLICE_LABELS.values(), ids=SLICE_LABELS)
def test_slice_labels_that_fit_nothing_or_too_much(root: Path, lines: str, message: str) -> None:
    (root / "labels.csv").write_text(f"file,label\n{lines}\n")
    with pytest.raises(ValueError, match=message):
        listed(root, ",annotation\na,cd,1,train,labels.csv\n")


def test_slice_labels_by_folder_and_twice_the_same(root: Path) -> None:
    (root / "labels.csv").write_text("file,label\n0/1.dcm,1\ncd/0/1.dcm,1\n1\\0.dcm,0\n")
    rows, _ = listed(root, ",annotation\na,cd,1,train,labels.csv\n")
    assert rows["a"].annotation == "slices:x10x"


HARMLESS = {
    "byte-order mark and CRLF": f"\ufeff{HEAD}\r\na,a.svs,1,train\r\n".encode(),
    "blanks around cells, empty columns and lines": ",,\n\n a , a.svs ,1,\ttrain,,\n,,,,,\n",
    "quotes around cells": '\n"a","a.svs","1","train"',
    "line breaks of old Macs (CR)": "\ra,a.svs,1,train\r",
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_forms_are_read(root: Path, text: str) -> None:
    rows, report = listed(root, text)
    assert rows == {"a": BagRow("a", "wsi", ("a.svs",), 1, "train", annotation_complete=False)} and not report.notes


@pytest.mark.parametrize("name", [NFC, NFD], ids=["composed", "decomposed"])
def test_unicode_forms_of_a_name_are_one(root: Path, name: str) -> None:
    assert listed(root, f"\na,{name},1,train\n")[0]["a"].images == (NFD,)


NOTED = {
    "one image in two bags of one split and label": "one image in 2 bags",
    "one annotation for two bags": "a, b: one annotation, 'a.geojson'",
    "patient spelled in two ways in one split": "lines 2, 3: their groups differ only",
}


def test_what_is_no_fault_is_noted(root: Path) -> None:
    text = ",annotation,group\na,a.svs,1,train,a.geojson,Kim \nb,copy.svs,1,train,a.geojson,KIM\nc,other.svs,1,,,\n"
    _, report = listed(root, text)
    assert all(any(text in note for note in report.notes) for text in NOTED.values())
    assert "kim" not in json.dumps(report.notes).lower() and len(report.notes) == 3


UNREADABLE = {
    "link to a file that does not exist": ("gone.svs", "does not exist"),
    "link out of the root to a file that does not exist": ("away.tif", "link to /nowhere"),
    "link to itself": ("loop.svs", "loop.svs"),
    "folder that is called like a slide": ("folder.svs", "a folder"),
    "folder that may not be listed": ("cd", "Permission denied"),
    "series in a folder that may not be listed": ("cd#1", "Permission denied"),
}


def test_a_bag_that_cannot_be_read_fails_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "gone.svs").symlink_to("nowhere/slide.svs")
    (root / "away.tif").symlink_to("/nowhere/slide.tif")
    (root / "loop.svs").symlink_to("loop.svs")
    (root / "folder.svs").mkdir()
    walk = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("cd/1"):
            raise PermissionError(13, "Permission denied", str(path))
        return walk(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names = {f"b{number}": name for number, (name, _) in enumerate(UNREADABLE.values())}
    text = "".join(f"\n{bag},{name},1,train" for bag, name in {**names, "a": "a.svs"}.items())
    rows, report = listed(root, text)
    assert rows["a"].note == "" and len(report.notes) == len(UNREADABLE)
    for bag, (name, part) in zip(names, UNREADABLE.values(), strict=True):
        assert str(root) not in rows[bag].note
        assert "no readable image: " in rows[bag].note and part in rows[bag].note
        assert name.partition("#")[0] in rows[bag].note
        assert any(note.startswith(f"{bag}: no readable") for note in report.notes)
        with pytest.raises((ValueError, OSError)):
            image_identity(root, rows[bag].images)


def test_a_disk_too_small_for_the_features_is_told_in_gb(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "m.csv").write_text(f"{HEAD}\na,cd,1,train\nb,a.svs,0,test\n")
    for instance_bytes, warned in ((4096, False), (10**15, True)):
        caplog.clear()
        out = root / "out/bags.csv"
        list_bags("mine", "custom", root, {"manifest": "m.csv"}, out, instance_bytes=instance_bytes)
        assert ("need roughly 4000" in caplog.text and "GB free" in caplog.text) == warned
