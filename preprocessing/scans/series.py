"""Find the slices of one scan among DICOM files: leave out what is no slice, choose a series, drop copies, order.

Slices are ordered by ImagePositionPatient projected on the slice normal, which is the cross product of the two vectors
of ImageOrientationPatient; uneven spacing and a tilted gantry are allowed. Two slices at one place, and two
reconstructions or acquisitions that alternate, are refused: interleaved they look like one scan and are none.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.scans.dicom import TRAITS, Header, check_slice, read_slice, slice_normal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_DIRECTORY = "1.2.840.10008.1.3.10"
_CT = "1.2.840.10008.5.1.4.1.1.2"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_COLOUR = ("RGB", "YBR", "PALETTE", "HSV", "CMYK", "ARGB")
SAME_PLACE_MM = 1e-3
_NAMES = 3


class NoSuchSeries(ValueError):
    """`FOLDER#n` names a series that the folder does not hold."""


class FaultyScan(ValueError):
    """The files of a scan do not form one; `files` are the names of those that should."""

    def __init__(self, reason: str, files: Iterable[str]) -> None:
        super().__init__(reason)
        self.files = tuple(files)


@dataclass(frozen=True)
class Scan:
    """The slices of one scan.

    Attributes:
        slices: N headers in anatomical order.
        along: (N,) positions along the slice normal, mm, starting at 0.
        left_out: name -> reason, of files that are no slice or a copy of one.
        remarks: what a reader should know, e.g. a gap.
    """

    slices: tuple[Header, ...]
    along: npt.NDArray[np.float64]
    left_out: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """All of it in one line."""
        return "; ".join([*([f"left out: {summarise(self.left_out)}"] if self.left_out else []), *self.remarks])


def summarise(left_out: Mapping[str, str]) -> str:
    """Return names by reason, at most three of each: "2 localizers (a.dcm, b.dcm), ..."."""
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(left_out.items()):
        reasons.setdefault(reason, []).append(name)
    return ", ".join(f"{len(names)} x {reason} ({_some(names)})" for reason, names in reasons.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES]) + (", ..." if len(names) > _NAMES else "")


def not_a_slice(header: Header) -> str:
    """Return what a DICOM file is if it is no CT slice, or "". A damaged slice is none of these."""
    from pydicom.uid import UID

    sop, kind = header.sop_class, UID(header.sop_class).name.removesuffix(" Storage")
    is_ct = sop.startswith(_CT) and sop.removeprefix(_CT) in ("", ".1", ".2", ".2.1", ".2.2")
    if sop == _DIRECTORY:
        return "directory of DICOM files"
    if header.is_slide:
        return "whole-slide image (modality wsi)"
    if header.modality not in ("CT", ""):
        return f"Modality {header.modality}" + (f", {kind}" if sop and not is_ct else "")
    # an object without Modality and of unknown kind may be a damaged slice
    if not header.modality and not is_ct and kind != sop:
        return kind
    if header.photometric.startswith(_COLOUR):
        return "colour picture"
    if header.is_localizer:
        return "localizer"
    incomplete = None in (header.position, header.orientation, header.slope, header.intercept)
    if sop.startswith(_SECONDARY_CAPTURE) and incomplete:
        return "secondary capture"
    if sop and not is_ct and (header.modality or kind != sop) and not (header.rows and header.columns):
        return f"{kind}, no pixels"
    return ""


def choose_scan(headers: Sequence[Header], paths: Mapping[str, Path], number: int | None, folder: str) -> Scan:
    """Find the slices of one scan among all DICOM files of a folder.

    Args:
        headers: of the files.
        paths: of these files, by the name in the header.
        number: SeriesNumber of the series, None = the only one.
        folder: name of the folder for messages.

    Raises:
        NoSuchSeries: no series has this number.
        FaultyScan: several series, or one that `order_series` refuses; the message says which one can be used.
    """
    left_out = {header.name: reason for header in headers if (reason := not_a_slice(header))}
    series: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        if header.name not in left_out:
            series.setdefault((header.study, header.series), []).append(header)
    groups = sorted(series.values(), key=lambda group: (-len(group), group[0].name))
    if not groups:
        raise FaultyScan(f"{folder!r}: no CT slice, only {summarise(left_out)}", left_out)
    chosen = groups if number is None else [group for group in groups if number in _numbers(group)]
    if not chosen:
        raise NoSuchSeries(f"image {folder!r}: no CT series #{number}; {_advice(groups, paths, folder)}")
    files = [header.name for group in chosen for header in group]
    if number is None and len(groups) > 1:
        reason = f"{folder!r}: {len(groups)} CT series, but one bag is one series; {_advice(groups, paths, folder)}"
        raise FaultyScan(reason, files)
    if number is not None and (len(chosen) > 1 or len(_numbers(chosen[0])) > 1):
        sizes = ", ".join(f"{len(group)} files such as {group[0].name}" for group in chosen)
        reason = f"{folder!r}: {sizes} share SeriesNumber {number}, but are not one series"
        raise FaultyScan(f"{reason}; give each series a folder of its own", files)
    try:
        scan = order_series(chosen[0], paths)
    except ValueError as error:
        raise FaultyScan(str(error), files) from error
    if number is not None:
        rest = (header for group in groups if group is not chosen[0] for header in group)
        left_out |= {header.name: "CT image without SeriesNumber" for header in rest if header.series_number is None}
    return replace(scan, left_out={**left_out, **scan.left_out})


def _numbers(group: Sequence[Header]) -> set[int | None]:
    return {header.series_number for header in group}


def _advice(groups: Sequence[Sequence[Header]], paths: Mapping[str, Path], folder: str) -> str:
    """Return which of the series can be used, and how they are written in a manifest."""
    usable, refused = [], []
    for group in groups:
        numbers = _numbers(group)
        (number, *others) = numbers
        text = f"{len(group)} CT images" + (f", {group[0].description!r}" if group[0].description else "")
        try:
            order_series(group, paths)
        except ValueError as error:
            refused.append(f"{text}: {error}")
            continue
        if number is None or others or sum(number in _numbers(other) for other in groups) > 1:
            place = _folder_of_its_own(group, groups)
            text += f" such as {group[0].name}: no SeriesNumber of its own"
            if place:
                usable.append(f"'{place}' ({text})")
            else:
                refused.append(f"{text}, give it a folder of its own")
        else:
            usable.append(f"'{folder}#{number}' ({text})")
    return f"write {' or '.join(usable[:4])}" if usable else f"none can be used: {'; '.join(refused[:2])}"


def _folder_of_its_own(group: Sequence[Header], groups: Sequence[Sequence[Header]]) -> str:
    """Return the folder that holds a series and no other one, or ""."""
    folder = os.path.commonpath([os.path.dirname(header.name) for header in group])
    others = [header.name for other in groups if other is not group for header in other]
    return "" if any(name.startswith(f"{folder}/") for name in others) else folder


def order_series(headers: Sequence[Header], paths: Mapping[str, Path]) -> Scan:
    """Drop copies of slices and sort the rest along the slice normal; pixels are read only to compare possible copies.

    Raises:
        ValueError: `check_series` refuses them, different slices share a SOPInstanceUID or a place, or two
            reconstructions or acquisitions alternate; files and numbers are named.
    """
    import numpy as np

    check_series(headers)
    left_out: dict[str, str] = {}
    named = sorted(headers, key=lambda header: header.name)
    for same in _repeated(named, [header.instance or f"none: {header.name}" for header in named]):
        if not _are_copies(same, paths):
            raise ValueError(
                f"{_some([header.name for header in same])}: {len(same)} files with one SOPInstanceUID but different "
                "content; keep the right one, or export the series again"
            )
        left_out |= {header.name: f"copy of {same[0].name}" for header in same[1:]}
    kept = [header for header in headers if header.name not in left_out]
    order, along = slice_order(kept)
    ordered = [kept[i] for i in order]
    shared = _repeated(ordered, np.cumsum(np.diff(along, prepend=0) >= SAME_PLACE_MM).tolist())
    for same in shared:
        if not _are_copies(same, paths):
            raise ValueError(_shared_places(shared, len(ordered)))
        left_out |= {header.name: f"copy of {same[0].name}" for header in same[1:]}
    stays = [header.name not in left_out for header in ordered]
    ordered, along = [header for header, stay in zip(ordered, stays, strict=True) if stay], along[stays]
    _check_alternating(ordered)
    return Scan(tuple(ordered), along, left_out, (*_gaps(ordered, along), *_changes(ordered), *_woven(ordered)))


def _repeated(headers: Sequence[Header], keys: Sequence[object]) -> list[list[Header]]:
    """Return the groups of two and more slices with one key."""
    groups: dict[object, list[Header]] = {}
    for header, key in zip(headers, keys, strict=True):
        groups.setdefault(key, []).append(header)
    return [group for group in groups.values() if len(group) > 1]


def _are_copies(headers: Sequence[Header], paths: Mapping[str, Path]) -> bool:
    """Return whether slices have one place, one meaning of their values, and equal values."""
    import numpy as np

    first = headers[0]
    if any((h.position, h.rescaling) != (first.position, first.rescaling) for h in headers[1:]):
        return False
    pixels = read_slice(paths[first.name], first.name)[0]
    return all(np.array_equal(read_slice(paths[h.name], h.name)[0], pixels) for h in headers[1:])


def _shared_places(places: Sequence[Sequence[Header]], slices: int) -> str:
    headers = [header for group in places for header in group]
    apart = []
    for i, trait in enumerate(TRAITS):
        counts = Counter(header.traits[i] or "none" for header in headers)
        if len(counts) > 1:
            apart.append(f"{trait} {', '.join(f'{value} ({n} files)' for value, n in counts.most_common(4))}")
    first, second = places[0][:2]
    return (
        f"{len(places)} of {slices - len(headers) + len(places)} places hold several slices, e.g. {first.name} and "
        f"{second.name}; {'; '.join(apart) or 'no header value tells them apart'}: two reconstructions or acquisitions "
        "in one series; put the files of one of them into a folder of its own"
    )


def _check_alternating(ordered: Sequence[Header]) -> None:
    """Raise if slices of two reconstructions or acquisitions alternate; one after the other is usual."""
    for i, trait in enumerate(TRAITS):
        pairs = [(header, header.traits[i]) for header in ordered if header.traits[i]]
        if trait == "SliceThickness":
            pairs = [(header, value) for header, value in pairs if re.fullmatch(r"\d+(\.\d*)?", value)]
            thinnest = min((float(value) for _, value in pairs), default=0.0)
            pairs = [(header, "thin" if float(value) <= 1.2 * thinnest else "thick") for header, value in pairs]
        values = Counter(value for _, value in pairs)
        changes = [after for before, after in pairwise(pairs) if before[1] != after[1]]
        if values and len(changes) >= len(values):
            listed = ", ".join(f"{value} ({n} slices)" for value, n in values.most_common(4))
            raise ValueError(
                f"{changes[1][0].name}: {trait} alternates along the scan, {listed}: two reconstructions or "
                "acquisitions in one series; put the files of one of them into a folder of its own"
            )


def _gaps(ordered: Sequence[Header], along: npt.NDArray[np.float64]) -> list[str]:
    """Name the gaps that are much wider than both neighbouring distances: slices may be missing there."""
    steps = (along[1:] - along[:-1]).tolist()
    wide = []
    for i, step in enumerate(steps):
        beside = steps[max(0, i - 1) : i] + steps[i + 1 : i + 2]
        if beside and step > 1.8 * max(beside):
            wide.append(f"{step:g} mm after {ordered[i].name} (beside it {max(beside):g} mm)")
    return [f"slices missing? {len(wide)} gaps: {'; '.join(wide[:_NAMES])}"] if wide else []


def _changes(ordered: Sequence[Header]) -> list[str]:
    """Name what changes along the scan and with it the look of the slices."""
    remarks = []
    for trait in ("ConvolutionKernel", "PixelSpacing"):
        values = Counter(header.traits[TRAITS.index(trait)] for header in ordered)
        if len(values) > 1:
            listed = ", ".join(f"{value or 'none'} ({n} slices)" for value, n in values.most_common(4))
            remarks.append(f"{trait} changes along the scan: {listed}")
    return remarks


def _woven(ordered: Sequence[Header]) -> list[str]:
    """Say if every other slice has a numbering of its own, as in two reconstructions that share all other values."""
    numbers = [header.number for header in ordered if header.number is not None]

    def runs(values: Sequence[int]) -> bool:
        """Return whether numbers only rise or only fall."""
        rises = {after > before for before, after in pairwise(values)}
        return len(rises) == 1 and len(set(values)) == len(values)

    if len(numbers) < max(len(ordered), 6) or runs(numbers) or not (runs(numbers[::2]) and runs(numbers[1::2])):
        return []
    listed = ", ".join(map(str, numbers[:6]))
    return [f"two reconstructions or acquisitions in one series? InstanceNumber goes {listed}, ... along the scan"]


def check_series(headers: Sequence[Header]) -> None:
    """Raise ValueError, naming a file, unless one or more slices form one series of one size and orientation."""
    # no slice is left of a scan whose headers are all damaged
    if not headers:
        raise ValueError("a scan without slices: expected at least one DICOM file")
    for header in headers:
        check_slice(header)
    series = Counter((h.study, h.series) for h in headers)
    first = headers[0]
    if len(series) > 1:
        other = next(h for h in headers if (h.study, h.series) != (first.study, first.series))
        raise ValueError(
            f"{other.name}: belongs to another series than {first.name} "
            f"({len(series)} series of {', '.join(map(str, series.values()))} files); one bag is one series"
        )
    for header in headers:
        if (header.rows, header.columns) != (first.rows, first.columns):
            raise ValueError(
                f"{header.name}: {header.rows} x {header.columns} px, but {first.name} has {first.rows} x "
                f"{first.columns}; expected one size in a series"
            )
        assert header.orientation is not None and first.orientation is not None
        if max(abs(a - b) for a, b in zip(header.orientation, first.orientation, strict=True)) > 0.01:
            raise ValueError(
                f"{header.name}: another slice orientation than {first.name} ({_directions(header)}, not "
                f"{_directions(first)}); is a localizer or a reformatted image among them? Move it out of the folder"
            )


def _directions(header: Header) -> str:
    return " ".join(f"{value:g}" for value in header.orientation or ())


def slice_order(headers: Sequence[Header]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Sort N slices that passed `check_series` along the slice normal, those at one position by name.

    Returns:
        (N,) indices into `headers`, and the (N,) positions in mm in that order, starting at 0.
    """
    import numpy as np

    orientation = headers[0].orientation
    assert orientation is not None
    normal = slice_normal(orientation)
    along = np.array([float(np.dot(normal, h.position or (0, 0, 0))) for h in headers])
    order = np.array(sorted(range(len(headers)), key=lambda i: (along[i], headers[i].name)), dtype=np.intp)
    return order, along[order] - along[order[0]]
