"""What is drawn over a bag: its tiles or slices, outlines, and the stored scores of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from preprocessing.common.options import WsiOptions
from preprocessing.instances.checks import warnings_of
from preprocessing.slides.slide import open_slide
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.outlines import Outlines, Ring
from preprocessing.store.schema import Array
from preprocessing.tiling.annotations import read_lesion
from preprocessing.tiling.panda_windows import mask_outlines
from smmil.artifacts.results import SIGNED, Predictions, load_predictions
from smmil.data.stored import read_geometry
from smmil.view.catalogue import Bag, Run
from smmil.view.images import slide_zoom
from smmil.view.records import Artefact, BagView, Packed, Rings, ScanView, Score, Scores, SlideView

# key -> name and array of instance scores
KINDS = {"score": ("raw score", "instance_score")} | {key: (name, f"{key}_score") for key, name in SIGNED.items()}
_MASKS = (".tif", ".tiff")


def bag_view(name: str, bag: Bag) -> BagView:
    """Return one bag; what cannot be read becomes a warning."""
    row, outcome = bag.row, bag.store.outcomes.get(bag.id)
    reason = outcome.reason if outcome else row.skip
    warnings = list(outcome.warnings if outcome else ())
    facts: dict[str, Any] = {"id": name, "label": row.label, "split": row.split, "state": bag.state}
    if not bag.stored:
        none = Packed.of(np.zeros(0), "f4")
        return BagView(**facts, reason=reason, n=0, coverage=none, facts=(), warnings=tuple(warnings))
    attrs, arrays = geometry(bag)
    if outcome is None:
        warnings = list(warnings_of(attrs))
    draw = _scan if attrs.modality == "ct" else _slide
    drawn = draw(bag, attrs, arrays, warnings)
    return BagView(
        **facts,
        reason=reason or attrs.empty_reason,
        n=len(arrays["coords"]),
        # JSON has no NaN, but packed arrays have
        coverage=Packed.of(arrays["coverage"], "f4"),
        facts=tuple(_facts(attrs, row.note, len(arrays["coords"]))),
        warnings=tuple(dict.fromkeys(warnings)),
        slide=drawn if isinstance(drawn, SlideView) else None,
        scan=drawn if isinstance(drawn, ScanView) else None,
    )


def geometry(bag: Bag) -> tuple[InstanceAttrs, dict[str, Array]]:
    """Return attributes, `coords`, `grid` and `coverage` of a stored bag."""
    written = (bag.store.instances / "store" / bag.id / "zarr.json").stat().st_mtime_ns
    return _stored(bag.store.instances, bag.id, written)


# Every layer of a bag is a request of its own that needs the stored tiles.
@lru_cache(maxsize=64)
def _stored(instances: Path, bag_id: str, mtime_ns: int) -> tuple[InstanceAttrs, dict[str, Array]]:
    return read_geometry(instances, bag_id, ["coords", "grid", "coverage"])


def _slide(bag: Bag, attrs: InstanceAttrs, arrays: dict[str, Array], warnings: list[str]) -> SlideView:
    try:
        zoom = slide_zoom(bag).record
    except ValueError as error:
        zoom = None
        warnings.append(f"the slide cannot be shown: {error}")
    drawn = Outlines.read(bag.store.instances, bag.id)
    width, height = attrs.dimensions or (zoom.width if zoom else 1, zoom.height if zoom else 1)
    return SlideView(
        width=width,
        height=height,
        zoom=zoom,
        bounds=attrs.bounds or (0, 0, width, height),
        mpp=None if attrs.mpp is None else float(attrs.mpp),
        footprint=attrs.l0_footprint_px,
        step=attrs.l0_step_px or attrs.l0_footprint_px,
        coords=Packed.of(arrays["coords"], "i4"),
        grid=Packed.of(arrays["grid"], "i4"),
        lesion=_rings(_lesion(bag, attrs, drawn, warnings)),
        tissue=_rings([*drawn.tissue, *drawn.holes]),
        artefacts={
            kind: Artefact(artefact.share, _rings([ring for area in artefact.areas for ring in area]))
            for kind, artefact in (drawn.artefacts or {}).items()
            if artefact.areas
        },
    )


def _scan(bag: Bag, attrs: InstanceAttrs, arrays: dict[str, Array], warnings: list[str]) -> ScanView:
    try:
        readable = all(bag.store.raw(name) for name in attrs.files)
    except ValueError as error:
        readable = False
        warnings.append(f"the slices cannot be shown: {error}")
    pixel = attrs.spacing_mm.pixel if attrs.spacing_mm else None
    rows, columns = attrs.source_px or (attrs.slice_px, attrs.slice_px)
    return ScanView(
        rows=rows,
        columns=columns,
        aspect=float(pixel[0]) / float(pixel[1]) if pixel and pixel[1] else 1.0,
        positions=Packed.of(arrays["coords"][:, 0], "f4"),
        files=tuple(Path(name).name for name in attrs.files),
        readable=readable,
        windows=tuple((float(level), float(width)) for level, width in attrs.windows),
    )


def _facts(attrs: InstanceAttrs, note: str, n: int) -> Iterable[tuple[str, str]]:
    if attrs.modality == "ct":
        rows, columns = attrs.source_px or (0, 0)
        yield "Slices", f"{n} of {rows} × {columns} px"
        if attrs.spacing_mm and attrs.spacing_mm.slices_median is not None:
            yield "Slice distance", f"{attrs.spacing_mm.slices_median:.4g} mm"
        if attrs.spacing_mm and attrs.spacing_mm.pixel:
            yield "Pixel", " × ".join(f"{side:.4g}" for side in attrs.spacing_mm.pixel) + " mm"
    else:
        yield "Tiles", f"{n} of {attrs.tile_px} px" + (f", {attrs.tile_mpp:.4g} µm/px" if attrs.tile_mpp else "")
        if attrs.dimensions:
            yield "Level 0", f"{attrs.dimensions[0]} × {attrs.dimensions[1]} px"
        if attrs.mpp:
            yield "Resolution", f"{attrs.mpp:.4g} µm/px ({attrs.mpp_source})"
        if attrs.vendor:
            yield "Format", attrs.vendor
    if note:
        yield "Note", note


def _lesion(bag: Bag, attrs: InstanceAttrs, drawn: Outlines, warnings: list[str]) -> Sequence[Array | Ring]:
    """Return the rings of the lesion: those of the annotation, without it those drawn on the thumbnail."""
    row = bag.row
    if not row.annotation:
        return []
    try:
        path = bag.store.raw(row.annotation)
        if path.suffix.lower() in _MASKS:
            with open_slide(path, require_mpp=False) as labels:
                return mask_outlines(labels, row.provider)
        options = attrs.instance_options
        classes = options.annotation_classes if isinstance(options, WsiOptions) else {}
        origin = attrs.bounds[:2] if attrs.bounds else (0, 0)
        lesion = read_lesion(path, classes=classes, origin=origin, dimensions=attrs.dimensions).geometry
    except ValueError as error:
        warnings.append(f"the lesion is outlined coarsely: {error}")
        return drawn.lesion
    parts = shapely.get_parts(lesion)
    return [np.asarray(ring.coords)[:, :2] for part in parts for ring in (part.exterior, *part.interiors)]


def _rings(rings: Sequence[Array | Ring]) -> Rings:
    points = np.concatenate([np.asarray(ring, np.float32) for ring in rings]) if rings else np.zeros((0, 2))
    return Rings(Packed.of(points, "f4"), tuple(len(ring) for ring in rings))


@lru_cache(maxsize=16)
def _load(path: Path, mtime_ns: int) -> Predictions:
    return load_predictions(path)


def instance_scores(bag: Bag, run: Run) -> dict[str, npt.NDArray[np.float32]]:
    """Return the stored scores (N,) of a bag by a run, by key of `KINDS`; {} if the run does not predict it.

    Raises:
        ValueError: a damaged file, or a bag that was cut again since it was predicted.
    """
    path = run.predictions(bag)
    if path is None:
        return {}
    arrays = _load(path, path.stat().st_mtime_ns).bag(bag.id)
    grid, predicted = geometry(bag)[1]["grid"], arrays["instance_score"]
    if len(predicted) != len(grid) or ("grid" in arrays and not np.array_equal(arrays["grid"], grid)):
        raise ValueError(
            f"{path}: {bag.id} was predicted with {len(predicted)} instances in other places than the {len(grid)} that"
            " are stored now; run the workflow again"
        )
    return {key: arrays[array] for key, (_, array) in KINDS.items() if array in arrays}


def scores(bag: Bag, run: Run) -> Scores:
    """Return the scores of a bag by a run with their range over all bags of the run; raises as `instance_scores`."""
    result, path = {}, run.predictions(bag)
    for key, values in instance_scores(bag, run).items():
        assert path is not None
        title, array = KINDS[key]
        everything = _load(path, path.stat().st_mtime_ns).arrays[array]
        finite = everything[np.isfinite(everything)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        result[key] = Score(title, Packed.of(values, "f4"), low, high)
    return Scores(result)
