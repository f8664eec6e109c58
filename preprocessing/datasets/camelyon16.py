"""CAMELYON16: 399 lymph-node slides, from either published folder layout.

Counts, exclusions and partly annotated slides: the README of the data (CAMELYON16 folder of the open-data bucket, and
GigaDB 100439) and the challenge's announcements. Labels of the training slides come from their names, those of the test
slides from `reference.csv` (no header: file name, Normal or Tumor, lesion type, lesion size). Annotations are ASAP XML.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from preprocessing.bags.rows import BagRow
from preprocessing.common.csv_files import csv_rows
from preprocessing.datasets.base import (
    BagTable,
    Dataset,
    Findings,
    Options,
    find_below,
    list_files,
    missing_raw,
    option_file,
    parse_options,
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
_SLIDES = ("images", "training/normal", "training/tumor", "testing/images")
_XML = ("annotations", "training/lesion_annotations", "testing/lesion_annotations", "lesion_annotations")
_REFERENCES = ("reference.csv", "testing/reference.csv", "evaluation/reference.csv")


_missing = partial(missing_raw, title=TITLE, source=SOURCE, layout=LAYOUT)


def _known(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and 1 <= int(name[-3:]) <= _LAST[name[:-4]]


def _slide_name(text: str) -> str:
    if not _known(text.lower()):
        raise ValueError(text)
    return text.lower()


class Camelyon16Options(Options):
    """Options of CAMELYON16."""

    reference: str | None = Field(None, description="the path of the test labels")
    exclude: list[Annotated[str, AfterValidator(_slide_name)]] | None = Field(
        None, description="a list of names such as 'test_114'"
    )


def _index(root: Path, folders: Sequence[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """Return name in lower case without suffix -> paths relative to the root, over all folders."""
    paths: dict[str, list[str]] = {}
    for folder in (find_below(root, folder) for folder in folders):
        for name in list_files(folder, suffixes):
            paths.setdefault(Path(name).stem.lower(), []).append((folder / name).relative_to(root).as_posix())
    return paths


def _slides(root: Path) -> dict[str, list[str]]:
    slides = _index(root, _SLIDES, (".tif", ".tiff"))
    if not slides:
        raise _missing(root, "no slide found")
    return slides


def count(root: Path, options: Mapping[str, object]) -> int:
    """Count the usable slides on disk by their names."""
    exclude = parse_options(KIND, Camelyon16Options, options).exclude or ()
    return sum(_known(n) and n not in EXCLUDED and n not in exclude for n in _slides(root))


def reads(root: Path, _: Mapping[str, object]) -> list[Path]:
    """Return what the list of slides is made from, besides the files that options name."""
    return [find_below(root, name) for name in (*_SLIDES, *_XML, *_REFERENCES)]


def read_reference(path: Path) -> dict[str, int]:
    """Read the test labels: slide name in lower case -> 0 or 1.

    The CSV has no header: file name (with or without .tif, any case), Normal or Tumor, further columns.

    Raises:
        ValueError: another word in the second column, or two different labels for one slide.
    """
    labels: dict[str, int] = {}
    for number, row in csv_rows(path):
        name = re.sub(r"\.tiff?$", "", row[0].strip().lower())
        word = row[1].strip().lower() if len(row) > 1 else ""
        if word not in ("normal", "tumor"):
            raise ValueError(f"{path}, line {number}: found {word!r} for {name}, expected Normal or Tumor")
        label = int(word == "tumor")
        if labels.setdefault(name, label) != label:
            raise ValueError(f"{path}, line {number}: {name} has two different labels")
    return labels


def _test_labels(
    root: Path, reference: str | None, tests: list[str], outlines: dict[str, list[str]], findings: Findings
) -> dict[str, int]:
    usual = (file for name in _REFERENCES if (file := find_below(root, name)).exists())
    path = option_file(KIND, "reference", reference, root) or next(usual, None)
    if path is not None:
        return read_reference(path)
    if not tests:
        return {}
    if not any(name in outlines for name in tests):
        raise _missing(root, "test slides, but neither reference.csv nor XML outlines of test slides to label them by")
    findings.notes.append("no reference.csv: a test slide counts as tumour if it has XML outlines")
    return {name: int(name in outlines) for name in tests}


def _usable(slides: dict[str, list[str]], exclude: set[str], findings: Findings) -> list[str]:
    """Return the names of the slides to use; record the others."""
    names = []
    for name, paths in sorted(slides.items()):
        if not _known(name):
            findings.excluded[paths[0]] = "not the name of a CAMELYON16 slide"
            continue
        for copy in paths[1:]:
            findings.excluded[copy] = f"second copy of {name}, {paths[0]} is used"
        if name in EXCLUDED or name in exclude:
            findings.excluded[name] = EXCLUDED.get(name, "named by the option `exclude`")
        else:
            names.append(name)
    published = (f"{group}_{n:03d}" for group, last in _LAST.items() for n in range(1, last + 1))
    absent = {*published} - {*slides} - {*EXCLUDED} - exclude
    findings.missing |= {f"{name}.tif": "not on disk" for name in absent}
    return names


def _row(name: str, image: str, label: int, outlines: dict[str, list[str]], findings: Findings) -> BagRow:
    annotation = outlines.get(name, [""])[0]
    if label and not annotation:
        findings.missing[f"{name}.xml"] = "tumour slide without outlines; its instances stay unlabelled"
    if not label and annotation:
        findings.notes.append(f"{name}: labelled normal, its outlines {annotation} are not used")
        annotation = ""
    partly, blurred = name in PARTLY_ANNOTATED, name in BLURRED
    remarks = [REMARKS.get(name, ""), "partly annotated" if partly else "", "blurred" if blurred else ""]
    return BagRow(
        bag_id=name,
        modality="wsi",
        images=(image,),
        label=label,
        split="test" if name.startswith("test") else "train",
        annotation=annotation,
        annotation_complete=not partly and bool(annotation or not label),
        note="; ".join(filter(None, remarks)),
    )


def list_bags(root: Path, options: Mapping[str, object]) -> BagTable:
    """List the slides with labels, split and outlines; name the differences to the published 399."""
    parsed = parse_options(KIND, Camelyon16Options, options)
    findings = Findings(EXPECTED)
    outlines = _index(root, _XML, (".xml",))
    slides = _slides(root)
    names = _usable(slides, set(parsed.exclude or ()), findings)
    tests = [n for n in names if n.startswith("test")]
    labels = _test_labels(root, parsed.reference, tests, outlines, findings)
    # the names of training slides are their labels, whatever a table says
    labels |= {n: int(n.startswith("tumor")) for n in names if n not in tests}
    findings.excluded |= {n: "no label in reference.csv" for n in names if n not in labels}
    rows = [_row(n, slides[n][0], labels[n], outlines, findings) for n in names if n in labels]
    for folder in ("training", "testing"):
        archive = find_below(root, f"{folder}/lesion_annotations.zip")
        if archive.exists() and not find_below(root, f"{folder}/lesion_annotations").exists():
            findings.notes.append(f"{archive.relative_to(root).as_posix()} is not unpacked: unpack it beside itself")
    return findings.table(rows)


DATASET = Dataset(
    *(KIND, "wsi", TITLE, SOURCE, LAYOUT, count, list_bags, reads, EXPECTED),
    options=Camelyon16Options,
    released={
        "train_batch_size": {"batch_size": 1},
        "c16_patch_label": {"label_rule": "halving", "label_threshold": 0.5},
    },
)
