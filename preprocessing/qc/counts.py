"""Counts of a dataset against those of the published one."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from preprocessing.bags.report import Expected, ListReport, Omitted
from preprocessing.qc.facts import LABELS, BagFacts

# Counts whose names do not consist of split, label and unit.
_PLAIN = {
    "paper_bags": "bags with instances",
    "paper_instances": "instances",
    "table_train": "rows of the list, train",
    "table_val": "rows of the list, validation",
    "table_test": "rows of the list, test",
}


def plain_name(key: str) -> str:
    """Return the name of a count for people: `train_negative` -> "train, negative"."""
    return _PLAIN.get(key, key.replace("_", ", "))


@dataclass(frozen=True)
class Problem:
    """A bag that is not ok."""

    bag_id: str
    state: str
    reason: str


@dataclass(frozen=True)
class Counts:
    """Counts of a dataset against what it is known to hold; the content of `counts.json`.

    Attributes:
        states: state -> bags.
        splits: split_label -> bags.
        median_instances: of the bags that are ok.
        expected: published counts beside those found.
        problems: bags that are not ok.
        missing, excluded, notes: of the report of the list.
        warnings: text -> bags.
        warned: text without its numbers -> names of the bags.
        artefacts: bag -> kind of artefact -> share of its tissue, if there is any.
        not_looked_at: slides in which nobody has looked for artefacts.
        annotation_objects: objects of all annotation files by what became of them, see `AnnotationCounts.numbers`.
        shown: bags with a picture in the sheet.
    """

    dataset: str
    states: dict[str, int]
    splits: dict[str, int] = field(default_factory=dict)
    instances: int = 0
    median_instances: float = 0.0
    expected: list[Expected] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    missing: list[Omitted] = field(default_factory=list)
    excluded: list[Omitted] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: dict[str, int] = field(default_factory=dict)
    warned: dict[str, list[str]] = field(default_factory=dict)
    artefacts: dict[str, dict[str, float]] = field(default_factory=dict)
    not_looked_at: int = 0
    annotation_objects: dict[str, int] = field(default_factory=dict)
    shown: int = 0
    command: str = ""

    @property
    def bags(self) -> int:
        """Number of bags."""
        return sum(self.states.values())

    @property
    def rows(self) -> list[tuple[str, float]]:
        """The table of counts."""
        states = [(f"… {state}", n) for state, n in sorted(self.states.items())]
        splits = [(plain_name(name), n) for name, n in self.splits.items()]
        instances = [("instances", self.instances), ("median per bag", self.median_instances)]
        return [("bags", self.bags), *states, *instances, *splits]

    @property
    def published(self) -> list[tuple[str, int, int | None]]:
        """Published counts beside those of the list, by names for people."""
        return [(plain_name(entry.name), entry.published, entry.counted) for entry in self.expected]

    @property
    def without_instances(self) -> str:
        """States other than ok with their numbers, "" if there are none."""
        return ", ".join(f"{number} {state}" for state, number in sorted(self.states.items()) if state != "ok")


def tally(bags: Sequence[BagFacts]) -> Counter[str]:
    """Count bags, splits, labels and slices by the names that `expected` of a dataset uses."""
    sizes = [bag.n for bag in bags if bag.state == "ok"]
    # A paper counts what it used: bags with instances.
    counts = {"bags": len(bags), "positive": 0, "negative": 0, "paper_bags": len(sizes), "paper_instances": sum(sizes)}
    tallied = Counter(counts)
    for bag in bags:
        label = LABELS[bag.label]
        tallied.update([bag.split, label, f"{bag.split}_{label}"])
        if bag.modality == "ct":
            tallied.update({"slices": bag.n, f"{bag.split}_slices": bag.n})
    return tallied


def compare(published: Mapping[str, int], bags: Sequence[BagFacts]) -> list[Expected]:
    """Return the published counts beside those of the bags."""
    tallied = tally(bags)
    return [Expected(name, number, tallied.get(name)) for name, number in published.items()]


def without_numbers(text: str) -> str:
    """Return a warning with its numbers replaced, by which bags with the same warning are grouped."""
    return re.sub(r"\d[\d.,]*", "…", text)


def count(dataset: str, bags: Sequence[BagFacts], report: ListReport, *, shown: int = 0, command: str = "") -> Counts:
    """Count all bags of a dataset; `shown` and `command` are recorded."""
    sizes = [bag.n for bag in bags if bag.state == "ok"]
    splits = [(name, n) for name, n in sorted(tally(bags).items()) if "_" in name]
    warned: dict[str, list[str]] = {}
    for bag in bags:
        for text in dict.fromkeys(map(without_numbers, bag.warnings)):
            warned.setdefault(text, []).append(bag.bag_id)
    return Counts(
        dataset=dataset,
        states=dict(Counter(bag.state for bag in bags)),
        splits={name: n for name, n in splits if not name.startswith(("_", "paper_"))},
        instances=sum(sizes),
        median_instances=float(median(sizes)) if sizes else 0.0,
        expected=compare(report.expected, bags),
        problems=[Problem(bag.bag_id, bag.state, bag.reason) for bag in bags if bag.state != "ok"],
        missing=report.missing,
        excluded=report.excluded,
        notes=report.notes,
        warnings=dict(Counter(text for bag in bags for text in bag.warnings)),
        warned=warned,
        artefacts={bag.bag_id: {k: v for k, v in bag.artefacts.items() if v} for bag in bags if bag.artefacts},
        not_looked_at=sum(bag.modality == "wsi" and bag.state == "ok" and bag.artefacts is None for bag in bags),
        annotation_objects=dict(sum((Counter(bag.annotation.numbers) for bag in bags), Counter())),
        shown=shown,
        command=command,
    )
