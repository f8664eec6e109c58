"""Stamps by which the workflow sees that raw files have changed."""

import os
from pathlib import Path

import pytest

from preprocessing.bags.identity import annotation_identity, listing_stamp, raw_stamp
from preprocessing.bags.rows import BagRow
from preprocessing.datasets import DATASETS

ROWS = [
    BagRow("a", "wsi", ("a.tif",), annotation="a.xml", overrides='{"mask": "m.png"}'),
    BagRow("b", "ct", ("b/1.dcm", "b/2.dcm"), annotation="slices:01"),
    BagRow("c", "wsi", ("c.tif",), skip="pen marks"),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.tif", "a.xml", "m.png", "b/1.dcm", "b/2.dcm", "c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "counts"),
    [("a.tif", True), ("a.xml", True), ("m.png", True), ("b/2.dcm", True), ("c.tif", False), ("other.tif", False)],
)
def test_an_edit_a_new_time_and_a_loss_change_the_stamp(root: Path, name: str, counts: bool) -> None:
    stamps = [raw_stamp(root, ROWS)]
    (root / name).write_text("longer content")
    stamps.append(raw_stamp(root, ROWS))
    os.utime(root / name, (1, 1))
    stamps.append(raw_stamp(root, ROWS))
    (root / name).unlink()
    stamps.append(raw_stamp(root, ROWS))
    assert len(set(stamps)) == (4 if counts else 1)


def test_a_list_depends_on_tables_by_content_and_folders_by_name(root: Path) -> None:
    paths = [root / "a.xml", root / "b", root / "absent"]
    before = listing_stamp(paths)
    os.utime(root / "a.xml", (1, 1))
    (root / "b/1.dcm").write_text("another slice")
    (root / "b/.DS_Store").write_text("")
    assert listing_stamp(paths) == before
    (root / "b/3.dcm").write_text("")
    more = listing_stamp(paths)
    (root / "a.xml").write_text("another")
    assert len({before, more, listing_stamp(paths)}) == 3


def test_a_slice_in_a_nested_folder_of_a_scan_is_seen(root: Path) -> None:
    (root / "scan/a/b").mkdir(parents=True)
    (root / "m.csv").write_text("bag_id,image,label,split\nx,scan,,\ny,scan/a#3,,\n")
    options = {"manifest": "m.csv"}
    before = listing_stamp(DATASETS["custom"].reads(root, options))
    (root / "scan/a/b/1.dcm").write_text("")
    assert listing_stamp(DATASETS["custom"].reads(root, options)) != before


def test_a_large_mask_counts_by_time_or_by_every_byte(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.bags.identity.WHOLE_FILE_BYTES", 0)
    before = [annotation_identity(root, "a.xml", mode) for mode in ("time", "content")]
    os.utime(root / "a.xml", (1, 1))
    after = [annotation_identity(root, "a.xml", mode) for mode in ("time", "content")]
    assert before[0] != after[0] and before[1] == after[1]
