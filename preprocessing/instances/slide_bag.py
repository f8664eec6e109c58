"""Turn one slide into one bag of instances: tissue or windows, lattice, lesion coverage, neighbours, thumbnail.

`preprocessing.slides.tile_reader` reads the pixels of stored instances. All coordinates are level-0, rows sorted by
(y, x). Shapes: coords, grid (N, 2) int32; neighbors (N, K) int32; coverage (N,) float32.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from shapely.affinity import affine_transform

from preprocessing.bags.overrides import overrides_of
from preprocessing.bags.rows import BagRow, resolve
from preprocessing.common.options import ArtefactName, TissueOptions, WsiOptions
from preprocessing.instances.artefacts import Artefacts, Cut, slide_artefacts, tiles_without_artefacts
from preprocessing.instances.graph import distance_neighbors, grid_neighbors
from preprocessing.instances.statistics import slide_statistics
from preprocessing.slides.regions import Image, TileReadError
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.store.arrays import Instances
from preprocessing.store.attrs import AnnotationCounts, InstanceAttrs, TissueAttrs
from preprocessing.store.outlines import ArtefactArea, Outlines, Ring
from preprocessing.tiling.annotations import Lesion, coverage, read_lesion
from preprocessing.tiling.contour_tiles import TilePlan, contour_tiles, count_shared, global_tiles, plan_tiles
from preprocessing.tiling.mask_image import Mask, mask_contours, masked_windows, read_mask
from preprocessing.tiling.mask_outlines import MaskOutlines, outline_mask, read_mask_outlines
from preprocessing.tiling.panda_windows import PandaWindows, mask_coverage, mask_outlines, panda_windows, plan_windows
from preprocessing.tiling.tissue import Contour, Tissue, segment_tissue

THUMBNAIL_PX = 1024
_MASK_SUFFIXES = frozenset({".tif", ".tiff"})


@dataclass
class _Geometry:
    """Result of a recipe: tiles, coverage and attributes."""

    plan: TilePlan
    coords: npt.NDArray[np.int32]
    grid: npt.NDArray[np.int32]
    coverage: npt.NDArray[np.float32]
    attrs: InstanceAttrs
    empty_reason: str
    contours: list[Contour] = field(default_factory=list)
    lesion: Lesion | None = None
    mask_outlines: list[npt.NDArray[np.int32]] = field(default_factory=list)


def wsi_instances(path: Path | str, options: WsiOptions, row: BagRow, root: Path | str) -> Instances:
    """Compute the instances of one slide.

    Coverage is NaN for a positive or unlabelled slide without annotation, and 0 for a negative one.

    Args:
        path: the slide.
        options: recipe and sizes.
        row: label, annotation (relative to `root`), provider and mpp override of the bag.
        root: the dataset's folder.

    Returns:
        Instances; N = 0 for a slide without tissue.

    Raises:
        ValueError: unreadable slide, implausible resolution, bad annotation; the message names the file.
    """
    with open_slide(path, mpp_override=row.mpp) as slide:
        mask = _override_mask(slide, row, root)
        recipe = _panda if options.recipe == "panda" else _clam
        geometry = recipe(slide, options, row, root, mask)
        thumbnail, downsample, failure = _thumbnail(slide)
        artefacts = mask.artefacts if isinstance(mask, MaskOutlines) else None
        if artefacts is None and thumbnail is not None:
            artefacts = slide_artefacts(slide, thumbnail, downsample, _cut(geometry))
        if options.tissue.exclude:
            if artefacts is None:
                raise ValueError(f"{slide.path}: tissue.exclude needs a thumbnail to look at, but {failure}")
            geometry = _without_artefacts(geometry, options.tissue, artefacts)
        neighbors = _neighbors(geometry, options)
        zero_edges = len(geometry.coords) > 1 and not (neighbors >= 0).any()
        attrs = _attrs(slide, options, row, geometry, zero_edges=bool(zero_edges))
        if failure:
            attrs = attrs.updated(warnings=(*attrs.warnings, f"no thumbnail ({failure})"))
        attrs = attrs.updated(statistics=slide_statistics(slide, attrs, geometry.coords, thumbnail, downsample))
    outlines = _outlines(geometry, downsample, artefacts)
    return Instances(geometry.coords, geometry.grid, neighbors, geometry.coverage, attrs, thumbnail, outlines)


def _thumbnail(slide: Slide) -> tuple[Image | None, float, str]:
    """Return the thumbnail (h, w, 3), its downsample, and why there is none.

    The tiles are read from another level, so a bag is usable although a coarse level is damaged.
    """
    try:
        return *slide.thumbnail(THUMBNAIL_PX), ""
    except TileReadError as error:
        return None, 1.0, str(error)


def artefacts_of_stored(
    path: Path, row: BagRow, attrs: InstanceAttrs, outlines: Outlines, coords: npt.NDArray[np.integer]
) -> dict[ArtefactName, ArtefactArea] | None:
    """Find the artefacts of a cut slide, `coords` (N,2) in level-0 px; None if it has no thumbnail."""
    with open_slide(path, mpp_override=row.mpp) as slide:
        thumbnail, downsample, _ = _thumbnail(slide)
        if thumbnail is None:
            return None
        cut = Cut(outlines.tissue, outlines.holes, coords, attrs.l0_footprint_px, attrs.otsu_threshold)
        return slide_artefacts(slide, thumbnail, downsample, cut)


def _cut(geometry: _Geometry) -> Cut:
    contours, attrs = geometry.contours, geometry.attrs
    holes = [hole for contour in contours for hole in contour.holes]
    outer = [contour.outer for contour in contours]
    return Cut(outer, holes, geometry.coords, geometry.plan.footprint, attrs.otsu_threshold)


def _without_artefacts(geometry: _Geometry, options: TissueOptions, artefacts: Artefacts) -> _Geometry:
    """Leave out the tiles that excluded artefacts cover; all other tiles stay as they are."""
    keep = tiles_without_artefacts(artefacts, options, geometry.coords, geometry.plan.footprint)
    grid, attrs = geometry.grid[keep], geometry.attrs
    attrs = attrs.updated(excluded_tiles=int((~keep).sum()))
    if attrs.contour_of_tile is not None:
        contours = np.array(attrs.contour_of_tile, np.int64)[keep]
        attrs = attrs.updated(contour_of_tile=tuple(contours.tolist()), tiles_in_shared_cells=count_shared(grid))
    reason = geometry.empty_reason if keep.all() else f"every tile excluded: {', '.join(options.exclude)}"
    coverage_kept = geometry.coverage[keep]
    return replace(
        geometry, coords=geometry.coords[keep], grid=grid, coverage=coverage_kept, attrs=attrs, empty_reason=reason
    )


def _override_mask(slide: Slide, row: BagRow, root: Path | str) -> Mask | MaskOutlines | None:
    """Read the tissue mask of the bag's overrides, (h, w) or outlines."""
    name = overrides_of(row).mask
    if not name:
        return None
    path = resolve(Path(root), name)
    if path.suffix.lower() == ".geojson":
        return read_mask_outlines(path, slide.dimensions, slide.bounds[:2])
    return read_mask(path, slide.dimensions)


def slide_tissue(slide: Slide, options: WsiOptions, row: BagRow, root: Path | str) -> Tissue:
    """Return the tissue of a slide, from the mask of the bag's overrides if there is one."""
    return _tissue(slide, options, _override_mask(slide, row, root))


def _tissue(slide: Slide, options: WsiOptions, mask: Mask | MaskOutlines | None) -> Tissue:
    if mask is None:
        return segment_tissue(slide, options.tissue, max_bad_tiles=options.max_bad_tiles)
    if isinstance(mask, MaskOutlines):
        return Tissue(mask.contours, -1, (1.0, 1.0), ["own mask"])
    contours, downsample = mask_contours(mask, slide.dimensions)
    return Tissue(contours, -1, downsample, ["own mask"])


def _clam(
    slide: Slide, options: WsiOptions, row: BagRow, root: Path | str, mask: Mask | MaskOutlines | None
) -> _Geometry:
    plan = plan_tiles(slide.level_downsamples, slide.mpp, options, str(slide.path))
    tissue = _tissue(slide, options, mask)
    place_tiles = global_tiles if options.lattice == "global" else contour_tiles
    tiles = place_tiles(tissue.contours, plan, slide.dimensions, options)
    lesion, warnings = _lesion(slide, options, row, root), list[str]()
    if lesion is None:
        share = _unannotated(len(tiles.coords), row)
    else:
        share, warnings = _covered(lesion, tiles.coords, plan, slide, row)
    attrs = InstanceAttrs(
        lattice=options.lattice,
        contour_fn=options.contour_fn,
        snap=options.snap,
        use_padding=options.use_padding,
        tissue=TissueAttrs(
            **options.tissue.model_dump(),
            level=tissue.level,
            downsample=tissue.downsample,
            marks=tuple(tissue.marks),
            contours=len(tissue.contours),
            holes=sum(len(contour.holes) for contour in tissue.contours),
        ),
        tiles_in_shared_cells=tiles.shared_cells,
        unreadable_tiles=tissue.unreadable,
        contour_of_tile=tuple(tiles.contour.tolist()) if options.lattice == "contour" else None,
        annotation_counts=lesion.counts if lesion else AnnotationCounts(),
        warnings=tuple(warnings),
    )
    reason = "no tile inside the tissue" if tissue.contours else "no tissue found"
    return _Geometry(plan, tiles.coords, tiles.grid, share, attrs, reason, tissue.contours, lesion)


def _windows(slide: Slide, plan: TilePlan, options: WsiOptions, mask: Mask | MaskOutlines | None) -> PandaWindows:
    if mask is None:
        return panda_windows(slide, plan, options)
    if isinstance(mask, MaskOutlines):
        mask = outline_mask(mask.contours, slide.dimensions)
    windows = masked_windows(mask, slide.dimensions, plan, options.min_tissue)
    windows.marks.append("own mask")
    return windows


def _panda(
    slide: Slide, options: WsiOptions, row: BagRow, root: Path | str, mask: Mask | MaskOutlines | None
) -> _Geometry:
    plan = plan_windows(options, str(slide.path))
    windows = _windows(slide, plan, options, mask)
    annotation = _annotation_path(row, root)
    lesion, outlines, warnings = None, [], list[str]()
    if annotation is None:
        share = _unannotated(len(windows.coords), row)
    elif annotation.suffix.lower() in _MASK_SUFFIXES:
        with open_slide(annotation, require_mpp=False) as labels:
            share = mask_coverage(labels, windows, plan, slide.dimensions, row.provider)
            outlines = mask_outlines(labels, row.provider)
    else:
        lesion = _lesion(slide, options, row, root)
        assert lesion is not None
        share, warnings = _covered(lesion, windows.coords, plan, slide, row)
    attrs = InstanceAttrs(
        lattice="global",
        otsu_threshold=windows.threshold,
        otsu_bgr=options.otsu_bgr,
        min_tissue=options.min_tissue,
        marks=tuple(windows.marks),
        unreadable_tiles=windows.unreadable,
        annotation_counts=lesion.counts if lesion else AnnotationCounts(),
        warnings=tuple(warnings),
    )
    reason = next((mark for mark in windows.marks if mark.startswith("too large")), "no window with enough tissue")
    return _Geometry(plan, windows.coords, windows.grid, share, attrs, reason, [], lesion, outlines)


def _annotation_path(row: BagRow, root: Path | str) -> Path | None:
    if not row.annotation:
        return None
    if row.annotation.startswith("slices:"):
        raise ValueError(f"{row.bag_id}: annotation 'slices:...' belongs to a CT scan, expected a file for a slide")
    return resolve(Path(root), row.annotation)


def _lesion(slide: Slide, options: WsiOptions, row: BagRow, root: Path | str) -> Lesion | None:
    path = _annotation_path(row, root)
    if path is None:
        return None
    classes, dimensions = options.annotation_classes, slide.dimensions
    return read_lesion(path, classes=classes, origin=slide.bounds[:2], dimensions=dimensions)


def _covered(
    lesion: Lesion, coords: npt.NDArray[np.int32], plan: TilePlan, slide: Slide, row: BagRow
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """Return the lesion's share of each tile, and a warning if none has any, with the scale at which one would."""
    warnings = []
    if lesion.geometry.is_empty and row.label == 1:
        warnings.append(f"positive slide, but its annotation {row.annotation} holds no lesion")
    share = coverage(lesion.geometry, coords, plan.footprint)
    if len(coords) and not lesion.geometry.is_empty and not share.any():
        scales = {f"px of level {i}": downsample for i, downsample in enumerate(slide.level_downsamples) if i}
        scales["um"] = 1 / slide.mpp
        scaled = ((unit, affine_transform(lesion.geometry, [s, 0, 0, s, 0, 0])) for unit, s in scales.items())
        hits = [unit for unit, geometry in scaled if coverage(geometry, coords, plan.footprint).any()]
        hint = f"; it would as {' or '.join(hits)}: expected level-0 px" if hits else ""
        warnings.append(f"the annotated lesion meets none of {len(coords)} tiles{hint}")
    return share, warnings


def _unannotated(n: int, row: BagRow) -> npt.NDArray[np.float32]:
    return np.full(n, 0.0 if row.label == 0 else math.nan, np.float32)


def _neighbors(geometry: _Geometry, options: WsiOptions) -> npt.NDArray[np.int32]:
    if options.recipe == "panda" or options.lattice == "global":
        return grid_neighbors(geometry.grid)
    # the lattices of several contours are not aligned, so neighbours are found by distance, diagonals included
    return distance_neighbors(geometry.coords, math.sqrt(2) * geometry.plan.step)


def _attrs(slide: Slide, options: WsiOptions, row: BagRow, geometry: _Geometry, *, zero_edges: bool) -> InstanceAttrs:
    plan = geometry.plan
    halved = options.recipe == "panda" and plan.read_px == 2 * plan.tile_px
    shrunk = plan.read_px != plan.tile_px
    return geometry.attrs.updated(
        modality="wsi",
        recipe=options.recipe,
        preset=options.preset,
        tile_px=plan.tile_px,
        read_level=plan.level,
        read_px=plan.read_px,
        read_downsample=plan.downsample,
        l0_footprint_px=plan.footprint,
        l0_step_px=plan.step,
        resize_filter=("linear" if halved else "area") if shrunk else "none",
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        tile_mpp=slide.mpp * plan.footprint / plan.tile_px,
        dimensions=slide.dimensions,
        bounds=slide.bounds,
        vendor=slide.properties.get("openslide.vendor", ""),
        warnings=(*slide.warnings, *geometry.attrs.warnings),
        max_bad_tiles=options.max_bad_tiles,
        provider=row.provider,
        annotation_present=bool(row.annotation),
        annotation_complete=row.annotation_complete,
        zero_edges=zero_edges,
        empty_reason="" if len(geometry.coords) else geometry.empty_reason,
    )


def _outlines(geometry: _Geometry, downsample: float, artefacts: Artefacts | None) -> Outlines:
    """Return the polygons for the thumbnail, simplified to one of its pixels."""
    import cv2
    import shapely

    def simple(polygon: npt.NDArray[np.int32]) -> Ring:
        """Simplify a polygon (V,2) of level-0 px (x, y)."""
        short = cv2.approxPolyDP(polygon.reshape(-1, 1, 2), downsample, True)
        return [(int(x), int(y)) for x, y in short.reshape(-1, 2)]

    lesion = [simple(outline) for outline in geometry.mask_outlines]
    if geometry.lesion is not None:
        for part in shapely.get_parts(shapely.simplify(geometry.lesion.geometry, downsample)):
            for ring in (part.exterior, *part.interiors):
                lesion.append([(round(x, 1), round(y, 1)) for x, y in ring.coords])
    return Outlines(
        downsample=downsample,
        tissue=[simple(contour.outer) for contour in geometry.contours],
        holes=[simple(hole) for contour in geometry.contours for hole in contour.holes],
        lesion=lesion,
        artefacts=None if artefacts is None else dict(artefacts),
    )
