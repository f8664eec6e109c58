"""Cross-validation of any method on a CSV table of bags such as MUSK1: stratified 10-fold, 5 repeats.

In: a table as `smmil.data.csv_table` reads it (bag label, bag id, features; or a header). Out: accuracy at logit > 0,
mean and deviation over all folds, and the mean AUROC of the folds. Features are standardised on the instances of the
training bags; the weights are those of the last epoch; nothing is chosen on test folds.

`ridge_mean`, `ridge_max` and `ridge_mean_max_min` are anchors: logistic regression (L2, lambda = 10) on pooled bags.

    python -m bench.tabular musk1.csv [--methods ridge_mean,abmil] [--graph chain] [--json]

Default methods: ridge_mean, ridge_max, mean_pool, max_pool, abmil, abmil_gated, clam, dsmil, dftd.
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

Floats = npt.NDArray[np.float64]
log = logging.getLogger(__name__)
DEFAULTS = FitOptions(epochs=40, batch_size=8, lr=5e-4, weight_decay=1e-3)
POOLS: dict[str, Callable[[Floats], Floats]] = {
    "ridge_mean": lambda x: x.mean(0),
    "ridge_max": lambda x: x.max(0),
    "ridge_mean_max_min": lambda x: np.concatenate([x.mean(0), x.max(0), x.min(0)]),
}
METHODS = ("mean_pool", "max_pool", "abmil", "abmil_gated", "clam", "dsmil", "dftd")


def fold_logits(method: str, train: "Sequence[Bag]", test: "Sequence[Bag]", options: FitOptions, seed: int) -> Floats:
    """Return the bag logits (B,) of the test fold."""
    if method not in POOLS:
        return predict(fit(method, train, options, seed), test)[0]
    from sklearn.linear_model import LogisticRegression

    x, fresh = (np.stack([POOLS[method](bag.x.double().numpy()) for bag in bags]) for bags in (train, test))
    ridge = LogisticRegression(C=0.1, max_iter=10000).fit(x, [bag.y for bag in train])
    logits: Floats = ridge.decision_function(fresh)
    return logits


@dataclass(frozen=True)
class Result:
    """Mean and deviation of the accuracy and mean AUROC over folds and repeats."""

    method: str
    accuracy: float
    deviation: float
    auroc: float | None


def cross_validate(method: str, bags: "Sequence[Bag]", *, folds: int, repeats: int, options: FitOptions) -> Result:
    """Cross-validate a method.

    Raises:
        ValueError: fewer bags of a class than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    from smmil.data.csv_table import standardise
    from smmil.evaluate.metrics import auroc

    labels = np.array([bag.y for bag in bags])
    classes = np.unique(labels, return_counts=True)[1].tolist()
    if len(classes) < 2 or min(classes) < folds:
        raise ValueError(f"--folds: found {classes} bags per class, expected two classes of >= {folds}")
    accuracies: list[float] = []
    aurocs: list[float | None] = []
    for repeat in range(repeats):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=repeat)
        for number, (fitted, held) in enumerate(splitter.split(labels, labels)):
            scaled = standardise(bags, [bags[i].bag_id for i in fitted])
            train, test = ([scaled[i] for i in rows] for rows in (fitted, held))
            logits = fold_logits(method, train, test, options, 1000 * repeat + number)
            accuracies.append(float(((logits > 0) == (labels[held] == 1)).mean()))
            aurocs.append(auroc(labels[held], logits))
    return Result(method, float(np.mean(accuracies)), float(np.std(accuracies)), mean(aurocs))


def labelled_bags(path: str, graph: str) -> "list[Bag]":
    """Load the labelled bags of the table."""
    from smmil.data.csv_table import load_table

    return [bag for bag in load_table(path, graph=graph) if not np.isnan(bag.y)]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = make_fit_parser("tabular", __doc__, DEFAULTS)
    parser.add_argument("table", help="CSV file")
    parser.add_argument("--graph", default="none", help="declared graph: none or chain (file order)")
    parser.add_argument("--folds", type=int, default=10)
    parser.set_defaults(seeds=5)
    arguments = parser.parse_args(argv)
    import torch

    torch.set_num_threads(arguments.threads)
    requested = None if arguments.methods is None else [name.strip() for name in arguments.methods.split(",")]
    anchors = ["ridge_mean", "ridge_max"] if requested is None else [name for name in requested if name in POOLS]
    models = [name for name in requested or METHODS if name not in POOLS]
    if models:
        chosen_methods(",".join(models), lambda: METHODS)
    bags, options = labelled_bags(arguments.table, arguments.graph), fit_options(arguments)
    results = []
    for name in (*anchors, *models):
        results.append(cross_validate(name, bags, folds=arguments.folds, repeats=arguments.seeds, options=options))
        log.info("%s: accuracy %.3f", name, results[-1].accuracy)
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return 0
    rows = [[r.method, f"{r.accuracy:.3f} +- {r.deviation:.3f}", _text(r.auroc)] for r in results]
    print(text_table(["method", "accuracy", "AUROC"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(guard(main)())
