"""The first screen: outcomes in words and as a plot, cautions with names, what is shown only once."""

from dataclasses import replace
from pathlib import Path

import pytest

from preprocessing.bags.report import Expected
from preprocessing.qc.counts import Counts, Problem
from preprocessing.status import StageWarning, Status, Total
from smmil.artifacts.records import Metrics
from smmil.config.layouts import TableLayout, parse_table_layout
from smmil.figures.entries import FigureEntry, MapEntry, MapsFile, MissingRuns
from smmil.findings import Finding
from smmil.report.analysis import results_folder, view_command
from smmil.report.overview import LEFT, RIGHT, WIDTH, Forest, Mark, Overview, cautions, overview
from smmil.report.page import Inputs, build_page, figures_of_page, first_map, repeated_tables
from tests.helpers.pages import Page
from tests.helpers.predictions import metrics_object, metrics_record

DATASETS = [{"name": name, "title": title, "encoder": "resnet18"} for name, title in (("a", "A <1>"), ("b", "B"))]
LAYOUT = TableLayout.parse({"datasets": DATASETS, "methods": ["smap_early", "abmil"]})
CLEAR = Finding(
    dataset="A <1>",
    method="SmAP",
    base="ABMIL",
    metric="instance_auroc",
    first=0.9,
    second=0.8,
    difference=0.1,
    interval=(0.05, 0.15),
    splits=(0.09, 0.1, 0.11),
    inverted=(0, 0),
    random_weights=False,
    verdict="better",
)
UNCLEAR = replace(CLEAR, dataset="B", difference=-0.01, interval=(-0.1, 0.1), verdict="no clear difference")


def outcome(*findings: Finding) -> tuple[str, str]:
    """The only sentence of the first screen, and its verdict."""
    (statement,) = overview(LAYOUT, [], findings, [], [], []).statements
    return statement.text, statement.verdict


def test_outcomes_are_one_sentence_per_pair_and_one_row_per_dataset() -> None:
    other = replace(CLEAR, dataset="B")
    text = "SmAP localises lesions better than ABMIL on A <1>; no clear difference in localising lesions on B."
    assert outcome(CLEAR, UNCLEAR) == (text, "better")
    assert outcome(UNCLEAR) == ("SmAP and ABMIL: no clear difference in localising lesions on B.", "")
    assert outcome(CLEAR, replace(other, verdict="worse"))[1] == ""
    assert outcome(CLEAR, other) == ("SmAP localises lesions better than ABMIL on A <1> and B.", "better")
    screen = overview(LAYOUT, [], [CLEAR, UNCLEAR], [], [], [])
    assert screen.plot is not None and screen.details[0].startswith("A <1>: SmAP localises lesions better than ABMIL")
    (marks,) = screen.plot.groups.values()
    rows = [("A <1>", 0.1, (0.05, 0.15), "better"), ("B", -0.01, (-0.1, 0.1), "")]
    assert [(m.label, m.value, m.interval, m.look) for m in marks] == rows


def test_without_comparisons_the_best_method_is_named_with_interval_and_test_bags() -> None:
    def scored(**rows: list[float]) -> Overview:
        objects = [metrics_object("a", method, {"bag_auroc": values}) for method, values in rows.items()]
        for split in (split for entry in objects for split in entry["splits"]):
            split["test"] |= {"n_bags": 12, "n_positive_bags": 5}
        metrics = [metrics_record("b", "abmil", {"bag_auroc": [None]})]
        return overview(LAYOUT, [*metrics, *map(Metrics.model_validate, objects)], [], [], [], [])

    screen = scored(abmil=[0.7, 0.9], smap_early=[0.6, 0.6])
    numbers = "0.800 (95 % interval 0.250 to 0.750) over 12 test bags, 5 of them positive."
    assert [s.text for s in screen.statements] == [f"A <1>: ABMIL has the highest bag AUROC, {numbers}"]
    assert screen.plot is not None and screen.plot.reference == 0.5
    assert [mark.label for mark in screen.plot.groups["A <1>"]] == ["SmAP", "ABMIL"]
    (statement,) = scored(abmil=[0.7, 0.9], smap_early=[0.7, 0.9]).statements
    assert statement.text.startswith("A <1>: SmAP and ABMIL have the highest bag AUROC, 0.800 over ")
    assert overview(LAYOUT, [], [], [], [], []).plot is None


def test_places_in_the_plot_are_in_order_and_inside() -> None:
    marks = [Mark("m", 0.1, (-0.2, 0.3), (0.5, -0.4))]
    plot = Forest({"g": marks}, "axis", 0.0)
    assert plot.limits[0] < -0.4 and plot.limits[1] > 0.5
    places = [plot.x(value) for value in (-0.4, -0.2, 0.0, 0.1, 0.3, 0.5)]
    assert places == sorted(places) and LEFT <= places[0] and places[-1] <= WIDTH - RIGHT
    assert len(plot.ticks) >= 3 and 0 in plot.ticks and all(plot.limits[0] <= t <= plot.limits[1] for t in plot.ticks)
    # a plot of one value at the reference has an axis, too
    assert Forest({"g": [Mark("m", 0.0)]}, "axis", 0.0).ticks


def test_cautions_name_bags_methods_and_cohorts() -> None:
    failed, bags = Problem("x", "failed", "cut"), Expected("bags", 399, 14)
    # nobody published the second one
    counts = [Counts("a", {"ok": 13, "failed": 1}, expected=[bags], problems=[failed]), Counts("b", {"ok": 3})]
    metrics = [metrics_record("a", "abmil", {"instance_auroc": [0.4, 0.6, 0.7]}, random_weights=True)]
    warnings = [StageWarning("instances", "y", "pale 2 %"), StageWarning("instances", "z", "pale 41 %")]
    status = [Status("a", 1, [], Total("all stages", 1), warnings=warnings)]
    assert cautions(metrics, counts, status, {"a": "A"}) == [
        "Random encoder weights, so the numbers only show that the pipeline runs: A.",
        "Small cohorts, far from the published datasets: A (14 of 399 bags).",
        "Failed bags, missing from every number: x (cut).",
        "Inverted runs, whose scores point away from the lesions (instance AUROC below 0.5): ABMIL (A 1 of 3).",
        "Bags to look at: pale … % (y, z).",
    ]
    assert "Fewer than 3 splits" in cautions([metrics_record("a", "abmil", {})], [], [], {})[-1]
    assert cautions([metrics_record("a", "abmil", {"bag_f1": [1.0] * 3})], [Counts("a", {"ok": 399})], [], {}) == []


@pytest.mark.parametrize(
    ("encoders", "methods", "repeated"),
    [
        (["resnet18"], ["abmil"], {"table7"}),
        (["resnet18", "resnet50"], ["abmil"], set()),
        (["resnet18"], ["abmil", "clam"], set()),
    ],
)
def test_a_table_of_every_extractor_is_shown_only_if_it_adds_something(
    encoders: list[str], methods: list[str], repeated: set[str], tmp_path: Path
) -> None:
    first = {"datasets": [{"name": "a", "encoder": "resnet18"}], "methods": ["abmil"]}
    other = {"datasets": [{"name": "a", "encoders": encoders}], "methods": methods}
    layouts = {name: parse_table_layout(name, value) for name, value in (("table1", first), ("table7", other))}
    assert repeated_tables(layouts) == repeated
    paths = [tmp_path / f"{name}.html" for name in layouts]
    for path in paths:
        path.write_text(f"<h2>{path.stem}</h2>")
    text = build_page("t", LAYOUT, Inputs(tables=paths), page=tmp_path / "x.html", layouts=layouts)
    Page(text)
    assert ("<h2>table7</h2>" in text) == (not repeated) and ("table7.csv" in text) == bool(repeated)


def entry(figure: str, *datasets: str) -> FigureEntry:
    """A figure of these datasets."""
    missing = MissingRuns(expected=0, missing=0, where={})
    return FigureEntry(figure=figure, datasets=datasets, missing=missing, title="t", caption="", files=("x.png",))


def test_histograms_of_a_dataset_are_shown_only_without_figure_4() -> None:
    alone = {Path("h"): entry("histograms", "a")}
    assert list(figures_of_page(alone)) == [Path("h")]
    assert list(figures_of_page({**alone, Path("f"): entry("fig4", "a", "b")})) == [Path("f")]
    assert len(figures_of_page({**alone, Path("f"): entry("fig4", "b")})) == 2


def test_the_first_map_is_a_positive_bag_and_its_command_opens_it() -> None:
    maps: dict[Path, MapsFile] = {}
    for path, bag_id, label in (("a/maps/resnet18", "n", 0), ("b/maps/timm/x", "my p", 1)):
        entry = MapEntry(bag_id=bag_id, label=label, file="x.png", title="", caption="", files=("x.png",))
        maps[Path("r", path, "maps.json")] = MapsFile(dataset=path[0], encoder="e", maps=(entry,), command="")
    triple = first_map(maps)
    assert triple is not None and triple[2].bag_id == "my p"
    assert view_command(results_folder(triple[0], "maps"), triple[2].bag_id) == "smmil view r --bag 'my p'"
    assert first_map({}) is None
