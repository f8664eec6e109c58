"""The resolution of a slide: which source wins, and what is refused."""

import pytest

from preprocessing.slides.mpp import resolve_mpp


@pytest.mark.parametrize(
    ("unit", "density", "mpp"), [("centimeter", "40000", 0.25), ("inch", "101600", 0.25), ("inch", "50800", 0.5)]
)
def test_tiff_tags_are_used_where_openslide_states_nothing(unit: str, density: str, mpp: float) -> None:
    properties = {"tiff.XResolution": density, "tiff.YResolution": density, "tiff.ResolutionUnit": unit}
    assert resolve_mpp(properties, None, "a") == (pytest.approx(mpp), "tiff.resolution")


def test_openslide_property_wins_over_tags() -> None:
    tags = {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}
    assert resolve_mpp({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5", **tags}, None, "a") == (
        0.5,
        "openslide.mpp",
    )


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"openslide.mpp-x": "unknown"},
        {"tiff.XResolution": "4e4", "tiff.YResolution": "4e4", "tiff.ResolutionUnit": "none"},
        {"tiff.XResolution": "0", "tiff.YResolution": "0", "tiff.ResolutionUnit": "inch"},
    ],
)
def test_missing_resolution_is_refused(properties: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"slide\.svs: no physical resolution found.*expected.*set `mpp`"):
        resolve_mpp(properties, None, "slide.svs")


@pytest.mark.parametrize("value", ["0.01", "20.1", "896", "0", "-0.5", "inf", "nan"])
def test_absurd_resolution_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"slide\.svs: resolution.*openslide\.mpp.*expected.*`mpp`"):
        resolve_mpp({"openslide.mpp-x": value, "openslide.mpp-y": value}, None, "slide.svs")


@pytest.mark.parametrize("value", [0.0, 100.0, float("nan")])
def test_absurd_override_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="manifest"):
        resolve_mpp({}, value, "a")


def test_anisotropic_pixels_are_refused_beyond_5_percent() -> None:
    with pytest.raises(ValueError, match=r"a: resolution 0.25 x 0.3.*square"):
        resolve_mpp({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.30"}, None, "a")
    assert resolve_mpp({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}, None, "a")[0] == pytest.approx(0.255)
    assert resolve_mpp({"openslide.mpp-x": "0.25"}, None, "a")[0] == 0.25
