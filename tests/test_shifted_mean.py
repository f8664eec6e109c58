"""The shifted-mean task: its optimum against explicit densities and torchmil, and the order of known methods."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bench.fitting import FitOptions
from bench.shifted_mean import Task, bayes_scores, main, make_bags, measure, optimum


def by_densities(x, task: Task) -> tuple[float, np.ndarray]:
    """P(Y = 1 | h) and P(y_j = 1 | h), every density written out."""
    size = len(x)
    shifted = x[:, : task.shifted]
    nothing = norm.pdf(shifted).prod()
    windows = []
    for start in range(size - task.window + 1):
        centre = np.zeros_like(shifted)
        centre[start : start + task.window] = task.delta
        windows.append(norm.pdf(shifted - centre).prod() / (size - task.window + 1))
    evidence = nothing + sum(windows)
    instances = np.zeros(size)
    for start, weight in enumerate(windows):
        instances[start : start + task.window] += weight / evidence
    return sum(windows) / evidence, instances


@pytest.mark.parametrize("task", [Task(), Task(window=1, delta=1.0), Task(window=5, shifted=3, features=4, delta=0.7)])
def test_optimal_scores_equal_the_densities_written_out(task):
    for bag in make_bags(task, 6, seed=1):
        x = bag.x.double().numpy()
        odds, posterior = bayes_scores(x, task)
        probability, instances = by_densities(x, task)
        assert 1 / (1 + math.exp(-odds)) == pytest.approx(probability, rel=1e-9)
        np.testing.assert_allclose(posterior, instances, rtol=1e-8)


def test_optimum_equals_torchmil():
    from torchmil.datasets import ShiftedMeanMILDataset

    peer, task = ShiftedMeanMILDataset(N=4, M=3, S_low=6, S_high=9, Delta=2.0, seed=0), Task(features=3)
    for i in range(4):
        odds, _ = bayes_scores(peer[i]["X"].double().numpy(), task)
        assert 1 / (1 + math.exp(-odds)) == pytest.approx(float(peer.p_y1_given_h(i)), rel=1e-4)


def test_bags_hold_one_window_of_shifted_instances():
    task = Task(window=4, shifted=2, features=5, delta=8.0)
    for bag in make_bags(task, 30, seed=0):
        rows = bag.y_inst.nonzero()[:, 0]
        assert task.shortest <= len(bag) <= task.longest
        assert len(rows) == (4 if bag.y else 0)
        if bag.y:
            assert (rows.diff() == 1).all()
            others = bag.x[:, :2][bag.y_inst == 0]
            assert bag.x[rows, :2].mean() > 6 and others.abs().mean() < 2
        assert bag.x[:, 2:].abs().mean() < 2
    assert torch.equal(make_bags(task, 2, 5)[1].x, make_bags(task, 2, 5)[1].x)


def test_optimum_beats_scores_that_see_one_instance_at_a_time():
    task = Task()
    bags = make_bags(task, 400, seed=0)
    best = optimum(bags, task)
    from bench.shifted_mean import evaluate

    alone = evaluate(
        bags,
        np.array([float(bag.x[:, 0].max()) for bag in bags]),
        [bag.x[:, 0].double().numpy() for bag in bags],
    )
    assert best["bag_auroc"] > alone["bag_auroc"] + 0.05
    assert best["instance_auroc"] > alone["instance_auroc"] + 0.02


def test_sm_comes_closer_to_the_optimum_than_abmil():
    options = FitOptions(epochs=10, batch_size=16, lr=1e-3)
    task = Task(features=2)
    found = {
        name: measure(name, task, n_train=192, n_test=256, seeds=1, options=options)
        for name in ("bayes", "abmil", "smap_early")
    }
    for key in ("bag_auroc", "instance_auroc"):
        assert found["abmil"][key] < found["smap_early"][key] <= found["bayes"][key]


def test_command_line_prints_the_optimum_first(capsys):
    arguments = ["--methods", "mean_pool", "--train", "8", "--test", "40", "--epochs", "1"]
    assert main([*arguments, "--json"]) == 0
    assert [result["method"] for result in json.loads(capsys.readouterr().out)] == ["bayes", "mean_pool"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["method", "bag_auroc", "instance_auroc"]


def test_impossible_tasks_are_refused():
    with pytest.raises(ValueError, match="window"):
        Task(window=20)
