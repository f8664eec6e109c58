"""Turn one slide into one bag of instances: tissue or windows, lattice, lesion coverage, neighbours, thumbnail.

`preprocessing.slides.tile_reader` reads the pixels of stored instances. All coordinates are level-0, rows sorted by
(y, x). Shapes: coords, grid (N, 2) int32; neighbors (N, K) int32; coverage (N,) float32.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely.affinity import affine_transform

from preprocessing.bags.overrides import overrides_of
from preprocessing.bags.rows import BagRow, resolve
from preprocessing.common.options import TissueOptions, WsiOptions
from preprocessing.instances.graph import distance_neighbors, grid_neighbors
from preprocessing.instances.statistics import slide_statistics
from preprocessing.slides.regions import TileReadError
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.store.arrays import Instances
from preprocessing.store.attrs import AnnotationCounts, InstanceAttrs, TissueAttrs
from preprocessing.store.outlines import Outlines, Ring
from preprocessing.tiling.annotations import Lesion, coverage, even_odd, read_lesion
from preprocessing.tiling.artefacts import Artefacts, slide_artefacts, tissue_on
from preprocessing.tiling.contour_tiles import TilePlan, contour_tiles, count_shared, global_tiles, plan_tiles
from preprocessing.tiling.mask_file import MaskFile, masked_windows, read_mask_file
from preprocessing.tiling.panda_windows import mask_coverage, mask_outlines, panda_windows, plan_windows
from preprocessing.tiling.tissue import Contour, Tissue, segment_tissue

THUMBNAIL_PX = 1024


@dataclass
class _Geometry:
    """Result of a recipe: tiles, their attributes, and for bags without tiles the reason."""

    plan: TilePlan
    coords: npt.NDArray[np.int32]
    grid: npt.NDArray[np.int32]
    attrs: InstanceAttrs
    empty_reason: str
    contours: list[Contour] = field(default_factory=list)


@dataclass
class _Annotation:
    """What is known of the lesion: coverage (N,), polygon or outlines of a label mask, and what is odd about it."""

    coverage: npt.NDArray[np.float32]
    lesion: Lesion | None = None
    mask_outlines: list[npt.NDArray[np.int32]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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
        mask = _mask_of_row(slide, row, root)
        tiles = (_panda if options.recipe == "panda" else _clam)(slide, options, mask)
        annotation = _annotation(slide, options, row, root, tiles)
        try:
            # tiles are read from another level, so a bag is usable although a coarse level is damaged
            thumbnail, downsample, failure = *slide.thumbnail(THUMBNAIL_PX), ""
        except TileReadError as error:
            thumbnail, downsample, failure = None, 1.0, str(error)
        artefacts = mask.artefacts if mask else None
        if artefacts is None and thumbnail is not None:
            otsu = tiles.attrs.otsu_threshold
            tissue = tissue_on(thumbnail, downsample, tiles.contours, tiles.coords, tiles.plan.footprint, otsu)
            artefacts = slide_artefacts(slide, thumbnail, downsample, tissue)
        share = annotation.coverage
        if options.tissue.exclude:
            if artefacts is None:
                raise ValueError(f"{slide.path}: tissue.exclude needs a thumbnail to look at, but {failure}")
            keep = tiles_without_artefacts(artefacts, options.tissue, tiles.coords, tiles.plan.footprint)
            tiles, share = _kept(tiles, keep, options.tissue), share[keep]
        neighbors = _neighbors(tiles, options)
        attrs = _attrs(slide, options, row, tiles, annotation, neighbors, failure)
        attrs = attrs.updated(statistics=slide_statistics(slide, attrs, tiles.coords, thumbnail, downsample))
    outlines = _outlines(tiles.contours, annotation, downsample, artefacts)
    return Instances(tiles.coords, tiles.grid, neighbors, share, attrs, thumbnail, outlines)


def artefacts_of_stored(
    path: Path, row: BagRow, attrs: InstanceAttrs, outlines: Outlines, coords: npt.NDArray[np.integer]
) -> Artefacts | None:
    """Find the artefacts of a cut slide, tiles at `coords` (N, 2) level-0 px; None if it has no thumbnail."""
    contours = [Contour(np.array(ring)) for ring in outlines.tissue]
    if contours:
        contours[-1] = Contour(contours[-1].outer, tuple(np.array(hole) for hole in outlines.holes))
    with open_slide(path, mpp_override=row.mpp) as slide:
        try:
            thumbnail, downsample = slide.thumbnail(THUMBNAIL_PX)
        except TileReadError:
            return None
        tissue = tissue_on(thumbnail, downsample, contours, coords, attrs.l0_footprint_px, attrs.otsu_threshold)
        return slide_artefacts(slide, thumbnail, downsample, tissue)


def _kept(tiles: _Geometry, keep: npt.NDArray[np.bool_], options: TissueOptions) -> _Geometry:
    """Leave out the tiles that excluded artefacts cover, where `keep` (N,) is False; all other tiles stay."""
    grid, attrs = tiles.grid[keep], tiles.attrs.updated(excluded_tiles=int((~keep).sum()))
    if attrs.contour_of_tile is not None:
        contours = np.array(attrs.contour_of_tile, np.int64)[keep]
        attrs = attrs.updated(contour_of_tile=tuple(contours.tolist()), tiles_in_shared_cells=count_shared(grid))
    reason = tiles.empty_reason if keep.all() else f"every tile excluded: {', '.join(options.exclude)}"
    return replace(tiles, coords=tiles.coords[keep], grid=grid, attrs=attrs, empty_reason=reason)


def tiles_without_artefacts(
    artefacts: Artefacts, options: TissueOptions, coords: npt.NDArray[np.integer], footprint: int
) -> npt.NDArray[np.bool_]:
    """Return which tiles (N,) at `coords` (N, 2) are kept: those that excluded artefacts do not cover too much."""
    shapes = [
        shapely.difference(even_odd(np.array(rings[0])), shapely.union_all([even_odd(np.array(r)) for r in rings[1:]]))
        for name in options.exclude
        if name in artefacts
        for rings in artefacts[name].areas
    ]
    return np.asarray(coverage(shapely.union_all(shapes), coords, footprint) <= options.exclude_share, np.bool_)


def _mask_of_row(slide: Slide, row: BagRow, root: Path | str) -> MaskFile | None:
    """Read the tissue mask of the bag's overrides."""
    name = overrides_of(row).mask
    return read_mask_file(resolve(Path(root), name), slide.dimensions, slide.bounds[:2]) if name else None


def slide_tissue(slide: Slide, options: WsiOptions, row: BagRow, root: Path | str) -> Tissue:
    """Return the tissue of a slide, from the mask of the bag's overrides if there is one."""
    return _tissue(slide, options, _mask_of_row(slide, row, root))


def _tissue(slide: Slide, options: WsiOptions, mask: MaskFile | None) -> Tissue:
    if mask is None:
        return segment_tissue(slide, options.tissue, max_bad_tiles=options.max_bad_tiles)
    return Tissue(mask.contours, -1, mask.downsample, ["own mask"])


def _clam(slide: Slide, options: WsiOptions, mask: MaskFile | None) -> _Geometry:
    plan = plan_tiles(slide.level_downsamples, slide.mpp, options, str(slide.path))
    tissue = _tissue(slide, options, mask)
    place_tiles = global_tiles if options.lattice == "global" else contour_tiles
    tiles = place_tiles(tissue.contours, plan, slide.dimensions, options)
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
    )
    reason = "no tile inside the tissue" if tissue.contours else "no tissue found"
    return _Geometry(plan, tiles.coords, tiles.grid, attrs, reason, tissue.contours)


def _panda(slide: Slide, options: WsiOptions, mask: MaskFile | None) -> _Geometry:
    plan = plan_windows(options, str(slide.path))
    if mask is None:
        windows = panda_windows(slide, plan, options)
    else:
        windows = masked_windows(mask.pixels(slide.dimensions), slide.dimensions, plan, options.min_tissue)
        windows.marks.append("own mask")
    attrs = InstanceAttrs(
        lattice="global",
        otsu_threshold=windows.threshold,
        otsu_bgr=options.otsu_bgr,
        min_tissue=options.min_tissue,
        marks=tuple(windows.marks),
        unreadable_tiles=windows.unreadable,
    )
    reason = next((mark for mark in windows.marks if mark.startswith("too large")), "no window with enough tissue")
    return _Geometry(plan, windows.coords, windows.grid, attrs, reason)


def _annotation(slide: Slide, options: WsiOptions, row: BagRow, root: Path | str, tiles: _Geometry) -> _Annotation:
    """Read the annotation of a slide, and warn if no tile has a share of it, with the scale at which one would."""
    coords, footprint = tiles.coords, tiles.plan.footprint
    if not row.annotation:
        return _Annotation(np.full(len(coords), 0.0 if row.label == 0 else math.nan, np.float32))
    if row.annotation.startswith("slices:"):
        raise ValueError(f"{row.bag_id}: annotation 'slices:...' belongs to a CT scan, expected a file for a slide")
    path = resolve(Path(root), row.annotation)
    if options.recipe == "panda" and path.suffix.lower() in (".tif", ".tiff"):
        with open_slide(path, require_mpp=False) as labels:
            share = mask_coverage(labels, coords, footprint, slide.dimensions, row.provider)
            return _Annotation(share, mask_outlines=mask_outlines(labels, row.provider))
    lesion = read_lesion(path, classes=options.annotation_classes, origin=slide.bounds[:2], dimensions=slide.dimensions)
    area, warnings = lesion.geometry, list[str]()
    if area.is_empty and row.label == 1:
        warnings.append(f"positive slide, but its annotation {row.annotation} holds no lesion")
    share = coverage(area, coords, footprint)
    if len(coords) and not area.is_empty and not share.any():
        scales = {f"px of level {i}": downsample for i, downsample in enumerate(slide.level_downsamples) if i}
        scales["um"] = 1 / slide.mpp
        scaled = ((unit, affine_transform(area, [s, 0, 0, s, 0, 0])) for unit, s in scales.items())
        hits = [unit for unit, geometry in scaled if coverage(geometry, coords, footprint).any()]
        hint = f"; it would as {' or '.join(hits)}: expected level-0 px" if hits else ""
        warnings.append(f"the annotated lesion meets none of {len(coords)} tiles{hint}")
    return _Annotation(share, lesion, warnings=warnings)


def _neighbors(tiles: _Geometry, options: WsiOptions) -> npt.NDArray[np.int32]:
    if options.recipe == "panda" or options.lattice == "global":
        return grid_neighbors(tiles.grid)
    # the lattices of several contours are not aligned, so neighbours are found by distance, diagonals included
    return distance_neighbors(tiles.coords, math.sqrt(2) * tiles.plan.step)


def _attrs(
    slide: Slide,
    options: WsiOptions,
    row: BagRow,
    tiles: _Geometry,
    annotation: _Annotation,
    neighbors: npt.NDArray[np.int32],
    failure: str,
) -> InstanceAttrs:
    plan = tiles.plan
    halved = options.recipe == "panda" and plan.read_px == 2 * plan.tile_px
    shrunk = plan.read_px != plan.tile_px
    no_thumbnail = (f"no thumbnail ({failure})",) if failure else ()
    return tiles.attrs.updated(
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
        warnings=(*slide.warnings, *annotation.warnings, *no_thumbnail),
        max_bad_tiles=options.max_bad_tiles,
        provider=row.provider,
        annotation_counts=annotation.lesion.counts if annotation.lesion else AnnotationCounts(),
        annotation_present=bool(row.annotation),
        annotation_complete=row.annotation_complete,
        zero_edges=bool(len(tiles.coords) > 1 and not (neighbors >= 0).any()),
        empty_reason="" if len(tiles.coords) else tiles.empty_reason,
    )


def _outlines(
    contours: list[Contour], annotation: _Annotation, downsample: float, artefacts: Artefacts | None
) -> Outlines:
    """Return the polygons for the thumbnail, simplified to one of its pixels."""

    def simple(polygon: npt.NDArray[np.int32]) -> Ring:
        """Simplify a polygon (V,2) of level-0 px (x, y)."""
        short = cv2.approxPolyDP(polygon.reshape(-1, 1, 2), downsample, True)
        return [(int(x), int(y)) for x, y in short.reshape(-1, 2)]

    lesion = [simple(outline) for outline in annotation.mask_outlines]
    if annotation.lesion is not None:
        for part in shapely.get_parts(shapely.simplify(annotation.lesion.geometry, downsample)):
            for ring in (part.exterior, *part.interiors):
                lesion.append([(round(x, 1), round(y, 1)) for x, y in ring.coords])
    return Outlines(
        downsample=downsample,
        tissue=[simple(contour.outer) for contour in contours],
        holes=[simple(hole) for contour in contours for hole in contour.holes],
        lesion=lesion,
        artefacts=artefacts,
    )
