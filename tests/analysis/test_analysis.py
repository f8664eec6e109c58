"""Analysis of predictions: curves against scikit-learn, limits, invariances, calls and patients by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from smmil.analysis import build
from smmil.analysis.charts import draw_charts
from smmil.analysis.curves import mean_precision_recall, mean_roc
from smmil.analysis.long_tables import PredictionRow
from smmil.analysis.records import Analysis, Curve
from smmil.evaluate.calibration import bin_bags, sigmoid
from smmil.report.__main__ import main as report
from smmil.report.analysis import bag_results, inline_svg
from tests.helpers.pages import Page


def analyse(entries: Sequence[PredictionRow]) -> Analysis:
    return build.analyse("toy", "resnet18", entries)


def rows(
    labels: Sequence[int | None], logits: dict[str, list[Sequence[float]]], patients: Sequence[str] = ()
) -> list[PredictionRow]:
    """Return predictions: `logits` per method and split, bags `b0`, `b1`, ..."""
    result = []
    for method, splits in logits.items():
        for seed, values in enumerate(splits, 1):
            for i, (y, z) in enumerate(zip(labels, values, strict=True)):
                call, patient = int(z > 0), patients[i] if patients else ""
                correct = None if y is None else int(call == y)
                names = ("toy", "resnet18", method, method, seed, 1e-3, f"split{seed}_lr0.001", f"b{i}", patient, y, 5)
                result.append(PredictionRow(*names, z, float(sigmoid(np.array(z))), call, correct))
    return result


def area(curve: Curve) -> float:
    """Return the area under a polygon whose steps are two points of equal x."""
    x, y = np.array(curve.x), np.array(curve.y)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def scores(seed: int, n: int = 60, *, ties: bool) -> tuple[Any, list[Any]]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, n)
    logits = [y + random.normal(size=n) for _ in range(3)]
    return y, [np.round(z) if ties else z for z in logits]


@pytest.mark.parametrize("ties", [False, True])
def test_one_split_is_the_curve_of_scikit_learn(ties: bool) -> None:
    y, (logit, *_) = scores(0, ties=ties)
    roc, pr = mean_roc(y, [logit]), mean_precision_recall(y, [logit])
    assert roc and pr
    fpr, tpr, _ = roc_curve(y, logit, drop_intermediate=False)
    points = {(round(x, 6), round(t, 6)) for x, t in zip(fpr.tolist(), tpr.tolist(), strict=True)}
    corners = [*zip(roc.x, roc.y, strict=True)]
    assert set(corners) <= points
    for x, t in points:
        step = [at for place, at in corners if place == x]
        assert not step or min(step) <= t <= max(step)
    precision, recall, _ = precision_recall_curve(y, logit)
    for x, p in zip(pr.x, pr.y, strict=True):
        # the point of the highest threshold among those of a recall
        reached = [i for i in range(len(recall)) if round(float(recall[i]), 6) >= x and recall[i] > 0]
        assert x == 0 or p in {round(float(precision[i]), 6) for i in reached}
    assert roc.y == roc.low == roc.high


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_under_a_mean_curve_is_the_mean_of_the_tables(ties: bool) -> None:
    y, logits = scores(1, ties=ties)
    roc, pr = mean_roc(y, logits), mean_precision_recall(y, logits)
    assert roc and pr
    assert area(roc) == pytest.approx(np.mean([roc_auc_score(y, z) for z in logits]), abs=1e-5)
    assert area(pr) == pytest.approx(np.mean([average_precision_score(y, z) for z in logits]), abs=1e-5)
    assert all(low <= mid <= high for low, mid, high in zip(roc.low, roc.y, roc.high, strict=True))
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)


def test_bins_of_equally_many_bags_are_those_of_scikit_learn() -> None:
    y, (logit, *_) = scores(2, ties=False)
    share, probability = calibration_curve(y, sigmoid(logit), n_bins=6, strategy="quantile")
    bins = bin_bags(y, logit, bins=6)
    np.testing.assert_allclose(bins.share, share)
    np.testing.assert_allclose(bins.probability, probability)
    assert bins.bags.tolist() == [10] * 6


def test_calls_by_hand() -> None:
    labels = [0, 0, 1, 1]
    analysis = analyse(rows(labels, {"abmil": [[-1, 2, 3, -4], [-1, -2, 3, -4]], "smap_early": [[-1, -1, 1, 1]] * 2}))
    smap, abmil = analysis.methods
    assert (smap.method, abmil.method) == ("smap_early", "abmil") and smap.auroc == (1.0, 1.0)
    first, second = abmil.confusion
    counts = (first.true_negative, first.false_positive, first.false_negative, first.true_positive)
    assert counts == (1, 1, 1, 1) and second.specificity == 1.0 and second.sensitivity == 0.5
    worst, other = analysis.wrong_bags
    assert (worst.bag, worst.label, worst.wrong, worst.runs) == ("b3", 1, 2, 4)
    assert [(m.method, m.wrong, m.runs) for m in worst.methods] == [("smap_early", 0, 2), ("abmil", 2, 2)]
    assert worst.low == pytest.approx(sigmoid(np.array(-4.0))) and worst.high == pytest.approx(sigmoid(np.array(1.0)))
    assert (other.bag, other.wrong) == ("b1", 1)
    assert sum(abmil.positive) == sum(abmil.negative) == 4


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_bags_does_not_matter(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(24)
    logits = {"abmil": [[0.5, -1, 2, 2, -0.1, 1], [0.1, 0.2, -3, 2, 2, 1]], "t_ap": [[1, 1, 0, 0, -1, 2]] * 2}
    entries = rows([0, 1, 1, 0, 1, 0], logits, ["p", "p", "q", "", "q", ""])
    assert analyse([entries[i] for i in order]) == analyse(entries)


def test_one_class_has_no_curves_and_one_line_why(tmp_path: Path) -> None:
    analysis = analyse(rows([1, 1], {"abmil": [[-1, 2]]}))
    (method,) = analysis.methods
    assert method.roc is None and method.precision_recall is None and method.auroc == () == method.average_precision
    assert method.confusion[0].specificity is None and method.confusion[0].sensitivity == 0.5
    assert "All 2 labelled test bags are positive: ROC" in analysis.notes[0]
    assert [c.kind for c in draw_charts(analysis, tmp_path)] == ["reliability", "confusion", "distribution"]


def test_bags_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    some = analyse(rows([0, None, 1], {"abmil": [[-1, 5, 2]]}))
    assert (some.n_bags, some.n_unlabelled) == (2, 1) and some.wrong_bags == () and some.methods[0].auroc == (1.0,)
    none = analyse(rows([None, None], {"abmil": [[-1, 5]]}))
    assert none.methods == draw_charts(none, tmp_path) == () and none.n_unlabelled == 2
    assert "No test bag has a label" in none.notes[0]
    assert analyse([]).notes == ("No bag has the split test, so nothing is predicted.",)


def test_a_patient_is_as_positive_as_its_most_positive_bag() -> None:
    patients = ["p", "p", "q", "q", "", ""]
    logits: list[Sequence[float]] = [[-1, 3, -2, -1, 1, -5]]
    analysis = analyse(rows([0, 1, 0, 0, 0, 1], {"abmil": logits}, patients))
    # p: 3 (positive), q: -1 (negative), two bags without a patient: 1 (negative), -5 (positive)
    assert (analysis.n_patients, analysis.n_positive_patients) == (4, 2)
    (result,) = analysis.patients
    assert result.auroc == (roc_auc_score([1, 0, 0, 1], [3, -1, 1, -5]),)
    calls = result.confusion[0]
    assert (calls.true_positive, calls.true_negative, calls.false_positive, calls.false_negative) == (1, 1, 1, 1)
    single = analyse(rows([0, 1], {"abmil": [[1, 2]]}, ["p", "q"]))
    assert single.patients == () and "No patient has two test bags" in single.notes[0]
    assert analyse(rows([0, 1], {"abmil": [[1, 2]]})).notes == ()


def test_methods_on_other_bags_and_other_encoders_are_refused() -> None:
    entries = rows([0, 1], {"abmil": [[1, 2]], "t_ap": [[1, 2]]})
    with pytest.raises(ValueError, match=r"t_ap, split 1: tested on other bags than the rest, e.g. \['b1'\]"):
        analyse(entries[:-1])
    with pytest.raises(ValueError, match=r"found predictions of \[\('toy', 'resnet50'\)\], expected toy / resnet18"):
        analyse([*entries, replace(entries[0], encoder="resnet50")])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis]:
    """An analysis with pictures, of methods of both groups and two of one colour."""
    y, logits = scores(3, 30, ties=False)
    entries = rows(y.tolist(), {m: logits for m in ("smap_early", "smap_mid", "abmil", "smtap", "t_ap")})
    folder = tmp_path_factory.mktemp("analysis") / "results/toy/analysis/resnet18"
    folder.mkdir(parents=True)
    analysis = analyse(entries).model_copy(update={"random_weights": True})
    return folder / "analysis.json", analysis.model_copy(update={"charts": draw_charts(analysis, folder)})


def test_charts_are_drawn_twice_the_same_and_old_ones_go(drawn: tuple[Path, Analysis], tmp_path: Path) -> None:
    path, analysis = drawn
    first = {chart.file: (path.parent / chart.file).read_bytes() for chart in analysis.charts}
    assert len(first) == 10 and all(b"RANDOM ENCODER WEIGHTS" in data for data in first.values())
    for name in (*first, "mine.svg"):
        (tmp_path / name).write_text("<svg/>")
    # without the methods of the second group, SmTAP and T+AP
    draw_charts(analysis.model_copy(update={"methods": analysis.methods[:3]}), tmp_path)
    kept = {name: data for name, data in first.items() if name.endswith("-1.svg")} | {"mine.svg": b"<svg/>"}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept


def test_the_section_is_well_formed_and_names_every_wrong_bag_with_its_command(drawn: tuple[Path, Analysis]) -> None:
    path, analysis = drawn
    part = bag_results(path, analysis, {"toy": "Toy"})
    assert part.path == path.parents[3] / "tables/predictions.csv" and part.title == "Toy"
    assert part.bags[0].command == f"smmil view {path.parents[3]} --bag {part.bags[0].bag.bag}"
    assert [row[0] for row in part.rows][:2] == ["SmAP ◆", "SmAP-mid ◆"] and set(part.captions) >= {"ROC curves"}
    for picture in (picture for pictures in part.groups.values() for picture in pictures):
        Page(f"<div>{picture.svg}</div>")
        assert 'role="img"' in picture.svg and "<?xml" not in picture.svg and "figure_1" not in picture.svg
    analysis.write(path)
    empty, page = path.parents[2] / "other.json", path.parents[3] / "report/index.html"
    analyse(rows([None], {"abmil": [[1]]})).write(empty)
    layout = '{"datasets": [], "methods": []}'
    assert report(["--layout", layout, "--analysis", str(path), str(empty), "--out", str(page)]) == 0
    text = page.read_text()
    Page(text)
    assert text.count("<svg") == len(analysis.charts) and "No test bag has a label" in text
    assert all(bag.bag in text for bag in analysis.wrong_bags[:12])
    assert "http" not in text.replace("http://www.w3.org", "")
    with pytest.raises(ValueError, match="no such picture"):
        inline_svg(path.parent / "gone.svg", "x")
