"""What looks wrong with a bag that was cut, in plain sentences: tables of checks over its attributes.

A check warns, it never stops a bag. Log, status, contact sheet and `smmil.predict` show what `warnings_of` returns.
Every threshold has its reason: a good bag stays silent, so a warning is worth reading.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from preprocessing.store.attrs import InstanceAttrs, ScanStatistics, SlideStatistics

S = TypeVar("S", InstanceAttrs, SlideStatistics, ScanStatistics)


@dataclass(frozen=True)
class Check(Generic[S]):
    """One check.

    Attributes:
        applies: whether to warn.
        text: the warning.
        reason: of the threshold.
    """

    applies: Callable[[S], object]
    text: Callable[[S], str]
    reason: str


def _weak_channels(slide: SlideStatistics) -> list[str]:
    names = ("red", "green", "blue")
    least = 0.25 * max(slide.channel_ranges)
    return [name for name, spread in zip(names, slide.channel_ranges, strict=True) if spread < least]


def _is_dark(slide: SlideStatistics) -> bool:
    return slide.luminance[1] < 100


def _is_blank(slide: SlideStatistics) -> bool:
    return slide.luminance[1] - slide.luminance[0] < 20 and not _is_dark(slide)


def _is_grey(slide: SlideStatistics) -> bool:
    return slide.colour < 12 and not _is_dark(slide) and not _is_blank(slide)


_SLIDE: tuple[Check[SlideStatistics], ...] = (
    Check(
        lambda slide: slide.black >= max(1, 0.01 * slide.tiles),
        lambda slide: f"{slide.black} of {slide.tiles} tiles are black: are parts of the slide missing?",
        "tissue is never black; a pen or a fold may blacken single tiles of a large slide",
    ),
    Check(
        lambda slide: slide.white >= max(1, 0.05 * slide.tiles),
        lambda slide: f"{slide.white} of {slide.tiles} tiles are white: has the mask taken glass for tissue?",
        "tiles at the border of the tissue are pale, but not white",
    ),
    Check(
        lambda slide: slide.flat >= max(1, 0.1 * slide.sampled),
        lambda slide: f"{slide.flat} of {slide.sampled} tiles looked at have no contrast: is there tissue in them?",
        "tiles of good slides span a third of the grey levels and more; mucus and fat are paler, but rarely a tenth",
    ),
    Check(
        lambda slide: slide.unreadable,
        lambda slide: f"{slide.unreadable} of {slide.sampled} tiles looked at cannot be decoded: is the file damaged?",
        "features need every tile, up to `max_bad_tiles`",
    ),
    Check(
        _is_dark,
        lambda slide: (
            f"nothing on this slide is brighter than {slide.luminance[1]:g} of 255: is it empty, a fluorescence "
            "picture, or are values of 12 bits stored in 16?"
        ),
        "glass in a bright field has 200 to 255, tissue alone reaches 150",
    ),
    Check(
        lambda slide: slide.black_area > 0.1 and not _is_dark(slide),
        lambda slide: (
            f"{slide.black_area:.0%} of this slide is black: is it inverted, a fluorescence picture, or are parts "
            "missing?"
        ),
        "the border of the glass or a pen blackens a few percent",
    ),
    Check(
        _is_blank,
        lambda slide: (
            f"this slide has a single shade ({slide.luminance[0]:g} to {slide.luminance[1]:g} of 255): is it empty?"
        ),
        "glass alone spans 5 to 15 grey levels, with tissue it is 100 and more",
    ),
    Check(
        lambda slide: _is_grey(slide) and not slide.tiles,
        lambda slide: (
            "this slide has no colour: no threshold can find tissue, give a mask (column mask of the manifest)"
        ),
        "channels of stained tissue differ by 40 and more, those of a grey picture by 0 to 5 after compression",
    ),
    Check(
        lambda slide: _is_grey(slide) and slide.tiles,
        lambda slide: "this slide has no colour: encoders expect stained tissue",
        "a mask was given, or the recipe looks at grey levels",
    ),
    Check(
        lambda slide: _weak_channels(slide) and not _is_dark(slide) and not _is_blank(slide),
        lambda slide: f"{' and '.join(_weak_channels(slide))} hardly varies over this slide: is the channel missing?",
        "the weakest channel spans 0.6 of what the strongest does, with brown stains 0.4",
    ),
    Check(
        lambda slide: max(slide.background) - min(slide.background) > 78,
        lambda slide: (
            f"the brightest parts have red, green, blue of {', '.join(f'{v:g}' for v in slide.background)}, not white: "
            "is this another colour space?"
        ),
        "glass is white within 10; eosin, the palest stain, within 70; white YCbCr shown as RGB differs "
        "by 127, RGB shown as YCbCr by 82",
    ),
)

_SCAN: tuple[Check[ScanStatistics], ...] = (
    Check(
        lambda scan: scan.air < 0.001,
        lambda scan: f"no air in this scan (least value {scan.least:g} HU): are these Hounsfield units?",
        "half of a head scan is air; a small field of view has some in the nose, lungs or bowels",
    ),
    Check(
        lambda scan: scan.largest < 300,
        lambda scan: f"largest value {scan.largest:g} HU: no bone; are these Hounsfield units?",
        "every part of the body has bone, of 300 to 2000 HU",
    ),
    Check(
        lambda scan: scan.bone > 0.25,
        lambda scan: f"{scan.bone:.0%} of this scan is as dense as bone: are these Hounsfield units?",
        "it is 5 to 10 % of a head scan and less elsewhere",
    ),
    Check(
        lambda scan: scan.soft < 0.05,
        lambda scan: (
            f"{scan.soft:.1%} of this scan is as dense as soft tissue (-200 to 200 HU): are these Hounsfield units?"
        ),
        "it is a third of a head scan",
    ),
    Check(
        lambda scan: scan.clipped >= max(1, 0.1 * scan.sampled) and scan.largest < 3000,
        lambda scan: (
            f"values end at {scan.largest:g} HU in {scan.clipped} of {scan.sampled} slices: were they clipped to a "
            "window?"
        ),
        "a handful of pixels has the largest value, except metal at the end of 12 bits (3071 HU)",
    ),
    Check(
        lambda scan: scan.flat,
        lambda scan: f"{scan.flat} of {scan.sampled} slices hold a single value: are they empty?",
        "even air is noisy",
    ),
)


def _tissue_marks(attrs: InstanceAttrs) -> tuple[str, ...]:
    return (*attrs.marks, *(attrs.tissue.marks if attrs.tissue else ()))


_BAG: tuple[Check[InstanceAttrs], ...] = (
    Check(
        lambda bag: bag.unreadable_tiles,
        lambda bag: f"{bag.unreadable_tiles} unreadable places of the slide counted as white",
        "`max_bad_tiles` allows them",
    ),
    Check(
        lambda bag: "fallback" in _tissue_marks(bag),
        lambda bag: "tissue found only with loosened thresholds",
        "they take glass for tissue more easily",
    ),
    Check(
        lambda bag: bag.zero_edges, lambda bag: "no two tiles are neighbours", "smoothing over a graph changes nothing"
    ),
    Check(
        lambda bag: bag.modality == "wsi" and bag.mpp is None,
        lambda bag: "resolution unknown",
        "the size of a tile on the tissue is unknown, too",
    ),
    Check(
        lambda bag: bag.annotation_counts.left_out,
        lambda bag: (
            f"annotation not used: {', '.join(f'{n} {name}' for name, n in bag.annotation_counts.left_out.items())}"
        ),
        "what a person drew was meant to count; classes are ignored on purpose",
    ),
    Check(
        lambda bag: bag.slices_at_one_position,
        lambda bag: f"{bag.slices_at_one_position} slices at the position of another",
        "copies, or a second reconstruction",
    ),
    Check(
        lambda bag: bag.slices_repaired_12bit,
        lambda bag: f"{bag.slices_repaired_12bit} slices repaired (12-bit)",
        "values that wrapped around are guessed, see `preprocessing.scans.windows`",
    ),
)


def warnings_of(attrs: InstanceAttrs) -> tuple[str, ...]:
    """Return what looks wrong with a stored bag, its pixels first; empty for a good one.

    `attrs.warnings`, what was odd about the files, are among them.
    """
    statistics = attrs.statistics
    of_slide = _apply(_SLIDE, statistics) if isinstance(statistics, SlideStatistics) else []
    of_scan = _apply(_SCAN, statistics) if isinstance(statistics, ScanStatistics) else []
    return (*of_slide, *of_scan, *attrs.warnings, *_apply(_BAG, attrs))


def _apply(checks: Sequence[Check[S]], subject: S) -> list[str]:
    return [check.text(subject) for check in checks if check.applies(subject)]
