"""Physical resolution of a slide in um per level-0 px, and its source.

Sources in order: the manifest's override, OpenSlide's `openslide.mpp-x/y`, the physical size in the OME-XML of an
OME-TIFF, the TIFF tags X/YResolution with ResolutionUnit centimetre or inch. A missing, absurd or anisotropic value, or
an OME-XML that contradicts the tags, is an error, because a wrong magnification would go unnoticed in all results.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from preprocessing.common.limits import MPP_MAX, MPP_MIN

MPP_ANISOTROPY, MPP_SQUARE = 0.05, 0.01
_MICROMETRES_PER_UNIT = {"centimeter": 10_000.0, "inch": 25_400.0}
# OME's default is um; both characters of Unicode for micro are in use.
_MICROMETRES_PER_OME_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
# 40x is about 0.25 um/px; cameras and adapters differ by a factor of two.
_MPP_TIMES_OBJECTIVE, _OBJECTIVE_SPREAD = 10.0, 3.0
_REMEDY = "set `mpp` for this slide in the manifest (`smmil predict --mpp`)"


class Resolution(NamedTuple):
    """Resolution in um per level-0 px, its source, and what is odd about it, one line each."""

    mpp: float
    source: str
    warnings: tuple[str, ...] = ()


def resolve_mpp(properties: Mapping[str, str], override: float | None, name: str) -> Resolution:
    """Find the resolution of one slide, the mean of both axes, from OpenSlide's properties of the file `name`.

    The override in um/px wins over the file. Sources are called `manifest`, `openslide.mpp`, `ome.physical_size` and
    `tiff.resolution`.

    Raises:
        ValueError: nothing found, outside 0.1..20 um/px, the axes differ by more than 5 %, or OME-XML and tags do.
    """
    if override is not None:
        return _checked(float(override), float(override), "manifest", "manifest column mpp", name)
    ome = _ome(properties)
    pair = _pair(properties, "openslide.mpp-x", "openslide.mpp-y")
    power = _pair(properties, "openslide.objective-power", "openslide.objective-power")
    if pair is not None:
        if ome is not None and abs(ome[0] / pair[0] - 1) > MPP_ANISOTROPY:
            raise ValueError(
                f"{name}: resolution {pair[0]:g} um/px found in openslide.mpp-x and {ome[0]:g} um/px in the OME-XML, "
                f"expected one resolution; {_REMEDY}"
            )
        resolution = _checked(*pair, "openslide.mpp", "openslide.mpp-x/y", name)
        ratio = 1.0 if power is None else resolution.mpp * power[0] / _MPP_TIMES_OBJECTIVE
        if 1 / _OBJECTIVE_SPREAD <= ratio <= _OBJECTIVE_SPREAD or ratio <= 0:
            return resolution
        odd = f"{resolution.mpp:.4g} um/px are stated for an objective of {properties['openslide.objective-power']}x"
        return resolution._replace(warnings=(*resolution.warnings, odd))
    if ome is not None:
        return _checked(*ome, "ome.physical_size", "PhysicalSizeX/Y of the OME-XML", name)
    density = _pair(properties, "tiff.XResolution", "tiff.YResolution")
    unit = properties.get("tiff.ResolutionUnit", "").strip().lower()
    if density is not None and unit in _MICROMETRES_PER_UNIT and min(density) > 0:
        x, y = (_MICROMETRES_PER_UNIT[unit] / d for d in density)
        return _checked(x, y, "tiff.resolution", f"tiff.XResolution/YResolution per {unit}", name)
    objective = f"; an objective of {power[0]:g}x is stated, but that is no resolution" if power else ""
    raise ValueError(
        f"{name}: no physical resolution found (no openslide.mpp-x, no X/YResolution with unit cm or inch{objective}), "
        f"expected {MPP_MIN} to {MPP_MAX} um/px; {_REMEDY}"
    )


def _pair(properties: Mapping[str, str], key_x: str, key_y: str) -> tuple[float, float] | None:
    """Return both axes of a property; a missing axis takes the other's value, and text counts as missing."""
    values = []
    for key in (key_x, key_y):
        with contextlib.suppress(KeyError, ValueError):
            values.append(float(properties[key]))
    return (values[0], values[-1]) if values else None


def _ome(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the physical size of a pixel of the first picture of an OME-XML."""
    pixels = re.search(r"<(?:\w+:)?Pixels\s([^>]*)>", properties.get("tiff.ImageDescription", ""))
    if pixels is None or "openmicroscopy.org" not in properties["tiff.ImageDescription"]:
        return None
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', pixels[1]))
    sizes = {}
    for axis in "XY":
        scale = _MICROMETRES_PER_OME_UNIT.get(attributes.get(f"PhysicalSize{axis}Unit", "um"))
        with contextlib.suppress(KeyError, ValueError):
            if scale is not None:
                sizes[axis] = repr(scale * float(attributes[f"PhysicalSize{axis}"]))
    return _pair(sizes, "X", "Y")


def _checked(x: float, y: float, source: str, place: str, name: str) -> Resolution:
    if not all(math.isfinite(v) and MPP_MIN <= v <= MPP_MAX for v in (x, y)):
        raise ValueError(
            f"{name}: resolution {x:g} x {y:g} um/px found in {place}, expected {MPP_MIN} to {MPP_MAX} um/px; the "
            f"value is not a microscope's; {_REMEDY.replace('set ', 'set the true ', 1)}"
        )
    if abs(x / y - 1) > MPP_ANISOTROPY:
        raise ValueError(
            f"{name}: resolution {x:g} x {y:g} um/px found in {place}, expected square pixels (within "
            f"{MPP_ANISOTROPY:.0%}); if the metadata is wrong, {_REMEDY}"
        )
    oblong = abs(x / y - 1) > MPP_SQUARE
    warnings = (f"pixels are not square: {x:g} x {y:g} um/px, their mean is used",) if oblong else ()
    return Resolution((x + y) / 2, source, warnings)
