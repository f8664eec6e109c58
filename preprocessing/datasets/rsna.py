"""RSNA 2019 head CT: single-slice files, grouped into scans and put in anatomical order.

Labels per slice from `stage_2_train.csv` (ID, Label; ID = ID_<slice>_<subtype>), `any` = haemorrhage on the slice; a
scan is positive if a slice is. Test part: the 150 scans published with Wu et al. 2021 (CSV with instance_name, bag_name
and optionally instance_label, bag_label, order); the training scans likewise from a list, or sampled. Without a list
all scans are sampled, stratified by label with a fixed seed, and the split is called `sampled`. A patient never stands
on both sides. Patient identifiers become a running index; scans are called by the list's name or by a hash.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.bags.rows import SLICES, BagRow
from preprocessing.datasets.base import (
    BagTable,
    Dataset,
    Report,
    check_options,
    list_files,
    missing_raw,
    option_file,
    option_int,
    read_table,
)
from preprocessing.datasets.rsna_select import Listed, Scan, choose, group_scans, scans_of_list

KIND = "rsna"
TITLE = "RSNA"
SOURCE = (
    "Kaggle competition rsna-intracranial-hemorrhage-detection, about 430 GB unpacked, non-commercial, by hand after "
    "accepting its rules; the list of the 150 test scans from the repositories of Wu et al. 2021 or SA-MIL"
)
LAYOUT = """
stage_2_train.csv (ID, Label)
stage_2_train/ID_*.dcm
optional lists of scans (instance_name, bag_name, order): options `test_list` and `train_list`
"""
EXPECTED = {"bags": 1_150, "train": 1_000, "test": 150, "slices": 39_750, "test_slices": 5_254, "test_positive": 72}
CORRUPT = {"ID_6431af929": "truncated pixel data, known corrupt"}
_OPTIONS = ("test_list", "train_list", "scans", "seed", "test_share")
_LABEL_ID = re.compile(r"(ID_[0-9A-Za-z]+)_([a-z]+)")
_EXACT_COUNT_FILES = 1_000


@dataclass(frozen=True)
class Settings:
    """The options, checked."""

    test: tuple[Listed, ...] | None
    train: tuple[Listed, ...] | None
    scans: int
    seed: int
    test_share: float


def _missing(root: Path, what: str) -> ValueError:
    return missing_raw(root, what, title=TITLE, source=SOURCE, layout=LAYOUT)


def _settings(root: Path, options: dict[str, Any]) -> Settings:
    share = options.get("test_share", 150 / 1150)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"dataset options of {KIND!r}: test_share: found {share!r}, expected a share between 0 and 1")
    test, train = (option_file(KIND, options, key, root) for key in ("test_list", "train_list"))
    if train is not None and test is None:
        raise ValueError(f"dataset options of {KIND!r}: train_list without test_list; give both, or only test_list")
    return Settings(
        test=None if test is None else read_list(test),
        train=None if train is None else read_list(train),
        scans=option_int(KIND, options, "scans", EXPECTED["bags"], 1),
        seed=option_int(KIND, options, "seed", 0, 0),
        test_share=float(share),
    )


def _files(root: Path) -> list[str]:
    names = list_files(root / "stage_2_train", (".dcm",))
    if not names:
        raise _missing(root, "no DICOM file in stage_2_train")
    if not (root / "stage_2_train.csv").is_file():
        raise _missing(root, "no stage_2_train.csv")
    return names


def count(root: Path, options: dict[str, Any]) -> int:
    """Upper bound of the number of scans, without reading a large folder's headers.

    Raises:
        MissingRaw: no DICOM file, or no stage_2_train.csv.
    """
    check_options(KIND, options, _OPTIONS)
    names = _files(root)
    settings = _settings(root, options)
    if settings.test is not None and settings.train is not None:
        return len(settings.test) + len(settings.train)
    bound = settings.scans if settings.test is None else max(settings.scans, len(settings.test))
    if len(names) <= _EXACT_COUNT_FILES:
        scans, _ = group_scans(root / "stage_2_train", names)
        return min(bound, len(scans))
    return bound


def read_list(path: Path) -> tuple[Listed, ...]:
    """Reads a published list of scans.

    Args:
        path: CSV with instance_name (ID_*.dcm), bag_name, and optionally instance_label, bag_label and order (the
            anatomical index of the slice in its scan; either direction).

    Returns:
        Scans in the order of their names, slices sorted by `order` where the column exists.

    Raises:
        ValueError: columns absent, a slice listed twice, an order that is not 0..n-1, or contradictory labels.
    """
    by_bag: dict[str, list[dict[str, str]]] = {}
    seen: set[str] = set()
    for row in read_table(path, ("instance_name", "bag_name")):
        if row["instance_name"] in seen:
            raise ValueError(f"{path}: {row['instance_name']} is listed twice")
        seen.add(row["instance_name"])
        by_bag.setdefault(row["bag_name"], []).append(row)
    scans = []
    for name, rows in sorted(by_bag.items()):
        ordered = "order" in rows[0]
        if ordered:
            try:
                rows = sorted(rows, key=lambda r: int(r["order"]))
            except ValueError:
                raise ValueError(f"{path}: scan {name}: order is not a number everywhere") from None
            if [int(r["order"]) for r in rows] != list(range(len(rows))):
                raise ValueError(f"{path}: scan {name}: order is not 0 to {len(rows) - 1}, each once")
        bag, slices = (({r[key] for r in rows} if key in rows[0] else set()) for key in ("bag_label", "instance_label"))
        if len(bag) > 1 or (bag and slices and bag != {max(slices)}):
            raise ValueError(f"{path}: scan {name}: bag_label {sorted(bag)} contradicts its slices {sorted(slices)}")
        scans.append(Listed(name, tuple(r["instance_name"] for r in rows), ordered, bag.pop() if bag else ""))
    return tuple(scans)


def read_labels(path: Path) -> tuple[dict[str, int], list[str]]:
    """Reads the slice labels.

    Args:
        path: stage_2_train.csv.

    Returns:
        Slice name (ID_...) -> 0 or 1 (`any`), and remarks on duplicate or inconsistent rows.

    Raises:
        ValueError: not this table, or one slice with two different labels.
    """
    any_label: dict[str, int] = {}
    positive: set[str] = set()
    repeated = 0
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        if header[:2] != ["ID", "Label"]:
            raise ValueError(f"{path}: found the columns {header[:5]}, expected ID, Label")
        for row in rows:
            match = _LABEL_ID.fullmatch(row[0]) if len(row) == 2 else None
            if match is None or row[1] not in ("0", "1"):
                raise ValueError(f"{path}, line {rows.line_num}: found {row}, expected ID_<slice>_<subtype>, 0 or 1")
            name, subtype = match.groups()
            if subtype != "any":
                if row[1] == "1":
                    positive.add(name)
            elif name not in any_label:
                any_label[name] = int(row[1])
            elif any_label[name] == int(row[1]):
                repeated += 1
            else:
                raise ValueError(f"{path}, line {rows.line_num}: {name} has two different labels")
    notes = [f"{repeated} slices have duplicate label rows, dropped"] if repeated else []
    odd = sum((name in positive) != bool(label) for name, label in any_label.items())
    return any_label, notes + ([f"{odd} slices: `any` differs from the other subtypes, `any` is used"] if odd else [])


def list_bags(root: Path, options: dict[str, Any]) -> BagTable:
    """Lists scans with labels, split and slice labels in anatomical order.

    Args:
        root: the unpacked competition data.
        options: `test_list`, `train_list` (CSV lists), `scans` (how many in all), `seed`, `test_share` (of `scans`,
            used without a list).

    Raises:
        MissingRaw: no DICOM file or no label table.
        ValueError: an unknown option, a damaged list or label table.
    """
    check_options(KIND, options, _OPTIONS)
    report = Report(EXPECTED)
    names = _usable(_files(root), report)
    settings = _settings(root, options)
    labels, notes = read_labels(root / "stage_2_train.csv")
    report.notes += notes
    test = _listed(settings.test or (), names, report)
    train = _listed(settings.train or (), names, report)
    if settings.test is not None and settings.train is not None:
        # both lists: only their slices' headers are read, not those of the whole competition
        names = sorted({n for scan in (*test, *train) for n in scan.slices})
    scans, broken = group_scans(root / "stage_2_train", names)
    report.excluded.update(broken)
    named_test, named_train = (scans_of_list(part, scans, report) for part in (test, train))
    picked = choose(scans, labels, named_test, named_train, settings, report)
    rows = _rows(root, picked, labels, report)
    if settings.test is None:
        report.notes.append(f"split: sampled (seed {settings.seed}); not the published one")
    elif settings.train is None:
        report.notes.append(f"training scans: sampled (seed {settings.seed}); test scans: the list")
    return BagTable(rows, report.as_dict())


def _usable(names: list[str], report: Report) -> list[str]:
    for name in names:
        if Path(name).stem in CORRUPT:
            report.excluded[name] = CORRUPT[Path(name).stem]
    return [n for n in names if n not in report.excluded]


def _listed(scans: tuple[Listed, ...], names: list[str], report: Report) -> list[Listed]:
    """The listed scans, reduced to slices on disk."""
    there = set(names)
    found = []
    for scan in scans:
        absent = [n for n in scan.slices if n not in there and n not in report.excluded]
        for name in absent:
            report.missing[name] = f"slice of the listed scan {scan.name}, not on disk"
        kept = tuple(n for n in scan.slices if n in there)
        if kept:
            found.append(Listed(scan.name, kept, scan.ordered, scan.label))
        else:
            report.missing[scan.name] = "listed scan, none of its slices is on disk"
    return found


def _rows(root: Path, picked: Mapping[str, tuple[Scan, str]], labels: dict[str, int], report: Report) -> list[BagRow]:
    from preprocessing.scans.dicom import check_series, read_header, slice_order

    patients = sorted({scan.patient for scan, _ in picked.values() if scan.patient})
    index = {patient: f"g{i:05d}" for i, patient in enumerate(patients)}
    rows = []
    for bag_id, (scan, split) in sorted(picked.items()):
        headers = []
        for name in scan.slices:
            try:
                headers.append(read_header(root / "stage_2_train" / name, name))
            except ValueError as error:
                report.excluded[name] = str(error)
        try:
            check_series(headers)
        except ValueError as error:
            report.excluded[bag_id] = str(error)
            continue
        order, _ = slice_order(headers)
        files = [headers[i].name for i in order]
        if scan.order and [n for n in scan.order if n in files] not in (files, files[::-1]):
            report.notes.append(f"{bag_id}: the list's order differs from the slice positions, which are used")
        known = [labels.get(Path(n).stem) for n in files]
        if known.count(None) == len(known):
            report.excluded[bag_id] = "no readable slice of it has a label"
            continue
        label = max(v for v in known if v is not None)
        if scan.label and scan.label != str(label):
            report.notes.append(f"{bag_id}: the list calls the scan {scan.label}, its slices say {label}, used")
        rows.append(
            BagRow(
                bag_id=bag_id,
                modality="ct",
                images=tuple(f"stage_2_train/{n}" for n in files),
                label=label,
                split=split,
                group=index.get(scan.patient, ""),
                annotation=SLICES + "".join("x" if v is None else str(v) for v in known),
                annotation_complete=None not in known,
            )
        )
    return rows


DATASET = Dataset(
    KIND,
    "ct",
    TITLE,
    SOURCE,
    LAYOUT,
    count,
    list_bags,
    EXPECTED,
    released={"graph_rsna_self_loop": {"self_loop": True}},
)
