"""Test whether methods respect the MIL assumption: the algorithmic unit tests of Raff and Holt (NeurIPS 2023).

Three synthetic tasks of B bags, x (N,D). In each, training offers a shortcut that no MIL-respecting model may take (a
bag is positive because of what it holds, never because of what it lacks or how often), and testing turns it round:

| test | positive bags hold | negative bags hold | shortcut in training | in testing |
|---|---|---|---|---|
| single | 1-3 of N(0, 3) or N(1, 1) | background | poison N(-10, 0.1) in each negative bag | in each positive |
| multi | 1-3 of N(2, 0.1), as many of N(3, 0.1) | one of the two, once | the same poison | in each positive |
| frequency | 1-2 of each of both | one of the two, 1-2 times | fewer of them in negative bags | 35-45 times |

Background: N(0, 1), 10 (single) or 1-9 (multi, frequency) per bag. Numbers are deviations, the same in every feature.
Instances stand in random order; graph methods get the chain of that order.

Verdict, by AUROC on fresh bags of the training kind and of the turned kind: `not learned` below 0.6 on the training
kind; else `violates` up to 0.5 on the turned kind; else `passes`. Passing is necessary, not sufficient.

    python -m bench.mil_assumption [--methods abmil,max_pool] [--seeds 3] [--json]

Default methods: the whole registry.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bench.fitting import FitOptions, chosen_methods, fit, fit_options, make_fit_parser, mean, predict, text_table
from preprocessing.common.cli import guard

if TYPE_CHECKING:
    from smmil.data.batch import Bag

LEARNED, CHANCE = 0.6, 0.5
log = logging.getLogger(__name__)
DEFAULTS = FitOptions(epochs=30, batch_size=32, lr=1e-3)
Rng = np.random.Generator
# (mean, standard deviation) of an instance.
BACKGROUND, POISON = (0.0, 1.0), (-10.0, 0.1)
SINGLE_CONCEPT = ((0.0, 3.0), (1.0, 1.0))
TWO_CONCEPTS = ((2.0, 0.1), (3.0, 0.1))
Parts = list[tuple[tuple[float, float], int, int]]


def single(rng: Rng, positive: bool, turned: bool) -> Parts:
    """Use one concept of two shapes; the poison marks the other class in training."""
    parts: Parts = [(BACKGROUND, 10, 0)]
    if positive:
        parts += [(SINGLE_CONCEPT[rng.integers(2)], 1, 1) for _ in range(rng.integers(1, 4))]
    return parts + ([(POISON, 1, 0)] if positive == turned else [])


def multi(rng: Rng, positive: bool, turned: bool) -> Parts:
    """Require both concepts, one is not enough; the poison as in `single`."""
    parts: Parts = [(BACKGROUND, int(rng.integers(1, 10)), 0)]
    if positive:
        count = int(rng.integers(1, 4))
        parts += [(concept, count, 1) for concept in TWO_CONCEPTS]
    else:
        parts.append((TWO_CONCEPTS[rng.integers(2)], 1, 1))
    return parts + ([(POISON, 1, 0)] if positive == turned else [])


def frequency(rng: Rng, positive: bool, turned: bool) -> Parts:
    """Require both concepts; one is not enough, however often."""
    parts: Parts = [(BACKGROUND, int(rng.integers(1, 10)), 0)]
    if positive:
        return parts + [(concept, int(rng.integers(1, 3)), 1) for concept in TWO_CONCEPTS]
    count = rng.integers(35, 46) if turned else rng.integers(1, 3)
    return [*parts, (TWO_CONCEPTS[rng.integers(2)], int(count), 1)]


TESTS: dict[str, Callable[[Rng, bool, bool], Parts]] = {"single": single, "multi": multi, "frequency": frequency}


def make_bags(test: str, n_bags: int, *, turned: bool, seed: int) -> "list[Bag]":
    """Make the bags of one test, half of them positive.

    Args:
        test: a key of `TESTS`.
        n_bags: B.
        turned: False = with the shortcut of training, True = turned round.
        seed: of the generator.

    Returns:
        Bags in random order; `y_inst` is 1 for instances of a concept.
    """
    rng = np.random.default_rng([seed, turned])
    return [_bag(rng, test, i, i % 2 == 1, turned) for i in rng.permutation(n_bags)]


def _bag(rng: Rng, test: str, number: int, positive: bool, turned: bool) -> "Bag":
    parts = TESTS[test](rng, positive, turned)
    x = np.concatenate([rng.normal(centre, width, (count, 16)) for (centre, width), count, _ in parts])
    labels = np.concatenate([np.full(count, label) for _, count, label in parts])
    order = rng.permutation(len(x))
    return chain_bag(f"{test}{number}", x[order], labels[order], positive)


def chain_bag(bag_id: str, x: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], positive: bool) -> "Bag":
    """Make a bag (N,D) whose instances form a chain."""
    import torch

    from preprocessing.instances.graph import chain_neighbors
    from smmil.data.batch import Bag

    n = len(x)
    rows = torch.arange(n)
    y_inst = torch.from_numpy(np.asarray(labels, np.int64))
    return Bag(
        bag_id=bag_id,
        x=torch.from_numpy(np.asarray(x, np.float32)),
        neighbors=torch.from_numpy(chain_neighbors(n).astype(np.int64)),
        grid=torch.stack([rows, torch.zeros_like(rows)], 1),
        coords=rows[:, None].float(),
        y=float(positive),
        y_inst=y_inst,
        coverage=y_inst.float(),
    )


def verdict(straight: float | None, turned: float | None) -> str:
    """Return the verdict of the two AUROCs, see the module docstring."""
    if straight is None or turned is None or straight < LEARNED:
        return "not learned"
    return "passes" if turned > CHANCE else "violates"


@dataclass(frozen=True)
class Result:
    """A method on a test: verdict, and the mean AUROC over seeds on bags of the training and of the turned kind."""

    method: str
    test: str
    auroc: float | None
    auroc_turned: float | None
    verdict: str

    def cell(self) -> str:
        """Format verdict and both AUROCs."""
        numbers = " / ".join("-" if value is None else f"{value:.2f}" for value in (self.auroc, self.auroc_turned))
        return f"{self.verdict} ({numbers})"


def measure(method: str, test: str, *, n_bags: int, seeds: int, options: FitOptions) -> Result:
    """Train one method on one test and score fresh bags of both kinds."""
    from smmil.evaluate.metrics import auroc

    aurocs: list[tuple[float | None, float | None]] = []
    for seed in range(seeds):
        model = fit(method, make_bags(test, n_bags, turned=False, seed=seed), options, seed)
        fresh = [make_bags(test, n_bags, turned=turned, seed=1000 + seed) for turned in (False, True)]
        straight, reverse = (auroc(np.array([b.y for b in bags]), predict(model, bags)[0]) for bags in fresh)
        aurocs.append((straight, reverse))
    straight, reverse = mean([a for a, _ in aurocs]), mean([b for _, b in aurocs])
    return Result(method, test, straight, reverse, verdict(straight, reverse))


def as_table(results: Sequence[Result]) -> str:
    """Format one line per method: verdict and both AUROCs of every test."""
    tests = list(dict.fromkeys(result.test for result in results))
    cells = {(result.method, result.test): result.cell() for result in results}
    methods = dict.fromkeys(result.method for result in results)
    return text_table(["method", *tests], [[method, *(cells[method, test] for test in tests)] for method in methods])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = make_fit_parser("mil_assumption", __doc__, DEFAULTS)
    parser.add_argument("--tests", default=",".join(TESTS), help="comma-separated (default: all)")
    parser.add_argument("--bags", type=int, default=256, help="training bags, and bags of each kind to test")
    arguments = parser.parse_args(argv)
    tests = arguments.tests.split(",")
    if set(tests) - set(TESTS):
        raise ValueError(f"--tests: found {arguments.tests}, expected some of {', '.join(TESTS)}")
    import torch

    from smmil.config.methods import METHODS

    torch.set_num_threads(arguments.threads)
    methods = chosen_methods(arguments.methods, lambda: sorted(METHODS))
    options = fit_options(arguments)
    results = []
    for method in methods:
        for test in tests:
            results.append(measure(method, test, n_bags=arguments.bags, seeds=arguments.seeds, options=options))
            log.info("%s, %s: %s", method, test, results[-1].verdict)
    print(json.dumps([asdict(result) for result in results], indent=1) if arguments.json else as_table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
