"""Typed settings of the preprocessing stages (pydantic, unknown keys refused).

Presets are complete sets of values (`preset:` names one); any key given beside the preset overrides it.
Sources: CLAM's preset table and patching rules; Silva-Rodriguez et al. 2021 for the PANDA windows.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

Window = tuple[float, float]
ClassRole = Literal["lesion", "exclusion", "ignore"]
# `preprocessing.tiling.artefacts.ARTEFACTS` says what each is.
ArtefactName = Literal["pen", "blur", "fold", "pale", "air"]


class Options(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TissueOptions(Options):
    """CLAM's tissue segmentation on the HSV saturation of a low-resolution level."""

    seg_level: int = Field(-1, ge=-1, description="pyramid level; -1 = the level nearest to downsample 64")
    sthresh: int = Field(15, ge=0, le=255, description="saturation threshold, grey levels (strictly above = tissue)")
    mthresh: int = Field(11, ge=1, description="side of the median filter, px at the segmentation level, odd")
    close: int = Field(2, ge=0, description="side of the closing kernel, px at the segmentation level; 0 = none")
    use_otsu: bool = Field(False, description="Otsu's threshold instead of sthresh")
    a_t: float = Field(1, ge=0, description="smallest net tissue area, in units of a 512 x 512 px level-0 patch")
    a_h: float = Field(1, ge=0, description="smallest hole area, same unit")
    max_n_holes: int = Field(2, ge=0, description="holes kept per contour, the largest first")
    anchor_corrected: bool = Field(
        False, description="undo the shift of +1 px that even closing kernels cause (CLAM does not)"
    )
    fallback: bool = Field(False, description="where nothing is found, try once with loosened thresholds (marked)")
    exclude: tuple[ArtefactName, ...] = Field((), description="artefacts whose tiles are left out: pen, blur, ...")
    exclude_share: float = Field(0.5, ge=0, lt=1, description="share of a tile above which artefacts exclude it")

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out settings that change nothing, so that the keys of bags stored without them stay valid."""
        values: dict[str, Any] = handler(self)
        return values if self.exclude else {k: v for k, v in values.items() if not k.startswith("exclude")}


OptionsT = TypeVar("OptionsT", bound=Options)


class WsiOptions(Options):
    """How a slide becomes tiles."""

    preset: str = Field("paper", description="name of a complete set of values, see WSI_PRESETS")
    recipe: Literal["clam", "panda"] = Field("clam", description="tissue contours, or windows over the whole slide")
    tile_px: int = Field(512, ge=16, description="side of a tile as the encoder receives it before its resize, px")
    window_px: int | None = Field(None, ge=16, description="panda recipe: side of a window, level-0 px")
    step_px: int = Field(512, ge=1, description="lattice step: clam in px of the read level, panda in level-0 px")
    read_level: int | None = Field(0, ge=0, description="pyramid level of the tiles; null = chosen by target_mpp")
    target_mpp: float | None = Field(None, gt=0, description="um per px of a tile; null = whatever read_level has")
    mpp_tolerance: float = Field(0.10, ge=0, lt=1, description="a level this close to target_mpp is read unresampled")
    lattice: Literal["contour", "global"] = Field("contour", description="one lattice per contour (CLAM) or per slide")
    snap: Literal["level", "clam"] = Field(
        "level", description="corner of a contour's lattice: whole px of the read level, or CLAM's, between them"
    )
    contour_fn: Literal["four_pt", "four_pt_hard", "center", "basic"] = Field("four_pt", description="CLAM's test")
    use_padding: bool = Field(True, description="CLAM's padding: tiles may overhang the slide (white beyond it)")
    otsu_bgr: bool = Field(True, description="panda recipe: grey weights in BGR order, as the original code")
    min_tissue: float = Field(0.20, ge=0, le=1, description="panda recipe: a window needs more than this tissue share")
    max_level2_px: int | None = Field(4_830_920, description="panda recipe: larger slides (level-2 px) are skipped")
    max_bad_tiles: int = Field(0, ge=0, description="unreadable tiles replaced by white before the bag fails")
    annotation_classes: dict[str, ClassRole] = Field(
        {},
        description="class or group of an annotation -> its role; '' = without class (docs/reference/annotations.md)",
    )
    tissue: TissueOptions = TissueOptions()

    @field_validator("annotation_classes")
    @classmethod
    def _one_role(cls, classes: dict[str, ClassRole]) -> dict[str, ClassRole]:
        if len({name.strip().lower() for name in classes}) < len(classes):
            raise ValueError("a class occurs twice, upper and lower case are the same; keep one")
        return classes


class CtOptions(Options):
    """How a head CT becomes three-channel slices."""

    preset: str = Field("paper", description="name of a complete set of values, see CT_PRESETS")
    windows: Annotated[list[Window], Field(min_length=3, max_length=3)] = Field(
        [(40, 80), (80, 200), (40, 380)], description="(level, width) in HU of the three channels"
    )
    slice_px: int = Field(512, ge=16, description="side of a slice as read, px; other sizes are refused unless resized")
    resize_slices: bool = Field(True, description="slices of another size are resized (after windowing)")


def _tissue(
    sthresh: int, mthresh: int, close: int, a_t: float, a_h: float, max_n_holes: int, *, use_otsu: bool = False
) -> TissueOptions:
    return TissueOptions(
        sthresh=sthresh, mthresh=mthresh, close=close, use_otsu=use_otsu, a_t=a_t, a_h=a_h, max_n_holes=max_n_holes
    )


TISSUE_PRESETS = {
    "bwh_biopsy": _tissue(15, 11, 2, 1, 1, 2),
    "bwh_resection": _tissue(15, 11, 4, 100, 16, 8),
    "tcga": _tissue(8, 7, 4, 16, 4, 8),
    "default": _tissue(8, 7, 4, 100, 16, 8),
    "mil4wsi": _tissue(8, 7, 4, 25, 4, 8, use_otsu=True),
}
WSI_PRESETS = {
    "paper": WsiOptions(recipe="clam", tissue=TISSUE_PRESETS["bwh_biopsy"]),
    **{name: WsiOptions(recipe="clam", snap="clam", tissue=tissue) for name, tissue in TISSUE_PRESETS.items()},
    "20x": WsiOptions(
        recipe="clam",
        read_level=None,
        target_mpp=0.5,
        lattice="global",
        tissue=TISSUE_PRESETS["bwh_biopsy"].model_copy(update={"anchor_corrected": True}),
    ),
    "panda": WsiOptions(recipe="panda", tile_px=512, window_px=1024, step_px=512),
}
CT_PRESETS = {
    "paper": CtOptions(windows=[(40, 80), (80, 200), (40, 380)]),
    "bsb": CtOptions(windows=[(40, 80), (80, 200), (40, 380)]),
    "sa_mil": CtOptions(windows=[(40, 80), (80, 200), (30, 30)]),
    "bone": CtOptions(windows=[(40, 80), (80, 200), (600, 2800)]),
}


def _resolved(presets: Mapping[str, OptionsT], values: Mapping[str, object]) -> OptionsT:
    """Return the settings of a preset with those given in their place; nested settings are merged likewise.

    Raises:
        ValueError: an unknown preset or key, or a value out of range; the message names the key.
    """
    name = values.get("preset", "paper")
    if name not in presets:
        raise ValueError(f"preset: found {name!r}, expected one of {', '.join(sorted(presets))}")
    preset = presets[str(name)]
    merged = {**preset.model_dump(exclude_unset=True), **values}
    for key, value in values.items():
        nested = getattr(preset, key, None)
        if isinstance(nested, Options) and isinstance(value, dict):
            merged[key] = {**nested.model_dump(exclude_unset=True), **value}
    try:
        return type(preset).model_validate(merged)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError("; ".join(lines)) from error


wsi_options = partial(_resolved, WSI_PRESETS)
ct_options = partial(_resolved, CT_PRESETS)


class InstanceOptions(Options):
    """Settings of the instances stage for both modalities, presets resolved."""

    wsi: WsiOptions = Field(default_factory=lambda: wsi_options({}))
    ct: CtOptions = Field(default_factory=lambda: ct_options({}))

    def of(self, modality: str) -> WsiOptions | CtOptions:
        """Return the settings of "wsi" or "ct"; any other modality is a `ValueError`."""
        if modality not in ("wsi", "ct"):
            raise ValueError(f"modality {modality!r}, expected 'wsi' or 'ct'")
        return self.ct if modality == "ct" else self.wsi


def parse_instance_options(text: str) -> InstanceOptions:
    """Parse the `--options` of a stage, `{"wsi": {...}, "ct": {...}}`, either key optional, or raise `ValueError`."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options: not JSON ({error}); found {text[:80]!r}") from error
    unknown = sorted(set(values) - {"wsi", "ct"}) if isinstance(values, dict) else [type(values).__name__]
    if unknown:
        raise ValueError(f"--options: found {unknown}, expected an object with the keys 'wsi' and 'ct'")
    return InstanceOptions(wsi=wsi_options(values.get("wsi", {})), ct=ct_options(values.get("ct", {})))
