"""RSNA 2019 head CT: single-slice files, grouped into scans and put in anatomical order.

Slice labels come from `stage_2_train.csv` (ID, Label; ID = ID_<slice>_<subtype>), where `any` means haemorrhage on the
slice. A scan is positive if one of its slices is. The test part is the 150 scans published with Wu et al. 2021 (CSV
with instance_name, bag_name and optionally instance_label, bag_label, order; `snakemake raw` fetches it). The training
scans come from such a list, too, or are sampled: 1,000 more, stratified by label with a fixed seed. Without a test list
all scans are sampled. Tables say what was sampled. All scans of a patient are in one part. A scan with different slices
at one place is excluded. Patient identifiers become an index; scans are named by the list or a hash.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from preprocessing.bags.rows import SLICES, BagRow, printable
from preprocessing.common.csv_files import csv_rows, read_csv
from preprocessing.datasets.base import BagTable, Dataset, Findings, list_files, missing_raw, option_file, parse_options
from preprocessing.datasets.rsna_select import Listed, RsnaOptions, Scan, choose, group_scans, scans_of_list
from preprocessing.scans.dicom import read_header
from preprocessing.scans.series import order_series

KIND = "rsna"
TITLE = "RSNA"
SOURCE = (
    "Kaggle competition rsna-intracranial-hemorrhage-detection, about 430 GB unpacked, non-commercial, by hand after "
    "accepting its rules; the list of the 150 test scans (testing_example.csv) from the repository SA-MIL of Wu et al."
)
LAYOUT = """
stage_2_train.csv (ID, Label)
stage_2_train/ID_*.dcm
testing_example.csv, the published test scans (`snakemake raw` fetches it); other lists (instance_name, bag_name, order)
by the options `test_list` and `train_list`
"""
EXPECTED = {"bags": 1_150, "train": 1_000, "test": 150, "slices": 39_750, "test_slices": 5_254, "test_positive": 72}
CORRUPT = {"ID_6431af929": "truncated pixel data, known corrupt"}
_LABEL_ID = re.compile(r"(ID_[0-9A-Za-z]+)_([a-z]+)")
_EXACT_COUNT_FILES = 1_000


_missing = partial(missing_raw, title=TITLE, source=SOURCE, layout=LAYOUT)


def _read_lists(root: Path, options: RsnaOptions) -> tuple[tuple[Listed, ...] | None, tuple[Listed, ...] | None]:
    """Return the scans of the test and the training list, None without a list."""
    fetch = f"`python -m preprocessing.raw {KIND} --out {root}` fetches the published list"
    advice = f"{fetch}; with `test_list: null` the test scans are sampled"
    test = option_file(KIND, "test_list", options.test_list, root, advice)
    train = option_file(KIND, "train_list", options.train_list, root)
    if train is not None and test is None:
        raise ValueError(f"dataset options of {KIND!r}: train_list without test_list; give both, or only test_list")
    return None if test is None else read_list(test), None if train is None else read_list(train)


def _files(root: Path) -> list[str]:
    names = list_files(root / "stage_2_train", (".dcm",))
    if not names:
        raise _missing(root, "no DICOM file in stage_2_train")
    if not (root / "stage_2_train.csv").is_file():
        raise _missing(root, "no stage_2_train.csv")
    return names


def count(root: Path, options: Mapping[str, object]) -> int:
    """Return an upper bound of the number of scans; the headers of a large folder are not read."""
    parsed = parse_options(KIND, RsnaOptions, options)
    names = _files(root)
    test, train = _read_lists(root, parsed)
    if test is not None and train is not None:
        return len(test) + len(train)
    bound = max(parsed.scans, len(test or ()))
    # a small folder would otherwise be planned in as many shards as the paper's
    if len(names) <= _EXACT_COUNT_FILES:
        bound = min(bound, len(group_scans(root / "stage_2_train", names)[0]))
    return bound


def reads(root: Path, _: Mapping[str, object]) -> list[Path]:
    """Return what the list of scans is made from, besides the files that options name."""
    return [root / "stage_2_train", root / "stage_2_train.csv"]


def read_list(path: Path) -> tuple[Listed, ...]:
    """Read a published list of scans, sorted by name.

    The CSV has the columns instance_name (ID_*.dcm), bag_name, and optionally instance_label, bag_label and order, the
    anatomical index of the slice in its scan in either direction, by which slices are sorted.

    Raises:
        ValueError: columns absent, a slice listed twice, an order that is not 0..n-1, or contradictory labels.
    """
    by_bag: dict[str, list[dict[str, str]]] = {}
    seen: set[str] = set()
    for line in read_csv(path, ("instance_name", "bag_name")):
        row = line.cells
        if row["instance_name"] in seen:
            raise ValueError(f"{path}, line {line.number}: {row['instance_name']} is listed twice")
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
    """Read stage_2_train.csv: slice name (ID_...) -> 0 or 1 (`any`), and remarks on duplicate or inconsistent rows."""
    labels: dict[str, int] = {}
    positive: set[str] = set()
    repeated = 0
    rows = csv_rows(path)
    header = next(rows, (1, []))[1]
    if header[:2] != ["ID", "Label"]:
        raise ValueError(f"{path}: found the columns {header[:5]}, expected ID, Label")
    for number, row in rows:
        match = _LABEL_ID.fullmatch(row[0]) if len(row) == 2 else None
        if match is None or row[1] not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: found {row}, expected ID_<slice>_<subtype>, 0 or 1")
        name, subtype = match.groups()
        if subtype != "any":
            positive |= {name} if row[1] == "1" else set()
            continue
        repeated += name in labels
        if labels.setdefault(name, int(row[1])) != int(row[1]):
            raise ValueError(f"{path}, line {number}: {name} has two different labels")
    differing = sum((name in positive) != bool(label) for name, label in labels.items())
    notes = [f"{repeated} slices have duplicate label rows, dropped"] if repeated else []
    if differing:
        notes.append(f"{differing} slices: `any` differs from the other subtypes, `any` is used")
    return labels, notes


def list_bags(root: Path, options: Mapping[str, object]) -> BagTable:
    """List the scans with labels, split and slice labels in anatomical order."""
    parsed = parse_options(KIND, RsnaOptions, options)
    findings = Findings(EXPECTED)
    names = _files(root)
    corrupt = {n: CORRUPT[Path(n).stem] for n in names if Path(n).stem in CORRUPT}
    foreign = [n for n in names if printable(n) != n]
    findings.excluded |= corrupt | {printable(n): "no file name of this dataset" for n in foreign}
    names = [n for n in names if n not in corrupt and n not in foreign]
    lists = _read_lists(root, parsed)
    labels, notes = read_labels(root / "stage_2_train.csv")
    findings.notes += notes
    test, train = (None if scans is None else _on_disk(scans, names, findings) for scans in lists)
    if test is not None and train is not None:
        # with both lists the headers of the other scans need not be read
        names = sorted({n for scan in (*test, *train) for n in scan.slices})
    scans, broken = group_scans(root / "stage_2_train", names)
    findings.excluded |= broken
    named_test, named_train = (None if p is None else scans_of_list(p, scans, findings) for p in (test, train))
    chosen = choose(scans, labels, named_test, named_train, parsed, findings)
    rows = _rows(root, chosen, labels, findings)
    if test is None:
        findings.notes.append(f"split: sampled (seed {parsed.seed}); not the published one")
    elif train is None:
        findings.notes.append(f"training scans: sampled (seed {parsed.seed}); test scans: the list")
    return findings.table(rows)


def _on_disk(scans: tuple[Listed, ...], names: list[str], findings: Findings) -> list[Listed]:
    """Return the listed scans, reduced to slices on disk."""
    usable = set(names)
    present = []
    for scan in scans:
        slices = tuple(n for n in scan.slices if n in usable)
        absent = {*scan.slices} - usable - {*findings.excluded}
        findings.missing |= dict.fromkeys(absent, f"slice of the listed scan {scan.name}, not on disk")
        if slices:
            present.append(replace(scan, slices=slices))
        else:
            findings.missing[scan.name] = "listed scan, none of its slices is on disk"
    return present


def _rows(
    root: Path, chosen: Mapping[str, tuple[Scan, str]], labels: dict[str, int], findings: Findings
) -> list[BagRow]:
    patients = sorted({scan.patient for scan, _ in chosen.values() if scan.patient})
    groups = {patient: f"g{i:05d}" for i, patient in enumerate(patients)}
    rows = []
    for bag_id, (scan, split) in sorted(chosen.items()):
        headers, paths = [], {name: root / "stage_2_train" / name for name in scan.slices}
        for name in scan.slices:
            try:
                headers.append(read_header(paths[name], name))
            except ValueError as error:
                findings.excluded[name] = str(error)
        try:
            ordered = order_series(headers, paths)
        except ValueError as error:
            findings.excluded[bag_id] = str(error)
            continue
        findings.excluded |= ordered.left_out
        findings.notes += [f"{bag_id}: {remark}" for remark in ordered.remarks]
        files = [header.name for header in ordered.slices]
        if scan.order and [n for n in scan.order if n in files] not in (files, files[::-1]):
            findings.notes.append(f"{bag_id}: the list's order differs from the slice positions, which are used")
        states = [labels.get(Path(n).stem) for n in files]
        known = [state for state in states if state is not None]
        if not known:
            findings.excluded[bag_id] = "no readable slice of it has a label"
            continue
        if scan.label and scan.label != str(max(known)):
            note = f"{bag_id}: the list calls the scan {scan.label}, its slices say {max(known)}, used"
            findings.notes.append(note)
        rows.append(
            BagRow(
                bag_id=bag_id,
                modality="ct",
                images=tuple(f"stage_2_train/{n}" for n in files),
                label=max(known),
                split=split,
                group=groups.get(scan.patient, ""),
                annotation=SLICES + "".join("x" if state is None else str(state) for state in states),
                annotation_complete=None not in states,
                note=ordered.note,
            )
        )
    return rows


def split_note(root: Path, options: Mapping[str, object]) -> str:
    """Say which scans are sampled under these options, for the notes of tables."""
    parsed = parse_options(KIND, RsnaOptions, options)
    sampled = f"are a seeded sample (seed {parsed.seed}, up to {parsed.scans:,} scans in all)"
    if not parsed.test_list:
        return f"all scans, the test scans among them, {sampled}, not the published split"
    if not parsed.train_list:
        listed = Path(parsed.test_list).name
        return f"test scans as listed in {listed}; the training scans, of which no list is published, {sampled}"
    return ""


DATASET = Dataset(
    *(KIND, "ct", TITLE, SOURCE, LAYOUT, count, list_bags, reads, EXPECTED),
    options=RsnaOptions,
    released={"graph_rsna_self_loop": {"self_loop": True}},
    split_note=split_note,
)
