"""Paired bootstrap of two methods, Friedman's test and Nemenyi's critical difference, against oracles and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil import bootstrap, comparisons
from smmil.comparisons import compare, main, paired_bootstrap
from smmil.metrics import run_metrics
from smmil.rank_tests import friedman, nemenyi_distance, rank_test
from tests.predictions import BAGS, Bag, part, write_index, write_run

matrices = st.integers(3, 6).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 4).map(float), min_size=n, max_size=n), min_size=2, max_size=9)
)


@settings(deadline=None, max_examples=50)
@given(matrices)
def test_friedman_equals_scipy(columns: list[list[float]]) -> None:
    from scipy.stats import friedmanchisquare

    statistic, p = friedman(columns)
    if all(len(set(column)) == 1 for column in columns):
        assert (statistic, p) == (0.0, 1.0)
        return
    oracle = friedmanchisquare(*np.array(columns).T)
    assert statistic == pytest.approx(oracle.statistic, abs=1e-9) and p == pytest.approx(oracle.pvalue, abs=1e-9)


def test_friedman_by_hand() -> None:
    # three columns in full agreement: 12 * 3 / 12 * (1 + 0 + 1) = 6
    assert friedman([[3.0, 2.0, 1.0]] * 3)[0] == pytest.approx(6.0)


def test_critical_difference_against_the_published_table() -> None:
    # q(.05) of Demsar's Table 5a: 2 methods 1.960, 3 2.343, 5 2.728, 10 3.164; CD = q sqrt(N (N + 1) / 6 K)
    for methods, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        expected = q * (methods * (methods + 1) / (6 * 14)) ** 0.5
        assert nemenyi_distance(methods, 14) == pytest.approx(expected, rel=5e-4)
    assert nemenyi_distance(3, 14, level=0.90) == pytest.approx(2.052 * (12 / 84) ** 0.5, rel=5e-4)


def test_groups_are_the_maximal_runs_closer_than_the_critical_difference() -> None:
    # 40 columns a > b > c > d: mean ranks 1 to 4, CD = 2.569 sqrt(20 / 240) = .742: nobody is tied with anybody
    apart = rank_test(["a", "b", "c", "d"], [[4.0, 3.0, 2.0, 1.0]] * 40)
    assert apart.mean_ranks == (1.0, 2.0, 3.0, 4.0) and apart.groups == () and (apart.p or 1) < 1e-20
    # with 10 columns CD = 1.483: neighbours are alike, and a bar joins each pair
    near = rank_test(["d", "a", "c", "b"], [[1.0, 4.0, 2.0, 3.0]] * 10)
    assert near.groups == (("a", "b"), ("b", "c"), ("c", "d"))
    assert rank_test(["a", "b"], [[1.0, 2.0], [2.0, 1.0]]).groups == (("a", "b"),)
    assert rank_test(["a", "b"], [[1.0, 2.0]] * 4, larger=False).mean_ranks == (1.0, 2.0)


def test_incomplete_columns_are_left_out_and_counted() -> None:
    found = rank_test(["a", "b"], [[1.0, None], [3.0, 2.0], [None, None]])
    assert (found.columns, found.dropped, found.mean_ranks) == (1, 2, (1.0, 2.0))
    empty = rank_test(["a", "b"], [[1.0, None]])
    assert (empty.statistic, empty.critical_difference, empty.mean_ranks, empty.groups) == (None, None, (), ())
    assert rank_test(["a"], [[1.0]]).statistic is None
    assert "share one test set" in found.warning
    with pytest.raises(ValueError, match="column 0: found 1 values, expected 2"):
        rank_test(["a", "b"], [[1.0]])
    with pytest.raises(ValueError, match="more than once"):
        rank_test(["a", "a"], [])


def random_bags(seed: int, quality: float, n: int = 30) -> list[Bag]:
    rng, noise = np.random.default_rng(0), np.random.default_rng(seed)
    bags = []
    for i in range(n):
        y_inst = (rng.random(6) < 0.4).astype(int) * (i % 2)
        score = quality * y_inst + noise.normal(size=6)
        bags.append(
            (f"t{i:02d}", "test", float(i % 2), float(noise.normal() + (i % 2)), score.tolist(), y_inst.tolist())
        )
    return bags


@pytest.mark.parametrize("metric", [*bootstrap.METRICS, *bootstrap.EXTRA])
def test_resampled_metrics_are_those_of_the_repeated_bags(metric: str) -> None:
    test, val = part(random_bags(1, 1.0, 12), full=True), part(BAGS[:2], full=True)
    found = run_metrics(test, val)
    weights = np.vstack([np.ones((1, 12)), bootstrap.draw_weights(12, 3, seed=5)])
    drawn = bootstrap.run_resamples(test, found["threshold"], weights, found["signed_threshold"])[metric]
    assert drawn[0] == pytest.approx(found["test"][metric], abs=1e-12)
    bags = random_bags(1, 1.0, 12)
    energy = part(bags, full=True)["energy"]
    for w, value in zip(weights.astype(int), drawn, strict=True):
        picked = [i for i, times in enumerate(w) for _ in range(times)]
        repeated = {**part([bags[i] for i in picked], full=True), "energy": energy[picked]}
        assert run_metrics(repeated, val)["test"][metric] == pytest.approx(value, abs=1e-12)


def test_equal_predictions_differ_by_nothing_and_the_sign_turns_with_the_order() -> None:
    good, poor = (part(random_bags(seed, quality)) for seed, quality in ((1, 2.0), (2, 0.2)))
    same = paired_bootstrap([(good, 0.5, None)], [(good, 0.5, None)], ["instance_auroc"], resamples=200)
    assert same["instance_auroc"]["interval"] == [0.0, 0.0] and same["instance_auroc"]["p"] == 1.0
    first, second = [(good, 0.5, None)], [(poor, 0.5, None)]
    ahead = paired_bootstrap(first, second, ["instance_auroc"], resamples=400)["instance_auroc"]
    behind = paired_bootstrap(second, first, ["instance_auroc"], resamples=400)["instance_auroc"]
    assert ahead["difference"] == pytest.approx(run_metrics(good, good)["test"]["instance_auroc"] - ahead["second"])
    low, high = ahead["interval"]
    assert 0 < low <= ahead["difference"] <= high and ahead["p"] == pytest.approx(2 / 401)
    assert behind["interval"] == pytest.approx([-high, -low]) and behind["p"] == ahead["p"]


def test_pairing_narrows_the_interval() -> None:
    base = random_bags(1, 1.0)
    rng = np.random.default_rng(9)
    near = [(*bag[:4], (np.array(bag[4]) + 0.1 * rng.normal(size=6)).tolist(), bag[5]) for bag in base]
    paired = paired_bootstrap([(part(near), 0.5, None)], [(part(base), 0.5, None)], ["instance_auroc"])
    alone = bootstrap.intervals([(part(base), 0.5, None)])["instance_auroc"] or [0, 0]
    low, high = paired["instance_auroc"]["interval"]
    assert high - low < 0.4 * (alone[1] - alone[0])


def test_the_command_line_pairs_the_chosen_runs_by_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = [(*bag[:4], [-score for score in bag[4]], bag[5]) for bag in BAGS]
    ours = [write_run(tmp_path / "a", full=True), write_run(tmp_path / "a", seed=2, full=True)]
    ours.append(write_run(tmp_path / "a", turned, lr=1e-5, selection_score=-1.0, full=True))
    theirs = [write_run(tmp_path / "b", turned, seed=seed, method="t_ap", full=True) for seed in (1, 2, 3)]
    indexes = [str(write_index(tmp_path / name, runs)) for name, runs in (("a", ours), ("b", theirs))]
    metrics = ["instance_auroc", "bag_f1", "dirichlet_raw"]
    out = tmp_path / "out.json"
    assert main(["--index", *indexes, "--metric", *metrics, "--out", str(out), "--resamples", "50"]) == 0
    found = json.loads(out.read_text())
    assert found["seeds"] == [1, 2] and found["first"]["runs"] == ["split1_lr0.0001", "split2_lr0.0001"]
    assert (found["first"]["method"], found["second"]["method"]) == ("abmil", "t_ap")
    assert found["metrics"]["instance_auroc"]["splits"] == pytest.approx([10 / 12, 10 / 12])
    assert found["metrics"]["bag_f1"]["difference"] == 0.0 and found["metrics"]["dirichlet_raw"]["p"] == 1.0
    assert main(["--index", *indexes, "--metric", "instance_auroc", "--resamples", "50"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"]["instance_auroc"] == found["metrics"]["instance_auroc"]


def test_what_cannot_be_paired_is_refused_or_said(tmp_path: Path) -> None:
    a = write_index(tmp_path / "a", [write_run(tmp_path / "a")])
    fewer = write_index(tmp_path / "b", [write_run(tmp_path / "b", BAGS[:-1])])
    other = write_index(tmp_path / "c", [write_run(tmp_path / "c", seed=7)])
    strange = write_index(tmp_path / "d", [write_run(tmp_path / "d", dataset="else")])
    for index, message in ((fewer, "other bags"), (other, "none in common"), (strange, "expected one")):
        with pytest.raises(ValueError, match=message):
            compare(a, index, ["instance_auroc"], resamples=5)
    with pytest.raises(ValueError, match="found \\['nonsense'\\]"):
        compare(a, a, ["nonsense"])
    missing = compare(a, a, ["signed_instance_auroc"], resamples=5)["metrics"]["signed_instance_auroc"]
    assert missing["difference"] is None and "lacks the metric" in missing["reason"]


def test_rank_tests_are_offered_beside_the_bootstrap() -> None:
    assert comparisons.rank_test is rank_test and comparisons.friedman is friedman
