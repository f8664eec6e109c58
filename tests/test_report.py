"""Report, maps and figures on hand-made results: what is drawn, what is escaped, what is missing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preprocessing.cli import write_json
from preprocessing.store import write_bag
from preprocessing.webpage import picture
from smmil import evaluate, figures, maps, report
from smmil.figures import histogram
from smmil.map_panels import montage_with_bars, paint
from smmil.maps import select_bags
from smmil.plotting import min_max, percentile_rank
from tests.pages import Page, put_slide
from tests.predictions import BAGS, metrics_object, part, write_index, write_run

LAYOUT = {
    "datasets": [{"name": "toy", "title": "Toy <1>", "encoder": "resnet18"}],
    "methods": ["smap_early", "abmil", "clam"],
}


def test_painted_tiles_average_where_they_overlap_and_stay_empty_elsewhere() -> None:
    painted = paint(np.array([[0, 0], [1, 0], [0, 2]]), 2.0, np.array([1.0, 3.0, np.nan]), (3, 4))
    assert painted[0].tolist()[:3] == [1, 2, 3] and np.isnan(painted[0, 3]) and np.isnan(painted[2]).all()


def test_scales_by_hand() -> None:
    assert min_max(np.array([2.0, 4, 3])).tolist() == [0, 1, 0.5] and min_max(np.ones(2)).tolist() == [0.5, 0.5]
    assert percentile_rank(np.array([10.0, 20, 20, 30])).tolist() == [0, 0.5, 0.5, 1]
    assert percentile_rank(np.array([7.0])).tolist() == [0.5]


def test_histogram_normalises_each_class() -> None:
    edges, negative, positive = histogram(np.array([0, 0, 0, 0, 1]), np.array([0.0, 0.01, 0.5, 1.0, 1.0]))
    assert (edges[0], edges[-1], len(edges)) == (0, 1, 21)
    assert negative.sum() == positive.sum() == 1 and negative[0] == 0.5 and positive[-1] == 1
    assert histogram(np.zeros(2), np.array([0.0, 1.0]))[2].sum() == 0


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


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two methods on the bags of `tests.predictions`, as slides, with metrics, logs and a contact sheet."""
    for bag_id, _, _, _, scores, labels in BAGS:
        put_slide(tmp_path / "instances", bag_id, len(scores), sum(labels))
    for method in ("abmil", "smap_early"):
        folder = tmp_path / "predictions" / "resnet18" / method
        run = write_run(folder, method=method, random_weights=True)
        index = write_index(folder, [run])
        out = tmp_path / "metrics" / "resnet18" / f"{method}.json"
        assert evaluate.main(["--index", str(index), "--out", str(out), "--resamples", "10"]) == 0
        runs = tmp_path / "runs" / "resnet18" / method
        (runs / run.stem).mkdir(parents=True)
        rows = [
            {
                "epoch": e,
                "loss": 1 / e,
                "val_loss": 1.0,
                "val_bag_auroc": 0.5,
                "val_instance_auroc": None,
                "kept": e < 3,
            }
            for e in (1, 2, 3)
        ]
        (runs / run.stem / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = {"dataset": "toy", "encoder": "resnet18", "method": method, "training": {"epochs": 3}}
        write_json(runs / "runs.json", {**summary, "runs": [{"run": run.stem, "chosen": True, "best_epoch": 2}]})
    return tmp_path


def files(results: Path, pattern: str) -> list[str]:
    return [str(path) for path in sorted(results.glob(pattern))]


def draw_maps(results: Path, *more: str) -> int:
    given = ["--index", *files(results, "predictions/*/*/index.json"), "--metrics", *files(results, "metrics/*/*.json")]
    where = ["--instances", str(results / "instances"), "--out", str(results / "maps")]
    return maps.main(["--dataset", "toy", *where, *given, *more])


def test_maps_draw_saved_predictions_twice_the_same(results: Path) -> None:
    assert draw_maps(results) == 0
    entry = json.loads((results / "maps" / "maps.json").read_text())
    assert [one["bag_id"] for one in entry["maps"]] == ["t1", "t2", "t0"]
    assert entry["maps"][0]["runs"] == ["smap_early/split1_lr0.0001", "abmil/split1_lr0.0001"]
    assert "Random encoder weights" in entry["maps"][0]["caption"] and entry["command"].startswith(
        "python -m smmil.maps"
    )
    first = (results / "maps" / "t1.png").read_bytes()
    assert first[:4] == b"\x89PNG" and draw_maps(results, "--bag-id", "t1") == 0
    assert (results / "maps" / "t1.png").read_bytes() == first


def test_a_store_that_changed_after_training_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_slide(results / "instances", "t1", 7, 1)
    assert draw_maps(results) == 2
    assert "3 scores of bag t1, the store holds 7 instances" in capsys.readouterr().err


def test_a_scan_is_drawn_as_curves_and_montage(results: Path) -> None:
    from PIL import Image

    arrays = {
        "coords": np.array([[0], [5], [10]], np.float32),
        "grid": np.stack([np.arange(3), np.zeros(3)], axis=1).astype(np.int32),
        "neighbors": np.array([[1, -1], [0, 2], [1, -1]], np.int32),
        "coverage": np.array([1, 0, np.nan], np.float32),
    }
    write_bag(results / "instances" / "store", "t1", arrays, {"modality": "ct"}, schema="instances", key="k")
    Image.new("RGB", (96, 32)).save(results / "instances" / "thumbnails" / "t1.jpg", "JPEG")
    layout = {"columns": 3, "cell_px": 32, "slices": [0, 1, 2]}
    write_json(results / "instances" / "thumbnails" / "t1.json", {"montage": layout})
    assert draw_maps(results, "--bag-id", "t1") == 0
    assert (results / "maps" / "t1.png").stat().st_size > 10_000


def make_report(results: Path, *more: str) -> str:
    given = ["--runs", *files(results, "runs/*/*/runs.json"), "--index", *files(results, "predictions/*/*/index.json")]
    given += ["--metrics", *files(results, "metrics/*/*.json")]
    assert figures.main(["--dataset", "toy", *given, "--out", str(results / "figures")]) == 0
    out = results / "report.html"
    inputs = ["--metrics", *files(results, "metrics/*/*.json"), "--figures", str(results / "figures" / "figures.json")]
    inputs += ["--runs", *files(results, "runs/*/*/runs.json"), "--layout", json.dumps(LAYOUT), *more]
    assert report.main(["--title", "A & B", *inputs, "--out", str(out)]) == 0
    return out.read_text()


def test_report_is_one_well_formed_page_without_requests(results: Path) -> None:
    draw_maps(results)
    manifest = {
        "dataset": "toy",
        "stage": "features",
        "bags": [{"bag_id": "x", "state": "failed", "reason": "<b>bad</b>"}],
    }
    write_json(results / "0000.json", manifest)
    more = ["--maps", str(results / "maps" / "maps.json"), "--manifests", str(results / "0000.json")]
    text = make_report(results, *more, "--warning", "Synthetic <slides>")
    page = Page(text)
    assert page.tags.count("img") == 2 + 3 and page.tags.count("h1") == 1 and "script" not in page.tags
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert (
        "A &amp; B" in text and "Toy &lt;1&gt;" in text and "Synthetic &lt;slides&gt;" in text and "<b>bad" not in text
    )
    assert "Random encoder weights (toy)" in text and "Protocol" in text and "as_written" in text
    assert "2 of 6 cells are empty. Toy &lt;1&gt;: CLAM (no metrics file)." in text
    assert text.count("python -m smmil.maps") == 3 and "python -m smmil.tables --table table2" in text
    assert "smap_early/split1_lr0.0001" in text and "split1_lr0.0001: 2" in text


def test_report_without_any_result_says_so(tmp_path: Path) -> None:
    text = report.build_page("t", LAYOUT, [], {})
    Page(text)
    assert "No metrics were given" in text and "6 of 6 cells are empty" in text


def test_miniature_cohorts_and_failures_are_announced() -> None:
    qc = {"dataset": "c16", "states": {"ok": 13, "failed": 1}, "expected": [["bags", 399, 14]]}
    lines = report.automatic_warnings([metrics_object("c16", "abmil", {})], {"qc": [(Path("x"), qc)]})
    assert lines[0].startswith("Miniature cohorts (c16 14 bags)") and lines[1].startswith("Failed bags: c16 1")
    whole = {"dataset": "c16", "states": {"ok": 399}, "expected": [["bags", 399, 399]]}
    assert report.automatic_warnings([], {"qc": [(Path("x"), whole)]}) == []


def test_pictures_shrink_to_1500_px(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (3000, 100)).save(tmp_path / "a.png")
    assert 'width="1500" height="50"' in picture(tmp_path / "a.png", 'x"y') and "x&quot;y" in picture(
        tmp_path / "a.png", 'x"y'
    )
    (tmp_path / "b.png").write_text("no")
    with pytest.raises(ValueError, match="b.png: not a picture"):
        picture(tmp_path / "b.png", "")


@pytest.mark.parametrize("module", ["evaluate", "tables", "maps", "figures", "report"])
def test_help_loads_nothing_heavy(module: str, repository: Path) -> None:
    heavy = ("torch", "matplotlib", "sklearn", "zarr", "cv2", "PIL")
    code = f"import sys, smmil.{module}; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repository).stdout.strip()
    assert found == "[]"
