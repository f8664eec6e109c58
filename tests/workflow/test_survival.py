"""Damaged and hostile files fail alone, are never unpacked beyond the limits, and appear in the status table."""

import os
import re
import resource
import signal
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from preprocessing.bags.table import write_bags
from preprocessing.datasets import rsna_select
from preprocessing.scans import dicom
from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import open_slide
from preprocessing.store.bags import read_instance_attrs, validate_bag
from preprocessing.tiling.tissue import read_despite_damage
from tests.helpers.cohorts import Cohort, picture, write_scan, write_slide
from tests.helpers.dicoms import write_slice
from tests.helpers.pyramids import _patch, corrupt

# --- damaged slides ---------------------------------------------------------------------------------------------


def cut_to(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = write_slide(path).read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return damage


def claims(tag: str, value: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        _patch(write_slide(path), 0, tag, 0, value)

    return damage


def huge_and_sparse(path: Path) -> None:
    """Write a few kB that claim 4 million px per side in missing tiles, like a sparse slide."""
    tiles = 4_194_304 // 65_520 + 1
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        blank = (b"" for _ in range(tiles * tiles))
        facts = {"shape": (4_194_304, 4_194_304, 3), "dtype": np.uint8, "tile": (65_520, 65_520), "photometric": "rgb"}
        writer.write(
            blank, **facts, compression="jpeg", resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None
        )


def bad_tile(path: Path) -> None:
    corrupt(write_slide(path), 1, 1)  # on the level of the tissue mask


# tests of the readers hold what is wrong with other files
SLIDES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut at 50 %": (cut_to(0.5), ""),
    "absurd width": (claims("ImageWidth", 2**31 - 1), ""),
    "absurd tile": (claims("TileWidth", 2**24), ""),
    "sparse bomb": (huge_and_sparse, "claims 4194304 x 4194304 px"),
    "unreadable tile": (bad_tile, "cannot be decoded"),
}


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    made = Cohort(tmp_path)
    write_slide(made.raw / "good.tif")
    made.add("good", "good.tif")
    return made


def check_failed(cohort: Cohort, reason: str) -> None:
    """Check that only bag `x` fails: exit code, manifest, status, table."""
    assert cohort.cut() == 1 and not cohort.manifest().exists()
    assert cohort.cut(allowed=1) == 0
    entries = cohort.entries()
    assert entries["good"].state == "ok" and entries["x"].state == "failed", entries["x"]
    assert re.search(reason, entries["x"].reason), entries["x"].reason
    validate_bag(cohort.results / "instances/store", "good", schema="instances")
    assert not (cohort.results / "instances/store/x").exists()
    status = cohort.status()
    assert (status["total"]["ok"], status["total"]["failed"]) == (1, 1)
    (problem,) = status["problems"]
    assert (problem["bag_id"], problem["state"]) == ("x", "failed") and re.search(reason, problem["reason"])


@pytest.mark.parametrize("case", SLIDES)
def test_a_damaged_slide_fails_alone(cohort, case: str) -> None:
    damage, reason = SLIDES[case]
    damage(cohort.raw / "x.tif")
    cohort.add("x", "x.tif")
    assert cohort.list_bags() == 0
    check_failed(cohort, reason)


def test_a_slide_without_tissue_is_empty_and_no_failure(cohort) -> None:
    write_slide(cohort.raw / "x.tif", picture(None))
    cohort.add("x", "x.tif")
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    entry = cohort.entries()["x"]
    assert (entry.state, entry.n, entry.reason) == ("empty", 0, "no tissue found")
    status = cohort.status()
    assert status["total"]["empty"] == 1 and status["problems"][0]["reason"] == "no tissue found"


def test_unreadable_tiles_of_the_mask_are_background_up_to_the_limit_and_counted(cohort) -> None:
    bad_tile(cohort.raw / "x.tif")
    cohort.add("x", "x.tif")
    cohort.options["wsi"] = {**cohort.options["wsi"], "max_bad_tiles": 1}
    assert cohort.list_bags() == 0 and cohort.cut() == 0
    entries = cohort.entries()
    assert entries["x"].bad_tiles == 1 and entries["good"].bad_tiles == 0
    x, good = (read_instance_attrs(cohort.results / "instances/store", name) for name in ("x", "good"))
    assert x.unreadable_tiles == 1 and "unreadable_tiles" not in good.model_fields_set
    assert 0 < entries["x"].n < entries["good"].n
    assert [line.get("bad_tiles") for line in cohort.status_lines()] == [None, 1]
    status = cohort.status()
    assert status["total"]["bad_tiles"] == 1 and ",ok," in (cohort.results / "status/status.csv").read_text()
    corrupt(cohort.raw / "x.tif", 1, 4)
    assert cohort.cut() == 1 and "max_bad_tiles" in cohort.status_lines()[-1]["reason"]


def test_shrunk_masks_survive_unreadable_tiles_as_well(tmp_path) -> None:
    path = write_slide(tmp_path / "a.tif")
    with open_slide(path) as slide:
        whole = slide.read_level(0, 3, white=False)
    corrupt(path, 0, 6)  # file tile (1, 1): x, y from 128 to 256
    with open_slide(path) as slide:
        level, bad = read_despite_damage(slide, 0, 3, 1)
        with pytest.raises(TileReadError):
            read_despite_damage(slide, 0, 3, 0)
    assert bad == 1 and level.shape == whole.shape
    # boxes of 3 px from 42 to 85 touch the tile
    far = np.ones(whole.shape[:2], bool)
    far[42:86, 42:86] = False
    np.testing.assert_array_equal(level[far], whole[far])
    assert (level[43:85, 43:85] == 0).all()


# --- damaged scans ----------------------------------------------------------------------------------------------


def deflate_bomb(path: Path) -> None:
    """Write a few kB whose deflated part unpacks to more than the limit."""
    data = write_slice(path).read_bytes()
    data = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    length = int.from_bytes(data[140:144], "little") + 2
    at = data.index(b"1.2.840.10008.1.2.1.99")
    data = data[: at - 2] + (22).to_bytes(2, "little") + data[at:]
    data = data[:140] + length.to_bytes(4, "little") + data[144:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(bytes(32 << 20)) + packer.flush()
    path.write_bytes(data[: 144 + length] + body)


def add_slice(**tags: object) -> Callable[[Path], None]:
    return lambda folder: write_slice(folder / "odd.dcm", z=90.0, **tags) and None  # type: ignore[arg-type]


CT = "1.2.840.10008.5.1.4.1.1.2"
SCANS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no modality": (add_slice(Modality=None, SOPClassUID=CT), r"odd\.dcm: Modality is 'absent'"),
    "two series": (add_slice(SeriesInstanceUID="1.2.99", SeriesNumber=9), "2 CT series.*write 'x#9' \\(1 CT images\\)"),
    "absurd rows": (add_slice(Rows=65_535, Columns=65_535), r"odd\.dcm: 65535 x 65535 px"),
    "deflate bomb": (lambda folder: deflate_bomb(folder / "odd.dcm"), r"odd\.dcm: unpacks to more than"),
}


@pytest.mark.parametrize("case", SCANS)
def test_a_damaged_scan_fails_alone(tmp_path, case: str, monkeypatch) -> None:
    monkeypatch.setattr(dicom, "MAX_INFLATED", 16 << 20)
    damage, reason = SCANS[case]
    cohort = Cohort(tmp_path)
    write_scan(cohort.raw / "good")
    damage(write_scan(cohort.raw / "x"))
    cohort.add("good", "good")
    cohort.add("x", "x")
    assert cohort.list_bags() == 0, "the list is not lost to one bad scan"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_failed(cohort, reason)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10, "nothing was unpacked"


def test_a_killed_header_reader_is_replaced(tmp_path, monkeypatch, caplog) -> None:
    names = [write_slice(tmp_path / f"{k}.dcm").name for k in range(3)]
    monkeypatch.setattr(rsna_select, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(rsna_select.os, "cpu_count", lambda: 2)
    monkeypatch.setenv("SMMIL_TEST_PARENT", str(os.getpid()))
    monkeypatch.setattr(rsna_select, "_identity", _dies_in_a_worker)
    assert rsna_select._identities(tmp_path, names) == [("study", "series", name) for name in names]
    assert "was killed" in caplog.text


def _dies_in_a_worker(folder: Path, name: str) -> tuple[str, str, str]:
    if os.environ["SMMIL_TEST_PARENT"] != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return "study", "series", name


# --- hostile paths and streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["../outside.tif", "link.tif", "folder/../../outside.tif"])
def test_paths_out_of_the_root_are_refused_when_listing_and_when_reading(cohort, image: str, capsys) -> None:
    write_slide(cohort.raw.parent / "outside.tif")
    (cohort.raw / "link.tif").symlink_to(cohort.raw.parent / "outside.tif")
    assert cohort.list_bags() == 0
    (row,) = cohort.bags().values()
    cohort.add("x", image)
    assert cohort.list_bags() == 2 and "leaves the dataset's root" in capsys.readouterr().err
    write_bags(cohort.results / "bags.csv", [row, replace(row, bag_id="x", images=(image,))])
    check_failed(cohort, "leaves the dataset's root")


def test_a_tile_whose_stream_claims_more_than_its_directory_is_not_unpacked(tmp_path) -> None:
    """The frame header of a JPEG tile claims 65,500 x 65,500 px, which would take 12 GB."""
    path = write_slide(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[6], tiff.pages[0].databytecounts[6]
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0", offset, offset + count)
    data[at + 5 : at + 9] = (65_500).to_bytes(2, "big") * 2
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_slide(path) as slide:
        assert slide.read(0, 0, 0, (128, 128)).shape == (128, 128, 3)
        with pytest.raises(TileReadError):
            slide.read(128, 128, 0, (128, 128))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
