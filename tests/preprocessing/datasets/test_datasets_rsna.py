"""RSNA on hand-made folders and on the published lists of scans."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from preprocessing.datasets import DATASETS, rsna
from preprocessing.scans.dicom import Header
from tests.helpers.dataset_files import listed, names, table
from tests.helpers.dicoms import write_slice


def small_rsna(root: Path, scans: int = 8, slices: int = 5) -> dict[str, list[str]]:
    """Scans of shuffled file names; odd ones positive on slice 2; two scans per patient. Scan -> names in order."""
    rng = np.random.default_rng(0)
    codes = [f"ID_{c:09x}" for c in rng.permutation(scans * slices)]
    rows, files = [], {}
    for s in range(scans):
        names_of_scan = codes[s * slices : (s + 1) * slices]
        files[f"ID_study{s}"] = [f"{c}.dcm" for c in names_of_scan]
        for z, code in enumerate(names_of_scan):
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
    return files


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
    assert any("sampled" in note for note in report.notes)
    assert any("duplicate label rows" in note for note in report.notes)
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
    assert len(rows) == 5 and len(report.excluded) == 2
    assert all("patient" in item.reason for item in report.excluded)
    assert rows["ID_study3"].annotation == "slices:00100"
    assert not any("order" in note for note in report.notes)
    order = rsna.read_list(test)[0].slices
    assert list(order) == (scans["ID_study0"][::-1] if reverse else scans["ID_study0"])
    scan_list(tmp_path / "train.csv", {k: scans[k] for k in ("ID_study5", "ID_study6", "ID_study2")})
    both, report = listed("rsna", tmp_path, {"test_list": "test.csv", "train_list": "train.csv"})
    splits = {"ID_study0": "test", "ID_study3": "test", "ID_study5": "train", "ID_study6": "train"}
    assert {n: r.split for n, r in both.items()} == splits
    assert names(report.excluded) == {"ID_study2"}


def test_rsna_list_and_disk_differ(tmp_path: Path) -> None:
    scans = small_rsna(tmp_path)
    first = scans["ID_study0"]
    (tmp_path / "stage_2_train" / first[1]).unlink()
    broken = tmp_path / "stage_2_train" / scans["ID_study3"][0]
    broken.write_bytes(broken.read_bytes()[:150])
    turned = scans["ID_study3"][1:3][::-1] + scans["ID_study3"][3:]
    wrong = {"ID_study0": first, "ID_study3": turned, "gone9": ["x.dcm"]}
    scan_list(tmp_path / "test.csv", wrong)
    (tmp_path / "test.csv").write_text((tmp_path / "test.csv").read_text().replace("instance_label,", "unused,"))
    write_slice(tmp_path / "stage_2_train" / "ID_6431af929.dcm", StudyInstanceUID="ID_study5")
    rows, report = listed("rsna", tmp_path, {"test_list": "test.csv"})
    assert first[1] in names(report.missing) and {"gone9"} <= names(report.missing)
    assert {"ID_6431af929.dcm", broken.name} <= names(report.excluded)
    assert len(rows["ID_study0"].images) == 4
    assert any("order differs" in note for note in report.notes)
    assert not any("6431af929" in name for row in rows.values() for name in row.images)


def test_a_scan_whose_headers_are_all_damaged_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged, read_header = small_rsna(tmp_path)["ID_study0"], rsna.read_header

    def read(path: Path, name: str) -> Header:
        if name in damaged:
            raise ValueError(f"{name}: the header is broken")
        return read_header(path, name)

    monkeypatch.setattr(rsna, "read_header", read)
    rows, report = listed("rsna", tmp_path, {"scans": 8, "test_share": 0.25})
    assert len(rows) == 7 and {*damaged} < names(report.excluded)


def test_tables_are_told_what_of_rsna_is_sampled(tmp_path: Path) -> None:
    note = partial(DATASETS["rsna"].split_note, tmp_path)
    assert "the test scans among them, are a seeded sample (seed 3, up to 1,150 scans in all)" in note({"seed": 3})
    half = note({"test_list": "raw/rsna/testing_example.csv", "scans": 108})
    assert half.startswith("test scans as listed in testing_example.csv; the training scans") and "to 108 scans" in half
    assert note({"test_list": "a.csv", "train_list": "b.csv"}) == ""
    assert note({"test_list": None}) == note({}) == note({"test_list": ""})
    small_rsna(tmp_path)
    with pytest.raises(ValueError, match=r"no file 'testing_example.csv'.*raw rsna --out.*test_list: null"):
        DATASETS["rsna"].count(tmp_path, {"test_list": "testing_example.csv"})


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
