"""The resolution of a slide: which source wins, and what is refused."""

import pytest

from preprocessing.slides.mpp import resolve_mpp


@pytest.mark.parametrize(
    ("unit", "density", "mpp"), [("centimeter", "40000", 0.25), ("inch", "101600", 0.25), ("inch", "50800", 0.5)]
)
def test_tiff_tags_are_used_where_openslide_states_nothing(unit: str, density: str, mpp: float) -> None:
    properties = {"tiff.XResolution": density, "tiff.YResolution": density, "tiff.ResolutionUnit": unit}
    assert resolve_mpp(properties, None, "a")[:2] == (pytest.approx(mpp), "tiff.resolution")


def test_openslide_property_wins_over_tags() -> None:
    tags = {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}
    stated = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}
    assert resolve_mpp({**stated, **tags}, None, "a") == (0.5, "openslide.mpp", ())


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


@pytest.mark.parametrize("value", ["0.01", "0.099", "20.1", "250", "896", "0", "-0.5", "inf", "nan"])
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
    oblong = resolve_mpp({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}, None, "a")
    assert oblong.mpp == pytest.approx(0.255) and oblong.warnings == (
        "pixels are not square: 0.25 x 0.26 um/px, their mean is used",
    )
    assert not resolve_mpp({"openslide.mpp-x": "0.2277", "openslide.mpp-y": "0.2272"}, None, "a").warnings
    assert resolve_mpp({"openslide.mpp-x": "0.25"}, None, "a")[0] == 0.25


def ome(attributes: str) -> dict[str, str]:
    """OpenSlide's properties of an OME-TIFF without tags of resolution."""
    pixels = f'<Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="640" {attributes}><Channel/></Pixels></Image>'
    return {"tiff.ImageDescription": f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{pixels}</OME>'}


@pytest.mark.parametrize(
    ("attributes", "mpp"),
    [
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', 0.25),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="250" PhysicalSizeYUnit="nm"', 0.25),
        ('PhysicalSizeX="0.0005" PhysicalSizeXUnit="mm"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5" PhysicalSizeYUnit="µm"', 0.5),
    ],
)
def test_physical_size_of_ome_xml(attributes: str, mpp: float) -> None:
    assert resolve_mpp(ome(attributes), None, "a") == (pytest.approx(mpp), "ome.physical_size", ())


@pytest.mark.parametrize("attributes", ['PhysicalSizeX="1" PhysicalSizeXUnit="pixel"', 'PhysicalSizeX="x"', ""])
def test_physical_size_without_a_length_counts_as_missing(attributes: str) -> None:
    with pytest.raises(ValueError, match="no physical resolution"):
        resolve_mpp(ome(attributes), None, "a")


def test_ome_xml_and_tags_that_disagree_are_refused_until_overridden() -> None:
    properties = {**ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"'), "openslide.mpp-x": "0.25"}
    with pytest.raises(ValueError, match=r"a: resolution 0\.25 .*0\.5 um/px in the OME-XML.*`mpp`.*--mpp"):
        resolve_mpp(properties, None, "a")
    assert resolve_mpp(properties, 0.5, "a").source == "manifest"


@pytest.mark.parametrize(
    ("mpp", "power", "warned"),
    [("0.25", "40", False), ("0.234", "20", False), ("0.5", "40", False), ("2.5", "40", True), ("0.25", "2", True)]
    + [("0.25", "0", False), ("0.25", "unknown", False)],
)
def test_a_resolution_that_does_not_fit_the_objective_is_warned_about(mpp: str, power: str, warned: bool) -> None:
    properties = {"openslide.mpp-x": mpp, "openslide.mpp-y": mpp, "openslide.objective-power": power}
    resolution = resolve_mpp(properties, None, "a")
    assert resolution.mpp == float(mpp)
    assert resolution.warnings == ((f"{mpp} um/px are stated for an objective of {power}x",) if warned else ())


def test_an_objective_is_named_but_is_no_resolution() -> None:
    with pytest.raises(ValueError, match=r"objective of 40x is stated.*smmil\.predict: --mpp"):
        resolve_mpp({"openslide.objective-power": "40"}, None, "a")
