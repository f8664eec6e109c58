"""Typed settings of the preprocessing stages (pydantic, unknown keys refused).

Presets are complete sets of values (`preset:` names one); any key given beside the preset overrides it.
Sources: CLAM's preset table and patching rules; Silva-Rodriguez et al. 2021 for the PANDA windows.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Window = tuple[float, float]


class Options(BaseModel):
    """Base: frozen, unknown keys refused."""

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
    contour_fn: Literal["four_pt", "four_pt_hard", "center", "basic"] = Field("four_pt", description="CLAM's test")
    use_padding: bool = Field(True, description="CLAM's padding: tiles may overhang the slide (white beyond it)")
    otsu_bgr: bool = Field(True, description="panda recipe: grey weights in BGR order, as the original code")
    min_tissue: float = Field(0.20, ge=0, le=1, description="panda recipe: a window needs more than this tissue share")
    max_level2_px: int | None = Field(4_830_920, description="panda recipe: larger slides (level-2 px) are skipped")
    max_bad_tiles: int = Field(0, ge=0, description="unreadable tiles replaced by white before the bag fails")
    tissue: TissueOptions = TissueOptions()


class CtOptions(Options):
    """How a head CT becomes three-channel slices."""

    preset: str = Field("paper", description="name of a complete set of values, see CT_PRESETS")
    windows: Annotated[list[Window], Field(min_length=3, max_length=3)] = Field(
        [(40, 80), (80, 200), (40, 380)], description="(level, width) in HU of the three channels"
    )
    slice_px: int = Field(512, ge=16, description="side of a slice as read, px; other sizes are refused unless resized")
    resize_slices: bool = Field(True, description="slices of another size are resized (after windowing)")


TISSUE_PRESETS: dict[str, dict[str, Any]] = {
    "bwh_biopsy": {"sthresh": 15, "mthresh": 11, "close": 2, "use_otsu": False, "a_t": 1, "a_h": 1, "max_n_holes": 2},
    "bwh_resection": {
        "sthresh": 15,
        "mthresh": 11,
        "close": 4,
        "use_otsu": False,
        "a_t": 100,
        "a_h": 16,
        "max_n_holes": 8,
    },
    "tcga": {"sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": False, "a_t": 16, "a_h": 4, "max_n_holes": 8},
    "default": {"sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": False, "a_t": 100, "a_h": 16, "max_n_holes": 8},
    "mil4wsi": {"sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": True, "a_t": 25, "a_h": 4, "max_n_holes": 8},
}

_CLAM_PAPER: dict[str, Any] = {"recipe": "clam", "tissue": TISSUE_PRESETS["bwh_biopsy"]}
WSI_PRESETS: dict[str, dict[str, Any]] = {
    "paper": _CLAM_PAPER,
    **{name: {"recipe": "clam", "tissue": values} for name, values in TISSUE_PRESETS.items()},
    "20x": {
        "recipe": "clam",
        "read_level": None,
        "target_mpp": 0.5,
        "lattice": "global",
        "tissue": {**TISSUE_PRESETS["bwh_biopsy"], "anchor_corrected": True},
    },
    "panda": {"recipe": "panda", "tile_px": 512, "window_px": 1024, "step_px": 512},
}
CT_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"windows": [(40, 80), (80, 200), (40, 380)]},
    "bsb": {"windows": [(40, 80), (80, 200), (40, 380)]},
    "sa_mil": {"windows": [(40, 80), (80, 200), (30, 30)]},
    "bone": {"windows": [(40, 80), (80, 200), (600, 2800)]},
}


def _with_preset(values: dict[str, Any], presets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name = values.get("preset", "paper")
    if name not in presets:
        raise ValueError(f"preset: found {name!r}, expected one of {', '.join(sorted(presets))}")
    base = presets[name]
    merged = {**base, **values}
    if isinstance(base.get("tissue"), dict) and isinstance(values.get("tissue"), dict):
        merged["tissue"] = {**base["tissue"], **values["tissue"]}
    return merged


def wsi_options(values: dict[str, Any]) -> WsiOptions:
    """Resolves a preset and its overrides.

    Raises:
        ValueError: an unknown preset or key, or a value out of range; the message names the key.
    """
    return _validated(WsiOptions, _with_preset(values, WSI_PRESETS))


def ct_options(values: dict[str, Any]) -> CtOptions:
    """Resolves a preset and its overrides; raises as `wsi_options`."""
    return _validated(CtOptions, _with_preset(values, CT_PRESETS))


class InstanceOptions(Options):
    """Settings of the instances stage for both modalities, presets resolved."""

    wsi: WsiOptions = Field(default_factory=lambda: wsi_options({}))
    ct: CtOptions = Field(default_factory=lambda: ct_options({}))

    def of(self, modality: str) -> WsiOptions | CtOptions:
        """Return the settings of one modality.

        Raises:
            ValueError: a modality other than "wsi" and "ct".
        """
        if modality not in ("wsi", "ct"):
            raise ValueError(f"modality {modality!r}, expected 'wsi' or 'ct'")
        return self.ct if modality == "ct" else self.wsi


def parse_instance_options(text: str) -> InstanceOptions:
    """Parse the `--options` of a stage: `{"wsi": {...}, "ct": {...}}`, either key optional.

    Raises:
        ValueError: not JSON, another key, or an invalid value.
    """
    values = instance_options(text)
    return InstanceOptions(wsi=wsi_options(values["wsi"]), ct=ct_options(values["ct"]))


def instance_options(text: str) -> dict[str, dict[str, Any]]:
    """Parses the `--options` of a stage: `{"wsi": {...}, "ct": {...}}`, either key optional.

    Raises:
        ValueError: not JSON, or another key.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options: not JSON ({error}); found {text[:80]!r}") from error
    unknown = sorted(set(values) - {"wsi", "ct"}) if isinstance(values, dict) else [type(values).__name__]
    if unknown:
        raise ValueError(f"--options: found {unknown}, expected an object with the keys 'wsi' and 'ct'")
    return {"wsi": dict(values.get("wsi", {})), "ct": dict(values.get("ct", {}))}


def _validated(model: type[OptionsT], values: dict[str, Any]) -> OptionsT:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors()]
        raise ValueError("; ".join(lines)) from error
