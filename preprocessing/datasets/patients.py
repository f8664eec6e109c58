"""Patients of a manifest: their bags share an index, are in one split, and are drawn for the test together.

Names of patients appear in no message.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from preprocessing.bags.rows import BagRow, spelling
from preprocessing.common.csv_files import CsvLine
from preprocessing.datasets.base import Findings

# what programs write where nothing is known
UNKNOWN = frozenset("nan na n/a #n/a none null - ? unknown".split())
SHARE = 0.25
# one for the test, two for training and validation
FEWEST = 3


def patient_groups(lines: Sequence[CsvLine], findings: Findings) -> tuple[dict[int, str], list[str]]:
    """Return line number -> index of the patient, and problems; equal patients may be typed differently."""
    spelled: dict[str, dict[str, int]] = {}
    problems = []
    for line in lines:
        group = line.cells.get("group", "")
        if group.casefold() in UNKNOWN:
            problems.append(f"line {line.number}: group: found {group!r}; leave it empty where the patient is unknown")
        elif group:
            number = re.fullmatch(r"0*(\d+)(\.0*)?", group)
            spelled.setdefault(number[1] if number else spelling(group), {}).setdefault(group, line.number)
    # the names may identify patients, so that the remarks give lines
    findings.notes += [
        f"lines {', '.join(map(str, sorted(names.values())))}: their groups differ only in case, blanks or zeros and "
        "count as one patient"
        for names in spelled.values()
        if len({unicodedata.normalize("NFC", name) for name in names}) > 1
    ]
    index = {name: f"g{i:05d}" for i, key in enumerate(sorted(spelled)) for name in spelled[key]}
    cells = ((line.number, line.cells.get("group", "")) for line in lines)
    return {number: index[group] for number, group in cells if group in index}, problems


def shared_patients(patients: Iterable[Sequence[BagRow]]) -> list[str]:
    """Return one remark per PatientID whose scans are in several splits."""
    return [
        f"{', '.join(sorted(b.bag_id for b in bags))}: one PatientID in different splits; if it is one patient, add a "
        "`group` column"
        for bags in patients
        if len({b.split for b in bags if b.split}) > 1
    ]


@dataclass(frozen=True)
class Labelled:
    """A labelled bag; bags of one patient share a group, "" = a patient of its own."""

    bag_id: str
    label: int
    group: str = ""


def draw_splits(bags: Sequence[Labelled], *, share: float, seed: int) -> Mapping[str, str]:
    """Return bag -> train or test.

    A patient counts as positive if one of its bags is. Of each label, the nearest number of patients to the share is
    drawn, at least one; none where fewer than three have the label. The order of the bags has no effect.
    """
    patients: dict[str, list[Labelled]] = {}
    for bag in bags:
        # a bag_id has no blank
        patients.setdefault(f" {bag.group}" if bag.group else bag.bag_id, []).append(bag)

    def place(patient: Sequence[Labelled]) -> str:
        return hashlib.sha256(f"{seed} {min(bag.bag_id for bag in patient)}".encode()).hexdigest()

    splits = dict.fromkeys((bag.bag_id for bag in bags), "train")
    for label in (0, 1):
        same = sorted((p for p in patients.values() if max(bag.label for bag in p) == label), key=place)
        n_test = max(1, round(share * len(same))) if share and len(same) >= FEWEST else 0
        splits |= {bag.bag_id: "test" for patient in same[:n_test] for bag in patient}
    return splits
