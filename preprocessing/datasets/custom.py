"""Slides and scans of a user, listed in a CSV manifest.

The columns are `REQUIRED`, `OPTIONAL` and the overrides of single bags (`preprocessing.bags.overrides`). Without label
or split, a bag is only scored; without the column split, test bags are drawn (`preprocessing.datasets.patients`).
`image`, below the root folder, is a slide file, a folder with the DICOM files of one CT series (`folder#3`: the series
with SeriesNumber 3), one .dcm file (a scan of one slice), or a DICOM whole-slide image (its folder or a file of it).

All errors in the manifest are reported at once, each with its line. Files in a folder that are no slice of the scan are
left out and named in note and report. Faulty files of a scan (mixed sizes, several series, two slices at one place)
affect that bag only: it stays in the list with a note, and the instances stage records it as failed.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from preprocessing.bags.checks import shared_images, validate_bags
from preprocessing.bags.cohort import Cohort
from preprocessing.bags.overrides import COLUMNS, override, parse_overrides, read_overrides
from preprocessing.bags.rows import FAULTY, SLICES, SPLITS, BagRow, relative, resolve, similar_path
from preprocessing.common.cli import raise_all
from preprocessing.common.csv_files import CsvLine, csv_rows, read_csv
from preprocessing.datasets.base import BagTable, Dataset, Findings, Options, missing_raw, option_file, parse_options
from preprocessing.datasets.patients import SHARE, Labelled, draw_splits, patient_groups, shared_patients
from preprocessing.datasets.slice_labels import slice_states
from preprocessing.scans.dicom import read_identity
from preprocessing.scans.folder import DICOM_SUFFIXES, is_dicom, read_folder
from preprocessing.scans.series import FaultyScan

KIND = "custom"
TITLE = "custom"
SOURCE = "your own data; a CSV manifest lists the bags"
LAYOUT = """
any folder with the slides and scans, and a manifest named by the option `manifest`:
bag_id,image,label,split,annotation,mpp,group
case_01,slides/case_01.svs,1,train,slides/case_01.geojson,,patient_1
case_02,scans/case_02,0,test,,,patient_2
"""
REQUIRED = ("bag_id", "image", "label")
OPTIONAL = ("split", "annotation", "annotation_complete", "mpp", "group", "modality", "note", "file_info")
LABELS = ("0", "1", "")
OVERRIDES = tuple(name for name in COLUMNS if name not in OPTIONAL)
# columns that name files
FILES = ("image", "annotation", "mask")
WSI_SUFFIXES = tuple(".svs .tif .tiff .ndpi .mrxs .scn .bif .vms .vmu .svslide .czi .qptiff".split())


class CustomOptions(Options):
    """Options of a manifest."""

    manifest: str | None = Field(None, description="the path of a CSV file")
    test_share: float | None = Field(
        None, ge=0, lt=1, description="a share of the bags from 0 to 1 for the test, where no column split names them"
    )
    seed: int = Field(0, ge=0, description="a number that seeds the draw of test bags, at least 0")

    @property
    def share(self) -> float:
        """The share of the patients of each label that is drawn."""
        return SHARE if self.test_share is None else self.test_share


class _Manifest(NamedTuple):
    """The lines of a manifest, each with its split, and the bags that the file of overrides skips."""

    path: Path
    lines: list[CsvLine]
    skipped: set[str]


def _path(root: Path, options: CustomOptions) -> Path:
    if not root.is_dir():
        raise missing_raw(root, "no such folder", title=TITLE, source=SOURCE, layout=LAYOUT)
    path = option_file(KIND, "manifest", options.manifest, root)
    if path is None:
        raise ValueError(f"dataset options of {KIND!r}: manifest: absent, expected the path of a CSV file")
    return path


def _read(root: Path, values: Mapping[str, object]) -> _Manifest:
    options = parse_options(KIND, CustomOptions, values)
    path = _path(root, options)
    lines = read_csv(path, REQUIRED, optional=(*OPTIONAL, *OVERRIDES))
    if not lines:
        raise ValueError(f"{path}: no rows, expected one per slide or scan")
    overrides = option_file(KIND, "overrides", options.overrides, root)
    skipped = {name for name, values in read_overrides(overrides).items() if values.skip} if overrides else set()
    if "split" in lines[0].cells:
        if options.test_share is not None:
            raise ValueError(f"{path}: the column split names the test bags, so remove it or `test_share`")
        return _Manifest(path, lines, skipped)
    # problems and remarks about patients are reported once, by `list_bags`
    groups, _ = patient_groups(lines, Findings())
    labelled = [
        Labelled(line.cells["bag_id"], int(line.cells["label"]), groups.get(line.number, ""))
        for line in lines
        if line.cells["label"] in ("0", "1") and not line.cells.get("skip") and line.cells["bag_id"] not in skipped
    ]
    splits = draw_splits(labelled, share=options.share, seed=options.seed)
    lines = [replace(line, cells=line.cells | {"split": splits.get(line.cells["bag_id"], "")}) for line in lines]
    return _Manifest(path, lines, skipped)


def count(root: Path, options: Mapping[str, object]) -> int:
    """Count the rows of the manifest."""
    return len(_read(root, options).lines)


def cohort(root: Path, options: Mapping[str, object]) -> Cohort:
    """Count the bags of each split and label, skipped ones left out."""
    manifest = _read(root, options)
    allowed = (("label", LABELS, "0, 1 or nothing"), ("split", SPLITS, "train, val, test or nothing"))
    problems = [
        f"line {line.number} ({line.cells['bag_id']!r}): {name}: found {line.cells[name]!r}, expected {expected}"
        for line in manifest.lines
        for name, values, expected in allowed
        if line.cells[name] not in values
    ]
    raise_all(problems, str(manifest.path))
    cells = [line.cells for line in manifest.lines]
    used = [row for row in cells if not row.get("skip") and row["bag_id"] not in manifest.skipped]
    parts = Counter((row["split"], row["label"]) for row in used)
    return Cohort(parts, grouped=sum(bool(row.get("group")) for row in used))


def split_note(root: Path, options: Mapping[str, object]) -> str:
    """Say how test bags are drawn, for the notes of tables; "" where the manifest names them or cannot be read."""
    parsed = parse_options(KIND, CustomOptions, options)
    try:
        _, header = next(csv_rows(_path(root, parsed)), (0, ["split"]))
    except ValueError:
        return ""
    if "split" in [name.strip() for name in header]:
        return ""
    return (
        f"the manifest has no column split, so {100 * parsed.share:g} % of the patients of each label are drawn for "
        f"the test (seed {parsed.seed}); a bag without a group is a patient of its own"
    )


def list_bags(root: Path, options: Mapping[str, object]) -> BagTable:
    """Read the manifest; report all problems of all rows at once."""
    manifest = _read(root, options)
    findings = Findings()
    findings.notes += [note] if (note := split_note(root, options)) else []
    groups, problems = patient_groups(manifest.lines, findings)
    rows: dict[int, BagRow] = {}
    patients: dict[str, list[BagRow]] = {}
    for line in manifest.lines:
        try:
            is_skipped = line.cells["bag_id"] in manifest.skipped
            bag, images = _bag(root, line.cells, groups.get(line.number, ""), skipped=is_skipped)
        except ValueError as error:
            problems.append(f"line {line.number} ({line.cells['bag_id']!r}): {error}")
            continue
        rows[line.number] = bag
        if images.patient:
            patients.setdefault(images.patient, []).append(bag)
        findings.excluded |= images.left_out
        findings.notes += [f"{bag.bag_id}: {images.note}"] if images.note else []
    used = {number: bag for number, bag in rows.items() if bag.bag_id not in manifest.skipped}
    try:
        validate_bags([*used.values()], root, source="", lines=[*used])
    except ValueError as error:
        problems += [line.strip() for line in str(error).splitlines()[1:]]
    shared = shared_images([*used.values()], root, [*used])
    raise_all(problems + shared.contradicting, str(manifest.path))
    annotated: dict[str, list[str]] = {}
    for bag in used.values():
        if bag.annotation and not bag.annotation.startswith(SLICES):
            annotated.setdefault(bag.annotation, []).append(bag.bag_id)
    findings.notes += shared.repeated
    findings.notes += [f"{', '.join(ids)}: one annotation, {n!r}" for n, ids in annotated.items() if len(ids) > 1]
    if not groups and len(patients) > 1:
        findings.notes += shared_patients(patients.values())
    return findings.table([*rows.values()])


@dataclass(frozen=True)
class _Images:
    """The files of a cell `image`; the note says what is wrong with them, or what was left out."""

    modality: str
    files: tuple[str, ...]
    annotation: str = ""
    patient: str = ""
    note: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)


def _bag(root: Path, cells: dict[str, str], group: str, *, skipped: bool) -> tuple[BagRow, _Images]:
    """Return one row and its images, whose PatientID serves for comparison only."""
    cells = cells | {name: _as_on_disk(root, cells[name]) for name in FILES if cells.get(name)}
    if not cells["image"]:
        raise ValueError("image: empty, expected a slide, a .dcm file or a folder of DICOM files")
    if cells["label"] not in LABELS:
        raise ValueError(f"label: found {cells['label']!r}, expected 0, 1 or nothing")
    overrides = parse_overrides({name: cells.get(name, "") for name in OVERRIDES})
    label = int(cells["label"]) if cells["label"] else None
    if skipped or overrides.skip:
        # the files of a skipped bag may be damaged or absent, so none is opened
        images = _Images(_guessed_modality(cells), (relative(root, resolve(root, cells["image"])),))
    else:
        images = _images_or_fault(root, cells)
    complete = cells.get("annotation_complete", "").lower()
    if complete not in ("", "true", "false"):
        raise ValueError(f"annotation_complete: found {complete!r}, expected true, false or nothing")
    row = BagRow(
        bag_id=cells["bag_id"],
        modality=images.modality,
        images=images.files,
        label=label,
        split=cells["split"],
        group=group,
        annotation=images.annotation,
        annotation_complete=complete == "true" if complete else bool(images.annotation) or label == 0,
        mpp=_mpp(cells.get("mpp", ""), images.modality),
        note="; ".join(text for text in (cells.get("note", ""), images.note) if text),
    )
    return override(row, overrides, root), images


def _images(root: Path, cells: dict[str, str]) -> _Images:
    path, number = _locate(root, cells["image"])
    modality, annotation = _modality(path, cells), cells.get("annotation", "")
    try:
        folder = None if modality == "wsi" and path.is_file() else read_folder(root, path)
        if folder is None or (modality or folder.modality) == "wsi":
            slide = relative(root, path) if folder is None else folder.slide(number)
            return _Images("wsi", (slide,), relative(root, resolve(root, annotation)) if annotation else "")
        scan = folder.scan(number)
    except FaultyScan as fault:
        files = fault.files or (relative(root, path),)
        if modality == "wsi" or not fault.files:
            return _Images(modality or "ct", files[:1], note=f"{FAULTY}: {fault}")
        states = "" if annotation.startswith(SLICES) else slice_states(root, annotation, fault.files)
        return _Images("ct", fault.files, states, note=f"{FAULTY}: {fault}")
    files = tuple(header.name for header in scan.slices)
    patient = read_identity(folder.paths[files[0]], files[0])[2]
    return _Images("ct", files, slice_states(root, annotation, files), patient, scan.note, scan.left_out)


def _images_or_fault(root: Path, cells: dict[str, str]) -> _Images:
    """Return the files of a bag; files that cannot be opened are a fault of this bag, not of the manifest."""
    try:
        return _images(root, cells)
    except (OSError, RuntimeError) as error:
        stem, mark, number = cells["image"].rpartition("#")
        image = stem if mark and number.isdigit() else cells["image"]
        reason = str(error).replace(f"{root.resolve()}/", "")
        return _Images(_guessed_modality(cells), (image,), note=f"{FAULTY}: {reason}")


def _guessed_modality(cells: dict[str, str]) -> str:
    is_slide = cells["image"].lower().endswith(WSI_SUFFIXES)
    return cells.get("modality", "").lower() or ("wsi" if is_slide else "ct")


def _as_on_disk(root: Path, name: str) -> str:
    """Return a path as the file system spells it, if only the Unicode form differs."""
    similar = similar_path(root, name)
    same = similar is not None and unicodedata.normalize("NFC", similar) == unicodedata.normalize("NFC", name)
    return similar if similar and same else name


def _check_folder(path: Path) -> None:
    """Raise `OSError` for a folder in place of a slide file, or if a folder in it cannot be listed.

    The slices in it would be left out without a word.
    """
    if path.name.lower().endswith(WSI_SUFFIXES):
        raise IsADirectoryError(f"{path}: a folder, expected a slide file")

    def refuse(error: OSError) -> None:
        raise error

    for _ in os.walk(path, onerror=refuse):
        pass


def _locate(root: Path, image: str) -> tuple[Path, int | None]:
    """Return the image's path, and the series number after `#` if the path exists only without it."""
    link = root / image
    if link.is_symlink() and not link.exists():
        raise FileNotFoundError(f"{image}: a link to {os.readlink(link)}, which does not exist")
    path = resolve(root, image)
    if path.exists():
        if path.is_dir():
            _check_folder(path)
        return path, None
    stem, mark, number = image.rpartition("#")
    folder = resolve(root, _as_on_disk(root, stem))
    if mark and number.isdecimal() and folder.is_dir():
        _check_folder(folder)
        return folder, int(number)
    similar = similar_path(root, image)
    hint = f"; on disk it is called {similar!r}" if similar else ""
    hint = hint or ("; write / between folders" if "\\" in image else "")
    raise ValueError(f"missing file {image!r} (below {root}){hint}")


def _modality(path: Path, cells: dict[str, str]) -> str:
    """Return "wsi" or "ct" as stated or by the suffix, "" if the DICOM headers will tell."""
    stated = cells.get("modality", "").lower()
    if stated:
        if stated not in ("wsi", "ct"):
            raise ValueError(f"modality: found {stated!r}, expected wsi, ct or nothing")
        return stated
    if path.is_dir():
        return ""
    if path.name.lower().endswith(WSI_SUFFIXES):
        return "wsi"
    if path.suffix.lower() in DICOM_SUFFIXES or is_dicom(path):
        return ""
    raise ValueError(f"image {cells['image']!r}: neither a known slide format nor DICOM; give `modality` (wsi or ct)")


def _mpp(text: str, modality: str) -> float | None:
    if not text:
        return None
    if modality == "ct":
        raise ValueError("mpp: a CT scan has none, leave it empty")
    try:
        # Python takes 0_25 for 25
        return float(text.replace("_", "?"))
    except ValueError:
        raise ValueError(f"mpp: found {text!r}, expected um per px at level 0, with a decimal point") from None


def reads(root: Path, options: Mapping[str, object]) -> list[Path]:
    """Return the folders of scans, those in them, and the tables of slice labels that the manifest names."""
    rows = [line.cells for line in _read(root, options).lines]
    folders = {root / row["image"] for row in rows} | {root / row["image"].rpartition("#")[0] for row in rows}
    tables = {root / row["annotation"] for row in rows if row.get("annotation", "").lower().endswith(".csv")}
    # the names in a nested folder count, too, because a slice added there belongs to the scan
    nested = {Path(path) for folder in folders - {root} for path, _, _ in os.walk(folder)}
    return sorted(nested | tables)


DATASET = Dataset(
    *(KIND, "any", TITLE, SOURCE, LAYOUT, count, list_bags, reads),
    options=CustomOptions,
    cohort=cohort,
    split_note=split_note,
)
