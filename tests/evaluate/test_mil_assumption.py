"""The algorithmic unit tests: their bags hold what they should, and known methods get the known verdicts."""

import json
import math

import pytest
import torch

from bench.fitting import FitOptions
from bench.mil_assumption import TESTS, as_table, main, make_bags, measure, verdict
from preprocessing.common.cli import guard

QUICK = FitOptions(epochs=12, batch_size=16, lr=1e-3)


def kinds(bag) -> tuple[int, int, int]:
    """Instances near the poison, near 2 and near 3, by the mean of 16 features."""
    centre = bag.x.mean(1)
    return tuple(int(((centre - value).abs() < 0.3).sum()) for value in (-10, 2, 3))


@pytest.mark.parametrize("turned", [False, True])
def test_single_concept_bags_swap_the_poison_between_classes(turned):
    bags = make_bags("single", 40, turned=turned, seed=0)
    assert sum(bag.y for bag in bags) == 20
    for bag in bags:
        assert kinds(bag)[0] == int((bag.y == 1) == turned)
        assert (1 <= int(bag.y_inst.sum()) <= 3) == (bag.y == 1)


@pytest.mark.parametrize("turned", [False, True])
def test_only_both_concepts_make_a_bag_of_the_multi_test_positive(turned):
    for bag in make_bags("multi", 40, turned=turned, seed=0):
        poison, two, three = kinds(bag)
        assert poison == int((bag.y == 1) == turned)
        assert (two > 0 and three > 0) == (bag.y == 1)
        if bag.y == 0:
            assert two + three == 1


def test_negative_bags_of_the_frequency_test_repeat_one_concept_only_when_turned():
    for turned, low, high in ((False, 1, 2), (True, 35, 45)):
        for bag in make_bags("frequency", 40, turned=turned, seed=0):
            _, two, three = kinds(bag)
            if bag.y == 0:
                assert min(two, three) == 0 and low <= two + three <= high
            else:
                assert two in (1, 2) and three in (1, 2)


def test_bags_are_reproducible_shuffled_chains():
    first, second = (make_bags("multi", 12, turned=False, seed=3) for _ in range(2))
    assert all(torch.equal(a.x, b.x) and a.bag_id == b.bag_id for a, b in zip(first, second, strict=True))
    assert first[0].neighbors.shape == (len(first[0]), 2)
    places = [int(bag.x.mean(1).argmin()) for bag in make_bags("single", 60, turned=False, seed=1) if bag.y == 0]
    assert len(set(places)) > 5


@pytest.mark.parametrize(
    ("straight", "turned", "expected"),
    [(0.55, 0.9, "not learned"), (None, 0.9, "not learned"), (0.9, 0.5, "violates"), (0.9, 0.51, "passes")],
)
def test_verdicts(straight, turned, expected):
    assert verdict(straight, turned) == expected


def test_the_mil_assumption_itself_passes_and_mean_pooling_takes_the_shortcut():
    results = {name: measure(name, "single", n_bags=64, seeds=1, options=QUICK) for name in ("max_pool", "mean_pool")}
    assert results["max_pool"].verdict == "passes"
    assert results["mean_pool"].verdict == "violates"
    lines = as_table(list(results.values())).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["max_pool", "passes"], ["mean_pool", "violates"]]


def test_command_line_covers_the_registry_and_prints_json(capsys):
    arguments = ["--methods", "abmil,smap_early", "--tests", "single,frequency", "--bags", "8", "--epochs", "1"]
    assert main([*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [(r["method"], r["test"]) for r in results] == [
        (method, test) for method in ("abmil", "smap_early") for test in ("single", "frequency")
    ]
    assert all(math.isfinite(r["auroc"]) for r in results)


def test_unknown_names_are_refused_in_one_line(capsys):
    assert guard(main)(["--methods", "abmil,nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert guard(main)(["--tests", "other"]) == 2
    assert ", ".join(TESTS) in capsys.readouterr().err
