"""The algorithmic unit tests: their bags hold what they should, and known methods get the known verdicts."""

import pytest
import torch

from bench.mil_assumption import TESTS, main, make_bags, verdict
from preprocessing.common.cli import guard


def kinds(bag) -> tuple[int, int, int]:
    """Instances near the poison, near 2 and near 3, by the mean of 16 features."""
    centre = bag.x.mean(1)
    return tuple(int(((centre - value).abs() < 0.3).sum()) for value in (-10, 2, 3))


@pytest.mark.parametrize("turned", [False, True])
def test_bags_hold_what_their_test_says(turned):
    bags = {test: make_bags(test, 40, turned=turned, seed=0) for test in TESTS}
    assert sum(bag.y for bag in bags["single"]) == 20
    for bag in bags["single"]:
        assert kinds(bag)[0] == int((bag.y == 1) == turned)
        assert (1 <= int(bag.y_inst.sum()) <= 3) == (bag.y == 1)
    for bag in bags["multi"]:
        poison, two, three = kinds(bag)
        assert poison == int((bag.y == 1) == turned)
        assert min(two, three) > 0 if bag.y else two + three == 1
    for bag in bags["frequency"]:
        _, two, three = kinds(bag)
        low, high = (35, 45) if turned else (1, 2)
        assert {two, three} <= {1, 2} if bag.y else min(two, three) == 0 and low <= two + three <= high


def test_bags_are_reproducible_shuffled_chains():
    first, second = (make_bags("multi", 12, turned=False, seed=3) for _ in range(2))
    assert all(torch.equal(a.x, b.x) and a.bag_id == b.bag_id for a, b in zip(first, second, strict=True))
    assert first[0].neighbors.shape == (len(first[0]), 2)
    places = [int(bag.x.mean(1).argmin()) for bag in make_bags("single", 60, turned=False, seed=1) if bag.y == 0]
    assert len(set(places)) > 5


def test_verdicts():
    assert [verdict(*pair) for pair in ((0.55, 0.9), (0.9, 0.5), (0.9, 0.51))] == ["not learned", "violates", "passes"]


def test_the_mil_assumption_itself_passes_and_mean_pooling_takes_the_shortcut(capsys):
    arguments = ["--methods", "max_pool,mean_pool", "--tests", "single", "--bags", "64", "--epochs", "24"]
    assert main(arguments) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["method", "single"], ["max_pool", "passes"], ["mean_pool", "violates"]]


def test_unknown_names_are_refused_in_one_line(capsys):
    assert guard(main)(["--methods", "abmil,nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().err
    assert guard(main)(["--tests", "other"]) == 2
    assert ", ".join(TESTS) in capsys.readouterr().err
