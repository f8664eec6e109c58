"""The benches of preprocessing: they run, print their rows, and refuse to time two sides that differ."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import graph, slides, store
from bench.slide_files import lattice, write_slide
from bench.timing import Case, Different, Fresh, run_case
from preprocessing.common.cli import guard
from preprocessing.slides import tile_reader


def test_slides(bench_rows):
    rows = bench_rows(slides.main, ["--scale", "0.01"])
    assert [row["target"] for row in rows] == [7, 5, 5, 5]
    assert all(row["unit"] == "ms per tile" and row["peer"] > 0 for row in rows)


def test_a_slide_of_ones_own_is_read(tmp_path, capsys, bench_rows):
    path = write_slide(tmp_path / "own.tif", 1300)
    rows = bench_rows(slides.main, ["--slide", str(path), "--cases", "reader"])
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


def test_graph(bench_rows):
    rows = bench_rows(graph.main, ["--scale", "0.02"])
    assert [row["target"] for row in rows] == [None, 50, None, None]
    grid = graph.grid_cells(200)
    ours, theirs = (step() for step in graph.build(grid))
    graph.same_edges(200, ours, theirs)
    broken = ours.copy()
    broken[broken == broken.max()] = -1
    with pytest.raises(Different, match="other edges"):
        graph.same_edges(200, broken, theirs)


def test_store(bench_rows):
    rows = bench_rows(store.main, ["--scale", "0.005"])
    assert [row["target"] for row in rows] == [0.9, 1, None, 1.5]
    bag = np.zeros((3, 4), np.float16)
    store.same(bag, bag)
    with pytest.raises(Different):
        store.same(bag, -bag)


def test_every_repetition_starts_afresh_and_is_closed():
    events: list[str] = []

    def side(name: str) -> Fresh[str]:
        return Fresh(lambda: events.append(f"open {name}") or name, events.append, lambda _: events.append("close"))

    row = run_case(Case("k", "n", lambda: (side("a"), side("b")), 1.0, items=4, unit="ms per tile"), budget=10)
    assert row.ratio is not None and row.unit == "ms per tile"
    assert events.count("open a") == events.count("a") == 31 and events.count("close") == 62

    def differ(ours: object, theirs: object) -> None:
        raise Different("no")

    del events[:]
    with pytest.raises(Different):
        run_case(Case("k", "n", lambda: (side("a"), side("b")), 1.0, differ), budget=10)
    assert events.count("close") == 2


@pytest.mark.parametrize("name", ["slides", "graph", "store", "sm", "methods"])
def test_help_needs_nothing_heavy(name, repository):
    code = (
        f"import sys\nfrom bench.{name} import main\ntry:\n main(['--help'])\nexcept SystemExit:\n pass\n"
        "assert not {'torch', 'torchmil', 'openslide', 'zarr', 'shapely'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
