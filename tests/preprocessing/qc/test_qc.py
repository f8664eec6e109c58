"""The quality-control sheet on a hand-made store: oddness, counts, pictures, failed and empty bags."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preprocessing.bags.manifests import ManifestEntry, ShardManifest
from preprocessing.bags.overrides import apply_overrides, bag_options, read_overrides
from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.files import write_json
from preprocessing.common.options import WSI_PRESETS
from preprocessing.qc.__main__ import main
from preprocessing.qc.draw import COLOURS, draw_bag
from preprocessing.qc.facts import BagFacts, choose_shown, collect, compare_resolution, robust_z, tissue_share
from preprocessing.qc.plots import HEIGHT, WIDTH, plots
from preprocessing.qc.sheet import HEADER, corrections
from preprocessing.store.attrs import AnnotationCounts
from preprocessing.store.bags import InstanceAttrs, write_bag
from preprocessing.store.outlines import ArtefactArea, Outlines
from preprocessing.tiling.artefacts import ARTEFACTS
from tests.helpers.pages import Page, put_slide


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    rows = [BagRow(f"s{i}", "wsi", (f"s{i}.tif",), i % 2, "train" if i < 6 else "test") for i in range(8)]
    rows.append(BagRow("evil", "wsi", ("e.tif",), 1, "test", note="<script>alert(1)</script>"))
    rows.append(BagRow("gone", "wsi", ("g.tif",), 0, "test"))
    entries = [ManifestEntry(bag_id="evil", state="failed", reason="e.tif: truncated <file>")]
    entries.append(ManifestEntry(bag_id="gone", state="empty", reason="no tissue"))
    for i in range(8):
        n = 19 if i == 3 else 8 + i % 3
        put_slide(folder / "instances", f"s{i}", n, n // 4 if i % 2 else 0)
        entries.append(ManifestEntry(bag_id=f"s{i}", state="ok", n=n))
    write_bags(folder / "bags.csv", rows)
    missing = [{"name": "x", "reason": "not there"}]
    report = {"expected": {"bags": 12, "train_positive": 4, "other": 3}, "missing": missing}
    write_json(folder / "bags.report.json", report)
    ShardManifest(dataset="d", stage="instances", stage_version=1, shard="0000", bags=tuple(entries)).write(
        folder / "0000.json"
    )
    return folder


@pytest.fixture
def cohort(tmp_path: Path, drawn: Path) -> Path:
    """Ten bags, of which one failed and one is empty; s3 is odd, and one without a lesion follows one with it."""
    return Path(shutil.copytree(drawn, tmp_path / "cohort"))


def run(folder: Path, *more: str) -> dict:
    files = ["--bags", str(folder / "bags.csv"), "--report", str(folder / "bags.report.json")]
    files += ["--instances", str(folder / "instances"), "--manifests", str(folder / "0000.json")]
    assert main(["--dataset", "d", *files, "--out", str(folder / "qc"), *more]) == 0
    return json.loads((folder / "qc" / "counts.json").read_text())


def test_robust_z_by_hand() -> None:
    # median 3, distances 2 1 0 1 97, MAD 1
    z = robust_z(np.array([1.0, 2, 3, 4, 100, np.nan]))
    assert z[:5] == pytest.approx(np.array([2, 1, 0, 1, 97]) / 1.4826) and np.isnan(z[5])
    assert robust_z(np.ones(4)).tolist() == [0, 0, 0, 0]
    # more than half equal: mean absolute deviation 10 / 5 takes over
    assert robust_z(np.array([1.0, 1, 1, 1, 11]))[4] == pytest.approx(10 / (1.2533 * 2))


def test_tissue_share_by_hand_less_holes_and_from_tiles() -> None:
    square = [(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
    hole = [(2.0, 2.0), (2.0, 6.0), (7.0, 6.0), (7.0, 2.0)]
    plain, with_hole = Outlines(tissue=[square]), Outlines(tissue=[square], holes=[hole])
    assert tissue_share(with_hole, InstanceAttrs(dimensions=(20, 10)), 3) == (100 - 20) / 200
    assert tissue_share(Outlines(), InstanceAttrs(dimensions=(20, 10), l0_step_px=5), 3) == 75 / 200
    assert tissue_share(plain, InstanceAttrs(dimensions=(90, 90), bounds=(5, 5, 20, 10)), 3) == 0.5
    assert tissue_share(Outlines(), InstanceAttrs(), 3) is None


def test_sheet_shows_every_bag_with_reasons_first(cohort: Path) -> None:
    counts = run(cohort)
    text = (cohort / "qc" / "index.html").read_text()
    page = Page(text)
    places = [text.index(part) for part in ("truncated &lt;file&gt;", "no tissue", "<b>s3</b>", "<b>s0</b>")]
    assert places == sorted(places)
    links = {source for source in page.sources if not source.startswith("data:image/jpeg")}
    assert page.tags.count("img") == 8 and all(f'id="{link[1:]}"' in text for link in links)
    assert "<script>alert" not in text and "&lt;script&gt;" in text and "http" not in text
    assert "number of instances 19, median of the cohort 9" in text and "0.25 µm/px (manifest)" in text
    assert counts["states"] == {"failed": 1, "empty": 1, "ok": 8}
    assert counts["expected"] == [["bags", 12, 10], ["other", 3, None], ["train_positive", 4, 3]]
    assert "not counted here" in text and "1 empty, 1 failed" in text
    assert counts["command"].startswith("python -m preproc")
    files = {path: path.read_bytes() for path in (cohort / "qc").iterdir()}
    assert files[cohort / "qc/contact-sheet.jpg"][:2] == b"\xff\xd8" and len(files) == 3
    run(cohort)
    assert {path: path.read_bytes() for path in files} == files, "equal input gives equal bytes"


def test_names_are_plain_and_warnings_name_their_bags(cohort: Path) -> None:
    pen = {"pen": ArtefactArea(share=0.04, areas=[[[(0, 0), (900, 0), (900, 900)]]]), "air": ArtefactArea(share=0.1)}
    for name in ("s2", "s4"):
        put_slide(cohort / "instances", name, 9, 0)
        outlines = Outlines.read(cohort / "instances", name).model_copy(update={"artefacts": pen})
        outlines.write(cohort / "instances/thumbnails" / f"{name}.json")
    counts = run(cohort)
    text = (cohort / "qc" / "index.html").read_text()
    assert "train, positive" in text and "train_positive" not in text
    assert counts["warned"]["pen or ink on … % of the tissue: the ink hides the tissue"] == ["s2", "s4"]
    assert counts["artefacts"] == {name: {"pen": 0.04, "air": 0.1} for name in ("s2", "s4")}
    assert counts["not_looked_at"] == 6 and "in 6 slides cut by an earlier version" in text
    assert "glass or air 10 %" in text and text.count("pen or ink on 4 % of the tissue") == 2
    seen = draw_bag(cohort / "instances", BagFacts("s2", "wsi", 0, "train", "ok", 9), 400)
    clean = draw_bag(cohort / "instances", BagFacts("s6", "wsi", 0, "train", "ok", 9), 400)
    assert seen is not None and clean is not None
    ink = (np.abs(seen.astype(int) - ARTEFACTS["pen"].colour).sum(axis=2) < 30).mean()
    assert ink > 0.01 and not (np.abs(clean.astype(int) - ARTEFACTS["pen"].colour).sum(axis=2) < 30).any()


def facts_of(name: str, **more: object) -> BagFacts:
    return replace(BagFacts(name, "wsi", 0, "train", "ok", 9, recipe="clam"), **more)


@pytest.mark.parametrize("recipe", ["clam", "panda"])
def test_every_correction_is_a_line_that_the_overrides_take(tmp_path: Path, recipe: str) -> None:
    odd = {"oddness": 9.0, "odd_in": "tissue share"}
    bags = [
        facts_of("pen, blur", artefacts={"pen": 0.1, "blur": 0.5, "air": 0.01}),
        facts_of("low", **odd, odd_value=0.02, odd_median=0.3),
        facts_of("high", **odd, odd_value=0.9, odd_median=0.3),
        facts_of("coarse", odd_resolution=True, mpp=5.0),
        facts_of("empty", state="empty", reason="no tissue found", n=0),
        BagFacts("scan", "ct", 0, "test", "failed", reason='file "a", cut short'),
    ]
    slides = {b.bag_id: BagRow(b.bag_id, b.modality, ("a",), 0, "train") for b in bags}
    most = {b.bag_id: corrections(b, recipe, 0.25) for b in bags}
    assert [len(ways) for ways in most.values()] == ([3, 3, 3, 3, 3, 1] if recipe == "clam" else [3, 2, 2, 3, 2, 1])
    (tmp_path / "masks").mkdir()
    for name in slides:
        (tmp_path / "masks" / f"{name}.geojson").touch()
    for position in range(3):
        lines = [ways[position].line for ways in most.values() if position < len(ways)]
        (tmp_path / "o.csv").write_text("\n".join([HEADER, *lines]) + "\n")
        for row in apply_overrides(slides.values(), read_overrides(tmp_path / "o.csv"), tmp_path, "o.csv"):
            if row.modality == "wsi":
                bag_options(WSI_PRESETS["paper" if recipe == "clam" else "panda"], row)
    assert '"pen, blur",,pen blur,,,,' in most["pen, blur"][0].line


@pytest.mark.parametrize("n", [1, 30, 700])
def test_plots_hold_every_bag_inside_the_frame(n: int) -> None:
    bags = [facts_of(f"b{i}", n=10 + i % 7, tissue_share=None if i == 0 else i / n) for i in range(n)]
    drawn = plots(bags)
    assert len(drawn) == (1 if n == 1 else 2)
    for plot in drawn:
        assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= HEIGHT for dot in plot.dots)
        assert all(0 <= bar.x < WIDTH and 0 < bar.height <= HEIGHT for bar in plot.bars)
        assert len(plot.dots) + sum(bar.n for bar in plot.bars) == (n if plot.title == "Tiles per bag" else n - 1)
    assert plots([]) == []


def test_what_an_annotation_held_and_was_not_used_is_shown_and_counted(cohort: Path) -> None:
    unused = AnnotationCounts(lesion=3, self_crossing=1, open_lines=2, ignored_classes={"Region*": 4})
    put_slide(cohort / "instances", "s1", 9, 2, annotation_counts=unused)
    put_slide(cohort / "instances", "s5", 9, 2, annotation_counts=AnnotationCounts(lesion=1, open_lines=1))
    counts = run(cohort)
    text = (cohort / "qc" / "index.html").read_text()
    assert "annotation not used: 2 open lines" in text and "annotation: 1 self-crossing, 4 Region* ignored" in text
    assert counts["annotation_objects"] == {"lesion": 4, "self_crossing": 1, "open_lines": 3, "class Region*": 4}
    assert counts["warnings"]["annotation not used: 1 open lines"] == 1


def test_a_large_cohort_shows_the_oddest_and_a_sample(cohort: Path) -> None:
    assert run(cohort, "--max-bags", "4")["shown"] == 4
    text = (cohort / "qc" / "index.html").read_text()
    assert "4 of 10 bags" in text and "<b>evil</b>" in text and "<b>gone</b>" in text and "<b>s3</b>" in text
    bags = [BagFacts(str(i), "wsi", 0, "", "ok") for i in range(100)]
    shown = [int(bag.bag_id) for bag in choose_shown(bags, 9)]
    assert shown == [0, 1, 2, 3, 4, 5, 21, 53, 84] and choose_shown(bags, 100) == bags


def test_overlay_draws_tissue_tiles_and_lesion_where_they_are(cohort: Path) -> None:
    picture = draw_bag(cohort / "instances", BagFacts("s1", "wsi", 1, "train", "ok", 9), 400)
    assert picture is not None and picture.shape == (200, 400, 3)
    # right edge of the tissue at level-0 x 2000 = picture x 200; far from it nothing is drawn
    near = np.abs(picture[100, 195:206].astype(int) - COLOURS["tissue"]).sum(axis=1).min()
    assert near < 60 and (picture[100, 300] > 245).all()
    assert np.abs(picture[50, 18:23].astype(int) - COLOURS["lesion"]).sum(axis=1).min() < 400
    assert draw_bag(cohort / "instances", BagFacts("none", "wsi", 1, "", "ok"), 400) is None


def test_contradictions_are_warned_about(cohort: Path) -> None:
    put_slide(cohort / "instances", "s0", 8, 3)
    row = BagRow("s0", "wsi", ("s0.tif",), 0, "train", annotation="s0.xml", annotation_complete=False)
    bag = collect([row], cohort / "instances", {"s0": ManifestEntry(bag_id="s0", state="ok", n=8)})[0]
    assert bag.warnings == ("annotation incomplete", "negative bag with lesion")
    assert bag.lesion_share == pytest.approx(3 / 8)
    lost = collect([row], cohort / "instances", {})[0]
    assert lost.state == "missing" and lost.reason == "in no manifest"


@pytest.mark.parametrize(
    ("mpp", "named"),
    [
        ((0.25, 0.5, 0.25, 1.0, None), []),
        ((0.25, 0.5, 0.25, 2.5), ["s3"]),
        ((0.5, 5.0), ["s1"]),
        ((0.1, 0.25, 1.0), ["s0", "s2"]),
        ((None, None), []),
    ],
)
def test_resolutions_far_from_the_cohort_are_named(mpp, named: list[str], caplog) -> None:
    compared = compare_resolution([facts_of(f"s{i}", mpp=value) for i, value in enumerate(mpp)])
    assert [bag.bag_id for bag in compared if bag.warnings] == named == [r.args[0] for r in caplog.records]
    assert [bag.mpp for bag in compared] == list(mpp)
    assert all("um/px, but the median of all slides is" in bag.warnings[0] for bag in compared if bag.warnings)


def test_bags_with_warnings_come_before_odd_ones_and_say_why(cohort: Path) -> None:
    text = "this slide has no colour: no threshold can find tissue"
    manifest = json.loads((cohort / "0000.json").read_text())
    warned = [{**bag, "warnings": [text] if bag["bag_id"] in ("s6", "gone") else []} for bag in manifest["bags"]]
    write_json(cohort / "0000.json", {**manifest, "bags": warned})
    put_slide(cohort / "instances", "s5", 8, 2, warnings=("level 1 is not used",))
    counts = run(cohort)
    page = (cohort / "qc" / "index.html").read_text()
    assert page.count(f"⚠ {text}") == 2 and page.count("⚠ level 1 is not used") == 1
    place = {name: page.index(f"<b>{name}</b>") for name in ("evil", "gone", "s0", "s3", "s5", "s6")}
    assert place["evil"] < place["gone"] < min(place["s5"], place["s6"])
    assert max(place["s5"], place["s6"]) < place["s3"] < place["s0"]
    assert counts["warnings"][text] == 2 and counts["warnings"]["level 1 is not used"] == 1


def test_scans_tell_their_spacing_and_positive_slices(tmp_path: Path) -> None:
    arrays = {
        "coords": np.array([[0], [5], [10], [30]], np.float32),
        "grid": np.stack([np.arange(4), np.zeros(4)], axis=1).astype(np.int32),
        "neighbors": np.array([[1, -1], [0, 2], [1, 3], [2, -1]], np.int32),
        "coverage": np.array([0, 1, 1, np.nan], np.float32),
    }
    spacing = {"slices_min": 5.0, "slices_median": 5.0, "slices_max": 20.0}
    attrs = {"modality": "ct", "spacing_mm": spacing, "slices_at_one_position": 1, "slices_repaired_12bit": 0}
    write_bag(tmp_path / "store", "c", arrays, InstanceAttrs(**attrs), key="k")
    row = BagRow("c", "ct", ("1", "2", "3", "4"), 1, "test")
    bag = collect([row], tmp_path, {"c": ManifestEntry(bag_id="c", state="ok", n=4)})[0]
    assert bag.facts == ("5 to 20 mm apart", "2 of 4 slices positive") and bag.lesion_share == pytest.approx(2 / 3)
    assert bag.warnings == ("1 slices at the position of another",)
