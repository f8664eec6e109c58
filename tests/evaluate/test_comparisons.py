"""Paired bootstrap of two methods, the table of all pairs, Friedman's test and Nemenyi's critical difference.

Against oracles and by hand.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.artifacts.records import ComparisonsFile
from smmil.artifacts.results import load_predictions
from smmil.comparison_table import main as table_main
from smmil.comparisons import main
from smmil.evaluate import bootstrap
from smmil.evaluate.comparisons import compare, paired_bootstrap
from smmil.evaluate.metrics import run_metrics
from smmil.evaluate.ranks import friedman, nemenyi_distance, rank_test
from smmil.evaluate.runs import as_evaluated, evaluate_runs
from smmil.provenance import locate
from smmil.tables.comparisons import METRICS
from tests.helpers.dataset_files import read_table
from tests.helpers.predictions import BAGS, Bag, part, write_index, write_run

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


def test_critical_difference_against_the_published_table() -> None:
    # q(.05) of Demsar's Table 5a: 2 methods 1.960, 3 2.343, 5 2.728, 10 3.164; CD = q sqrt(N (N + 1) / 6 K)
    for methods, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        expected = q * (methods * (methods + 1) / (6 * 14)) ** 0.5
        assert nemenyi_distance(methods, 14) == pytest.approx(expected, rel=5e-4)


def test_groups_are_the_maximal_runs_closer_than_the_critical_difference() -> None:
    # 40 columns a > b > c > d: mean ranks 1 to 4, CD = 2.569 sqrt(20 / 240) = .742: nobody is tied with anybody
    apart = rank_test(["a", "b", "c", "d"], [[4.0, 3.0, 2.0, 1.0]] * 40)
    assert apart.mean_ranks == (1.0, 2.0, 3.0, 4.0) and apart.groups == () and (apart.p or 1) < 1e-20
    # with 10 columns CD = 1.483: neighbours are alike, and a bar joins each pair
    near = rank_test(["d", "a", "c", "b"], [[1.0, 4.0, 2.0, 3.0]] * 10)
    assert near.groups == (("a", "b"), ("b", "c"), ("c", "d"))
    assert rank_test(["a", "b"], [[1.0, 2.0], [2.0, 1.0]]).groups == (("a", "b"),)


def test_incomplete_columns_are_left_out_and_counted() -> None:
    test = rank_test(["a", "b"], [[1.0, None], [3.0, 2.0], [None, None]])
    assert (test.columns, test.dropped, test.mean_ranks) == (1, 2, (1.0, 2.0))
    empty = rank_test(["a", "b"], [[1.0, None]])
    assert (empty.statistic, empty.critical_difference, empty.mean_ranks, empty.groups) == (None, None, (), ())
    assert rank_test(["a"], [[1.0]]).statistic is None


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


def test_resampled_metrics_are_those_of_the_repeated_bags() -> None:
    bags = random_bags(1, 1.0, 12)
    test, val = part(bags, full=True), part(BAGS[:2], full=True)
    weights = np.vstack([np.ones((1, 12)), bootstrap.draw_weights(12, 3, seed=5)])
    drawn = bootstrap.run_resamples(test, run_metrics(test, val).thresholds, weights)
    assert drawn.keys() == {*bootstrap.METRICS, *bootstrap.EXTRA}
    for i, w in enumerate(weights.astype(int)):
        picked = np.repeat(np.arange(12), w)
        repeated = {**part([bags[bag] for bag in picked], full=True), "energy": test["energy"][picked]}
        values = run_metrics(repeated, val).test.values
        for metric, resampled in drawn.items():
            assert resampled[i] == pytest.approx(values[metric], abs=1e-12), metric


def test_equal_predictions_differ_by_nothing_and_the_sign_turns_with_the_order() -> None:
    good, poor = (part(random_bags(seed, quality)) for seed, quality in ((1, 2.0), (2, 0.2)))
    same = paired_bootstrap([(good, {"": 0.5})], [(good, {"": 0.5})], ["instance_auroc"], resamples=200)
    assert same["instance_auroc"].interval == (0.0, 0.0) and same["instance_auroc"].p == 1.0
    first, second = [(good, {"": 0.5})], [(poor, {"": 0.5})]
    ahead = paired_bootstrap(first, second, ["instance_auroc"], resamples=400)["instance_auroc"]
    behind = paired_bootstrap(second, first, ["instance_auroc"], resamples=400)["instance_auroc"]
    assert ahead.difference == pytest.approx(run_metrics(good, good).test.values["instance_auroc"] - ahead.second)
    low, high = ahead.interval
    assert 0 < low <= ahead.difference <= high and ahead.p == pytest.approx(2 / 401)
    assert behind.interval == pytest.approx((-high, -low)) and behind.p == ahead.p
    none = paired_bootstrap(first, second, ["instance_auroc"], resamples=0)["instance_auroc"]
    assert (none.interval, none.p, none.difference) == (None, None, ahead.difference)


def test_pairing_narrows_the_interval() -> None:
    base = random_bags(1, 1.0)
    rng = np.random.default_rng(9)
    near = [(*bag[:4], (np.array(bag[4]) + 0.1 * rng.normal(size=6)).tolist(), bag[5]) for bag in base]
    paired = paired_bootstrap([(part(near), {"": 0.5})], [(part(base), {"": 0.5})], ["instance_auroc"])
    alone = bootstrap.intervals([(part(base), {"": 0.5})])["instance_auroc"] or [0, 0]
    low, high = paired["instance_auroc"].interval
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
    missing = compare(a, a, ["signed_instance_auroc"], resamples=5).metrics["signed_instance_auroc"]
    assert missing.difference is None and "lacks the metric" in missing.reason


@pytest.mark.parametrize("quirks", [[], ["eval_gate_by_bag"]])
def test_thresholds_are_those_of_the_metrics_never_chosen_on_test_bags(tmp_path: Path, quirks: list[str]) -> None:
    # few positives, and validation scores one higher than test scores: every threshold chosen on test bags differs
    shifted = [(f"v{bag[0]}", "val", *bag[2:4], [s + 1 for s in bag[4]], bag[5]) for bag in random_bags(3, 1.0)]
    bags = [[*shifted, *random_bags(seed, 1.0)] for seed in (1, 2)]
    runs = [write_run(tmp_path, own, seed=i, full=True, quirks=quirks) for i, own in enumerate(bags, start=1)]
    index = write_index(tmp_path, runs)
    metrics = ["instance_f1", "signed_instance_f1", "instance_dice", "instance_auroc"]
    found = compare(index, index, metrics, resamples=5).metrics
    splits = evaluate_runs(runs, resamples=0).splits
    for metric in metrics:
        expected = [split.test.values[metric] for split in splits]
        assert found[metric].first == pytest.approx(np.mean(expected), abs=1e-12)
    on_test = []
    for run in runs:
        test = as_evaluated(quirks, load_predictions(run).part("test"))
        on_test.append(run_metrics(test, test).test.values["instance_f1"])
    assert abs(np.mean(on_test) - found["instance_f1"].first) > 0.05


# ---- the table of all pairs

PAIRS = [["smap_early", "abmil"], ["smtap", "t_ap"]]
TOYS = {
    "datasets": [
        {"name": "toy", "title": "Toy", "encoder": "resnet18", "pairs": PAIRS},
        {"name": "other", "title": "Other", "encoder": "resnet18", "pairs": PAIRS[:1]},
    ],
    "splits": 2,
}


@pytest.fixture
def grid(tmp_path: Path) -> dict[tuple[str, str], Path]:
    """Indexes of three methods on two datasets, two splits each; SmTAP lacks a run everywhere."""
    found = {}
    for dataset in ("toy", "other"):
        for i, method in enumerate(("smap_early", "abmil", "t_ap")):
            folder, facts = tmp_path / dataset / "predictions/resnet18" / method, {"dataset": dataset, "method": method}
            bags = [*BAGS[:2], *random_bags(i, 2.0 - i)]
            runs = [write_run(folder, bags, seed=seed, full=True, **facts) for seed in (1, 2)]
            found[dataset, method] = write_index(folder, runs)
    return found


def make_table(grid: dict[tuple[str, str], Path], out: Path, *more: str) -> int:
    kinds = ("csv", "md", "tex", "html", "json")
    files = [f"--out-{kind}={out / f'tables/comparisons.{kind}'}" for kind in kinds]
    return table_main(["--index", *map(str, grid.values()), "--layout", json.dumps(TOYS), *files, *more])


def test_the_table_holds_the_paired_differences_and_their_intervals(
    grid: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    assert make_table(grid, tmp_path, "--resamples", "100") == 0
    rows = {row["method"]: row for row in read_table(tmp_path / "tables/comparisons.csv")}
    assert [*rows] == ["smap_early", "smtap"] and rows["smap_early"]["name"] == "SmAP − ABMIL"
    stored = ComparisonsFile.read(tmp_path / "tables/comparisons.json")
    assert stored.titles == {"toy": "Toy", "other": "Other"}
    for dataset, comparison in zip(("toy", "other"), stored.comparisons, strict=True):
        oracle = compare(grid[dataset, "smap_early"], grid[dataset, "abmil"], [*METRICS], resamples=100)
        assert comparison == oracle
        for metric, values in oracle.metrics.items():
            name, row = f"{dataset}.resnet18.{metric}.difference", rows["smap_early"]
            assert float(row[f"{name}.mean"]) == pytest.approx(values.difference) and row[f"{name}.n_splits"] == "2"
            assert [float(row[f"{name}.ci95_{end}"]) for end in ("low", "high")] == list(values.interval)
            assert np.subtract(values.first_splits, values.second_splits) == pytest.approx(values.splits)
    assert rows["smtap"]["toy.resnet18.bag_auroc.difference.mean"] == ""
    # a cell leads back to the runs of the method with Sm, as in every other table
    place = locate(tmp_path / "tables/comparisons.csv", ["smap_early", "other"])
    assert (place.dataset, place.encoder, place.method) == ("other", "resnet18", "smap_early")


def test_the_table_names_quirks_and_refuses_to_mix_them(
    grid: dict[tuple[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {}
    for i, method in enumerate(("smap_early", "abmil")):
        facts = {"dataset": "toy", "method": method, "quirks": ["eval_gate_by_bag"]}
        folder = tmp_path / "gated" / method
        bags = [*BAGS[:2], *random_bags(i, 2.0 - i)]
        both["toy", method] = write_index(folder, [write_run(folder, bags, seed=1, full=True, **facts)])
    assert make_table(both, tmp_path, "--resamples", "20") == 0
    text = (tmp_path / "tables/comparisons.md").read_text()
    assert "as_written (the paper's text) with eval_gate_by_bag" in text and "gated instance scores" in text
    mixed = both | {key: path for key, path in grid.items() if key[0] == "other"}
    assert make_table(mixed, tmp_path, "--resamples", "20") == 2
    assert "as_written with eval_gate_by_bag" in capsys.readouterr().err


def test_the_table_counts_gaps_and_says_what_the_interval_does_not_see(
    grid: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    assert make_table(grid, tmp_path, "--resamples", "20") == 0
    text = (tmp_path / "tables/comparisons.md").read_text()
    toy, other = text.split("### Other (resnet18)")
    assert "6 of 18 differences are empty. no predictions of one of the two: Toy SmTAP − T+AP." in text
    assert "20 draws" in text and "does not see the chance of training" in text
    row = next(line for line in toy.splitlines() if line.startswith("| SmAP − ABMIL ◆"))
    assert re.fullmatch(r"\| SmAP − ABMIL ◆ (\| [+-]\S+ ± \S+ \([+-]\S+, [+-]\S+\) ){6}\|", row), row
    # empty where predictions are missing, a dash where there is no such pair
    assert next(line for line in toy.splitlines() if line.startswith("| SmTAP")).count("|  |") > 0
    assert next(line for line in other.splitlines() if line.startswith("| SmTAP")).count("–") == 6
    latex = (tmp_path / "tables/comparisons.tex").read_text()
    assert re.search(r"\{\\tiny\$\\pm\$\S+ \(\$-\$\S+, ", latex), latex
    assert latex.count(r"\begin{table}") == 2 and r"SmAP $-$ ABMIL $\diamond$" in latex
    assert make_table(grid, tmp_path, "--resamples", "0") == 0
    text = (tmp_path / "tables/comparisons.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| SmAP − ABMIL ◆"))
    assert re.fullmatch(r"\| SmAP − ABMIL ◆ (\| [+-]\S+ ± \S+ ){6}\|", row), row


def test_a_table_of_nothing_yet_is_all_gaps(tmp_path: Path) -> None:
    assert make_table({}, tmp_path) == 0
    text = (tmp_path / "tables/comparisons.md").read_text()
    assert "18 of 18 differences are empty" in text and "Protocol:" not in text


def test_what_a_table_cannot_take_is_refused_by_name(
    grid: dict[tuple[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_table({**grid, ("x", "y"): grid["toy", "abmil"]}, tmp_path) == 2
    assert "found a second index of toy / resnet18 / abmil" in capsys.readouterr().err
    run = write_run(tmp_path / "released", method="smtap", protocol="as_released", full=True)
    assert make_table({**grid, ("toy", "smtap"): write_index(run.parent, [run])}, tmp_path) == 2
    assert "other bags" in capsys.readouterr().err
    outputs = ["--out-csv=a", "--out-md=b", "--out-tex=c", "--out-html=d"]
    assert table_main(["--layout", '{"datasets": [], "splits": 2}', *outputs]) == 2
    assert "expected datasets" in capsys.readouterr().err
