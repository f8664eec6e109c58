"""The benches of preprocessing: they run, print their rows, and refuse to time two sides that differ."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import dicom, encoders, graph, slides, store
from bench.slide_files import lattice, write_slide
from bench.trials import Different, Fresh, Trial, run_trial
from preprocessing import extraction, tile_reader
from preprocessing.cli import guard

KEYS = {"name", "ours", "peer", "ratio", "target", "unit"}


def rows_of(main, arguments, capsys) -> list[dict]:
    assert main([*arguments, "--json", "--budget", "0"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) == KEYS for row in rows)
    assert all(row["ratio"] is None or row["ratio"] == pytest.approx(row["peer"] / row["ours"]) for row in rows)
    return rows


def test_slides(capsys):
    rows = rows_of(slides.main, ["--scale", "0.01"], capsys)
    assert [row["target"] for row in rows[:5]] == [7, 5, 5, 5, None]
    assert all(row["unit"] == "ms per tile" and row["peer"] > 0 for row in rows[:4])
    assert rows[5]["name"].startswith("codec alone") and 0 < rows[5]["ours"] < rows[5]["peer"]
    coverage = [row for row in rows if row["name"].startswith("coverage")]
    assert [row["target"] for row in coverage][:2] == [1, 1] and all(row["peer"] is None for row in coverage)


def test_a_slide_of_ones_own_is_read(tmp_path, capsys):
    path = write_slide(tmp_path / "own.tif", 1300)
    rows = rows_of(slides.main, ["--slide", str(path), "--cases", "reader"], capsys)
    assert [row["name"] for row in rows] == ["reader, 4 tiles, aligned", "reader, 4 tiles, offset by 137 px"]
    small = write_slide(tmp_path / "small.tif", 400)
    assert guard(slides.main)(["--slide", str(small)]) == 2
    assert "400 x 400" in capsys.readouterr().err


def test_pixels_that_differ_are_not_timed(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "slide.tif", 1024)
    coords = lattice((1024, 1024))
    slides.same_tiles(path, coords)
    slides.same_input(path, coords)
    read = tile_reader.read_tile

    def off_by_one(*arguments):
        tile = read(*arguments).copy()
        tile[3, 4, 1] ^= 1
        return tile

    monkeypatch.setattr(tile_reader, "read_tile", off_by_one)
    with pytest.raises(Different, match="tile 0 differs"):
        slides.same_tiles(path, coords)
    monkeypatch.setattr(tile_reader, "read_tile", lambda *a: read(*a) // 2)
    with pytest.raises(Different, match="encoder input"):
        slides.same_input(path, coords)


def test_shares_that_differ_are_not_timed():
    lesion = slides.outlines(4, 60, 4096, jagged=True)
    assert lesion.is_valid and slides.outlines(4, 60, 4096, jagged=False).is_valid
    coords = slides.lattice_over((0, 0, 4096, 4096), 64)
    from preprocessing.coverage import shares

    exact = shares(lesion, coords, 512)
    slides.same_shares(lesion, coords, 512, 64, exact, None)
    with pytest.raises(Different, match="coverage differs"):
        slides.same_shares(lesion, coords, 512, 64, exact + 2e-9, None)


def test_encoders(capsys):
    rows = rows_of(encoders.main, ["--scale", "0.016", "--encoders", "resnet18,timm/resnet10t"], capsys)
    by_name = {row["name"]: row for row in rows}
    decoded = by_name["2 encoders in one pass, 4 tiles, decoded"]
    assert (decoded["ours"], decoded["peer"], decoded["ratio"]) == (1, 2, 2)
    idle = by_name["device idle, resnet18"]
    assert idle["target"] == 5 and 0 <= idle["ours"] <= 100
    assert by_name["resnet18, bf16 network, 1 - cosine to float32"]["ours"] < 1000
    assert by_name["resnet18, float16 storage, 1 - cosine to float32"]["ours"] < 1
    assert sum(row["name"].startswith("split") for row in rows) == 5


def test_idle_time_is_what_lies_between_batches(tmp_path, monkeypatch):
    """A device that works 10 ms a batch and waits for decoding otherwise is mostly idle."""
    import time

    source = encoders.Source(write_slide(tmp_path / "slide.tif", 1024), 4)
    tiles = source.tiles

    def slow(start, stop):
        for tile in tiles(start, stop):
            time.sleep(0.05)
            yield tile

    monkeypatch.setattr(source, "tiles", slow)
    monkeypatch.setattr(extraction.Prefetcher, "__iter__", one_by_one)
    fake = slides.InputOnly()
    before = extraction._forward
    rows = encoders.idle_rows(source, {"input": fake}, 1)
    assert rows[0].ours > 50 and extraction._forward is before


def one_by_one(prefetcher):
    """Blocks of one tile, decoded when they are asked for."""
    from preprocessing.prefetch import Block

    for segment in prefetcher._waiting:
        for number, tile in enumerate(segment.open(segment.start, segment.stop)):
            yield Block(segment.bag_id, segment.start + number, tile[None])


def test_graph(capsys):
    rows = rows_of(graph.main, ["--scale", "0.02"], capsys)
    assert [row["target"] for row in rows] == [None, 50, None, None]
    grid = graph.cells(200)
    ours, theirs = (step() for step in graph.build(grid))
    graph.same_edges(200, ours, theirs)
    broken = ours.copy()
    broken[broken == broken.max()] = -1
    with pytest.raises(Different, match="other edges"):
        graph.same_edges(200, broken, theirs)


def test_store(capsys):
    rows = rows_of(store.main, ["--scale", "0.005"], capsys)
    assert [row["target"] for row in rows] == [0.9, 1, None, 1.5]
    bag = np.zeros((3, 4), np.float16)
    store.same(bag, bag)
    with pytest.raises(Different):
        store.same(bag, -bag)


def test_dicom(tmp_path, capsys):
    assert rows_of(dicom.main, ["--scale", "0.05"], capsys)[0]["target"] == 3
    names = dicom.write_series(tmp_path, 2)
    assert rows_of(dicom.main, ["--series", str(tmp_path)], capsys)[0]["unit"] == "ms per slice"
    dicom.same_slices(tmp_path, names)


def test_windows_that_differ_are_not_timed(tmp_path, monkeypatch):
    names = dicom.write_series(tmp_path, 2)
    monkeypatch.setattr(dicom, "peer_slices", lambda *a: (s + 1e-6 for s in dicom.read_all(*a)))
    with pytest.raises(Different, match=r"slice000\.dcm"):
        dicom.same_slices(tmp_path, names)


def test_every_repetition_starts_afresh_and_is_closed():
    events: list[str] = []

    def side(name: str) -> Fresh[str]:
        return Fresh(lambda: events.append(f"open {name}") or name, events.append, lambda _: events.append("close"))

    trial = Trial("k", "n", lambda: (side("a"), side("b")), 1.0, items=4, unit="ms per tile", rounds=2)
    row = run_trial(trial, budget=10)
    assert row.ratio is not None and row.unit == "ms per tile"
    assert events.count("open a") == events.count("a") == 3 and events.count("close") == 6

    def differ(ours: object, theirs: object) -> None:
        raise Different("no")

    del events[:]
    with pytest.raises(Different):
        run_trial(Trial("k", "n", lambda: (side("a"), side("b")), 1.0, differ), budget=10)
    assert events.count("close") == 2


@pytest.mark.parametrize("name", ["slides", "encoders", "graph", "store", "dicom"])
def test_help_needs_nothing_heavy(name, repository):
    code = (
        f"import sys\nfrom bench.{name} import main\ntry:\n main(['--help'])\nexcept SystemExit:\n pass\n"
        "assert not {'torch', 'torchmil', 'openslide', 'zarr', 'pydicom', 'shapely'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
