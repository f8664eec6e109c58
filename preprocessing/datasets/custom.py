"""Your own slides and scans, from a CSV manifest.

Columns: bag_id, image, label (0, 1, or empty to score only), split (train, val, test, or empty to score only); optional
annotation, annotation_complete, mpp, group, modality, note, and the overrides of single bags
(`preprocessing.bags.overrides`: skip, preset, sthresh, mask, ...). `image` is a slide file, a folder with the DICOM
files of
one CT series (`folder#3` picks series 3 of several), or one .dcm file (a scan of one slice). Paths are relative to the
root folder and stay inside it. `group` keeps a patient's bags in one split; it is replaced by a running index.

What is wrong with the manifest is refused at once, with every line. What is wrong with the files of a scan (a foreign
or colour image among them, mixed sizes, several series) costs that bag alone: it stays in the list with a note, and
the instances stage records it as failed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.bags.checks import raise_all, validate_bags
from preprocessing.bags.overrides import COLUMNS, override, parse_overrides, read_overrides
from preprocessing.bags.rows import SLICES, BagRow, resolve
from preprocessing.datasets.base import (
    BagTable,
    Dataset,
    Report,
    check_options,
    missing_raw,
    option_file,
    read_table,
)
from preprocessing.datasets.custom_scan import FaultyScan, find_series, is_dicom, relative, slice_states

KIND = "custom"
TITLE = "custom"
SOURCE = "your own data; a CSV manifest lists the bags"
LAYOUT = """
any folder with the slides and scans, and a manifest named by the option `manifest`:
bag_id,image,label,split,annotation,mpp,group
case_01,slides/case_01.svs,1,train,slides/case_01.geojson,,patient_1
case_02,scans/case_02,0,test,,,patient_2
"""
REQUIRED = ("bag_id", "image", "label", "split")
OPTIONAL = ("annotation", "annotation_complete", "mpp", "group", "modality", "note")
OVERRIDES = tuple(name for name in COLUMNS if name not in OPTIONAL)
FAULTY = "no readable scan"
WSI_SUFFIXES = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".bif",
    ".vms",
    ".vmu",
    ".svslide",
    ".czi",
    ".qptiff",
)


def _manifest(root: Path, options: dict[str, Any]) -> Path:
    check_options(KIND, options, ("manifest",))
    if not root.is_dir():
        raise missing_raw(root, "no such folder", title=TITLE, source=SOURCE, layout=LAYOUT)
    path = option_file(KIND, options, "manifest", root)
    if path is None:
        raise ValueError(f"dataset options of {KIND!r}: manifest: absent, expected the path of a CSV file")
    return path


def _cells(path: Path) -> list[dict[str, str]]:
    cells = read_table(path, REQUIRED)
    unknown = sorted({name for row in cells for name in row} - {*REQUIRED, *OPTIONAL, *OVERRIDES})
    if unknown:
        allowed = f"required {', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}; overrides {', '.join(OVERRIDES)}"
        raise ValueError(f"{path}: unknown columns {unknown}, allowed are: {allowed}")
    if not cells:
        raise ValueError(f"{path}: no rows, expected one per slide or scan")
    return cells


def count(root: Path, options: dict[str, Any]) -> int:
    """Number of rows of the manifest.

    Raises:
        MissingRaw: no root folder.
        ValueError: no manifest, or other columns.
    """
    return len(_cells(_manifest(root, options)))


def list_bags(root: Path, options: dict[str, Any]) -> BagTable:
    """Reads the manifest; every problem of every row is reported at once.

    Args:
        root: folder that holds all images and annotations.
        options: `manifest` (path, as given or inside the root).

    Raises:
        MissingRaw: no root folder.
        ValueError: naming manifest, lines and bags.
    """
    manifest = _manifest(root, options)
    cells = _cells(manifest)
    groups = {name: f"g{i:05d}" for i, name in enumerate(sorted({r.get("group", "") for r in cells} - {""}))}
    report = Report({})
    rows: list[BagRow] = []
    patients: dict[str, list[BagRow]] = {}
    problems: list[str] = []
    left_out = _skipped(root, options)
    for number, row in enumerate(cells, start=2):
        try:
            bag, patient = _bag(root, row, groups, skipped=row["bag_id"] in left_out)
        except ValueError as error:
            problems.append(f"line {number} ({row['bag_id']!r}): {error}")
            continue
        rows.append(bag)
        if patient:
            patients.setdefault(patient, []).append(bag)
    report.notes += [f"{bag.bag_id}: {bag.note}" for bag in rows if FAULTY in bag.note]
    try:
        validate_bags([bag for bag in rows if bag.bag_id not in left_out], root, source="")
    except ValueError as error:
        problems += [line.strip() for line in str(error).splitlines()[1:]]
    raise_all(problems, str(manifest))
    if not groups and len(patients) > 1:
        report.notes += _shared_patients(patients)
    return BagTable(rows, report.as_dict())


def _skipped(root: Path, options: dict[str, Any]) -> set[str]:
    """Bags that the file of overrides leaves out; their images may be damaged or gone."""
    path = option_file(KIND, options, "overrides", root)
    return set() if path is None else {name for name, given in read_overrides(path).items() if given.skip}


def _shared_patients(patients: dict[str, list[BagRow]]) -> list[str]:
    return [
        f"{', '.join(sorted(b.bag_id for b in bags))}: one PatientID in different splits; if it is one patient, add a "
        "`group` column"
        for bags in patients.values()
        if len({b.split for b in bags if b.split}) > 1
    ]


def _bag(root: Path, cells: dict[str, str], groups: dict[str, str], *, skipped: bool) -> tuple[BagRow, str]:
    """One row, and the PatientID of a scan (to compare, never to keep)."""
    if not cells["image"]:
        raise ValueError("image: empty, expected a slide, a .dcm file or a folder of DICOM files")
    if cells["label"] not in ("", "0", "1"):
        raise ValueError(f"label: found {cells['label']!r}, expected 0, 1 or nothing")
    given = parse_overrides({name: cells.get(name, "") for name in OVERRIDES})
    label = int(cells["label"]) if cells["label"] else None
    images = _skipped_images(root, cells) if skipped or given.skip else _images(root, cells)
    row = BagRow(
        bag_id=cells["bag_id"],
        modality=images.modality,
        images=images.files,
        label=label,
        split=cells["split"],
        group=groups.get(cells.get("group", ""), ""),
        annotation=images.annotation,
        annotation_complete=_complete(cells, label, images.annotation),
        mpp=_mpp(cells.get("mpp", ""), images.modality),
        note="; ".join(text for text in (cells.get("note", ""), images.fault) if text),
    )
    return override(row, given, root), images.patient


@dataclass(frozen=True)
class _Images:
    """What stands behind the cell `image`; `fault` says what is wrong with the files of a scan."""

    modality: str
    files: tuple[str, ...]
    annotation: str = ""
    patient: str = ""
    fault: str = ""


def _images(root: Path, cells: dict[str, str]) -> _Images:
    path, series = _locate(root, cells["image"])
    modality, annotation = _modality(path, cells), cells.get("annotation", "")
    if modality == "wsi":
        outline = relative(root, resolve(root, annotation)) if annotation else ""
        return _Images(modality, (relative(root, path),), outline)
    try:
        files, patient = find_series(root, path, series)
    except FaultyScan as fault:
        states = "" if annotation.startswith(SLICES) else slice_states(root, annotation, fault.files)
        return _Images(modality, fault.files, states, fault=f"{FAULTY}: {fault}")
    return _Images(modality, tuple(files), slice_states(root, annotation, files), patient)


def _skipped_images(root: Path, cells: dict[str, str]) -> _Images:
    """Of a bag that is left out: nothing is opened, nothing has to be there."""
    path = resolve(root, cells["image"])
    is_slide = path.name.lower().endswith(WSI_SUFFIXES)
    modality = cells.get("modality", "").lower() or ("wsi" if is_slide else "ct")
    return _Images(modality, (relative(root, path),))


def _locate(root: Path, image: str) -> tuple[Path, int | None]:
    """The image's path, and the series number behind `#` if such a path exists only without it."""
    path = resolve(root, image)
    if path.exists():
        return path, None
    stem, mark, number = image.rpartition("#")
    if mark and number.isdigit() and resolve(root, stem).is_dir():
        return resolve(root, stem), int(number)
    raise ValueError(f"missing file {image!r} (below {root})")


def _modality(path: Path, cells: dict[str, str]) -> str:
    stated = cells.get("modality", "").lower()
    if stated:
        if stated not in ("wsi", "ct"):
            raise ValueError(f"modality: found {stated!r}, expected wsi, ct or nothing")
        return stated
    if path.is_dir():
        return "ct"
    if path.name.lower().endswith(WSI_SUFFIXES):
        return "wsi"
    if path.suffix.lower() in (".dcm", ".dicom", "") and is_dicom(path):
        return "ct"
    raise ValueError(f"image {cells['image']!r}: neither a known slide format nor DICOM; give `modality` (wsi or ct)")


def _mpp(text: str, modality: str) -> float | None:
    if not text:
        return None
    if modality == "ct":
        raise ValueError("mpp: a CT scan has none, leave it empty")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"mpp: found {text!r}, expected um per px at level 0, with a decimal point") from None


def _complete(cells: dict[str, str], label: int | None, annotation: str) -> bool:
    stated = cells.get("annotation_complete", "").lower()
    if stated not in ("", "true", "false"):
        raise ValueError(f"annotation_complete: found {stated!r}, expected true, false or nothing")
    return stated == "true" if stated else bool(annotation) or label == 0


DATASET = Dataset(KIND, "any", TITLE, SOURCE, LAYOUT, count, list_bags)
