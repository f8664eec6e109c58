"""Check what a slide's header claims when the slide is opened: for cutting, thumbnails, maps and prediction alike.

* Level 0 is the largest picture of the file, and the resolution is that of level 0.
* Samples have 8 or 16 bits, are grey, palette, RGB or YCbCr, upright, and a fourth one is declared as alpha.
* Levels show the picture of level 0 (`preprocessing.slides.pyramid`); others are dropped and named in a warning.

What OpenSlide would read wrong is refused by name, with the way to convert it. Results are kept per file and process.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import tifffile

from preprocessing.slides.pyramid import DECLARED_TOLERANCE, Probe, SlideLevel, check_levels
from preprocessing.slides.tiff_tiles import TIFF_DAMAGE, TIFF_VENDORS

# Only Philips declares the geometry of its levels.
_UNDECLARED_LEVELS = TIFF_VENDORS - {"philips"}
# Samples per pixel without alpha, by the tag PhotometricInterpretation.
_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
_GREY = (0, 1)
_ALPHA = ((1,), (2,))
_UNITS = {2: "inch", 3: "centimeter"}
# Bright-field scans have a background above half the range; values of 15 bits or fewer have not.
_LEAST_BRIGHT = 128
_SCRIPT = "convert it to 8-bit RGB with the script in docs/reference/input.md"
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the slide; fetch the file with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"<", "a web page or XML text instead of the slide; download it again"),
    (b"\x89PNG", "a PNG picture; {convert}"),
    (b"\xff\xd8\xff", "a JPEG picture; {convert}"),
    (b"BM", "a BMP picture; {convert}"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture; {convert}"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_inspected: dict[tuple[int, ...], Inspection] = {}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """One directory of a TIFF: its number, size in px, and the tags that decide how it is read.

    `reduced`: NewSubfileType calls it a reduced version of another picture. `largest_tile`: bytes of its largest file
    tile or strip. `resolution`: tags under OpenSlide's names.
    """

    number: int
    width: int
    height: int
    is_tiled: bool
    reduced: bool
    photometric: int
    samples: int
    extra_samples: tuple[int, ...]
    bits: int
    sample_format: int
    orientation: int
    largest_tile: int
    resolution: Mapping[str, str]

    @property
    def area(self) -> int:
        """Return width x height."""
        return self.width * self.height

    def __str__(self) -> str:
        return f"directory {self.number} ({self.width} x {self.height} px)"


@dataclass(frozen=True)
class Inspection:
    """What may be used of a slide: levels, finest first, and what was odd, one line each.

    `resolution`: tags of the picture that is level 0, where OpenSlide states those of another; otherwise None.
    """

    levels: tuple[SlideLevel, ...]
    resolution: Mapping[str, str] | None = None
    warnings: tuple[str, ...] = ()


def inspect_slide(path: Path, vendor: str) -> Inspection:
    """Check a slide that OpenSlide opens, of a format as OpenSlide names it.

    Raises:
        ValueError: pixels that would be read wrong, or a main picture that OpenSlide leaves out; the file is named.
    """
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _inspected:
        _inspected[key] = _inspect(path, vendor)
    return _inspected[key]


def _inspect(path: Path, vendor: str) -> Inspection:
    pictures = read_pictures(path) if vendor in TIFF_VENDORS else []
    of_levels, warnings, resolution = level_pictures(pictures, vendor), list[str](), None
    for picture in of_levels:
        _check_tiles(path, picture)
        _check_samples(path, picture)
    if of_levels:
        warnings = _check_main(path, pictures, of_levels)
        if vendor == "generic-tiff" and of_levels[0].number > 0:
            resolution = of_levels[0].resolution
    elif vendor in TIFF_VENDORS:
        warnings = ["its TIFF directories are damaged, so samples, orientation and the choice of level 0 are unchecked"]
    with Probe(path) as probe:
        levels, dropped = check_levels(probe, is_tiff=vendor in TIFF_VENDORS, compare=vendor in _UNDECLARED_LEVELS)
        if of_levels and of_levels[0].bits == 16:
            _check_range(path, probe, levels[-1])
    return Inspection(tuple(levels), resolution, (*warnings, *dropped))


def read_pictures(path: Path) -> list[Picture]:
    """Return the pictures of a TIFF, those in sub-directories last; nothing if tifffile cannot read the file."""
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = list(tiff.pages)
            parts = [part for page in pages for part in getattr(page, "pages", None) or ()]
            return [_picture(number, page) for number, page in enumerate([*pages, *parts])]
    except TIFF_DAMAGE as error:
        log.info("%s: directories not understood (%s)", path, error)
        return []


def _picture(number: int, page: Any) -> Picture:
    resolution = {"tiff.ResolutionUnit": _UNITS.get(int(page.tags.valueof(296, 2)), "none")}
    for tag, name in ((282, "tiff.XResolution"), (283, "tiff.YResolution")):
        above, below = page.tags.valueof(tag, (0, 1))
        resolution[name] = repr(above / below if below else 0.0)
    return Picture(
        number=number,
        width=int(page.imagewidth),
        height=int(page.imagelength),
        is_tiled=bool(page.is_tiled),
        reduced=bool(int(page.subfiletype) & 1),
        photometric=int(page.photometric),
        samples=int(page.samplesperpixel),
        extra_samples=tuple(int(kind) for kind in page.extrasamples),
        bits=int(page.bitspersample),
        sample_format=int(page.sampleformat),
        orientation=int(page.tags.valueof(274, 1)),
        largest_tile=max(map(int, page.databytecounts), default=0),
        resolution=resolution,
    )


def level_pictures(pictures: Sequence[Picture], vendor: str) -> list[Picture]:
    """Return the pictures that OpenSlide takes for levels, in its order."""
    tiled = [picture for picture in pictures if picture.is_tiled]
    if vendor != "generic-tiff":
        return tiled
    # sorting is stable in both, so levels of one width are in the order of the file
    return sorted((item for item in tiled if item.number == 0 or item.reduced), key=lambda item: -item.width)


def _convert(path: Path, number: int = 0) -> str:
    source = shlex.quote(f"{path.name}[page={number}]" if number else path.name)
    return (
        f"convert it with `vips tiffsave {source} NEW.tif --tile --pyramid --compression jpeg --bigtiff`, "
        "or without vips with the script in docs/reference/input.md"
    )


def _check_tiles(path: Path, picture: Picture) -> None:
    """Raise if a tile claims more bytes than the file has: OpenSlide would end the process when it lacks memory."""
    size = path.stat().st_size
    if picture.largest_tile > size:
        claim = f"{picture} claims a tile of {picture.largest_tile} bytes, but the file has {size}"
        raise ValueError(f"{path}: damaged slide ({claim}); copy the file again or exclude it")


def _check_samples(path: Path, picture: Picture) -> None:
    """Raise if OpenSlide reads the samples of a picture wrong, or not at all."""
    colours = _SAMPLES.get(picture.photometric)
    extra = picture.samples - (colours or 0)
    if picture.orientation != 1:
        problem = f"orientation {picture.orientation}, expected 1 (first row on top, first column left)"
    elif colours is None:
        name = _tiff_name(tifffile.PHOTOMETRIC, picture.photometric)
        problem = f"colour space {picture.photometric} ({name}), expected grey, palette, RGB or YCbCr"
    elif picture.sample_format not in (1, 4):
        kind = {2: "signed", 3: "floating-point"}.get(picture.sample_format, "complex")
        problem = f"{kind} samples of {picture.bits} bits, expected unsigned ones of 8 or 16 bits"
    elif picture.bits not in (8, 16):
        problem = f"samples of {picture.bits} bits, expected 8 or 16 bits"
    elif picture.bits == 16 and picture.photometric == 0:
        problem = "16-bit samples in which 0 is white, so values of 12 bits would be read nearly white"
    elif extra not in (0, 1) or (extra and colours == 1):
        problem = f"{picture.samples} samples per pixel, expected {colours} for its colour space"
    elif extra and picture.extra_samples not in _ALPHA:
        problem = "a fourth sample that is not declared as alpha, but would be taken for it"
    else:
        return
    raise ValueError(f"{path}: {picture} has {problem}; {_SCRIPT}")


def _tiff_name(kinds: type[IntEnum], number: int) -> str:
    return next((kind.name for kind in kinds if kind == number), "unknown")


def _check_main(path: Path, pictures: Sequence[Picture], of_levels: Sequence[Picture]) -> list[str]:
    """Raise if level 0 is not the largest picture, or one channel of it; return warnings."""
    first, largest = of_levels[0], max(pictures, key=lambda item: item.area)
    if largest.area > first.area:
        raise ValueError(
            f"{path}: OpenSlide opens {first} as level 0, but {largest} is larger and must be the slide; "
            f"{_convert(path, largest.number)}"
        )
    others = [item for item in pictures if item.area == first.area and item not in of_levels]
    names = ", ".join(map(str, others))
    if others and first.photometric in _GREY:
        raise ValueError(
            f"{path}: {first} is grey, and there is {names}: channels or focal planes, expected one RGB picture; "
            f"{_SCRIPT}"
        )
    return [f"{first} is read, {names} of the same size is not"] if others else []


def _check_range(path: Path, probe: Probe, level: SlideLevel) -> None:
    """Raise if 16-bit samples leave the upper half of their range empty."""
    brightest = max((int(rgb.max()) for _, rgb in probe.grid(level)), default=255)
    if brightest < _LEAST_BRIGHT:
        raise ValueError(
            f"{path}: 16-bit samples reach about {brightest * 257 + 256} of 65535 and would be read nearly black; "
            f"values of 12 bits are the usual reason; {_SCRIPT}"
        )


def _is_like(picture: Picture, main: Picture) -> bool:
    """Return whether two pictures have the same aspect, roughly; an empty one is a sign of damage and has any."""
    across, down = picture.width * main.height, picture.height * main.width
    return not picture.area or abs(across - down) <= DECLARED_TOLERANCE * down


def _is_whole(path: Path) -> bool:
    """Return whether all directories of a TIFF are readable and the pixels that they name lie within the file."""
    size = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            parts = ((page.dataoffsets, page.databytecounts) for page in tiff.pages)
            return all(at + count <= size for part in parts for at, count in zip(*part, strict=True))
    except TIFF_DAMAGE:
        return False


def explain_refusal(path: Path, reason: str) -> str:
    """Return why OpenSlide does not open a file, and what to do; `reason` is its message, "" for an unknown format."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
    if path.suffix.lower() == ".mrxs":
        return f"{path}: not readable ({reason or 'unknown format'}); is its folder {path.stem}/ beside it, whole?"
    kind = next((text for magic, text in _MAGIC if head.startswith(magic)), "")
    if kind:
        return f"{path}: not a slide but {kind.format(convert=_convert(path))}"
    if not size:
        return f"{path}: an empty file (0 bytes), expected a slide; copy it again"
    pictures = read_pictures(path)
    largest = max(pictures, key=lambda item: item.area, default=None)
    if unreadable := re.search(r"compression: (\d+)", reason):
        name = _tiff_name(tifffile.COMPRESSION, int(unreadable[1]))
        return (
            f"{path}: compression {unreadable[1]} ({name}) cannot be read by OpenSlide, the file itself may be whole; "
            f"{_convert(path, largest.number if largest else 0)}"
        )
    for picture in level_pictures(pictures, "generic-tiff"):
        try:
            _check_samples(path, picture)
        except ValueError as error:
            return str(error)
    if reason:
        if "nsupported" in reason:
            return f"{path}: not supported by OpenSlide ({reason}); {_convert(path)}"
        return f"{path}: damaged slide ({reason}); copy the file again or exclude it"
    if largest:
        if not pictures[0].is_tiled:
            tiles = "its first picture is" if largest.is_tiled else "it is"
            return (
                f"{path}: not a slide that OpenSlide can read: the largest picture is {largest}, and {tiles} in strips "
                f"instead of tiles; {_convert(path, largest.number)}"
            )
        foreign = [item for item in level_pictures(pictures, "generic-tiff") if not _is_like(item, largest)]
        if foreign:
            return (
                f"{path}: {', '.join(map(str, foreign))} is marked as a level but is no level of {largest}, so "
                f"OpenSlide does not open the file; {_convert(path, largest.number)}"
            )
        if _is_whole(path):
            order = "big-endian" if head.startswith(b"MM") else "little-endian"
            return (
                f"{path}: a form of TIFF that OpenSlide cannot read ({order}), the file itself may be whole; "
                f"{_convert(path, largest.number)}"
            )
    if head.startswith(_TIFF):
        return f"{path}: damaged slide (a TIFF of {size} bytes, cut off); copy the file again or exclude it"
    return (
        f"{path}: not a slide that OpenSlide can read ({size} bytes), expected SVS, Philips or generic tiled TIFF, "
        "NDPI, MIRAX, DICOM or the like; plain images must be converted to a tiled pyramid"
    )
