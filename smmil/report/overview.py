"""The first screen of the report: what was run, what came out in words and one plot, and what to be careful about."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean, median

from preprocessing.features.encoders import encoder_title
from preprocessing.qc.counts import Counts, without_numbers
from preprocessing.status import Status
from smmil.artifacts.records import Metrics
from smmil.artifacts.results import inverted, split_values
from smmil.config.layouts import TableLayout
from smmil.config.methods import METHODS, display_name
from smmil.figures.job import in_order
from smmil.findings import METRICS, Finding

WIDTH, ROW, LEFT, RIGHT, TOP = 520, 22, 105, 190, 6
# shares of an axis: steps between ticks are 1, 2 or 5 times a power of ten
STEPS = (1, 2, 5, 10)
FEWEST_SPLITS = 3
# longer lists of names are cut
MOST_NAMES = 5


@dataclass(frozen=True)
class Mark:
    """One row of a plot: `runs` are drawn as rings, `text` stands right of it, `look` is a class of the stylesheet."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    runs: Sequence[float] = ()
    text: str = ""
    look: str = ""


@dataclass(frozen=True)
class Forest:
    """A forest plot: values with their 95 % intervals, a row each, in groups; a dashed line marks the reference.

    The page draws it as inline SVG, whose colours come from the stylesheet, so that it is legible in light and dark.
    """

    groups: Mapping[str, Sequence[Mark]]
    axis: str
    reference: float

    @property
    def height(self) -> int:
        """Height of the drawing, in its own units."""
        return TOP + ROW * (sum(map(len, self.groups.values())) + len(self.groups)) + 42

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis: around all values, intervals and the reference."""
        marks = list(chain.from_iterable(self.groups.values()))
        values = [self.reference, *chain.from_iterable((m.value, *m.runs, *(m.interval or ())) for m in marks)]
        margin = 0.04 * (max(values) - min(values) or 1.0)
        return min(values) - margin, max(values) + margin

    def x(self, value: float) -> float:
        """Return the place of a value on the axis."""
        low, high = self.limits
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    @property
    def ticks(self) -> list[float]:
        """Three to seven round numbers on the axis."""
        low, high = self.limits
        power = 10.0 ** math.floor(math.log10((high - low) / 3))
        step = max(factor * power for factor in STEPS if (high - low) / (factor * power) >= 2.5)
        return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Statement:
    """A sentence of the first screen; `verdict` is a class of the stylesheet."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Overview:
    """The first screen: what was run, what came out in words, in full and as a plot, and what to be careful about."""

    lead: str
    statements: Sequence[Statement]
    details: Sequence[str]
    plot: Forest | None
    care: Sequence[str]


def overview(
    layout: TableLayout,
    metrics: Sequence[Metrics],
    findings: Sequence[Finding],
    counts: Sequence[Counts],
    status: Sequence[Status],
    warnings: Sequence[str],
) -> Overview:
    """Assemble the first screen; without outcomes of comparisons, the methods themselves are shown."""
    compared = [finding for finding in findings if finding.difference is not None]
    statements, plot = _compared(compared) if compared else _scored(layout, metrics)
    return Overview(
        lead(layout, metrics, counts),
        statements,
        [f"{finding.text}." for finding in findings],
        plot,
        [*warnings, *cautions(metrics, counts, status, {d.name: d.title for d in layout.datasets})],
    )


def lead(layout: TableLayout, metrics: Sequence[Metrics], counts: Iterable[Counts]) -> str:
    """Return in two sentences what was run on what."""
    bags = {cohort.dataset: cohort.bags for cohort in counts}
    tests = {m.dataset: m.splits[0].test.n_bags for m in metrics if m.splits}
    names = []
    for dataset in layout.datasets:
        known = [f"{bags[dataset.name]} bags"] if dataset.name in bags else []
        known += [f"{tests[dataset.name]} for test"] if dataset.name in tests else []
        names.append(dataset.title + (f" ({', '.join(known)})" if known else ""))
    methods = [display_name(method) for method in METHODS if method in layout.methods]
    splits = len({split.seed for entry in metrics for split in entry.splits})
    encoders = dict.fromkeys(encoder_title(encoder) for d in layout.datasets for encoder in d.encoders)
    what = f"{enumerate_names(methods)} on {enumerate_names(names)}" if methods and names else "Nothing was trained"
    runs = f", {splits} training split{'s' * (splits > 1)} each" if splits else ""
    features = f" Features: {enumerate_names(list(encoders))}." if encoders else ""
    return f"{what}{runs}.{features}"


def enumerate_names(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _compared(findings: Sequence[Finding]) -> tuple[list[Statement], Forest]:
    """Return a sentence per method with Sm and its base, over all datasets, and the plot of the differences."""
    pairs: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        pairs.setdefault((finding.method, finding.base), []).append(finding)
    statements = []
    for (method, base), members in pairs.items():
        outcomes: dict[tuple[str, str], list[str]] = {}
        for finding in sorted(members, key=lambda member: member.verdict == "no clear difference"):
            outcomes.setdefault((finding.verdict, finding.metric), []).append(finding.dataset)
        parts = [
            f"no clear difference {METRICS[metric][2]} on {enumerate_names(titles)}"
            if verdict == "no clear difference"
            else f"{METRICS[metric][1]} {verdict} than {base} on {enumerate_names(titles)}"
            for (verdict, metric), titles in outcomes.items()
        ]
        clear = {finding.verdict for finding in members} - {"no clear difference"}
        subject = f"{method} " if clear else f"{method} and {base}: "
        statements.append(Statement(f"{subject}{'; '.join(parts)}.", clear.pop() if len(clear) == 1 else ""))
    names = dict.fromkeys(METRICS[finding.metric][0] for finding in findings)
    groups = {f"{m} − {b}": [_difference(f, several=len(names) > 1) for f in members]
              for (m, b), members in pairs.items()}  # fmt: skip
    return statements, Forest(groups, f"Difference in {' or '.join(names)} (right: better with Sm)", 0.0)


def _difference(finding: Finding, *, several: bool) -> Mark:
    assert finding.difference is not None
    numbers = f"{finding.difference:+.3f}"
    if finding.interval:
        numbers += " ({:+.3f} to {:+.3f})".format(*finding.interval)
    label = finding.dataset + (f", {METRICS[finding.metric][0]}" if several else "")
    look = finding.verdict if finding.verdict in ("better", "worse") else ""
    return Mark(label, finding.difference, finding.interval, finding.splits, numbers, look)


def _scored(layout: TableLayout, metrics: Sequence[Metrics]) -> tuple[list[Statement], Forest | None]:
    """Return the best method of every dataset by bag AUROC, and the plot of all of them."""
    statements, groups = [], dict[str, list[Mark]]()
    for dataset in layout.datasets:
        rows = {m.method: m for m in metrics if (m.dataset, m.encoder) == (dataset.name, dataset.encoders[0])}
        marks = {}
        for method in in_order(list(rows)):
            values = [value for _, value in split_values(rows[method], "bag_auroc")]
            if values:
                ends = bootstrap.intervals.get("bag_auroc") if (bootstrap := rows[method].bootstrap) else None
                text = f"{mean(values):.3f}" + (" ({:.3f} to {:.3f})".format(*ends) if ends else "")
                marks[method] = Mark(display_name(method), mean(values), ends, values, text)
        if marks:
            best = max(marks, key=lambda method: marks[method].value)
            test = rows[best].splits[0].test
            equal = [mark.label for mark in marks.values() if mark.value == marks[best].value]
            what = "bag AUROC" if len(marks) == 1 else "the highest bag AUROC"
            # the intervals of equal means differ
            numbers = (
                marks[best].text.replace("(", "(95 % interval ") if len(equal) == 1 else f"{marks[best].value:.3f}"
            )
            bags = f"over {test.n_bags} test bags, {test.n_positive_bags} of them positive"
            has = "has" if len(equal) == 1 else "have"
            statements.append(Statement(f"{dataset.title}: {enumerate_names(equal)} {has} {what}, {numbers} {bags}."))
            groups[dataset.title] = list(marks.values())
    return statements, Forest(groups, "Bag AUROC", 0.5) if groups else None


def cautions(
    metrics: Sequence[Metrics], counts: Sequence[Counts], status: Sequence[Status], titles: Mapping[str, str]
) -> list[str]:
    """Return what a reader must know before any number, with names.

    Random encoders, small cohorts, few splits, failed bags, inverted runs and bags that preprocessing warns of.
    """

    def title(name: str) -> str:
        return titles.get(name, name)

    random = dict.fromkeys(title(entry.dataset) for entry in metrics if entry.random_weights)
    small = []
    for cohort in counts:
        # a custom dataset was published nowhere
        published = next((entry.published for entry in cohort.expected if entry.name == "bags"), 0)
        if cohort.bags < published / 2:
            small.append(f"{title(cohort.dataset)} ({cohort.bags} of {published} bags)")
    splits = {entry.dataset: len(entry.splits) for entry in metrics}
    areas = {entry.method: list[str]() for entry in metrics}
    for entry in metrics:
        pairs = split_values(entry, "instance_auroc")
        if n := len(inverted(pairs)):
            areas[entry.method].append(f"{title(entry.dataset)} {n} of {len(pairs)}")
    turned = [f"{display_name(method)} ({', '.join(areas[method])})" for method in in_order([*areas]) if areas[method]]
    failed = [f"{p.bag_id} ({p.reason})" for record in status for p in record.problems if p.state == "failed"]
    failed = list(dict.fromkeys(failed)) or [
        f"{problem.bag_id} ({problem.reason})"
        for cohort in counts
        for problem in cohort.problems
        if problem.state == "failed"
    ]
    odd: dict[str, dict[str, None]] = {}
    for warning in (warning for record in status for warning in record.warnings):
        odd.setdefault(without_numbers(warning.warning), {})[warning.bag_id] = None
    lines = {
        "Random encoder weights, so the numbers only show that the pipeline runs": list(random),
        "Small cohorts, far from the published datasets": small,
        "Failed bags, missing from every number": failed,
        "Inverted runs, whose scores point away from the lesions (instance AUROC below 0.5)": turned,
        "Bags to look at": [f"{text} ({_first(list(bags), ', ')})" for text, bags in odd.items()],
    }
    texts = [f"{text}: {_first(names)}." for text, names in lines.items() if names]
    if splits and median(splits.values()) < FEWEST_SPLITS:
        texts.append(f"Fewer than {FEWEST_SPLITS} splits: the spread says nothing about the chance of training.")
    return texts


def _first(names: Sequence[str], separator: str = "; ") -> str:
    more = [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return separator.join([*names[:MOST_NAMES], *more])
