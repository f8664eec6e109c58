"""Report and maps on hand-made results: what is drawn, what is escaped, what is missing, how large the page is."""

import base64
import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from preprocessing.bags.rows import BagRow
from preprocessing.bags.table import write_bags
from preprocessing.common.files import write_json
from preprocessing.common.webpage import thumbnail
from preprocessing.status import StageProblem, Status, Total
from preprocessing.store.bags import InstanceAttrs, write_bag
from smmil.artifacts.chosen_runs import ChosenRun
from smmil.artifacts.records import Metrics
from smmil.config.layouts import TableLayout, parse_table_layout
from smmil.evaluate.runs import evaluate
from smmil.figures import bag_maps as maps
from smmil.figures import map_panels
from smmil.figures.__main__ import main as figures_main
from smmil.figures.bag_maps import select_bags
from smmil.figures.entries import MapsFile
from smmil.figures.map_panels import montage_with_bars, paint
from smmil.figures.plotting import CONTINUOUS, NEUTRAL, POSITIVE, min_max, percentile_rank
from smmil.figures.top_tiles import TopTile, TopTiles
from smmil.maps import main as maps_main
from smmil.report import page as report
from smmil.report.__main__ import main as report_main
from smmil.report.page import Inputs, run_groups
from smmil.tables import __main__ as tables
from tests.helpers import predictions
from tests.helpers.pages import Page, put_slide
from tests.helpers.predictions import BAGS, log_row, metrics_object, metrics_record, part

DATASET = {"name": "toy", "title": "Toy <1>", "encoder": "resnet18"}
LAYOUT = {"datasets": [DATASET], "methods": ["smap_early", "abmil", "clam"]}
PLAN = {"splits": [1], "datasets": [{**DATASET, "title": "Toy", "methods": ["abmil", "smap_early", "clam"]}]}


def test_painted_tiles_average_where_they_overlap_and_stay_empty_elsewhere() -> None:
    painted = paint(np.array([[0, 0], [1, 0], [0, 2]]), 2.0, np.array([1.0, 3.0, np.nan]), (3, 4))
    assert painted[0].tolist()[:3] == [1, 2, 3] and np.isnan(painted[0, 3]) and np.isnan(painted[2]).all()


def test_scales_by_hand() -> None:
    assert min_max(np.array([2.0, 4, 3])).tolist() == [0, 1, 0.5] and min_max(np.ones(2)).tolist() == [0.5, 0.5]
    assert percentile_rank(np.array([10.0, 20, 20, 30])).tolist() == [0, 0.5, 0.5, 1]
    assert percentile_rank(np.array([7.0])).tolist() == [0.5]


def test_bags_to_show_are_highest_and_median_lesion_share_and_a_middling_negative() -> None:
    bags = [(f"p{k}", "test", 1, 0.0, [0.0] * 10, [1] * k + [0] * (10 - k)) for k in (1, 2, 5, 8, 9)]
    bags += [(f"n{k}", "test", 0, 0.0, [0.0] * k, [0] * k) for k in (2, 5, 9)]
    assert select_bags(part(bags), 3) == ["p9", "p5", "n5"]
    assert select_bags(part(bags[::-1]), 3) == ["p9", "p5", "n5"]
    assert select_bags(part(bags[:2]), 3) == ["p2", "p1"] and select_bags(part(bags[5:]), 2) == ["n5", "n2"]
    assert len(set(select_bags(part(bags), 8))) == 8


def test_bars_lie_below_their_slices() -> None:
    layout = {"cell_px": 8, "columns": 2, "slices": [0, 2]}
    colours = np.zeros((1, 3, 3))
    colours[0, 2] = (1, 0, 0)
    wide = montage_with_bars(np.full((8, 16, 3), 7, np.uint8), layout, colours)
    assert (wide[:8] == 7).all() and wide.shape[0] > 8
    assert wide[11, 4].tolist() == [0, 0, 0] and wide[11, 12].tolist() == [255, 0, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on the bags of `tests.helpers.predictions`, as slides, with metrics and logs."""
    folder = tmp_path_factory.mktemp("made")
    for bag_id, _, _, _, scores, labels in BAGS:
        put_slide(folder / "instances", bag_id, len(scores), sum(labels))
    for method in ("abmil", "smap_early"):
        where = folder / "predictions" / "resnet18" / method
        run = predictions.write_run(where, method=method, random_weights=True)
        evaluate(predictions.write_index(where, [run]), folder / f"metrics/resnet18/{method}.json", resamples=10)
        runs = folder / "runs" / "resnet18" / method
        (runs / run.stem).mkdir(parents=True)
        rows = [log_row(epoch, loss=1 / epoch, kept=epoch < 3) for epoch in (1, 2, 3)]
        (runs / run.stem / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"training": {"epochs": 3}, "quirks": ["loader_shuffle"]}
        write_json(runs / "runs.json", predictions.runs_object("toy", method, [run.stem], **settings))
    return folder


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    """A copy of these results, to write to."""
    return Path(shutil.copytree(made, tmp_path / "results"))


@pytest.fixture
def drawn_maps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures of maps that were to be saved, instead of files."""
    seen: list[Any] = []
    monkeypatch.setattr(map_panels, "save", lambda figure, path: seen.append(figure))
    return seen


def files(results: Path, pattern: str) -> list[str]:
    return [str(path) for path in sorted(results.glob(pattern))]


def inputs_of(results: Path) -> list[str]:
    given = ["--index", *files(results, "predictions/*/*/index.json"), "--metrics", *files(results, "metrics/*/*.json")]
    return [*given, "--layout", json.dumps(PLAN)]


def draw_maps(results: Path, *more: str) -> MapsFile:
    where = ["--instances", str(results / "instances"), "--out", str(results / "maps")]
    assert maps_main([*inputs_of(results), *where, *more]) == 0
    return MapsFile.read(results / "maps/maps.json")


def page_of(inputs: Inputs, folder: Path, **more: Any) -> str:
    """The report of these inputs, a well-formed page."""
    text = report.build_page("t", TableLayout.parse(LAYOUT), inputs, page=folder / "x.html", **more)
    Page(text)
    return text


def test_a_map_is_drawn_from_saved_predictions(results: Path) -> None:
    (entry,) = draw_maps(results, "--bag-id", "t1").maps
    assert entry.runs == ("smap_early/split1_lr0.0001", "abmil/split1_lr0.0001")
    assert "Random encoder weights" in entry.caption
    assert (results / "maps" / "t1.pdf").read_bytes()[:4] == b"%PDF"
    assert (results / "maps" / "t1.png").read_bytes()[:4] == b"\x89PNG"
    record = json.loads((results / "maps" / "t1.json").read_text())
    assert record["files"] == ["t1.png", "t1.pdf"] and record["command"].startswith("python -m smmil.maps")


def test_a_bag_without_annotation_is_not_called_free_of_lesions(
    results: Path, drawn_maps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = maps.read_map_bag
    unknown = {"t1": np.full(3, np.nan, np.float32)}
    monkeypatch.setattr(
        maps, "read_map_bag", lambda i, b: replace(bag := read(i, b), coverage=unknown.get(b, bag.coverage))
    )
    captions = {entry.bag_id: entry.caption for entry in draw_maps(results).maps}
    assert [*captions] == ["t1", "t2", "t0"]
    assert captions["t1"].startswith("t1: positive test bag of 3 instances, not annotated.")
    assert "50 % positive" in captions["t2"]
    titles = [[ax.get_title() for ax in figure.axes] for figure in drawn_maps]
    assert not any("ruth" in title or "annotated" in title for title in titles[0])
    assert any("Ground truth" in title for title in titles[1])


def test_tiles_follow_the_map_of_their_bag_and_an_absent_slide_is_a_note(
    results: Path, drawn_maps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bags(results / "bags.csv", [BagRow(bag_id, "wsi", (f"{bag_id}.svs",), 1, "test") for bag_id in ("t0", "t1")])
    listed = ["--bag-list", str(results / "bags.csv"), "--root", str(results / "raw"), "--bag-id", "t1", "t0"]
    record = draw_maps(results, *listed)
    assert len(record.maps) == 2 and len(record.notes) == 1 + 2 and "t1.svs: no such file" in record.notes[1]
    read: list[tuple[Path, list[float]]] = []

    def tiles(source: Path, attrs: Any, coords: Any, scores: Any) -> TopTiles:
        read.append((source, scores.tolist()))
        return TopTiles((TopTile(0, 1, 0.5, np.zeros((4, 4, 3), np.uint8)),), ())

    monkeypatch.setattr(maps, "read_top_tiles", tiles)
    record = draw_maps(results, *listed)
    assert [entry.bag_id for entry in record.maps] == ["t1", "t1", "t0", "t0"]
    assert record.maps[1].files[0] == "t1.tiles.png" and (results / "maps/t1.tiles.png").is_file()
    assert read[0] == (results / "raw/t1.svs", pytest.approx([0.8, 0.1, 0.95]))


def test_the_sign_aware_scores_of_the_run_that_validation_prefers_come_last(
    results: Path, drawn_maps: list[Any]
) -> None:
    for method, selection_score in (("abmil", 0.9), ("smap_early", 0.2)):
        folder = results / "predictions/resnet18" / method
        run = predictions.write_run(folder, method=method, full=True, selection_score=selection_score)
        out = results / "metrics/resnet18" / f"{method}.json"
        evaluate(predictions.write_index(folder, [run]), out, resamples=0)
    (entry,) = draw_maps(results, "--bag-id", "t1").maps
    titles = [title for ax in drawn_maps[0].get_axes() if "sign-aware" in (title := ax.get_title())]
    # the signed scores of the helper are minus the score, and half of that: both upside down
    assert titles == ["ABMIL sign-aware\nAUROC 0.00", "ABMIL smoothed sign-aware\nAUROC 0.00"]
    assert "run that validation prefers" in entry.caption


def test_an_expected_method_without_a_run_is_counted_under_every_map(results: Path, drawn_maps: list[Any]) -> None:
    record = draw_maps(results)
    line = "1 of 3 methods have no run, and no map: CLAM."
    assert record.notes == (line,) and all(line in drawn.notes for drawn in record.maps)
    assert all("1 of 3 methods have no run" in figure._suptitle.get_text() for figure in drawn_maps)
    for path in results.glob("metrics/*/*.json"):
        path.unlink()
    record = draw_maps(results)
    assert record.maps == () and record.notes[0].startswith("3 of 3 methods have no run") and len(drawn_maps) == 3
    assert "3 of 3 methods have no run" in page_of(Inputs(maps={Path("maps.json"): record}), results)


@pytest.mark.parametrize(("area", "inverted"), [(0.0, True), (0.49, True), (0.5, False), (None, False)])
def test_a_run_is_inverted_below_one_half_down_to_zero(area: float | None, inverted: bool) -> None:
    split = metrics_record("toy", "abmil", {"instance_auroc": [area]}).splits[0]
    assert bool(maps.inverted_runs([ChosenRun("abmil", "split1", split, None, False)])) == inverted  # type: ignore[arg-type]


def test_a_store_that_changed_after_training_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_slide(results / "instances", "t1", 7, 1)
    where = ["--instances", str(results / "instances"), "--out", str(results / "maps")]
    assert maps_main([*inputs_of(results), *where]) == 2
    assert "3 scores of bag t1, the store holds 7 instances" in capsys.readouterr().err


def test_a_scan_is_drawn_as_curves_and_montage(results: Path, drawn_maps: list[Any]) -> None:
    arrays = {
        "coords": np.array([[0], [5], [10]], np.float32),
        "grid": np.stack([np.arange(3), np.zeros(3)], axis=1).astype(np.int32),
        "neighbors": np.array([[1, -1], [0, 2], [1, -1]], np.int32),
        "coverage": np.array([1, 0, np.nan], np.float32),
    }
    write_bag(results / "instances" / "store", "t1", arrays, InstanceAttrs(modality="ct"), key="k")
    Image.new("RGB", (96, 32), (120, 120, 120)).save(results / "instances" / "thumbnails" / "t1.jpg", "JPEG")
    layout = {"columns": 3, "cell_px": 32, "slices": [0, 1, 2]}
    write_json(results / "instances" / "thumbnails" / "t1.json", {"montage": layout})
    draw_maps(results, "--bag-id", "t1")
    *curves, montage, bar = drawn_maps[0].get_axes()
    # SmAP's metrics file holds the same numbers
    metrics = Metrics.read(results / "metrics/resnet18/abmil.json")
    assert [ax.get_title("left").split("   ")[0] for ax in curves] == ["SmAP ◆", "ABMIL"]
    for ax in curves:
        # the stored scores of t1 over its slices, and the threshold from validation: the only one between .3 and .6
        scores, threshold = ax.get_lines()
        assert scores.get_xdata().tolist() == [0, 1, 2] and scores.get_ydata() == pytest.approx([0.8, 0.1, 0.95])
        assert threshold.get_ydata()[0] == pytest.approx(metrics.splits[0].threshold)
        spans = {to_hex(span.get_facecolor()): span.get_x() + span.get_width() / 2 for span in ax.patches}
        assert spans == {to_hex(POSITIVE): 0.0, to_hex(NEUTRAL): 2.0}
        assert "logit +1.50 · AUROC 1.00" in ax.get_title("left")
    # below the slices one bar per method from the lowest score of the scan (slice 1) to the highest (slice 2)
    picture = montage.get_images()[0].get_array()
    assert (picture[:32] == 120).all() and "SmAP ◆, ABMIL" in bar.get_xlabel()
    lowest, highest = (np.round(255 * np.array(colormaps[CONTINUOUS](end)[:3])) for end in (0.0, 1.0))
    thick = 8
    for row in (32 + 2 + thick // 2, 32 + 2 + thick + thick // 2):
        assert (picture[row, 48] == lowest).all() and (picture[row, 80] == highest).all()


def draw(results: Path, figure: str, out: Path, *more: str) -> str:
    given = ["--runs", *files(results, "runs/*/*/runs.json"), *inputs_of(results), "--figure", figure]
    given += ["--instances", f"toy={results / 'instances'}", "--out", str(out / f"{figure}.png")]
    assert figures_main([*given, *more]) == 0
    return str(out / f"{figure}.json")


def test_the_picture_of_costs_has_a_panel_for_the_gpu_where_one_was_used(results: Path) -> None:
    draw(results, "resources", results / "without")
    for log in results.glob("runs/*/*/*/log.jsonl"):
        log.write_text(json.dumps(log_row(1, memory_mib=900, device_memory_mib=70)) + "\n")
    draw(results, "resources", results / "with")
    with Image.open(results / "without/resources.png") as two, Image.open(results / "with/resources.png") as three:
        assert three.width > 1.3 * two.width


def test_report_is_one_well_formed_page_without_requests(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # copies of pictures have a test of their own
    monkeypatch.setattr(report, "thumbnail", lambda path: (f"data:image/webp,{path.name}", 10, 10))
    draw_maps(results, "--bag-id", "t1", "t0")
    line = Total("instances", bags=7, ok=5, failed=2, instances=70, seconds=12.5)
    problem = StageProblem("instances", "x", "failed", "<b>bad</b>")
    status = Status("toy", 7, [line], replace(line, stage="all stages"), problems=[problem])
    write_json(results / "status.json", asdict(status))
    drawn = [draw(results, "fig4", results / "figures"), draw(results, "curves", results / "toy" / "figures")]
    # the histograms of a dataset have the layout of figure 4
    drawn.append(str(results / "histograms.json"))
    write_json(Path(drawn[2]), {**json.loads(Path(drawn[0]).read_text()), "figure": "histograms"})
    (results / "tables").mkdir()
    metrics, table = ["--metrics", *files(results, "metrics/*/*.json")], str(results / "tables" / "table1")
    outputs = ["--out-html", f"{table}.html", "--out-csv", f"{table}.csv"]
    assert tables.main(["--table", "table1", "--layout", json.dumps(LAYOUT), *metrics, *outputs]) == 0
    inputs = [*metrics, "--figures", *drawn, "--tables", f"{table}.html", "--layout", json.dumps(LAYOUT)]
    inputs += ["--runs", *files(results, "runs/*/*/runs.json"), "--layouts", json.dumps({"table1": LAYOUT})]
    inputs += ["--maps", str(results / "maps/maps.json"), "--status", str(results / "status.json")]
    inputs += ["--title", "A & B", "--warning", "Synthetic <slides>", "--out", str(results / "report/report.html")]
    assert report_main(inputs) == 0
    text = (results / "report/report.html").read_text()
    page = Page(text)
    # the histograms of the only dataset are in figure 4
    pictures = [source.split(",")[1] for source in page.sources if source.startswith("data:image/webp")]
    assert pictures == ["t1.png", "fig4.png", "t0.png", "curves.png"] and page.tags.count("h1") == 1
    linked = [source for source in page.sources if not source.startswith(("data:image/", "#"))]
    assert "http" not in "".join(linked) and all((results / "report" / target).is_file() for target in linked)
    assert "../figures/fig4.pdf" in linked and "../maps/t1.png" in linked and "../tables/table1.csv" in linked
    assert "A &amp; B" in text and "Toy &lt;1&gt;" in text and "Synthetic &lt;slides&gt;" in text
    assert all(words in text for words in ("all stages", "12.5", "Bags that are not ok (1)"))
    assert "<b>bad" not in text and "&lt;b&gt;bad" in text and "Table 1. Localisation: instance level</h2>" in text
    assert "only show that the pipeline runs: Toy &lt;1&gt;." in text and "as_written" in text
    assert "1 of 3 runs are missing. Toy: CLAM (1)." in text
    assert text.count("python -m smmil.maps") == 2 and text.count("python -m smmil.figures --runs") == 2
    assert "<td>epochs 3</td><td>loader_shuffle</td>" in text
    assert "snakemake table1</pre>" in text and "smap_early/split1_lr0.0001" in text and "split1_lr0.0001: 2" in text


def test_report_lists_the_runs_behind_every_table_and_the_command_that_makes_it(tmp_path: Path) -> None:
    other = metrics_record("toy", "abmil", {"bag_f1": [0.5, 0.5]}, encoder="resnet50")
    metrics = [metrics_record("toy", "abmil", {}, quirks=["eval_histogram"]), other]
    several = {**LAYOUT, "datasets": [{"name": "toy", "encoders": ["resnet18", "resnet50"]}], "methods": ["abmil"]}
    pairs = {"datasets": [{"name": "toy", "encoder": "resnet18", "pairs": [["smap_early", "abmil"]]}], "splits": 1}
    layouts = {"table1": LAYOUT, "table7": several, "comparisons": pairs}
    paths = [tmp_path / f"{name}.html" for name in layouts]
    for path in paths:
        path.write_text("<h2>x</h2>")
    text = page_of(
        Inputs(metrics=metrics, tables=paths),
        tmp_path,
        layouts={table: parse_table_layout(table, layout) for table, layout in layouts.items()},
        configuration="--configfile a.yaml --config 'report={partial: true}'",
        quirks=["sm_alpha_rule"],
    )
    assert "snakemake table7 --configfile a.yaml --config &#39;report={partial: true}&#39;</pre>" in text
    sections = {name: text.split(f'<section id="{name}">')[1].split("</section>")[0] for name in (*layouts, "runs")}
    assert "(3 runs)" in sections["table7"] and "toy / resnet50: ABMIL (2)" in sections["table7"]
    assert "toy / resnet18: ABMIL (1)" in sections["table7"] and "SmAP" not in sections["table7"]
    assert "toy / resnet18: SmAP ◆ (no run), ABMIL (1)" in sections["comparisons"]
    # every pairing of any table with its encoder, and what is missing counted
    assert "The 3 runs behind the tables" in text and "toy / resnet50 (2 runs)" in sections["runs"]
    assert "2 of 4 trainings behind the tables have no result" in text
    assert "toy/resnet18/smap_early, toy/resnet18/clam." in text
    assert "<td>eval_histogram, sm_alpha_rule</td>" in text


def test_the_list_of_runs_tells_gated_from_ungated_under_the_quirk_too() -> None:
    plain = metrics_object("toy", "abmil", {"instance_auroc": [0.9]})
    plain["splits"][0]["gated"] = {"instance_auroc": 0.7}
    # as smmil.evaluate.runs writes it where gating is in force: what is primary is the gated one
    quirky = metrics_object("toy", "clam", {"instance_auroc": [0.6]}, quirks=["eval_gate_by_bag"])
    quirky["splits"][0] |= {"gated": {"instance_auroc": 0.6}, "ungated": {"instance_auroc": 0.8}}
    (rows,) = run_groups([Metrics.model_validate(entry) for entry in (plain, quirky)]).values()
    assert [row[6:8] for row in rows] == [("0.900", "0.700"), ("0.800", "0.600")]


def test_maps_of_figures_5_and_12_are_drawn_from_stored_scores(results: Path) -> None:
    entry = json.loads(Path(draw(results, "fig5", results / "figures")).read_text())
    assert entry["runs"] == [f"toy/resnet18/{m}/split1_lr0.0001" for m in ("smap_early", "abmil")]
    assert entry["missing"]["missing"] == 1 and "smallest to largest raw score" in entry["caption"]
    # most of its instances positive
    assert "Toy: bag t1." in entry["notes"]
    methods = ["abmil", "smap_early", "smap_early__alpha_0p1"]
    plan = {**PLAN, "figure": "fig12", "protocol": "as_written", "datasets": [{**DATASET, "methods": methods}]}
    entry = json.loads(Path(draw(results, "fig12", results / "figures", "--layout", json.dumps(plan))).read_text())
    # the baseline first; alpha = 0.1 has no run
    assert entry["runs"] == [f"toy/resnet18/{m}/split1_lr0.0001" for m in ("abmil", "smap_early")]
    assert entry["missing"]["missing"] == 1 and "α as in Eq. 8" in entry["caption"]


def test_report_without_any_result_says_so(tmp_path: Path) -> None:
    text = page_of(Inputs(), tmp_path)
    assert "No metrics were given" in text and "No table was given" in text


def test_a_file_of_another_kind_is_refused_with_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "a.json", {"dataset": "toy"})
    given = ["--layout", json.dumps(LAYOUT), "--out", str(tmp_path / "x.html")]
    assert report_main([*given, "--figures", str(tmp_path / "a.json")]) == 2
    error = capsys.readouterr().err
    assert "a.json: " in error and "figure: Field required" in error and "; and " in error and error.endswith(" more\n")
    assert report_main([*given, "--tables", str(tmp_path / "table1.html")]) == 2
    assert "table1.html: no such table" in capsys.readouterr().err


def test_pictures_in_the_page_are_small_and_drawings_are_exact(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 3000, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    source, width, height = thumbnail(tmp_path / "a.png")
    assert (width, height) == (2200, 73) and source.startswith("data:image/webp")
    assert len(source) < (tmp_path / "a.png").stat().st_size / 4
    drawing = np.full((60, 200, 3), 255, np.uint8)
    drawing[10:50:7, 20:180] = (200, 64, 31)
    Image.fromarray(drawing).save(tmp_path / "c.png")
    copy = Image.open(io.BytesIO(base64.b64decode(thumbnail(tmp_path / "c.png")[0].split(",")[1])))
    assert (np.array(copy.convert("RGB")) == drawing).all()
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(ValueError, match="b.png: not a picture"):
        thumbnail(tmp_path / "b.png")
