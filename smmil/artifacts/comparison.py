"""Records of comparisons of two methods, written by `smmil.comparisons` and `smmil.comparison_table`."""

from collections.abc import Mapping

from smmil.artifacts.records import Bootstrap, Record
from smmil.config.training_options import RateChoice


class ComparedMethod(Record):
    """One side of a comparison and the compared runs."""

    encoder: str
    method: str
    protocol: str
    quirks: tuple[str, ...]
    learning_rate_choice: RateChoice = "split"
    runs: tuple[str, ...]


class Difference(Record):
    """Paired difference of a metric, see `smmil.evaluate.comparisons`; None with a `reason` where undefined.

    `first` and `second` are means over the splits, `first_splits` and `second_splits` the values behind them, and
    `splits` the differences.
    """

    first: float | None = None
    second: float | None = None
    difference: float | None = None
    splits: tuple[float, ...] | None = None
    first_splits: tuple[float, ...] | None = None
    second_splits: tuple[float, ...] | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    resamples: int
    reason: str = ""


class Comparison(Record):
    """Two methods compared over the same test bags, by metric."""

    dataset: str
    first: ComparedMethod
    second: ComparedMethod
    seeds: tuple[int, ...]
    metrics: Mapping[str, Difference]
    random_weights: bool
    bootstrap: Bootstrap


class ComparisonsFile(Record):
    """`comparisons.json`: every pair of the table `comparisons` that has predictions; `titles` name the datasets."""

    titles: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
