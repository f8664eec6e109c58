"""PANDA: 10,616 prostate biopsies with ISUP grades and masks, split as by Silva-Rodriguez et al. 2021.

Bag label = ISUP grade > 0. The split is the authors' table (`partition_PANDA.xlsx`, or the same columns as CSV):
train and val of the table are the training part here (divided again by seed later), test is the test part. Counts and
faulty images: the competition's data page and discussion.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pydantic import Field

from preprocessing.bags.rows import BagRow
from preprocessing.common.cli import raise_all
from preprocessing.common.csv_files import csv_rows, read_csv
from preprocessing.datasets.base import (
    BagTable,
    Dataset,
    Findings,
    Options,
    list_files,
    missing_raw,
    option_file,
    parse_options,
)

KIND = "panda"
TITLE = "PANDA"
SOURCE = (
    "Kaggle competition prostate-cancer-grade-assessment, about 347 GB, CC BY-SA-NC 4.0, by hand after accepting its "
    "rules; partition_PANDA.xlsx from the repository self-learning-wsi-prostate of Silva-Rodriguez et al."
)
LAYOUT = """
train.csv (image_id, data_provider, isup_grade)
train_images/{image_id}.tiff
train_label_masks/{image_id}_mask.tiff
partition_PANDA.xlsx (or .csv) with the columns slide_name and Partition; or name it by the option `partition`
"""
EXPECTED = {
    **{"bags": 10_615, "table_train": 8_469, "table_val": 353, "table_test": 1_794},
    # what the paper used: slides with windows, and their windows
    **{"paper_bags": 10_503, "paper_instances": 1_107_931},
}
BLANK = "3790f55cad63053e956fb73027179707"
BROKEN_MASKS = frozenset(
    {"4a2ca53f240932e46eaf8959cb3f490a", "aaa5732cd49bffddf0d2b7d36fbb0a83", "e4215cfc8c41ec04a55431cc413688a9"}
)
DOUBTED = frozenset(
    {
        "0da0915a236f2fc98b299d6fdefe7b8b",
        "2910b44434274b848553a4ec3db11df8",
        "f75c7cec3ddc9fbff27aca59b01c5bf5",
        "9d917845ea26f2d2a33790c2a755ef8e",
        "da077ff5258dfb7cd6d604d995de7619",
    }
)
_MAX_TABLE_BYTES = 256 << 20
_PARTITIONS = ("partition_PANDA.xlsx", "partition_PANDA.csv")
_PROVIDERS = ("radboud", "karolinska")


_missing = partial(missing_raw, title=TITLE, source=SOURCE, layout=LAYOUT)


class PandaOptions(Options):
    """Options of PANDA."""

    partition: str | None = Field(None, description="the path of the table with the train/test split")


def _images(root: Path) -> dict[str, str]:
    names = list_files(root / "train_images", (".tiff", ".tif"))
    images = {Path(name).stem: f"train_images/{name}" for name in names}
    twice = [stem for stem, number in Counter(Path(name).stem for name in names).items() if number > 1]
    if twice:
        raise ValueError(f"{root}/train_images: slides with two files, .tif and .tiff: {twice[:5]}; keep one of each")
    if not images:
        raise _missing(root, "no slide in train_images")
    if not (root / "train.csv").is_file():
        raise _missing(root, "no train.csv")
    return images


def count(root: Path, options: Mapping[str, object]) -> int:
    """Count the slides on disk by their names."""
    parsed = parse_options(KIND, PandaOptions, options)
    images = _images(root)
    _partition_path(root, parsed.partition)
    return len(set(images) - {BLANK})


def reads(root: Path, _: Mapping[str, object]) -> list[Path]:
    """Return what the list of slides is made from, besides the files that options name."""
    return [root / name for name in ("train_images", "train_label_masks", "train.csv", *_PARTITIONS)]


def _table_rows(path: Path) -> Iterator[tuple[object, ...]]:
    if path.suffix.lower() != ".xlsx":
        yield from (tuple(row) for _, row in csv_rows(path))
        return
    import zipfile

    import openpyxl

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > _MAX_TABLE_BYTES:
            raise ValueError(f"{path}: unpacks to {unpacked} bytes, expected a table of some MB; download it again")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, KeyError, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise ValueError(f"{path}: not a readable xlsx file ({error}); download it again, or save it as CSV") from None
    try:
        yield from book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()


def read_partition(path: Path) -> dict[str, str]:
    """Read the authors' split: slide name -> "train", "val" or "test".

    The table, xlsx or CSV, has the columns slide_name and Partition; further columns are ignored.

    Raises:
        ValueError: columns absent, another word as Partition, or a slide in two parts.
    """
    rows = _table_rows(path)
    header = [str(cell) for cell in next(rows, ())]
    if "slide_name" not in header or "Partition" not in header:
        raise ValueError(f"{path}: found the columns {header[:8]}, expected slide_name and Partition among them")
    name_at, part_at = header.index("slide_name"), header.index("Partition")
    parts: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) <= max(name_at, part_at) or row[name_at] in (None, ""):
            continue
        name, part = str(row[name_at]).strip(), str(row[part_at]).strip().lower()
        if part not in ("train", "val", "test"):
            raise ValueError(f"{path}, row {number}: Partition: found {part!r}, expected train, val or test")
        if parts.setdefault(name, part) != part:
            raise ValueError(f"{path}, row {number}: {name} stands in {parts[name]} and in {part}")
    return parts


def _partition_path(root: Path, partition: str | None) -> Path:
    usual = (p for name in _PARTITIONS if (p := root / name).is_file())
    advice = f"`python -m preprocessing.raw {KIND} --out {root}` fetches the published table"
    path = option_file(KIND, "partition", partition, root, advice) or next(usual, None)
    if path is None:
        raise _missing(root, "no table with the train/test split")
    return path


def _labels(path: Path) -> dict[str, tuple[int, str]]:
    """Return image_id -> (ISUP grade, provider); report all faulty lines at once."""
    labels: dict[str, tuple[int, str]] = {}
    problems = []
    for line in read_csv(path, ("image_id", "data_provider", "isup_grade")):
        number, row = line.number, line.cells
        grade, provider = row["isup_grade"], row["data_provider"].lower()
        if grade not in tuple("012345"):
            problems.append(f"line {number}: isup_grade: found {grade!r}, expected 0 to 5")
        elif provider not in _PROVIDERS:
            problems.append(f"line {number}: data_provider: found {provider!r}, expected {' or '.join(_PROVIDERS)}")
        elif row["image_id"] in labels:
            problems.append(f"line {number}: image_id {row['image_id']!r} occurs twice")
        else:
            labels[row["image_id"]] = (int(grade), provider)
    raise_all(problems, str(path))
    return labels


def _row(name: str, image: str, grade: int, provider: str, part: str, mask: str) -> BagRow:
    broken = "mask broken or empty, not used" if name in BROKEN_MASKS else ""
    notes = [broken or ("" if mask else "no mask"), "left out by several competitors" if name in DOUBTED else ""]
    mask = "" if broken else mask
    return BagRow(
        bag_id=name,
        modality="wsi",
        images=(image,),
        label=int(grade > 0),
        split="test" if part == "test" else "train",
        annotation=mask,
        annotation_complete=bool(mask),
        provider=provider,
        note="; ".join(filter(None, notes)),
    )


def list_bags(root: Path, options: Mapping[str, object]) -> BagTable:
    """List the slides of train.csv that are on disk and in the table of the split."""
    parsed = parse_options(KIND, PandaOptions, options)
    images = _images(root)
    labels = _labels(root / "train.csv")
    parts = read_partition(_partition_path(root, parsed.partition))
    masks = {n.rsplit("_mask.", 1)[0]: n for n in list_files(root / "train_label_masks", ("_mask.tiff", "_mask.tif"))}
    findings = Findings(EXPECTED)
    rows = []
    for name, (grade, provider) in sorted(labels.items()):
        if name == BLANK:
            findings.excluded[name] = "blank image"
        elif name not in images:
            findings.missing[f"{name}.tiff"] = "in train.csv, not on disk"
        elif name not in parts:
            findings.excluded[name] = "not in the table of the split"
        else:
            mask = f"train_label_masks/{masks[name]}" if name in masks else ""
            rows.append(_row(name, images[name], grade, provider, parts[name], mask))
    findings.excluded |= dict.fromkeys(set(images) - set(labels), "on disk, not in train.csv")
    findings.missing |= dict.fromkeys(set(parts) - set(labels), "in the table of the split, not in train.csv")
    unmasked = sum(not row.annotation for row in rows)
    findings.notes.append(f"{unmasked} slides without a usable mask: kept, their instances stay unlabelled")
    return findings.table(rows)


DATASET = Dataset(
    *(KIND, "wsi", TITLE, SOURCE, LAYOUT, count, list_bags, reads, EXPECTED),
    options=PandaOptions,
    released={"panda_label_order": {"label_order": "by_name"}, "panda_discard": {"drop_inconsistent": True}},
)
