"""Attributes of stored bags as typed records: `InstanceAttrs` and `FeatureAttrs`.

Only fields that were given are written, so a record that was read is written back unchanged. Numbers are `int | float`
where a file may hold either: 1 and 1.0 are different bytes, hence different content hashes.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, field_serializer

from preprocessing.common.options import CtOptions, Options, TissueOptions, WsiOptions

Number = int | float
Modality = Literal["wsi", "ct"]


@dataclass(frozen=True)
class StoreInfo:
    """What the store records about a bag.

    Attributes:
        schema: "instances" or "features".
        key: hash of what the bag was made from (stage version, settings, sources).
        content: SHA-256 of arrays and attributes.
        sha256: checksum of every array.
    """

    schema: str = ""
    version: int = 0
    key: str = ""
    content: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    n: int = 0


class SliceSpacing(Options):
    """Spacing of a scan in mm: of the pixels of a slice (row, column), and between slices; None = unknown."""

    pixel: tuple[Number, Number] | None = None
    slices_min: Number | None = None
    slices_median: Number | None = None
    slices_max: Number | None = None


class TissueAttrs(TissueOptions):
    """Tissue mask of a slide: its thresholds and what came of them.

    Attributes:
        level: pyramid level of the mask; -1 = a mask was given.
        downsample: of that level (x, y).
        marks: how the tissue was found, e.g. "fallback".
    """

    level: int = 0
    downsample: tuple[Number, Number] = (1, 1)
    marks: tuple[str, ...] = ()
    contours: int = 0
    holes: int = 0


class SlideStatistics(Options):
    """What the pixels of a slide look like; grey levels run from 0 to 255.

    Attributes:
        tiles: tiles looked at in the thumbnail, all of them; without a thumbnail, the sampled ones.
        sampled: tiles whose middle is read, evenly spaced.
        flat: sampled tiles without contrast.
        black_area: share of the slide that is black.
        luminance: of the slide, its 0.1 and 99.9 percentiles.
        channel_ranges: of red, green and blue, from the 0.1 to the 99.9 percentile.
        colour: difference of the strongest and the weakest channel of a pixel, 99.9 percentile.
        background: red, green and blue of the brightest tenth, their median.
    """

    tiles: int
    black: int
    white: int
    sampled: int
    unreadable: int
    flat: int
    black_area: Number
    luminance: tuple[Number, Number]
    channel_ranges: tuple[Number, Number, Number]
    colour: Number
    background: tuple[Number, Number, Number]


class ScanStatistics(Options):
    """What the pixels of a scan look like; `least` and `largest` in HU.

    Attributes:
        sampled: slices looked at, evenly spaced.
        air: share of the pixels below -500 HU.
        soft: share of the pixels from -200 to 200 HU: fat, water, soft tissue, blood.
        bone: share of the pixels above 300 HU.
        clipped: slices of which 1 % and more has the largest value of the scan.
        flat: slices that hold a single value.
    """

    sampled: int
    least: Number
    largest: Number
    air: Number
    soft: Number
    bone: Number
    clipped: int
    flat: int


@dataclass(frozen=True)
class AnnotationCounts:
    """What became of the objects of a slide's annotation file.

    Attributes:
        lesion: outlines used as lesion.
        exclusion: outlines cut out of the lesion.
        self_crossing: outlines that cross themselves; used by the even-odd rule.
        without_area: outlines of fewer than three points or without area, not used; as all that follow.
        outside: outlines wholly outside the slide.
        null_geometries: objects without a geometry, or with an empty one.
        points: point objects, dots and measurements.
        open_lines: lines that are not closed, or have no class.
        detections: detections, cells, tiles and cores of QuPath.
        ignored_classes: outlines of classes with the role "ignore", by class.
    """

    lesion: int = 0
    exclusion: int = 0
    self_crossing: int = 0
    without_area: int = 0
    outside: int = 0
    null_geometries: int = 0
    points: int = 0
    open_lines: int = 0
    detections: int = 0
    ignored_classes: dict[str, int] = field(default_factory=dict)

    @property
    def left_out(self) -> dict[str, int]:
        """Objects that were not used for another reason than their class, by reason."""
        reasons = ("without_area", "outside", "null_geometries", "points", "open_lines", "detections")
        return {name.replace("_", " "): n for name in reasons if (n := getattr(self, name))}

    @property
    def numbers(self) -> dict[str, int]:
        """All counts that are not 0; "class NAME" for outlines of an ignored class."""
        counted = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "ignored_classes"}
        counted |= {f"class {name}": n for name, n in self.ignored_classes.items()}
        return {name: n for name, n in counted.items() if n}

    @property
    def unused(self) -> int:
        """Number of objects that were not used."""
        return sum(self.left_out.values()) + sum(self.ignored_classes.values())

    @property
    def listing(self) -> str:
        """Objects that were not used, e.g. "2 open lines, 1 of class 'Region*'"; "" if there are none."""
        classes = {f"of class {name!r}": n for name, n in self.ignored_classes.items()}
        return ", ".join(f"{n} {text}" for text, n in {**self.left_out, **classes}.items())


class BagAttrs(BaseModel):
    """Attributes that a bag's instances and features share; the fields without comment are those of the options.

    Attributes:
        l0_footprint_px: side of a tile at level 0, px.
        mpp: um per px at level 0, None = unknown.
        tile_mpp: um per px of a tile.
        stage_version: of the stage that stored the bag.
        software: versions; not part of the content.
        imported_from: format of an imported bag.
        coords_hash: hash of coordinates and grid, which pairs features with instances.
        store: what the store records; set when the bag is written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_name: ClassVar[str]
    # fields that are written only where there is something to say
    rare: ClassVar[frozenset[str]] = frozenset()

    dataset: str = ""
    modality: Modality = "wsi"
    preset: str = ""
    tile_px: int = 0
    l0_footprint_px: int = 0
    mpp: Number | None = None
    mpp_source: str = ""
    tile_mpp: Number | None = None
    windows: tuple[tuple[Number, Number], ...] = ()
    slice_px: int = 0
    stage_version: int | None = None
    software: dict[str, str] = {}
    imported_from: str = ""
    coords_hash: str = ""
    store: StoreInfo = StoreInfo()

    def as_json(self) -> dict[str, Any]:
        """Return the fields that were given, as plain JSON, without `store`."""
        unwritten = {name for name in self.rare if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude_unset=True, exclude={"store", *unwritten})

    def updated(self, **fields: object) -> Self:
        """Return a validated copy with some fields replaced."""
        return self.model_validate({**{name: getattr(self, name) for name in self.model_fields_set}, **fields})


class InstanceAttrs(BagAttrs):
    """Attributes of a bag's instances; slides and scans each leave the other's fields out.

    Attributes:
        label: 0, 1, or None = unlabelled.
        mpp_override: resolution from bags.csv, um per px.
        overrides: settings of this bag alone, by name.
        instance_options: settings that cut the bag, presets resolved; None = imported.
        pixels_key: hash of what determines the pixels of the instances.
        empty_reason: why there are no instances.
        zero_edges: no two tiles are neighbours.
        read_level: pyramid level the tiles are read from.
        read_px: side of a tile at that level, px.
        read_downsample: of that level.
        snap: whether the corners of CLAM's lattices were moved to whole pixels of that level.
        l0_step_px: distance of neighbouring tiles at level 0, px.
        grid_origin_l0: level-0 px (x, y) of the lattice's cell (0, 0); None = cells do not follow from coordinates.
        resize_filter: from `read_px` to `tile_px`, or of the slices.
        dimensions: width and height of level 0, px.
        bounds: scanned region (x, y, width, height), level-0 px.
        annotation_counts: what became of the objects of the annotation file.
        contour_of_tile: contour of each tile, in the order of the tiles.
        tiles_in_shared_cells: tiles that share a lattice cell with another.
        unreadable_tiles: unreadable places of the slide counted as white.
        marks: how the windows were found (recipe "panda").
        warnings: what was odd about the image files or the annotation, one line each.
        files: slices in anatomical order, relative to the root.
        source_px: rows and columns of a slice in the file, px.
        slices_at_one_position: slices at the position of another.
        slices_repaired_12bit: slices whose 12-bit values were repaired.
        fill_values_kept: stored values that are Hounsfield units in this scan, but outside the field of view in others.
        statistics: of the pixels, see `preprocessing.instances.statistics`; None = nobody looked (imported).
        target_magnification: nominal magnification of the tiles, as the tool of an imported bag has it.
        level0_magnification: likewise of level 0.
    """

    schema_name = "instances"
    rare = frozenset(
        {
            "annotation_counts",
            "contour_of_tile",
            "empty_reason",
            "excluded_tiles",
            "fill_values_kept",
            "overrides",
            "unreadable_tiles",
            "warnings",
            "zero_edges",
        }
    )

    label: int | None = None
    mpp_override: Number | None = None
    overrides: dict[str, bool | int | float | str] = {}
    instance_options: WsiOptions | CtOptions | None = None
    pixels_key: str = ""
    empty_reason: str = ""
    excluded_tiles: int = 0
    zero_edges: bool = False
    recipe: str = ""
    lattice: str = ""
    contour_fn: str = ""
    snap: str = ""
    use_padding: bool = False
    otsu_bgr: bool = False
    otsu_threshold: Number | None = None
    min_tissue: Number | None = None
    read_level: int = 0
    read_px: int = 0
    read_downsample: Number = 1
    l0_step_px: int = 0
    grid_origin_l0: tuple[int, int] | None = None
    resize_filter: str | None = None
    dimensions: tuple[int, int] | None = None
    bounds: tuple[int, int, int, int] | None = None
    vendor: str = ""
    provider: str = ""
    max_bad_tiles: int = 0
    annotation_present: bool = False
    annotation_complete: bool = True
    annotation_counts: AnnotationCounts = AnnotationCounts()
    contour_of_tile: tuple[int, ...] | None = None
    tiles_in_shared_cells: int = 0
    unreadable_tiles: int = 0
    tissue: TissueAttrs | None = None
    marks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    source_px: tuple[int, int] | None = None
    spacing_mm: SliceSpacing | None = None
    slices_at_one_position: int = 0
    slices_repaired_12bit: int = 0
    fill_values_kept: tuple[int, ...] = ()
    statistics: SlideStatistics | ScanStatistics | None = None
    target_magnification: Number | None = None
    level0_magnification: Number | None = None

    @field_serializer("instance_options")
    def _all_options(self, options: WsiOptions | CtOptions | None) -> dict[str, Any] | None:
        """Write the settings in full, defaults included: `smmil.predict` cuts new images with them."""
        return None if options is None else options.model_dump(mode="json")


class FeatureAttrs(BagAttrs):
    """Attributes of a bag's features.

    Attributes:
        instances_stage_version: version of the stage that made the instances.
        encoder: its id, marked if the weights are random.
        weights_sha256: of the weight file, "random-SEED", or "unknown".
        resize_policy: see `preprocessing.features.transforms`.
        precision: of the encoder's arithmetic.
        unreadable_tiles: positions of tiles replaced by white.
    """

    schema_name = "features"

    instances_stage_version: int | None = None
    encoder: str = ""
    weights_sha256: str = ""
    random_weights: bool = False
    resize_policy: str = ""
    precision: str = ""
    unreadable_tiles: tuple[int, ...] = ()
