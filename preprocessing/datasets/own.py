"""Your own slides and scans, from a CSV manifest.

Columns: bag_id, image, label (0, 1, or empty to score only), split (train, val, test, or empty to score only); optional
annotation, annotation_complete, mpp, group, modality, note. `image` is a slide file, a folder with the DICOM files of
one CT series (`folder#3` picks series 3 of several), or one .dcm file (a scan of one slice). Paths are relative to the
root folder and stay inside it. `group` keeps a patient's bags in one split; it is replaced by a running index.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.bag_checks import SLICES, raise_all, resolve, validate_bags
from preprocessing.bags import BagRow
from preprocessing.datasets.base import (
    BagTable,
    Dataset,
    Report,
    check_options,
    missing_raw,
    option_file,
    read_table,
)

if TYPE_CHECKING:
    from preprocessing.dicom import Header

KIND = "own"
TITLE = "own data"
SOURCE = "your own; a CSV manifest lists the bags"
LAYOUT = """
any folder with the slides and scans, and a manifest named by the option `manifest`:
bag_id,image,label,split,annotation,mpp,group
case_01,slides/case_01.svs,1,train,slides/case_01.geojson,,patient_1
case_02,scans/case_02,0,test,,,patient_2
"""
REQUIRED = ("bag_id", "image", "label", "split")
OPTIONAL = ("annotation", "annotation_complete", "mpp", "group", "modality", "note")
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
    unknown = sorted({name for row in cells for name in row} - {*REQUIRED, *OPTIONAL})
    if unknown:
        allowed = f"required {', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}"
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
    for number, row in enumerate(cells, start=2):
        try:
            bag, patient = _bag(root, row, groups)
        except ValueError as error:
            problems.append(f"line {number} ({row['bag_id']!r}): {error}")
            continue
        rows.append(bag)
        if patient:
            patients.setdefault(patient, []).append(bag)
    try:
        validate_bags(rows, root, source="")
    except ValueError as error:
        problems += [line.strip() for line in str(error).splitlines()[1:]]
    raise_all(problems, str(manifest))
    if not groups and len(patients) > 1:
        report.notes += _shared_patients(patients)
    return BagTable(rows, report.as_dict())


def _shared_patients(patients: dict[str, list[BagRow]]) -> list[str]:
    return [
        f"{', '.join(sorted(b.bag_id for b in bags))}: one PatientID in different splits; if it is one patient, add a "
        "`group` column"
        for bags in patients.values()
        if len({b.split for b in bags if b.split}) > 1
    ]


def _bag(root: Path, cells: dict[str, str], groups: dict[str, str]) -> tuple[BagRow, str]:
    """One row, and the PatientID of a scan (to compare, never to keep)."""
    if not cells["image"]:
        raise ValueError("image: empty, expected a slide, a .dcm file or a folder of DICOM files")
    if cells["label"] not in ("", "0", "1"):
        raise ValueError(f"label: found {cells['label']!r}, expected 0, 1 or nothing")
    path, series = _locate(root, cells["image"])
    modality = _modality(path, cells)
    label = int(cells["label"]) if cells["label"] else None
    annotation, patient = cells.get("annotation", ""), ""
    if modality == "ct":
        files, patient = _series(root, path, series)
        annotation = _slice_states(root, annotation, files)
    else:
        files = [_relative(root, path)]
        annotation = _relative(root, resolve(root, annotation)) if annotation else ""
    row = BagRow(
        bag_id=cells["bag_id"],
        modality=modality,
        images=tuple(files),
        label=label,
        split=cells["split"],
        group=groups.get(cells.get("group", ""), ""),
        annotation=annotation,
        annotation_complete=_complete(cells, label, annotation),
        mpp=_mpp(cells.get("mpp", ""), modality),
        note=cells.get("note", ""),
    )
    return row, patient


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root.resolve()).as_posix()


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
    if path.suffix.lower() in (".dcm", ".dicom", "") and _is_dicom(path):
        return "ct"
    raise ValueError(f"image {cells['image']!r}: neither a known slide format nor DICOM; give `modality` (wsi or ct)")


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


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


def _series(root: Path, path: Path, number: int | None) -> tuple[list[str], str]:
    """Files of one series in anatomical order, relative to the root, and the PatientID."""
    from preprocessing.dicom import check_series, read_header, read_identity, slice_order

    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and _is_dicom(p))
    if not files:
        raise ValueError(f"image: no DICOM file in the folder {_relative(root, path)!r}")
    # rglob may walk through a link that leads out of the root
    headers = [read_header(p, _relative(root, resolve(root, str(p)))) for p in files]
    chosen = _pick(headers, number, _relative(root, path))
    check_series(chosen)
    order, _ = slice_order(chosen)
    names = [chosen[i].name for i in order]
    return names, read_identity(resolve(root, names[0]), names[0])[2]


def _pick(headers: Sequence["Header"], number: int | None, folder: str) -> list["Header"]:
    series: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        series.setdefault((header.study, header.series), []).append(header)
    groups = [series[key] for key in sorted(series)]
    own = [g[0].series_number for g in groups]
    usable = None not in own and len(set(own)) == len(own)
    # without distinct SeriesNumbers the series count as 1, 2, ... in the order of their UIDs
    numbers = [n or 0 for n in own] if usable else list(range(1, len(groups) + 1))
    listing = ", ".join(
        f"#{n} ({len(g)} files, {g[0].modality or 'no modality'})" for n, g in sorted(zip(numbers, groups, strict=True))
    )
    if number is not None:
        if number not in numbers:
            raise ValueError(f"image {folder!r}: no series #{number}, found {listing}")
        return groups[numbers.index(number)]
    if len(groups) > 1:
        raise ValueError(
            f"image {folder!r}: {len(groups)} series, {listing}; one bag is one series, write e.g. "
            f"'{folder}#{sorted(numbers)[0]}'"
        )
    return groups[0]


def _slice_states(root: Path, annotation: str, files: Sequence[str]) -> str:
    """A CT annotation as "slices:..."; accepts that form, or a CSV with the columns file and label."""
    if not annotation or annotation.startswith(SLICES):
        return annotation
    table = resolve(root, annotation)
    if table.suffix.lower() != ".csv" or not table.is_file():
        raise ValueError(
            f"annotation: found {annotation!r}; for CT expected a CSV file with the columns file and label, or "
            f"'{SLICES}' and one of 0, 1, x per slice in anatomical order"
        )
    states = {name: "x" for name in files}
    short = {Path(name).name: name for name in files}
    for row in read_table(table, ("file", "label")):
        name = row["file"] if row["file"] in states else short.get(row["file"], "")
        if name not in states or row["label"] not in ("0", "1", "x", ""):
            raise ValueError(
                f"annotation {annotation!r}: found file {row['file']!r}, label {row['label']!r}; expected a file of "
                "the series and 0, 1 or x"
            )
        states[name] = row["label"] or "x"
    return SLICES + "".join(states.values())


DATASET = Dataset(KIND, "any", TITLE, SOURCE, LAYOUT, count, list_bags)
