"""CT scans as bags: each slice is one instance, in anatomical order.

Slices are resized after windowing, because resizing HU would change the edge of the skull. Attributes hold file names
relative to the dataset's root, spacing and windows, never an identifier from a header.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from preprocessing.bags.rows import FAULTY, SLICES, BagRow, resolve
from preprocessing.common.options import CtOptions
from preprocessing.instances.graph import chain_neighbors
from preprocessing.instances.statistics import scan_statistics
from preprocessing.scans.dicom import Header, read_header, read_slice
from preprocessing.scans.series import choose_scan
from preprocessing.scans.windows import kept_values, to_hu, window, window_channels
from preprocessing.store.arrays import Instances
from preprocessing.store.attrs import InstanceAttrs, ScanStatistics, SliceSpacing
from preprocessing.store.outlines import Montage, Outlines

Slice = npt.NDArray[np.float32]
CELL_PX = 128
MONTAGE_SLICES = 64
_COVERAGE = {"0": 0.0, "1": 1.0, "x": float("nan")}
_FRAME = (220, 40, 40)


def ct_instances(options: CtOptions, row: BagRow, root: Path | str) -> Instances:
    """Turn one scan into instances.

    Args:
        options: windows and slice size.
        row: the bag; a CT annotation "slices:..." is aligned with `row.images`.
        root: the dataset's root folder.

    Returns:
        N instances in anatomical order: coords (N, 1) float32 in mm along the slice normal starting at 0, grid (i, 0),
        a chain of neighbours, coverage 0, 1 or NaN (unknown). A negative scan without annotation has coverage 0.

    Raises:
        ValueError: a file that is no CT slice, two series, mixed sizes, or an annotation of another length.
    """
    by_name = {name: resolve(root, name) for name in row.images}
    # the files of a scan that was faulty when the bags were listed may be repaired by now
    headers = [read_header(path, name) for name, path in by_name.items()]
    scan = choose_scan(headers, by_name, None, os.path.commonpath([str(Path(name).parent) for name in by_name]))
    along, n = scan.along, len(scan.slices)
    # the list knows of files that are not among the images, unless it knows only that they were faulty
    note = scan.note if FAULTY in row.note else row.note
    attrs = _attributes(scan.slices, along, options).updated(warnings=(note,) if note else ())
    coverage = _coverage(row)[[row.images.index(header.name) for header in scan.slices]]
    picture, layout, statistics = montage([by_name[h.name] for h in scan.slices], attrs, coverage)
    return Instances(
        coords=along.astype(np.float32)[:, None],
        grid=np.stack([np.arange(n, dtype=np.int32), np.zeros(n, dtype=np.int32)], axis=1),
        neighbors=chain_neighbors(n),
        coverage=coverage,
        attrs=attrs.updated(statistics=statistics),
        thumbnail=picture,
        outlines=Outlines(downsample=1.0, montage=layout),
    )


def read_slices(root: Path | str, attrs: InstanceAttrs, start: int = 0, stop: int | None = None) -> Iterator[Slice]:
    """Read the slices of a stored scan from `start` up to `stop` (None = all), in the order of the instances.

    Yields:
        (slice_px, slice_px, 3) float32 in [0, 1].

    Raises:
        ValueError: a file is missing, truncated or cannot be decoded; the message names it.
    """
    for name in attrs.files[start:stop]:
        raw, header = read_slice(resolve(root, name), name)
        yield _resize(window_channels(to_hu(raw, header), attrs.windows), attrs.slice_px)


def _coverage(row: BagRow) -> npt.NDArray[np.float32]:
    n = len(row.images)
    if not row.annotation:
        return np.full(n, 0.0 if row.label == 0 else np.nan, dtype=np.float32)
    states = row.annotation.removeprefix(SLICES)
    if not row.annotation.startswith(SLICES) or len(states) != n or set(states) - set(_COVERAGE):
        raise ValueError(
            f"{row.bag_id}: annotation: found {row.annotation[:40]!r}, expected '{SLICES}' and one of 0, 1, x for "
            f"each of {n} slices"
        )
    return np.array([_COVERAGE[state] for state in states], dtype=np.float32)


def _attributes(headers: Sequence[Header], along: npt.NDArray[np.float64], options: CtOptions) -> InstanceAttrs:
    first = headers[0]
    if not options.resize_slices and (first.rows, first.columns) != (options.slice_px, options.slice_px):
        raise ValueError(
            f"{first.name}: {first.rows} x {first.columns} px, expected {options.slice_px} x {options.slice_px}; "
            "set resize_slices or slice_px"
        )
    if any(not width > 0 for _, width in options.windows):
        raise ValueError(f"windows: found {list(options.windows)}, expected (level, width) with a width above 0 HU")
    gaps = np.diff(along)
    statistics = [round(float(f(gaps)), 6) if len(gaps) else None for f in (np.min, np.median, np.max)]
    pixel = (round(first.pixel_spacing[0], 6), round(first.pixel_spacing[1], 6)) if first.pixel_spacing else None
    return InstanceAttrs(
        modality="ct",
        preset=options.preset,
        windows=tuple((float(level), float(width)) for level, width in options.windows),
        slice_px=options.slice_px,
        source_px=(first.rows, first.columns),
        resize_filter=None if first.rows == first.columns == options.slice_px else "bilinear_antialias",
        files=tuple(header.name for header in headers),
        spacing_mm=SliceSpacing(
            pixel=pixel, slices_min=statistics[0], slices_median=statistics[1], slices_max=statistics[2]
        ),
        slices_at_one_position=int((gaps < 1e-3).sum()),
        slices_repaired_12bit=sum(header.needs_repair for header in headers),
        fill_values_kept=tuple(sorted({value for header in headers for value in kept_values(header)})),
    )


def _resize(channels: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    if channels.shape[:2] == (side, side):
        return channels
    planes = [Image.fromarray(np.ascontiguousarray(channels[..., c])) for c in range(channels.shape[2])]
    # Pillow's bilinear filter is antialiased, OpenCV's is not
    small = [np.asarray(plane.resize((side, side), Image.Resampling.BILINEAR)) for plane in planes]
    resized: npt.NDArray[np.float32] = np.clip(np.stack(small, axis=-1), 0, 1).astype(np.float32, copy=False)
    return resized


def montage(
    files: Sequence[Path], attrs: InstanceAttrs, coverage: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.uint8], Montage, ScanStatistics]:
    """Draw the slices in order, first window in grey, with a red frame around those known to be positive.

    Args:
        files: the N slices in anatomical order.
        attrs: attributes of the bag.
        coverage: (N,).

    Returns:
        (h, w, 3) uint8, its layout, and what its slices hold; at most 64 slices, evenly spaced.
    """
    n = len(files)
    indices = np.unique(np.linspace(0, n - 1, min(n, MONTAGE_SLICES)).round().astype(int))
    columns = math.ceil(math.sqrt(len(indices)))
    rows = -(-len(indices) // columns)
    picture = np.zeros((rows * CELL_PX, columns * CELL_PX, 3), dtype=np.uint8)
    slices = []
    for cell, index in enumerate(indices):
        slices.append(to_hu(*read_slice(files[index], attrs.files[index])))
        tile = np.repeat(_fit(window(slices[-1], *attrs.windows[0]))[..., None], 3, axis=2)
        cv2.putText(tile, str(index), (4, CELL_PX - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (200, 200, 200), 1, cv2.LINE_AA)
        if coverage[index] > 0:
            cv2.rectangle(tile, (0, 0), (CELL_PX - 1, CELL_PX - 1), _FRAME, 2)
        y, x = cell // columns * CELL_PX, cell % columns * CELL_PX
        picture[y : y + CELL_PX, x : x + CELL_PX] = tile
    layout = Montage(columns=columns, cell_px=CELL_PX, slices=[int(i) for i in indices])
    return picture, layout, scan_statistics(slices)


def _fit(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Scale (H, W) in [0, 1] into a black square cell, keeping the aspect ratio."""
    height, width = grey.shape
    scale = CELL_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    cell = np.zeros((CELL_PX, CELL_PX), dtype=np.uint8)
    y, x = (CELL_PX - size[1]) // 2, (CELL_PX - size[0]) // 2
    cell[y : y + size[1], x : x + size[0]] = (small * 255).round()
    return cell
