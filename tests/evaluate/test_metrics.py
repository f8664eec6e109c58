"""Metrics against hand-computed values, scikit-learn, and what must not change them."""

import json
import math
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from smmil.artifacts.chosen_runs import chosen_rates
from smmil.artifacts.records import Metrics, PredictionMeta
from smmil.artifacts.results import Arrays
from smmil.evaluate import bootstrap, metrics
from smmil.evaluate.__main__ import main
from smmil.evaluate.comparisons import compare
from smmil.evaluate.runs import evaluate, evaluate_runs
from tests.helpers.predictions import BAGS, part, write_index, write_run

scored = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=40)


def vectors(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], float) / 3


@settings(deadline=None, max_examples=60)
@given(scored)
def test_curves_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    y, score = vectors(pairs)
    if 0 < y.sum() < len(y):
        assert metrics.auroc(y, score) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    else:
        assert metrics.auroc(y, score) is None
    if y.sum():
        assert metrics.average_precision(y, score) == pytest.approx(average_precision_score(y, score), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(scored)
def test_a_monotone_map_changes_no_rank_metric_and_a_sign_mirrors_auroc(pairs: list[tuple[int, int]]) -> None:
    y, score = vectors(pairs)
    warped = np.exp(2 * score) - 7
    for metric in (metrics.auroc, metrics.average_precision, metrics.fpr_at_tpr):
        assert metric(y, warped) == metric(y, score)
    area = metrics.auroc(y, score)
    if area is not None:
        assert metrics.auroc(y, -score) == pytest.approx(1 - area)


@settings(deadline=None, max_examples=60)
@given(scored)
def test_threshold_is_the_brute_force_argmax_and_the_largest_on_a_tie(pairs: list[tuple[int, int]]) -> None:
    y, score = vectors(pairs)
    found = metrics.best_threshold(y, score)
    positives, negatives = int(y.sum()), int((1 - y).sum())
    if not positives or not negatives:
        assert found is None
        return
    value = {t: int(((score >= t) & (y == 1)).sum()) * int(((score < t) & (y == 0)).sum()) for t in set(score.tolist())}
    assert found == max(t for t in value if value[t] == max(value.values()))


def test_fpr_at_tpr_by_hand_including_exactly_nine_tenths() -> None:
    y = np.array([1] * 9 + [0] + [1] + [0] * 3)
    assert metrics.fpr_at_tpr(y, -np.arange(14.0)) == 0.0
    assert metrics.fpr_at_tpr(np.array([1, 0, 1, 0]), np.array([4.0, 3, 2, 1])) == 0.5


def instances(y: list[int], score: list[float]) -> tuple[Arrays, np.ndarray]:
    """One positive bag and its scores."""
    return {"y": np.ones(1), "offsets": np.array([0, len(y)]), "y_inst": np.array(y)}, np.array(score)


def test_a_score_at_the_threshold_is_negative_an_inversion_is_flagged_and_nan_is_refused_by_row() -> None:
    at = metrics.instance_metrics(*instances([1, 1, 0], [0.5, 0.6, 0.1]), 0.5)
    assert at.values["instance_f1"] == pytest.approx(2 / 3) and not at.inverted
    assert metrics.instance_metrics(*instances([0, 1], [2.0, 1.0]), 0.0).inverted
    with pytest.raises(ValueError, match="1 of 3 scores are not finite, the first at row 1"):
        metrics.instance_metrics(*instances([0, 1, -1], [0.1, np.nan, 0.2]), 0.0)


def test_bag_metrics_by_hand() -> None:
    result = metrics.bag_metrics(np.array([1, 1, 0, 0, np.nan]), np.array([2.0, -1.0, 0.0, 1.0, 9.0]))
    assert (result.n_bags, result.n_positive_bags, result.n_unlabelled_bags) == (4, 2, 1)
    # called positive: logits > 0 strictly, so tp 1, fp 1, fn 1, tn 1
    assert {result.values[f"bag_{name}"] for name in ("f1", "accuracy", "precision", "recall")} == {0.5}
    assert result.values["bag_auroc"] == 2 / 4
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log(2) + math.log1p(math.exp(1))) / 4
    assert result.values["bag_bce"] == pytest.approx(expected, rel=1e-14)


def test_f1_of_nothing_is_zero_and_extreme_logits_stay_finite() -> None:
    result = metrics.bag_metrics(np.array([0, 0]), np.array([-800.0, -1.0]))
    assert result.values["bag_f1"] == 0.0 and result.values["bag_auroc"] is None
    assert result.undefined["bag_auroc"] == "one class only (0 positive, 2 negative labelled bags)"
    assert metrics.bag_metrics(np.array([1, 0]), np.array([-800.0, 800.0])).values["bag_bce"] == 800.0


def test_undefined_is_none_with_a_reason_never_nan() -> None:
    nothing = metrics.bag_metrics(np.zeros(0), np.zeros(0))
    assert nothing.values["bag_f1"] is None and nothing.undefined["bag_f1"] == "no labelled bag"
    unknown = metrics.instance_metrics(*instances([-1, -1], [0.1, 0.2]), None)
    assert unknown.values["instance_auroc"] is None and unknown.undefined["instance_f1"] == "no labelled instance"
    no_threshold = metrics.instance_metrics(*instances([0, 1], [0.1, 0.2]), None, "why")
    assert no_threshold.undefined == {"instance_f1": "why", "instance_dice": "why"}
    json.dumps([record.as_json() for record in (nothing, unknown, no_threshold)], allow_nan=False)


@pytest.mark.parametrize(("label", "why"), [(0, "hold one class only"), (-1, "have no label")])
def test_validation_of_one_class_and_validation_without_labels_are_told_apart(label: int, why: str) -> None:
    val = part(BAGS[:2])
    val["y_inst"] = np.full_like(val["y_inst"], label)
    found = metrics.run_metrics(part(BAGS[2:]), val).test
    reason = f"no threshold: the validation instances {why}"
    assert found.undefined == {"instance_f1": reason, "instance_dice": reason}


def test_run_metrics_by_hand_pool_positive_and_negative_bags() -> None:
    result = metrics.run_metrics(part(BAGS[2:]), part(BAGS[:2]))
    # validation: positives .9 .6, negatives .1 .2 .3 -> .6 separates; test > .6: .7(0) .8(1) .95(1) .65(1)
    assert result.thresholds[""] == pytest.approx(0.6)
    assert result.test.values["instance_f1"] == pytest.approx(6 / 7)
    # positives .8 .95 .65, negatives .2 .7 .1 .4: only (.65, .7) is out of order
    assert result.test.values["instance_auroc"] == pytest.approx(11 / 12)
    assert result.test.values["bag_f1"] == pytest.approx(2 / 3) and result.test.values["bag_auroc"] == 1.0


def test_order_of_bags_does_not_matter() -> None:
    straight = metrics.run_metrics(part(BAGS[2:]), part(BAGS[:2]))
    turned = metrics.run_metrics(part(BAGS[:1:-1]), part(BAGS[1::-1]))
    assert straight == turned


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3), st.integers(0, 3)), min_size=4, max_size=30),
    st.sampled_from([1, 4_000_000]),
)
def test_resampled_curves_equal_those_of_repeated_bags(rows: list[tuple[int, int, int]], elements: int) -> None:
    y, score, bag = (np.array(column) for column in zip(*rows, strict=True))
    assume(y.any())
    weights = bootstrap.draw_weights(4, 5, seed=3)
    assert (weights.sum(1) == 4).all()
    with pytest.MonkeyPatch.context() as patch:
        # blocks of one resample change nothing
        patch.setattr(bootstrap, "BLOCK_ELEMENTS", elements)
        curves = bootstrap.curve_resamples(y, score, bag, weights)
    for metric, resampled in zip((metrics.auroc, metrics.average_precision), curves, strict=True):
        for w, value in zip(weights, resampled, strict=True):
            repeats = w[bag].astype(int)
            slow = metric(np.repeat(y, repeats), np.repeat(score, repeats))
            assert (slow is None and np.isnan(value)) or slow == pytest.approx(value, abs=1e-12)


def test_intervals_of_many_bags_need_no_matrix_of_bags() -> None:
    rng, bags = np.random.default_rng(2), 1200
    y = np.arange(bags) % 2
    arrays = {"y": y.astype(np.float32), "bag_logit": rng.normal(size=bags) + y, "offsets": np.arange(bags + 1) * 2}
    arrays |= {"y_inst": np.repeat(y, 2).astype(np.int8), "instance_score": rng.normal(size=2 * bags)}
    tracemalloc.start()
    assert bootstrap.intervals([(arrays, {"": 0.0})], resamples=40)["bag_auroc"] is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bags**2 * 8


def test_interval_holds_the_metric_and_one_bag_gives_a_point() -> None:
    test = part(BAGS[2:])
    found = bootstrap.intervals([(test, {"": 0.6}), (test, {"": 0.6})], resamples=200)
    low, high = found["instance_f1"] or (1, 0)
    assert low <= 6 / 7 <= high
    # drawing one bag again and again gives that bag's own values
    single = bootstrap.intervals([(part(BAGS[3:4]), {"": 0.6})], resamples=50)
    assert single["instance_auroc"] == [1.0, 1.0] and single["bag_f1"] == [1.0, 1.0] and single["bag_auroc"] is None


def metas_of(scores: Mapping[tuple[int, float], float]) -> list[PredictionMeta]:
    """Metas of runs by (seed, learning rate)."""
    facts = {"dataset": "toy", "encoder": "e", "method": "abmil", "protocol": "as_written", "run": "r"}
    records = ({**facts, "seed": seed, "lr": lr, "selection_score": score} for (seed, lr), score in scores.items())
    return [PredictionMeta.model_validate(record) for record in records]


def test_learning_rate_is_chosen_on_validation_per_split_or_per_method() -> None:
    runs = metas_of({(1, 1e-4): 0.3, (1, 1e-5): 0.4, (2, 1e-4): 0.9, (2, 1e-5): 0.1, (3, 1e-4): 0.2, (3, 1e-5): 0.2})
    assert chosen_rates(runs, "split") == {1: 1e-5, 2: 1e-4, 3: 1e-4}
    assert chosen_rates(runs[::-1], "method") == {1: 1e-4, 2: 1e-4, 3: 1e-4}
    # one split: the same; equal means: the larger rate
    assert chosen_rates(runs[:2], "method") == chosen_rates(runs[:2], "split") == {1: 1e-5}
    assert chosen_rates(runs[4:], "method") == {3: 1e-4}
    with pytest.raises(ValueError, match="twice"):
        chosen_rates([runs[0], runs[0]], "split")
    with pytest.raises(ValueError, match="method: found the rates by split.*same in all"):
        chosen_rates(runs[:3], "method")


def test_one_rate_per_method_reaches_metrics_and_comparisons(tmp_path: Path) -> None:
    scores = {(1, 1e-4): 0.3, (1, 1e-5): 0.4, (2, 1e-4): 0.9, (2, 1e-5): 0.1}
    runs = [write_run(tmp_path, seed=seed, lr=lr, selection_score=s) for (seed, lr), s in scores.items()]
    index = write_index(tmp_path, runs)
    chosen = {}
    for choice in ("split", "method"):
        index.write_text(json.dumps({**json.loads(index.read_text()), "learning_rate_choice": choice}))
        metrics = evaluate(index, tmp_path / "metrics.json", resamples=0)
        assert metrics.learning_rate_choice == choice
        chosen[choice] = [split.run for split in metrics.splits]
        assert [[run.chosen for run in split.candidates].count(True) for split in metrics.splits] == [1, 1]
        comparison = compare(index, index, ["bag_auroc"], resamples=0)
        assert list(comparison.first.runs) == chosen[choice]
        assert comparison.second.learning_rate_choice == choice
    assert chosen == {"split": ["split1_lr1e-05", "split2_lr0.0001"], "method": ["split1_lr0.0001", "split2_lr0.0001"]}


def test_command_line_writes_the_chosen_runs_and_equal_bytes(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "p", selection_score=0.9, lr=1e-5),
        write_run(tmp_path / "p", selection_score=0.1, lr=1e-4),
        write_run(tmp_path / "p", selection_score=0.2, lr=1e-4, seed=2, random_weights=True),
    ]
    index = write_index(tmp_path / "p", runs)
    outs = [tmp_path / "a.json", tmp_path / "b" / "b.json"]
    assert main(["--index", str(index), "--out", str(outs[0]), "--resamples", "20"]) == 0
    found = evaluate(index, outs[1], resamples=20)
    assert outs[0].read_bytes() == outs[1].read_bytes() and found == Metrics.read(outs[0])
    assert [split.run for split in found.splits] == ["split1_lr1e-05", "split2_lr0.0001"]
    assert found.random_weights and found.splits[0].threshold == pytest.approx(0.6)
    assert [(run.lr, run.chosen) for run in found.splits[0].candidates] == [(1e-4, False), (1e-5, True)]
    assert found.splits[0].gated["instance_auroc"] == pytest.approx(9.5 / 12)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"protocol": "as_released"}, "protocol: found"),
        ({"quirks": ["eval_histogram"]}, "quirks: found .*eval_histogram"),
        ({"method_options": {"small_bags": "exact"}}, "method_options: found .*small_bags"),
        ({"bags": BAGS[:-1]}, "test bags differ"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    runs = [write_run(tmp_path), write_run(tmp_path, seed=2, **facts)]
    with pytest.raises(ValueError, match=message):
        evaluate_runs(runs, resamples=0)


def test_a_broken_predictions_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, bag_id=np.array(["a"]))
    with pytest.raises(ValueError, match="x.npz.*missing"):
        evaluate_runs([path])
    with pytest.raises(ValueError, match="no such predictions file"):
        evaluate_runs([tmp_path / "none.npz"])


def mixed_bags(seed: int = 0) -> tuple[Arrays, np.ndarray]:
    """Bags with both classes, one class, no labels and the label 0, and scores with ties."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 9, 24)
    y = np.array([1, 1, 0, np.nan] * 6)
    y_inst = rng.integers(0, 2, sizes.sum())
    offsets = np.append(0, np.cumsum(sizes))
    for bag, value in ((0, -1), (4, 1), (5, 0)):
        y_inst[offsets[bag] : offsets[bag + 1]] = value
    return {"y": y, "offsets": offsets, "y_inst": y_inst}, rng.integers(-3, 4, sizes.sum()).astype(np.float64)


def test_the_in_bag_auroc_is_scikit_learns_bag_by_bag() -> None:
    arrays, score = mixed_bags()
    areas = metrics.in_bag_aurocs(arrays, score)
    for bag, area in enumerate(areas):
        rows = slice(*arrays["offsets"][bag : bag + 2])
        both = arrays["y"][bag] == 1 and {*arrays["y_inst"][rows]} == {0, 1}
        assert np.isnan(area) != both
        assert not both or area == pytest.approx(roc_auc_score(arrays["y_inst"][rows], score[rows]), abs=1e-12)
    test = {**arrays, "instance_score": score, "bag_logit": np.zeros(24)}
    found = metrics.run_metrics(test, test).test
    assert found.values["instance_auroc_within"] == pytest.approx(np.nanmean(areas), abs=1e-12)
    assert found.n_in_bag == np.isfinite(areas).sum() < 12 and found.n_in_bag + found.n_not_in_bag == 12


def test_the_in_bag_auroc_ignores_what_differs_between_bags_and_the_pooled_one_does_not() -> None:
    arrays, score = mixed_bags(1)
    bag = np.repeat(np.arange(24), np.diff(arrays["offsets"]))
    moved = (1 + bag) * np.exp(score) - 40.0 * bag
    np.testing.assert_array_equal(metrics.in_bag_aurocs(arrays, moved), metrics.in_bag_aurocs(arrays, score))
    pooled = [metrics.auroc(*metrics.labelled(arrays["y_inst"], values)) for values in (score, moved)]
    assert pooled[0] != pytest.approx(pooled[1], abs=1e-3)
    # perfect within every bag, worse than chance over all bags
    order = {"y": np.ones(2), "offsets": np.array([0, 3, 8]), "y_inst": np.array([0, 1, 1, 0, 0, 0, 0, 1])}
    values = np.array([-9.0, -8.0, -7.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    assert metrics.in_bag_aurocs(order, values).tolist() == [1.0, 1.0]
    assert (metrics.auroc(order["y_inst"], values) or 1) < 0.5


def test_one_bag_has_the_pooled_auroc_and_no_mixed_bag_has_a_reason() -> None:
    one = metrics.run_metrics(part(BAGS[3:4]), part(BAGS[:2])).test.values
    assert one["instance_auroc_within"] == one["instance_auroc"] == 1.0
    none = metrics.run_metrics(part(BAGS[2:3]), part(BAGS[:2])).test
    assert (
        none.values["instance_auroc_within"] is None and "of 0 positive bags" in none.undefined["instance_auroc_within"]
    )
