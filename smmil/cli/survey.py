"""Find the slides and scans in a folder, with the readers that a run will use."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.bags.rows import relative
from preprocessing.datasets.custom import WSI_SUFFIXES
from preprocessing.scans.dicom import read_identity
from preprocessing.scans.folder import DICOM_SUFFIXES, Folder, is_dicom, read_folder
from preprocessing.scans.series import not_a_slice
from preprocessing.slides.slide import open_slide

OUTLINES = (".geojson", ".xml")


@dataclass(frozen=True)
class Finding:
    """One slide or scan.

    Attributes:
        image: path below the folder, as a manifest has it.
        modality: "wsi" or "ct".
        format: of a slide, as OpenSlide calls it, or DICOM.
        mpp: um per px at level 0; None where the file does not say, and for scans.
        size: for people, e.g. "40,000 x 30,000 px" or "32 slices".
        outlines: a file of outlines with the name of the slide, "" without one.
        patient: an arbitrary number; equal numbers are one patient. None = unknown.
        fault: why it cannot be used, "" if it can.
    """

    image: str
    modality: str
    format: str = ""
    mpp: float | None = None
    size: str = ""
    outlines: str = ""
    patient: int | None = None
    fault: str = ""

    @property
    def file_info(self) -> str:
        """Return what was seen, in a few words."""
        resolution = "" if self.modality == "ct" else f"{self.mpp:.4g} um/px" if self.mpp else "no resolution"
        return ", ".join(filter(None, (self.format, resolution, self.size)))


@dataclass(frozen=True)
class Survey:
    """The content of a folder: slides and scans, also those that cannot be read, and other files by suffix."""

    root: Path
    findings: list[Finding] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def usable(self, modality: str) -> list[Finding]:
        """Return the readable images of one modality."""
        return [finding for finding in self.findings if finding.modality == modality and not finding.fault]

    @property
    def faulty(self) -> list[Finding]:
        """Return what cannot be read."""
        return [finding for finding in self.findings if finding.fault]


def find_images(root: Path) -> tuple[list[Path], Counter[str], dict[str, str]]:
    """List slide files and folders with DICOM files; no image is opened.

    Returns:
        The candidates; the other files by suffix; outlines by the stem of their name, those of unique names only.

    Raises:
        ValueError: no such folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected one with slides or scans")
    images: list[Path] = []
    others: Counter[str] = Counter()
    outlines: dict[str, list[str]] = {}
    for folder, folders, files in os.walk(root.resolve()):
        folders.sort()
        paths = [Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        slides = [path for path in paths if path.name.lower().endswith(WSI_SUFFIXES)]
        rest = [path for path in paths if path not in slides]
        if any(path.suffix.lower() in DICOM_SUFFIXES or (not path.suffix and is_dicom(path)) for path in rest):
            # the reader of scans looks into the folders below, too
            images.append(Path(folder))
            folders.clear()
            rest = []
        # MIRAX keeps its tiles in a folder beside the file
        mirax = {path.stem for path in slides if path.suffix.lower() == ".mrxs"}
        folders[:] = [name for name in folders if name not in mirax and not name.startswith(".")]
        images += slides
        for path in rest:
            if path.suffix.lower() in OUTLINES:
                outlines.setdefault(path.stem, []).append(relative(root, path))
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    # a name that occurs twice may belong to another slide
    return images, others, {stem: files[0] for stem, files in outlines.items() if len(files) == 1}


def survey(root: Path, bar: Callable[[list[Path]], Iterable[Path]] = iter) -> Survey:
    """Open every slide and scan in a folder; `bar` shows how far the reading is.

    Raises:
        ValueError: no such folder.
    """
    images, others, outlines = find_images(root)
    patients: dict[str, int] = {}
    findings: list[Finding] = []
    for path in bar(images):
        findings += _dicom(root, path, patients) if path.is_dir() else [_slide(root, path, outlines.get(path.stem, ""))]
    return Survey(root, findings, others)


def _slide(root: Path, path: Path, outlines: str) -> Finding:
    image = relative(root, path)
    # a slide without a resolution is usable once the manifest gives it one
    for require_mpp in (True, False):
        try:
            with open_slide(path, require_mpp=require_mpp, raw=False) as slide:
                width, height = slide.dimensions
                return Finding(
                    image=image,
                    modality="wsi",
                    format=slide.properties.get("openslide.vendor", ""),
                    mpp=slide.mpp if require_mpp else None,
                    size=f"{width:,} x {height:,} px",
                    outlines=outlines,
                )
        except (ValueError, OSError) as error:
            fault = _plain(error, root)
    return Finding(image, "wsi", fault=fault)


def _dicom(root: Path, path: Path, patients: dict[str, int]) -> Iterator[Finding]:
    image = relative(root, path) if path != root.resolve() else "."
    try:
        folder = read_folder(root, path)
        if folder.modality == "wsi":
            yield _slide(root, folder.paths[folder.slide(None)], "")
            return
        numbers = {header.series_number for header in folder.headers if not not_a_slice(header)}
    except (ValueError, OSError) as error:
        yield Finding(image, "ct", fault=_plain(error, root))
        return
    if len(numbers) < 2 or None in numbers:
        yield _scan(root, folder, image, None, patients)
        return
    for number in sorted(number for number in numbers if number is not None):
        yield _scan(root, folder, f"{image}#{number}", number, patients)


def _scan(root: Path, folder: Folder, image: str, number: int | None, patients: dict[str, int]) -> Finding:
    try:
        scan = folder.scan(number)
        first = scan.slices[0].name
        patient = read_identity(folder.paths[first], first)[2]
    except (ValueError, OSError) as error:
        return Finding(image, "ct", fault=_plain(error, root))
    # a manifest is passed around, so it gets a number and never the name of a patient
    index = patients.setdefault(patient, len(patients) + 1) if patient else None
    return Finding(image, "ct", "DICOM", size=f"{len(scan.slices)} slice{'s' * (len(scan.slices) > 1)}", patient=index)


def _plain(error: Exception, root: Path) -> str:
    """Return an error in one line, with paths below the folder."""
    return " ".join(str(error).split()).replace(f"{root.resolve()}/", "")
