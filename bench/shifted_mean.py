"""The shifted-mean task of Harvey et al. (ML4H 2025, arXiv 2510.25759): a spatial signal with a known optimum.

A bag is a chain of S instances, S uniform in 15..45, features N(0, 1) (N,M). In a positive bag, R neighbouring
instances have their first K features shifted by delta; where they start is uniform. One instance tells little,
neighbours together tell much. The best possible scores follow from Bayes' rule, with the window's log-likelihood ratio

    l_u = sum over j in u..u+R-1, k < K of (delta h_jk - delta^2 / 2):

    log odds of the bag = logsumexp_u l_u - log(S - R + 1) + prior log odds,
    P(y_j = 1 | h) = P(Y = 1 | h) sum over windows u that hold j of softmax_u(l).

    python -m bench.shifted_mean [--methods abmil,smap_early] [--delta 2] [--features 16] [--json]

Default methods: ABMIL, SmAP, SmTAP, the transformer and the graph methods of the registry, and the pooling rows.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.fitting import FitOptions, add_fit_arguments, chosen_methods, fit, fit_options, mean, predict, text_table
from bench.mil_assumption import chain_bag
from preprocessing.cli import guard

if TYPE_CHECKING:
    from smmil.data import Bag

Floats = npt.NDArray[np.float64]
log = logging.getLogger(__name__)
DEFAULTS = FitOptions(epochs=20, batch_size=32, lr=3e-4)
METHODS = (
    *("mean_pool", "max_pool", "abmil", "smap_early", "smap_mid", "smap_late", "t_ap", "smtap"),
    *("deepgraphsurv", "pathgcn", "camil", "gtp", "transmil"),
)


@dataclass(frozen=True)
class Task:
    """Parameters of the task.

    Attributes:
        window: R, shifted instances.
        shortest: smallest S.
        longest: largest S.
        shifted: K, shifted features.
        features: M.
        delta: shift, in deviations.
    """

    window: int = 3
    shortest: int = 15
    longest: int = 45
    shifted: int = 1
    features: int = 16
    delta: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.window <= self.shortest <= self.longest or not 1 <= self.shifted <= self.features:
            raise ValueError(f"found {self}, expected 1 <= window <= shortest <= longest, 1 <= shifted <= features")


def make_bags(task: Task, n_bags: int, seed: int) -> "list[Bag]":
    """Bags of the task, each positive with probability 1/2; `y_inst` marks the shifted instances."""
    rng = np.random.default_rng(seed)
    bags = []
    for i in range(n_bags):
        size = int(rng.integers(task.shortest, task.longest + 1))
        x, labels = rng.standard_normal((size, task.features)), np.zeros(size, np.int64)
        positive = bool(rng.integers(2))
        start = int(rng.integers(size - task.window + 1))
        if positive:
            labels[start : start + task.window] = 1
            x[start : start + task.window, : task.shifted] += task.delta
        bags.append(chain_bag(f"shifted{i}", x, labels, positive))
    return bags


def bayes_scores(x: Floats, task: Task) -> tuple[float, Floats]:
    """The optimal scores of one bag, for even prior odds.

    Args:
        x: (S,M) features.
        task: the task's parameters.

    Returns:
        Log odds of the bag, and P(y_j = 1 | h) (S,) of the instances.
    """
    each = (task.delta * x[:, : task.shifted] - task.delta**2 / 2).sum(1)
    sums = np.concatenate([[0.0], each.cumsum()])
    windows = sums[task.window :] - sums[: -task.window]
    top = windows.max()
    raised = np.exp(windows - top)
    odds = float(top + np.log(raised.mean()))
    share = np.convolve(raised / raised.sum(), np.ones(task.window))
    return odds, share / (1 + np.exp(-odds))


def evaluate(bags: "Sequence[Bag]", logits: Floats, scores: Sequence[Floats]) -> dict[str, float | None]:
    """{"bag_auroc", "instance_auroc"}, the latter over the instances of all bags."""
    from smmil.metrics import auroc

    labels = np.concatenate([bag.y_inst.numpy() for bag in bags])
    bag = auroc(np.array([bag.y for bag in bags]), logits)
    return {"bag_auroc": bag, "instance_auroc": auroc(labels, np.concatenate(list(scores)))}


def optimum(bags: "Sequence[Bag]", task: Task) -> dict[str, float | None]:
    """What the best possible scores reach on these bags."""
    found = [bayes_scores(bag.x.double().numpy(), task) for bag in bags]
    return evaluate(bags, np.array([odds for odds, _ in found]), [posterior for _, posterior in found])


def measure(method: str, task: Task, *, n_train: int, n_test: int, seeds: int, options: FitOptions) -> dict[str, Any]:
    """Trains one method, or takes the optimum for the name `bayes`; AUROCs are means over the seeds."""
    found = []
    for seed in range(seeds):
        test = make_bags(task, n_test, 1000 + seed)
        if method == "bayes":
            found.append(optimum(test, task))
        else:
            found.append(evaluate(test, *predict(fit(method, make_bags(task, n_train, seed), options, seed), test)))
    return {"method": method, **{key: mean([result[key] for result in found]) for key in found[0]}}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.shifted_mean", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--delta", type=float, default=Task.delta, help="shift, in deviations")
    parser.add_argument("--features", type=int, default=Task.features, help="M")
    parser.add_argument("--window", type=int, default=Task.window, help="R")
    parser.add_argument("--train", type=int, default=800, help="training bags")
    parser.add_argument("--test", type=int, default=800, help="test bags")
    add_fit_arguments(parser, DEFAULTS)
    arguments = parser.parse_args(argv)
    import torch

    from smmil.models import MODELS

    torch.set_num_threads(arguments.threads)
    task = Task(window=arguments.window, features=arguments.features, delta=arguments.delta)
    methods = chosen_methods(arguments.methods, lambda: [name for name in METHODS if name in MODELS])
    sizes = {"n_train": arguments.train, "n_test": arguments.test, "seeds": arguments.seeds}
    results = []
    for name in ("bayes", *methods):
        results.append(measure(name, task, options=fit_options(arguments), **sizes))
        log.info("%s: bag AUROC %s", name, results[-1]["bag_auroc"])
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        keys = ("bag_auroc", "instance_auroc")
        rows = [[r["method"], *("-" if r[key] is None else f"{r[key]:.3f}" for key in keys)] for r in results]
        print(text_table(["method", *keys], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
