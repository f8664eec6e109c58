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

The training loop is plain (Adam, shuffled batches, last weights), because these tasks are too small for the protocol of
the paper.

    python -m bench.mil_assumption [--methods abmil,max_pool] [--seeds 3]

Default methods: the whole registry.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.timing import text_table
from preprocessing.common.cli import guard

if TYPE_CHECKING:
    from smmil.data.batch import Bag
    from smmil.models import MILModel

LEARNED, CHANCE = 0.6, 0.5
BATCH, LEARNING_RATE = 32, 1e-3
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
    """Make B bags of one test in random order, half of them positive; `y_inst` is 1 for instances of a concept."""
    rng = np.random.default_rng([seed, turned])
    return [_bag(rng, test, i, i % 2 == 1, turned) for i in rng.permutation(n_bags)]


def _bag(rng: Rng, test: str, number: int, positive: bool, turned: bool) -> "Bag":
    import torch

    from preprocessing.instances.graph import chain_neighbors
    from smmil.data.batch import Bag

    parts = TESTS[test](rng, positive, turned)
    x = np.concatenate([rng.normal(centre, width, (count, 16)) for (centre, width), count, _ in parts])
    labels = np.concatenate([np.full(count, label) for _, count, label in parts])
    order = rng.permutation(len(x))
    rows, y_inst = torch.arange(len(x)), torch.from_numpy(np.asarray(labels[order], np.int64))
    return Bag(
        bag_id=f"{test}{number}",
        x=torch.from_numpy(np.asarray(x[order], np.float32)),
        neighbors=torch.from_numpy(chain_neighbors(len(x)).astype(np.int64)),
        grid=torch.stack([rows, torch.zeros_like(rows)], 1),
        coords=rows[:, None].float(),
        y=float(positive),
        y_inst=y_inst,
        coverage=y_inst.float(),
    )


def verdict(straight: float, turned: float) -> str:
    """Return the verdict of the two AUROCs, see the module docstring."""
    if straight < LEARNED:
        return "not learned"
    return "passes" if turned > CHANCE else "violates"


def fit(method: str, bags: "Sequence[Bag]", epochs: int, seed: int) -> "MILModel":
    """Train a method on labelled bags; return it in evaluation mode."""
    import torch

    from smmil.data.batch import pack
    from smmil.models import build_model

    torch.manual_seed(seed)
    model = build_model(method, bags[0].x.shape[1]).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        order = torch.randperm(len(bags)).tolist()
        for start in range(0, len(bags), BATCH):
            batch = pack([bags[i] for i in order[start : start + BATCH]])
            optimiser.zero_grad()
            torch.autograd.backward(list(model.loss(batch, model(batch)).values()))
            optimiser.step()
    return model.eval()


def auroc_of(model: "MILModel", bags: "Sequence[Bag]") -> float:
    """Score bags of both classes and return the AUROC."""
    from smmil.data.batch import pack
    from smmil.evaluate.metrics import auroc

    # no torch.no_grad(): GraphCAM scores need gradients of the forward pass
    logits = [model(pack(bags[i : i + BATCH])).bag_logit.detach().double().numpy() for i in range(0, len(bags), BATCH)]
    area = auroc(np.array([bag.y for bag in bags]), np.concatenate(logits))
    assert area is not None
    return area


def measure(method: str, test: str, *, n_bags: int, seeds: int, epochs: int) -> tuple[float, float]:
    """Train one method on one test; return the mean AUROC on fresh bags of the training and of the turned kind."""
    aurocs = []
    for seed in range(seeds):
        model = fit(method, make_bags(test, n_bags, turned=False, seed=seed), epochs, seed)
        fresh = (make_bags(test, n_bags, turned=turned, seed=1000 + seed) for turned in (False, True))
        aurocs.append([auroc_of(model, bags) for bags in fresh])
    straight, turned = np.mean(aurocs, axis=0).tolist()
    return straight, turned


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.mil_assumption", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", help="comma-separated registry keys (default: all)")
    parser.add_argument("--tests", default=",".join(TESTS), help="comma-separated (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions; the mean is shown")
    parser.add_argument("--bags", type=int, default=256, help="training bags, and bags of each kind to test")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args(argv)
    tests = arguments.tests.split(",")
    if set(tests) - set(TESTS):
        raise ValueError(f"--tests: found {arguments.tests}, expected some of {', '.join(TESTS)}")
    import torch

    from smmil.config.methods import METHODS, known_methods

    torch.set_num_threads(1)
    methods = sorted(METHODS) if arguments.methods is None else arguments.methods.split(",")
    known_methods(methods)
    lines = [["method", *tests]]
    for method in methods:
        lines.append([method])
        for test in tests:
            aurocs = measure(method, test, n_bags=arguments.bags, seeds=arguments.seeds, epochs=arguments.epochs)
            lines[-1].append(f"{verdict(*aurocs)} ({aurocs[0]:.2f} / {aurocs[1]:.2f})")
    print(text_table(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
