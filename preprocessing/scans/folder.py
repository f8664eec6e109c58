"""Read the DICOM files of a folder as scanners, archives and memory sticks leave it, and find the slide among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from preprocessing.bags.rows import relative, resolve
from preprocessing.scans.dicom import Header, read_header
from preprocessing.scans.series import FaultyScan, NoSuchSeries, Scan, choose_scan, not_a_slice, summarise

DICOM_SUFFIXES = (".dcm", ".dicom")
# what operating systems leave in folders, in lower case; macOS puts a `._NAME` beside every NAME
_SYSTEM_FILES = (".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".directory")


@dataclass(frozen=True)
class Folder:
    """The files of a folder, or one file.

    Attributes:
        name: of the folder, relative to the root.
        paths: DICOM files by name relative to the root, sorted.
        left_out: name -> reason of all other files.
        headers: of the DICOM files.
    """

    name: str
    paths: Mapping[str, Path]
    left_out: Mapping[str, str]
    headers: tuple[Header, ...]

    @property
    def modality(self) -> str:
        """The kind of image: "wsi" for the files of a slide without a CT slice among them, else "ct"."""
        is_scan = any(not not_a_slice(header) for header in self.headers)
        return "wsi" if not is_scan and any(header.is_slide for header in self.headers) else "ct"

    def scan(self, number: int | None) -> Scan:
        """Find the slices of one CT series, see `choose_scan`; everything else in the folder is left out."""
        scan = choose_scan(self.headers, self.paths, number, self.name)
        return Scan(scan.slices, scan.along, {**self.left_out, **scan.left_out}, scan.remarks)

    def slide(self, number: int | None) -> str:
        """Return the file of a DICOM whole-slide image by which OpenSlide opens it.

        Raises:
            NoSuchSeries: no slide, several, or none with this SeriesNumber.
        """
        slides: dict[tuple[str, str], list[Header]] = {}
        for header in self.headers:
            if header.is_slide:
                slides.setdefault((header.study, header.series), []).append(header)
        chosen = [group for group in slides.values() if number in (None, group[0].series_number)]
        if len(chosen) != 1:
            listed = ", ".join(f"'{self.name}#{group[0].series_number}' ({group[0].name})" for group in slides.values())
            raise NoSuchSeries(
                f"image {self.name!r}: {len(slides) or 'no'} DICOM slides{listed and f', {listed}'}; name one file of "
                "the slide"
            )
        # labels and overviews belong to the series, too; the level with the most tiles is the slide
        return max(chosen[0], key=lambda header: (header.frames, header.name)).name


def read_folder(root: Path, path: Path) -> Folder:
    """Read the headers of all DICOM files in a folder below the root and the folders in it, or of one file.

    Raises:
        FaultyScan: no DICOM file in it, or a file that cannot be read.
        ValueError: a link leaves the root.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_symlink() or not p.is_dir())
    paths: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    unreadable = ""
    for file in files:
        name = relative(root, file.parent.resolve() / file.name)
        try:
            reason = _no_dicom(file)
        except OSError as error:
            reason, unreadable = "", f"{name}: cannot be read ({error.strerror})"
        if reason:
            left_out[name] = reason
            continue
        # links are followed, and may not lead out of the root
        target = resolve(root, str(file))
        name = relative(root, target)
        if resolve(root, name) != target:
            unreadable = f"{name}: several files have this name once its bytes are made printable; rename one"
        paths[name] = target
    folder = relative(root, path)
    if not paths:
        only = f", only {summarise(left_out)}" if left_out else ""
        expected = "expected the files of one CT series or of one DICOM slide"
        raise FaultyScan(f"no DICOM file in the folder {folder!r}{only}; {expected}", [])
    if unreadable:
        raise FaultyScan(unreadable, paths)
    try:
        headers = tuple(read_header(file, name) for name, file in paths.items())
    except ValueError as error:
        raise FaultyScan(str(error), paths) from error
    return Folder(folder, paths, left_out, headers)


def _no_dicom(file: Path) -> str:
    """Return what a file is if it is no DICOM file, or ""."""
    if not file.is_file():
        kind = "link to a folder, not followed" if file.is_dir() else "no regular file"
        return kind if file.exists() else "link to nothing"
    if is_dicom(file):
        return ""
    if file.name.startswith("._") or file.name.lower() in _SYSTEM_FILES:
        return "file of an operating system"
    # a file with a DICOM suffix is a damaged slice: leaving it out would make a gap in the scan
    return "" if file.suffix.lower() in DICOM_SUFFIXES else "no DICOM file"


def is_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's preamble."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
