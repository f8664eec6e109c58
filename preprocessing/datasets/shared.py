"""What bags of a manifest share: a patient, an annotation. Names of patients appear in no message."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from preprocessing.bags.rows import SLICES, BagRow, spelling
from preprocessing.common.csv_files import CsvLine
from preprocessing.datasets.base import Findings

# what programs write where nothing is known
UNKNOWN = frozenset("nan na n/a #n/a none null - ? unknown".split())


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
    # the names may identify patients
    findings.notes += [
        f"lines {', '.join(map(str, sorted(names.values())))}: their groups differ only in case, blanks or zeros and "
        "count as one patient"
        for names in spelled.values()
        if len({unicodedata.normalize("NFC", name) for name in names}) > 1
    ]
    index = {name: f"g{i:05d}" for i, key in enumerate(sorted(spelled)) for name in spelled[key]}
    cells = ((line.number, line.cells.get("group", "")) for line in lines)
    return {number: index[group] for number, group in cells if group in index}, problems


def shared_annotations(rows: Iterable[BagRow]) -> list[str]:
    """Return one remark per annotation file that several bags name."""
    bags: dict[str, list[str]] = {}
    for row in rows:
        if row.annotation and not row.annotation.startswith(SLICES):
            bags.setdefault(row.annotation, []).append(row.bag_id)
    return [f"{', '.join(names)}: one annotation, {name!r}" for name, names in bags.items() if len(names) > 1]


def shared_patients(patients: Iterable[Sequence[BagRow]]) -> list[str]:
    """Return one remark per PatientID whose scans are in several splits."""
    return [
        f"{', '.join(sorted(b.bag_id for b in bags))}: one PatientID in different splits; if it is one patient, add a "
        "`group` column"
        for bags in patients
        if len({b.split for b in bags if b.split}) > 1
    ]
