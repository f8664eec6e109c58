"""Physical resolution of a slide in um per level-0 px, and its source.

Sources in order: the manifest's override, OpenSlide's `openslide.mpp-x/y`, the TIFF tags X/YResolution with
ResolutionUnit centimetre or inch. A missing, absurd or anisotropic value is an error, because a wrong magnification
would go unnoticed in all results.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from preprocessing.common.limits import MPP_MAX, MPP_MIN

MPP_ANISOTROPY = 0.05
_MICROMETRES_PER_UNIT = {"centimeter": 10_000.0, "inch": 25_400.0}


def resolve_mpp(properties: Mapping[str, str], override: float | None, name: str) -> tuple[float, str]:
    """Find the resolution of one slide.

    Args:
        properties: OpenSlide's properties of the file.
        override: um/px from the manifest, wins over the file; None = use the file.
        name: the file, for messages.

    Returns:
        um per level-0 px (mean of both axes) and its source: `manifest`, `openslide.mpp` or `tiff.resolution`.

    Raises:
        ValueError: nothing found, outside 0.05..20 um/px, or the axes differ by more than 5 %.
    """
    if override is not None:
        _check(float(override), float(override), "manifest column mpp", name)
        return float(override), "manifest"
    pair = _pair(properties, "openslide.mpp-x", "openslide.mpp-y")
    if pair is not None:
        _check(*pair, "openslide.mpp-x/y", name)
        return sum(pair) / 2, "openslide.mpp"
    density = _pair(properties, "tiff.XResolution", "tiff.YResolution")
    unit = properties.get("tiff.ResolutionUnit", "").strip().lower()
    if density is not None and unit in _MICROMETRES_PER_UNIT and min(density) > 0:
        x, y = (_MICROMETRES_PER_UNIT[unit] / d for d in density)
        _check(x, y, f"tiff.XResolution/YResolution per {unit}", name)
        return (x + y) / 2, "tiff.resolution"
    raise ValueError(
        f"{name}: no physical resolution found (no openslide.mpp-x, no X/YResolution with unit cm or inch), expected "
        f"{MPP_MIN} to {MPP_MAX} um/px; set `mpp` for this slide in the manifest"
    )


def _pair(properties: Mapping[str, str], key_x: str, key_y: str) -> tuple[float, float] | None:
    """Return both axes of a property; a missing axis takes the other's value, and text counts as missing."""
    values = []
    for key in (key_x, key_y):
        with contextlib.suppress(KeyError, ValueError):
            values.append(float(properties[key]))
    return (values[0], values[-1]) if values else None


def _check(x: float, y: float, source: str, name: str) -> None:
    if not all(math.isfinite(v) and MPP_MIN <= v <= MPP_MAX for v in (x, y)):
        raise ValueError(
            f"{name}: resolution {x:g} x {y:g} um/px found in {source}, expected {MPP_MIN} to {MPP_MAX} um/px; the "
            "value is not a microscope's; set the true `mpp` for this slide in the manifest"
        )
    if abs(x / y - 1) > MPP_ANISOTROPY:
        raise ValueError(
            f"{name}: resolution {x:g} x {y:g} um/px found in {source}, expected square pixels (within "
            f"{MPP_ANISOTROPY:.0%}); set `mpp` for this slide in the manifest if the metadata is wrong"
        )
