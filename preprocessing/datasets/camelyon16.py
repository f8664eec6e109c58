"""CAMELYON16: 399 lymph-node slides, from either published folder layout.

Counts, exclusions and partly annotated slides: the README of the data (CAMELYON16 folder of the open-data bucket, and
GigaDB 100439) and the challenge's announcements. Labels of the training slides come from their names, those of the test
slides from `reference.csv` (no header: file name, Normal or Tumor, lesion type, lesion size). Annotations are ASAP XML.
"""

import csv
import re
from pathlib import Path
from typing import Any

from preprocessing.bags.rows import BagRow
from preprocessing.datasets.base import (
    BagTable,
    Dataset,
    Report,
    check_options,
    find_below,
    list_files,
    missing_raw,
    option_file,
)

KIND = "camelyon16"
TITLE = "CAMELYON16"
SOURCE = (
    "CAMELYON16 challenge, open data (CC0), about 700 GB: `python -m preprocessing.raw camelyon16 --out DIR`, "
    "bucket camelyon-dataset (us-west-2, anonymous), or GigaDB data set 100439"
)
LAYOUT = """
images/{normal_001..160,tumor_001..111,test_001..130}.tif, annotations/*.xml, reference.csv or evaluation/reference.csv
or, as GigaDB has it:
training/normal/*.tif, training/tumor/*.tif, training/lesion_annotations/*.xml (unpacked)
testing/images/*.tif, testing/lesion_annotations/*.xml (unpacked), testing/reference.csv
"""
EXPECTED = {"bags": 399, "train_negative": 159, "train_positive": 111, "test_negative": 80, "test_positive": 49}

# README of the data: these slides carry tumour outside the drawn outlines (two of them are blurred as well).
PARTLY_ANNOTATED = frozenset(
    f"tumor_{n:03d}" for n in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
) | {"test_114"}
BLURRED = frozenset({"tumor_079", "tumor_092"})
EXCLUDED = {
    "normal_086": "contains tumour; distributed again as tumor_111 (README of the data)",
    "test_049": "duplicate of another slide, withdrawn by the challenge (README of the data)",
}
REMARKS = {"normal_144": "said to be mislabelled (arXiv 1703.02442); exclude it with the option `exclude`"}

_NAME = re.compile(r"(normal|tumor|test)_(\d{3})")
_LAST = {"normal": 160, "tumor": 111, "test": 130}
_SLIDES = (("images",), ("training", "normal"), ("training", "tumor"), ("testing", "images"))
_XML = (
    ("annotations",),
    ("training", "lesion_annotations"),
    ("testing", "lesion_annotations"),
    ("lesion_annotations",),
)
_REFERENCES = (("reference.csv",), ("testing", "reference.csv"), ("evaluation", "reference.csv"))


def _missing(root: Path, what: str) -> ValueError:
    return missing_raw(root, what, title=TITLE, source=SOURCE, layout=LAYOUT)


def _index(root: Path, folders: tuple[tuple[str, ...], ...], suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Slide name in lower case -> paths relative to the root, over all folders that exist."""
    found: dict[str, list[str]] = {}
    for parts in folders:
        folder = find_below(root, *parts)
        for name in list_files(folder, suffixes) if folder else []:
            assert folder is not None
            found.setdefault(Path(name).stem.lower(), []).append((folder / name).relative_to(root).as_posix())
    return found


def _slides(root: Path) -> dict[str, list[str]]:
    slides = _index(root, _SLIDES, (".tif", ".tiff"))
    if not slides:
        raise _missing(root, "no slide found")
    return slides


def _known(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return bool(match) and 1 <= int(name[-3:]) <= _LAST[name[:-4]]


def _check(options: dict[str, Any]) -> frozenset[str]:
    check_options(KIND, options, ("reference", "exclude"))
    exclude = options.get("exclude") or []
    unknown = [n for n in exclude if not _known(str(n).lower())] if isinstance(exclude, list) else [exclude]
    if unknown:
        raise ValueError(f"dataset options of {KIND!r}: exclude: found {unknown}, expected names such as 'test_114'")
    return frozenset(str(n).lower() for n in exclude)


def count(root: Path, options: dict[str, Any]) -> int:
    """Number of usable slides on disk (file names only).

    Raises:
        MissingRaw: no slide is there.
    """
    exclude = _check(options)
    return sum(_known(n) and n not in EXCLUDED and n not in exclude for n in _slides(root))


def read_reference(path: Path) -> dict[str, int]:
    """Reads the test labels.

    Args:
        path: CSV without header: file name (with or without .tif, any case), Normal or Tumor, further columns.

    Returns:
        Slide name in lower case -> 0 or 1.

    Raises:
        ValueError: another word in the second column, or two different labels for one slide.
    """
    labels: dict[str, int] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if not row or not row[0].strip():
                continue
            name = re.sub(r"\.tiff?$", "", row[0].strip().lower())
            word = row[1].strip().lower() if len(row) > 1 else ""
            if word not in ("normal", "tumor"):
                raise ValueError(f"{path}, line {number}: found {word!r} for {name}, expected Normal or Tumor")
            label = int(word == "tumor")
            if labels.setdefault(name, label) != label:
                raise ValueError(f"{path}, line {number}: {name} has two different labels")
    return labels


def _test_labels(
    root: Path, options: dict[str, Any], tests: list[str], outlines: dict[str, list[str]], report: Report
) -> dict[str, int]:
    path = option_file(KIND, options, "reference", root)
    if path is None:
        path = next((p for parts in _REFERENCES if (p := find_below(root, *parts)) is not None), None)
    if path is not None:
        return read_reference(path)
    if not tests:
        return {}
    if not any(name in outlines for name in tests):
        raise _missing(root, "test slides, but neither reference.csv nor XML outlines of test slides to label them by")
    report.notes.append("no reference.csv: a test slide counts as tumour if it has XML outlines")
    return {name: int(name in outlines) for name in tests}


def _select(slides: dict[str, list[str]], exclude: frozenset[str], report: Report) -> list[str]:
    """Names of the slides to use; fills the report with the others."""
    chosen = []
    for name, paths in sorted(slides.items()):
        if not _known(name):
            report.excluded[paths[0]] = "not the name of a CAMELYON16 slide"
            continue
        for copy in paths[1:]:
            report.excluded[copy] = f"second copy of {name}, {paths[0]} is used"
        if name in EXCLUDED or name in exclude:
            report.excluded[name] = EXCLUDED.get(name, "named by the option `exclude`")
        else:
            chosen.append(name)
    for group, last in _LAST.items():
        for name in (f"{group}_{n:03d}" for n in range(1, last + 1)):
            if name not in slides and name not in EXCLUDED and name not in exclude:
                report.missing[f"{name}.tif"] = "not on disk"
    return chosen


def _row(name: str, image: str, label: int, outlines: dict[str, list[str]], report: Report) -> BagRow:
    annotation = outlines.get(name, [""])[0]
    remarks = [REMARKS[name]] if name in REMARKS else []
    if label and not annotation:
        report.missing[f"{name}.xml"] = "tumour slide without outlines; its instances stay unlabelled"
    if not label and annotation:
        report.notes.append(f"{name}: labelled normal, its outlines {annotation} are not used")
        annotation = ""
    if name in PARTLY_ANNOTATED:
        remarks.append("partly annotated")
    if name in BLURRED:
        remarks.append("blurred")
    return BagRow(
        bag_id=name,
        modality="wsi",
        images=(image,),
        label=label,
        split="test" if name.startswith("test") else "train",
        annotation=annotation,
        annotation_complete=name not in PARTLY_ANNOTATED and bool(annotation or not label),
        note="; ".join(remarks),
    )


def list_bags(root: Path, options: dict[str, Any]) -> BagTable:
    """Lists the slides with labels, split and outlines; differences to the known 399 are reported by name.

    Args:
        root: the folder, in either layout.
        options: `reference` (path of the test labels), `exclude` (list of slide names).

    Raises:
        MissingRaw: no slides, or test slides without any source of labels.
        ValueError: an unknown option, or a damaged reference.csv.
    """
    exclude = _check(options)
    report = Report(EXPECTED)
    outlines = _index(root, _XML, (".xml",))
    names = _select(slides := _slides(root), exclude, report)
    tests = [n for n in names if n.startswith("test")]
    labels = _test_labels(root, options, tests, outlines, report)
    rows = []
    for name in names:
        if name in tests and name not in labels:
            report.excluded[name] = "no label in reference.csv"
            continue
        label = labels[name] if name in tests else int(name.startswith("tumor"))
        rows.append(_row(name, slides[name][0], label, outlines, report))
    for folder in ("training", "testing"):
        archive = find_below(root, folder, "lesion_annotations.zip")
        if archive and not find_below(root, folder, "lesion_annotations"):
            report.notes.append(f"{archive.relative_to(root).as_posix()} is not unpacked: unpack it beside itself")
    return BagTable(rows, report.as_dict())


DATASET = Dataset(
    KIND,
    "wsi",
    TITLE,
    SOURCE,
    LAYOUT,
    count,
    list_bags,
    EXPECTED,
    released={
        "train_batch_size": {"batch_size": 1},
        "c16_patch_label": {"label_rule": "halving", "label_threshold": 0.5},
    },
)
