"""Figures on hand-made metrics and predictions: the numbers drawn are the numbers stored, missing runs are counted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.store.attrs import InstanceAttrs
from smmil.artifacts.chosen_runs import load_chosen
from smmil.artifacts.records import Metrics
from smmil.config.layouts import FigureLayout
from smmil.config.methods import METHODS, WITHOUT_GLOBAL, Method, marked_name
from smmil.config.variants import Variant, value_of
from smmil.figures import histograms as fig_histograms
from smmil.figures import ranks as fig_ranks
from smmil.figures import sweeps as fig_sweeps
from smmil.figures import training_logs
from smmil.figures.__main__ import main as figures_main
from smmil.figures.histograms import histogram, panel_instances
from smmil.figures.job import Job, by_key, describe, in_order, inverted_note, spread_text
from smmil.figures.map_grids import strips_of
from smmil.figures.map_panels import MapBag, Panel, cells_of_slide, draw_map, scale_bar, view_of
from smmil.figures.plotting import look_of
from tests.helpers.predictions import BAGS, log_row, metrics_object, metrics_record, runs_object, write_index, write_run

Values = Mapping[str, Mapping[str, Any]]


def layout(methods: list[str], splits: int = 2, figure: str = "fig6a", **more: Any) -> FigureLayout:
    """One dataset."""
    dataset = {"name": "toy", "title": "Toy", "encoder": "resnet18", "methods": methods}
    keys = {"figure": figure, "protocol": "as_written", "splits": [*range(1, splits + 1)], "datasets": [dataset]}
    return FigureLayout.parse({**keys, **more})


def job_of(rows: Mapping[str, Any], plan: FigureLayout, **more: Any) -> Job:
    """A job from metrics objects by method."""
    metrics = {("toy", "resnet18", m): Metrics.model_validate(row) for m, row in rows.items()}
    return Job(plan.figure, plan, metrics, Path("x.png"), **more)


def equal_rows(names: list[str], **more: Any) -> dict[str, Any]:
    """Metrics objects of one split, in which everything is 0.5."""
    return {m: metrics_object("toy", m, {"bag_f1": [0.5]}, **more) for m in names}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures to save, instead of files."""
    seen: list[Any] = []
    for module in ("job", "map_panels"):
        monkeypatch.setattr(f"smmil.figures.{module}.save", lambda figure, path: seen.append(figure))
    return seen


def test_variants_are_read_from_their_names() -> None:
    for argument, value in (("alpha", 0.1), ("T", 20), ("T", "exact"), ("spectral_norm", False), ("lr", 1e-5)):
        variant = Variant("smap_early", argument, value)
        assert Variant.parse(variant.name) == variant
    with pytest.raises(ValueError, match="not a variant"):
        Variant.parse("smap_early")
    assert value_of("smap_early__alpha_0p1", "alpha") == 0.1
    assert value_of("smap_early", "alpha") == "trainable" and value_of("smap_early", "T") == 10
    assert value_of("smap_mid", "spectral_norm") is True
    assert value_of("smap_mid", "spectral_norm", released=True) is False


def test_every_method_looks_different_and_a_variant_like_its_method(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = {method: look_of(method) for method in METHODS}
    assert len(set(looks.values())) == len(METHODS)
    assert look_of("smap_early__alpha_0p1") == looks["smap_early"]
    assert marked_name("smap_early__alpha_0p1") == "SmAP ◆, α = 0.1"
    assert in_order(["abmil", "smap_early__t_5", "clam", "smap_early"])[0] == "smap_early"
    # a new method takes nobody's look
    monkeypatch.setitem(METHODS, "new", Method("new", "", "New", WITHOUT_GLOBAL))
    assert {method: look_of(method) for method in looks} == looks and look_of("new") not in looks.values()


def test_missing_runs_are_counted_by_name() -> None:
    plan = layout(["abmil", "clam", "dsmil"], splits=3)
    rows = {m: metrics_object("toy", m, {"bag_f1": [0.5] * n}) for m, n in (("abmil", 3), ("clam", 1))}
    missing = job_of(rows, plan).missing
    assert (missing.expected, missing.missing, missing.where) == (9, 5, {"Toy": (("clam", 2), ("dsmil", 3))})
    assert missing.notes == ["5 of 9 runs are missing. Toy: CLAM (2), DSMIL (3)."]


def test_inverted_runs_are_counted_down_to_an_area_of_zero() -> None:
    metrics = metrics_record("toy", "abmil", {"instance_auroc": [0.9, 0.2, 0.8]})
    assert spread_text(metrics) == "median 0.80 · worst 0.20 · ⇅ 1/3"
    assert spread_text(metrics_record("toy", "abmil", {"instance_auroc": [None]})) == ""
    rows = {"abmil": metrics_object("toy", "abmil", {"instance_auroc": [0.0, 0.9, None]})}
    job = job_of(rows, layout(["abmil"], splits=3))
    assert inverted_note(job) == ["Inverted runs, instance AUROC < 0.5: ABMIL on Toy (1 of 2)."]


def lines(ax: Any) -> dict[str, Any]:
    """Labelled lines and error bars of an axes."""
    return dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))


def test_figure_6a_draws_stored_means_deviations_and_gaps(figures: list[Any]) -> None:
    names = ["smap_early", "smap_early__alpha_0p1", "smap_early__alpha_0p5", "smap_early__alpha_0p9", "abmil"]
    values = {"smap_early": [0.8, 0.8], names[1]: [0.7, 0.9], names[2]: [0.6], "abmil": [0.5, 0.6]}
    rows = {m: metrics_object("toy", m, {"instance_auroc": v, "bag_f1": v}) for m, v in values.items()}
    result = fig_sweeps.draw_alpha(job_of(rows, layout(names)))
    axes = figures[0].axes[0]
    plotted = lines(axes)
    points, _, bars = plotted["SmAP ◆"]
    assert points.get_xdata().tolist() == [0.1, 0.5] and points.get_ydata() == pytest.approx([0.8, 0.6])
    low, high = bars[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.8 - np.sqrt(0.02), 0.8 + np.sqrt(0.02)))
    assert plotted["ABMIL (no Sm)"].get_ydata()[0] == pytest.approx(0.55)
    assert plotted["SmAP ◆, α trainable"].get_ydata()[0] == pytest.approx(0.8)
    texts = [text.get_text() for text in axes.texts]
    assert "no run" in texts and "1/2" in texts
    assert "3 of 10 runs are missing" in figures[0]._suptitle.get_text()
    assert "as_written" in figures[0]._suptitle.get_text() and any("1 − α" in note for note in result.notes)
    # nothing was measured with the sign-aware score
    assert "sign-aware" not in " ".join([*result.notes, *plotted])


def test_figure_6a_of_the_released_protocol_says_that_it_is_mirrored(figures: list[Any]) -> None:
    names = ["smap_early", "smap_early__alpha_0p1", "abmil"]
    fig_sweeps.draw_alpha(job_of(equal_rows(names, protocol="as_released"), layout(names, splits=1)))
    assert "as_released" in figures[0]._suptitle.get_text() and "runs as 1 − α" in figures[0].axes[0].get_xlabel()


def signed(row: dict[str, Any], values: list[float]) -> dict[str, Any]:
    """Adds the sign-aware instance AUROC to the splits of a metrics object."""
    for split, value in zip(row["splits"], values, strict=True):
        split["test"]["signed_instance_auroc"] = value
    return row


def test_the_sign_aware_score_stands_beside_every_point_of_a_sweep(figures: list[Any]) -> None:
    names = ["smap_early", "smap_early__t_2", "smap_early__t_20", "abmil"]
    areas = {"smap_early": 0.8, "smap_early__t_2": 0.6, "smap_early__t_20": 0.4, "abmil": 0.3}
    rows = {m: signed(metrics_object("toy", m, {"instance_auroc": [areas[m]] * 2}), [0.7, 0.9]) for m in names}
    del rows["smap_early__t_20"]["splits"][1]["test"]["signed_instance_auroc"]
    result = fig_sweeps.draw_steps(job_of(rows, layout(names)))
    thin = [line for line in figures[0].axes[0].lines if line.get_linewidth() == 0.7]
    assert thin[0].get_ydata()[0] == pytest.approx(0.8), "ABMIL"
    # T = 2, 10, 20; the last has one run with that score
    assert [line.get_ydata().tolist() for line in thin[1:]] == [pytest.approx([0.8, 0.8, 0.7]), []]
    assert "thin: sign-aware score (means)" in lines(figures[0].axes[0])
    assert not [line for line in figures[0].axes[2].lines if line.get_linewidth() == 0.7]
    note = next(note for note in result.notes if "sign-aware score" in note)
    assert "Toy: SmAP ◆ 0.80 / 0.80; " in note and "T = 20 0.40 / 0.70; ABMIL 0.30 / 0.80." in note


def test_a_figure_names_the_quirks_of_its_runs_and_refuses_different_ones(figures: list[Any], tmp_path: Path) -> None:
    names = ["smap_early", "smap_early__alpha_0p1", "abmil"]
    rows = equal_rows(names, quirks=["sm_alpha_rule"])
    # what the runs record decides, not the layout
    job = job_of(rows, layout(names, splits=1, quirks=["eval_histogram"]))
    assert job.quirk("sm_alpha_rule") and not job.quirk("eval_histogram")
    assert job.protocol == "as_written with sm_alpha_rule"
    fig_sweeps.draw_alpha(job)
    assert "Protocol as_written with sm_alpha_rule: a fixed α runs as 1 − α" in figures[0]._suptitle.get_text()
    files = []
    for name, record in {**rows, "abmil": {**rows["abmil"], "quirks": []}}.items():
        (tmp_path / name).write_text(json.dumps(record))
        files.append(tmp_path / name)
    assert len(by_key(files[:2], layout(names))[0]) == 2
    with pytest.raises(ValueError, match="as_written with sm_alpha_rule.*one per figure"):
        by_key(files, layout(names))


@pytest.mark.parametrize(
    ("draw", "names", "ticks", "values"),
    [
        (
            fig_sweeps.draw_steps,
            ["smap_early", "smap_early__t_2", "smap_early__t_20", "smap_early__t_exact", "abmil"],
            ["2", "10", "20", "exact"],
            [0.2, 0.1, 0.3, 0.4],
        ),
        (
            fig_sweeps.draw_spectral_norm,
            ["smap_early", "smap_early__spectral_norm_false", "abmil"],
            ["without", "with"],
            [0.2, 0.1],
        ),
    ],
)
def test_figures_6b_and_7_place_the_default_and_the_exact_solution(
    figures: list[Any], draw: Any, names: list[str], ticks: list[str], values: list[float]
) -> None:
    rows = {m: metrics_object("toy", m, {"bag_auroc": [0.1 * i]}) for i, m in enumerate(names, start=1)}
    draw(job_of(rows, layout(names, splits=1)))
    axes = figures[0].axes[2]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks
    assert lines(axes)["SmAP ◆"][0].get_ydata() == pytest.approx(values)


def test_a_configuration_without_a_sweep_says_so(figures: list[Any]) -> None:
    fig_sweeps.draw_alpha(job_of({}, layout([], datasets=[])))
    assert "sweeps alpha of no method" in figures[0].axes[0].texts[0].get_text()


def test_critical_difference_ranks_by_split_and_warns(figures: list[Any]) -> None:
    plan = layout(["abmil", "clam", "dsmil", "gtp"], splits=2, figure="cd")
    values = {"abmil": [0.9, 0.9], "clam": [0.8, 0.7], "dsmil": [0.7, 0.8]}
    rows = {m: metrics_object("toy", m, {"instance_auroc": v, "bag_auroc": v}) for m, v in values.items()}
    job = job_of(rows, plan)
    test, out = fig_ranks.test_of(job, "instance_auroc")
    assert dict(zip(test.names, test.mean_ranks, strict=True)) == {"abmil": 1, "clam": 2.5, "dsmil": 2.5}
    assert out == ["gtp"] and test.columns == 2
    result = fig_ranks.draw(job)
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    assert "ABMIL  1.00" in texts and "no run: GTP" in texts
    assert "share one test set" in figures[0]._suptitle.get_text() and "2 of 8 runs" in figures[0]._suptitle.get_text()
    assert any("Left out, without any run: GTP" in note for note in result.notes)
    assert len(figures[0].axes) == 2
    turned = {m: signed(record, [1 - v for v in values[m]]) for m, record in rows.items()}
    result = fig_ranks.draw(job_of(turned, plan))
    assert len(figures[1].axes) == 3 and any("sign-aware score: Friedman" in note for note in result.notes)
    assert "3.00  ABMIL" in [text.get_text() for text in figures[1].axes[1].texts]


def write_logs(folder: Path, method: str, areas: Mapping[str, list[float | None]]) -> Path:
    """runs.json of a method whose validation AUROC of instances per epoch is given for every run."""
    for run, values in areas.items():
        (folder / method / run).mkdir(parents=True)
        rows = [log_row(epoch, val_instance_auroc=value) for epoch, value in enumerate(values, start=1)]
        (folder / method / run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / method / "runs.json"
    path.write_text(json.dumps(runs_object("toy", method, [*areas])))
    return path


@pytest.mark.parametrize(
    ("areas", "epochs", "mean", "n"),
    [
        # the second split's validation bags hold instances of one class only
        ({"a": [0.2, 0.4, 0.6], "b": [None] * 3, "c": [0.4, 0.6, 1.0]}, [1, 2, 3], [0.3, 0.5, 0.8], "2 of 3"),
        ({"a": [None], "b": [None]}, [], [], "0 of 2"),
    ],
)
def test_a_mean_curve_is_over_the_splits_that_define_it_and_says_how_many(
    tmp_path: Path, figures: list[Any], areas: Any, epochs: list[int], mean: list[float], n: str
) -> None:
    plan = layout(["abmil", "clam"], splits=3, figure="curves")
    result = training_logs.draw_curves(job_of({}, plan, runs=(write_logs(tmp_path, "abmil", areas),)))
    losses, absent, panel, _ = figures[0].get_axes()
    assert lines(panel)["instances"].get_xdata().tolist() == epochs
    assert lines(panel)["instances"].get_ydata() == pytest.approx(mean)
    assert set(lines(panel)["bags"].get_ydata()) == {0.5}
    assert [text.get_text() for text in panel.texts] == [f"instances in {n} splits"]
    assert not losses.texts and absent.texts[0].get_text() == "no run"
    assert result.notes == [f"Means over fewer splits than were trained: ABMIL: instances in {n} splits."]


def test_histogram_normalises_each_class() -> None:
    y, score = np.array([0, 0, 0, 0, 1]), np.array([0.0, 0.01, 0.5, 1.0, 1.0])
    (negative, edges), (positive, _) = (histogram(y, score, label) for label in (0, 1))
    assert (edges[0], edges[-1], len(edges)) == (0, 1, 21)
    assert negative.sum() == positive.sum() == 1 and negative[0] == 0.5 and positive[-1] == 1
    assert histogram(np.zeros(2), np.array([0.0, 1.0]), 1)[0].sum() == 0


def job_of_run(folder: Path, methods: list[str], bags: Any = BAGS, **more: Any) -> Job:
    """A job of figure 4 for a run of ABMIL on the bags of `tests.helpers.predictions`."""
    run = write_run(folder / "predictions/resnet18/abmil", bags=bags, random_weights=True)
    record = metrics_object("toy", "abmil", {"instance_auroc": [0.4]}, random_weights=True, **more)
    (folder / "abmil.json").write_text(json.dumps(record))
    plan = layout(methods, splits=1, figure="fig4")
    metrics, paths = by_key([folder / "abmil.json"], plan)
    return Job("fig4", plan, metrics, Path("x.png"), paths, (write_index(run.parent, [run]),))


@pytest.mark.parametrize(("protocol", "plotted"), [("as_written", [3, 4]), ("as_released", [2, 1])])
def test_figure_4_draws_the_stored_scores(
    tmp_path: Path, figures: list[Any], protocol: str, plotted: list[int]
) -> None:
    job = job_of_run(tmp_path, ["abmil", "clam"], protocol=protocol)
    result = fig_histograms.draw(job)
    axes = figures[0].axes[0]
    # test bags: t0 (.2 .7 | 0 0), t1 (.8 .1 .95 | 1 0 1), t2 (.4 .65 | 0 1); only t1 has a logit above 0
    positives, negatives = plotted
    assert [handle.get_label() for handle in axes.patches] == [f"negative ({negatives})", f"positive ({positives})"]
    for patch in axes.patches:
        assert patch.get_data().values.sum() == pytest.approx(1)
    assert [text.get_text() for text in axes.texts] == ["median 0.40 · worst 0.40 · ⇅ 1/1"]
    assert figures[0].axes[1].texts[0].get_text() == "no run\n(1 missing)"
    assert "RANDOM ENCODER WEIGHTS" in figures[0]._suptitle.get_text()
    assert any("ABMIL on Toy (1 of 1)" in note for note in result.notes)
    entry = describe(job, result, "python", 1)
    assert entry.runs == ("toy/resnet18/abmil/split1_lr0.0001",) and entry.missing.missing == 1
    assert ("predicted positive" in entry.caption) == (protocol == "as_released")


def test_figure_4_without_a_positive_instance_is_empty(tmp_path: Path, figures: list[Any]) -> None:
    job = job_of_run(tmp_path, ["abmil"], [(*bag[:5], [0] * len(bag[5])) for bag in BAGS])
    assert fig_histograms.draw(job).empty == "no run has test instances of both labels"
    assert "positive" not in {handle.get_label().split()[0] for handle in figures[0].axes[0].patches}
    assert not fig_histograms.draw(Job("fig4", job.layout, {}, Path("x.png"))).empty


def test_scores_of_a_panel_run_from_0_to_1(tmp_path: Path) -> None:
    job = job_of_run(tmp_path, ["abmil"])
    run = load_chosen(job.indexes, [*job.metrics_files.values()], dataset="toy")[0]
    y, score = panel_instances(run, predicted_positive=False)
    assert y.tolist() == [0, 0, 1, 0, 1, 0, 1] and score[[3, 4]].tolist() == [0, 1]
    assert score[0] == pytest.approx((0.2 - 0.1) / (0.95 - 0.1))


def test_strips_hold_truth_scores_and_a_white_gap() -> None:
    panels = [Panel("a", np.array([1.0, 5.0, 3.0])), Panel("b", None)]
    rows = strips_of(np.array([1.0, 0.0, np.nan]), panels)
    assert rows.shape == (3, 3, 3) and (rows[2] == 1).all() and len({tuple(c) for c in rows[0]}) == 3
    assert rows[1][0] == pytest.approx((0.267, 0.005, 0.329), abs=0.01) and rows[1][1][0] > 0.9


@pytest.mark.parametrize("modality", ["wsi", "ct"])
def test_a_map_has_room_for_every_line_of_its_caption(modality: str, figures: list[Any]) -> None:
    attrs = InstanceAttrs(modality=modality, l0_footprint_px=10)
    coords = np.array([[0.0, 0.0], [10.0, 10.0]] if modality == "wsi" else [[0.0], [5.0]])
    outlines = {"downsample": 1.0, "montage": {"columns": 2, "cell_px": 20, "slices": [0, 1]}}
    bag = MapBag("a", attrs, coords, None, np.zeros((40, 40, 3), np.uint8), outlines)
    warnings = ["11 of 77 tiles are black", "a much longer line " * 20]
    for caption in ([], warnings):
        draw_map(bag, [Panel("m", np.array([0.1, 0.9]))], "title", Path("x.png"), caption=caption)
    plain, warned = figures
    assert plain.get_supxlabel() == "" and warned.get_supxlabel().split() == " ".join(warnings).split()
    assert warned.get_size_inches()[1] > plain.get_size_inches()[1]
    warned.canvas.draw()
    text, (width, height) = warned._supxlabel.get_window_extent(), warned.canvas.get_width_height()
    assert 0 <= text.x0 and text.x1 <= width and 0 <= text.y0 and text.y1 <= height


def test_files_are_equal_when_drawn_twice_and_the_json_tells_how(tmp_path: Path) -> None:
    files = []
    for name in ("abmil", "clam"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(metrics_object("toy", name, {"bag_f1": [0.25, 0.75]})))
        files.append(str(path))
    plan = layout(["abmil", "clam"]).to_json()
    written = []
    for k in (1, 2):
        out = tmp_path / str(k) / "cd.png"
        assert figures_main(["--figure", "cd", "--layout", plan, "--metrics", *files, "--out", str(out)]) == 0
        written.append([out.with_suffix(f".{kind}").read_bytes() for kind in ("png", "pdf")])
    assert written[0] == written[1]
    assert written[0][0][:4] == b"\x89PNG" and written[0][1][:4] == b"%PDF" and b"CreationDate" not in written[0][1]
    facts = json.loads((tmp_path / "1" / "cd.json").read_text())
    assert facts["command"].startswith("python -m smmil.figures --figure cd") and facts["missing"]["missing"] == 0
    assert facts["files"] == ["cd.png", "cd.pdf"] and len(facts["runs"]) == 4


def test_wrong_input_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(metrics_object("toy", "abmil", {})))
    given = ["--figure", "fig6a", "--layout", layout(["abmil"]).to_json(), "--out", str(tmp_path / "a.png")]
    assert figures_main([*given, "--metrics", str(path), str(path)]) == 2
    assert "found a second file for toy / resnet18 / abmil" in capsys.readouterr().err
    assert figures_main([*given[:-1], str(tmp_path / "a.pdf")]) == 2
    assert "ends in .png" in capsys.readouterr().err
    assert figures_main([*given[:2], "--layout", '{"datasets": [{"name": "x"}]}', *given[4:]]) == 2
    assert "expected datasets (each with name, encoder, methods" in capsys.readouterr().err


def test_marks_of_tied_ranks_are_moved_apart_around_their_place() -> None:
    assert fig_ranks._apart([1.0, 2.0, 3.0], 0.5) == [1.0, 2.0, 3.0]
    assert fig_ranks._apart([1.0, 2.0, 2.0], 0.2) == pytest.approx([1.0, 1.9, 2.1])
    places = fig_ranks._apart([1.0, 1.05, 1.1, 1.1, 1.3], 0.2)
    assert np.diff(places) == pytest.approx([0.2] * 4) and np.mean(places) == pytest.approx(1.11)


def slide(mpp: float | None, wide: float, high: float) -> MapBag:
    """A slide of two tiles of 100 px, this far apart, on a thumbnail at 1/10."""
    attrs = InstanceAttrs(modality="wsi", l0_footprint_px=100, mpp=mpp)
    coords = np.array([[100.0, 100.0], [wide, high]])
    return MapBag("a", attrs, coords, None, np.zeros((500, 500, 3), np.uint8), {"downsample": 10.0})


def test_a_scale_bar_is_a_round_length_of_at_most_a_quarter() -> None:
    # 0.5 um at level 0 are 5 um per px of the thumbnail: 1 mm are 200 px
    assert scale_bar(slide(0.5, 900, 900), 400) == (pytest.approx(100), "0.5 mm")
    assert scale_bar(slide(0.5, 900, 900), 800) == (pytest.approx(200), "1 mm")
    assert scale_bar(slide(0.5, 900, 900), 16) == (pytest.approx(4), "20 µm")
    assert scale_bar(slide(None, 900, 900), 800) is None


def test_the_view_is_the_tissue_and_maps_have_equal_areas() -> None:
    left, top, right, bottom = view_of(slide(0.5, 900, 400))
    assert (left, top) == pytest.approx((5.5, 5.5)) and (right, bottom) == pytest.approx((104.5, 54.5))
    for wide, high in ((900, 400), (400, 900), (900, 900)):
        width, height, per_row = cells_of_slide(slide(0.5, wide, high), 3, 3.0)
        assert width * height == pytest.approx(9.0) and per_row * width <= 11


def test_a_map_says_its_range_and_how_many_are_above_the_threshold(figures: list[Any]) -> None:
    panels = [Panel("m", np.array([-1.0, 3.0]), threshold=2.0), Panel("n", np.array([5.0, 7.0]))]
    draw_map(slide(0.5, 900, 900), panels, "title", Path("x.png"))
    slide_ax, first, second, bar = figures[0].get_axes()
    assert first.get_xlabel() == "-1 to 3\n1 of 2 above threshold" and second.get_xlabel() == "5 to 7"
    assert [text.get_text() for text in slide_ax.texts] == ["0.1 mm"]
    # both maps share one scale, from the lowest to the highest score of each
    painted = [np.asarray(ax.get_images()[1].get_array()) for ax in (first, second)]
    assert all((np.nanmin(values), np.nanmax(values)) == (0, 1) for values in painted)
    assert bar.get_xticklabels()[0].get_text() == "lowest"
