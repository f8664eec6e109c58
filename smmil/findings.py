"""Say in one sentence per comparison whether Sm helps: `comparisons.json` in, sentences out.

A difference is clear ("better" or "worse") if two kinds of chance are smaller than it: its 95 % interval over the test
bags excludes 0, and its mean over at least three splits exceeds its standard deviation over them. Everything else is
"no clear difference". Methods are compared by instance AUROC, or by bag AUROC where no instance is labelled.

Run alone:
    python -m smmil.findings results/tables/comparisons.json
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Literal

from preprocessing.common.cli import guard
from smmil.artifacts.records import Comparison, ComparisonsFile
from smmil.config.methods import display_name

Verdict = Literal["better", "worse", "no clear difference", "not compared"]
FEWEST_SPLITS = 3
# metric -> (name in sentences, what is done better or worse, the same as a noun); the first that is defined is used
METRICS = {
    "instance_auroc": ("instance AUROC", "localises lesions", "in localising lesions"),
    "bag_auroc": ("bag AUROC", "classifies bags", "in classifying bags"),
}


@dataclass(frozen=True)
class Finding:
    """Outcome of one comparison of a method with Sm (`first`) and its base (`second`).

    `dataset`, `method` and `base` are display names. The means over the splits, their difference and its 95 % interval
    are None where the metric, a key of `METRICS`, is undefined for the given reason. `inverted` counts the runs of both
    with an instance AUROC below 0.5.
    """

    dataset: str
    method: str
    base: str
    metric: str
    first: float | None
    second: float | None
    difference: float | None
    interval: tuple[float, float] | None
    splits: tuple[float, ...]
    inverted: tuple[int, int]
    random_weights: bool
    verdict: Verdict
    reason: str = ""

    @property
    def text(self) -> str:
        """The finding as a plain sentence, with everything that weakens it."""
        name, does, doing = METRICS[self.metric]
        if self.first is None or self.second is None or self.difference is None:
            return f"{self.dataset}: {self.method} and {self.base} cannot be compared by {name}: {self.reason}"
        if self.verdict == "no clear difference":
            outcome = f"no clear difference between {self.method} and {self.base} {doing}"
        else:
            outcome = f"{self.method} {does} {self.verdict} than {self.base}"
        text = (
            f"{self.dataset}: {outcome}: {name} {self.first:.3f} against {self.second:.3f}, "
            f"difference {self.difference:+.3f} ({self._evidence})"
        )
        return "; ".join([text, *self._cautions])

    @property
    def _evidence(self) -> str:
        """Interval, and how many splits agree with the sign of the difference."""
        low, high = self.interval or (0.0, 0.0)
        interval = f"95 % interval {low:+.3f} to {high:+.3f}" if self.interval else "no interval"
        agreeing = sum(value * (self.difference or 0) > 0 for value in self.splits)
        n = len(self.splits)
        splits = "1 split" if n == 1 else f"{agreeing} of {n} splits"
        deviation = (
            f", ± {stdev(self.splits):.3f} over splits" if n > 1 and self.verdict == "no clear difference" else ""
        )
        return f"{interval}; {splits}{deviation}"

    @property
    def _cautions(self) -> list[str]:
        cautions = []
        if len(self.splits) < FEWEST_SPLITS:
            cautions.append(f"fewer than {FEWEST_SPLITS} splits say nothing about the chance of training")
        if any(self.inverted):
            runs = " and ".join(
                f"{count} of {len(self.splits)} runs of {method}"
                for count, method in zip(self.inverted, (self.method, self.base), strict=True)
                if count
            )
            cautions.append(f"inverted (instance AUROC below 0.5): {runs}, which makes the mean hard to interpret")
        if self.random_weights:
            cautions.append("random encoder weights: this only shows that the pipeline runs")
        return cautions


def findings(comparisons: ComparisonsFile) -> tuple[Finding, ...]:
    """Return the finding of every comparison, in the order of the file."""
    return tuple(_finding(comparison, comparisons.titles) for comparison in comparisons.comparisons)


def verdict(difference: float, interval: tuple[float, float] | None, splits: Sequence[float]) -> Verdict:
    """Judge a mean difference by its interval and by the differences of the splits, see the top of this file."""
    unclear = interval is None or interval[0] <= 0 <= interval[1] or len(splits) < FEWEST_SPLITS
    if unclear or abs(difference) <= stdev(splits):
        return "no clear difference"
    return "better" if difference > 0 else "worse"


def _finding(comparison: Comparison, titles: Mapping[str, str]) -> Finding:
    metric = next((name for name in METRICS if comparison.metrics[name].difference is not None), next(iter(METRICS)))
    values = comparison.metrics[metric]
    splits = values.splits or ()
    return Finding(
        dataset=titles.get(comparison.dataset, comparison.dataset),
        method=display_name(comparison.first.method),
        base=display_name(comparison.second.method),
        metric=metric,
        first=values.first,
        second=values.second,
        difference=values.difference,
        interval=values.interval,
        splits=splits,
        inverted=(_inverted(values.first_splits, metric), _inverted(values.second_splits, metric)),
        random_weights=comparison.random_weights,
        verdict="not compared" if values.difference is None else verdict(values.difference, values.interval, splits),
        reason=values.reason,
    )


def _inverted(values: Sequence[float] | None, metric: str) -> int:
    return sum(value < 0.5 for value in values or ()) if metric == "instance_auroc" else 0


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per finding."""
    parser = argparse.ArgumentParser(prog="python -m smmil.findings", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("comparisons", type=Path, help="comparisons.json of the table `comparisons`")
    args = parser.parse_args(argv)
    for finding in findings(ComparisonsFile.read(args.comparisons)):
        print(finding.text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
