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


def ome(attributes: str) -> dict[str, str]:
    """OpenSlide's properties of an OME-TIFF without tags of resolution."""
    pixels = f'<Image ID="Image:0"><Pixels ID="Pixels:0" SizeX="640" {attributes}><Channel/></Pixels></Image>'
    return {"tiff.ImageDescription": f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{pixels}</OME>'}


def both(mpp: str, other: str = "", **more: str) -> dict[str, str]:
    return {"openslide.mpp-x": mpp, "openslide.mpp-y": other or mpp, **more}


MISSING, ABSURD = r"no physical resolution found.*set `mpp`", r"expected 0\.1 to 20\.0 um/px"
REFUSED = {
    "no resolution": ({}, MISSING),
    "resolution in words": ({"openslide.mpp-x": "unknown"}, MISSING),
    "TIFF tags without a unit": (
        {"tiff.XResolution": "4e4", "tiff.YResolution": "4e4", "tiff.ResolutionUnit": "none"},
        MISSING,
    ),
    "TIFF tags of 0": ({"tiff.XResolution": "0", "tiff.YResolution": "0", "tiff.ResolutionUnit": "inch"}, MISSING),
    "only an objective, e.g. 40x": ({"openslide.objective-power": "40"}, r"objective of 40x is stated.*--mpp"),
    "OME-XML in pixels": (ome('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"'), MISSING),
    "OME-XML in words": (ome('PhysicalSizeX="x"'), MISSING),
    "OME-XML without a size": (ome(""), MISSING),
    **{f"{mpp} um/px": (both(mpp), ABSURD) for mpp in ("0.01", "0.099", "20.1", "250", "0", "-0.5", "inf", "nan")},
    "x and y more than 5 % different": (both("0.25", "0.30"), r"resolution 0\.25 x 0\.3 .*expected square pixels"),
    "OME-XML and tags more than 5 % different": (
        {**ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"'), "openslide.mpp-x": "0.25"},
        r"resolution 0\.25 .*0\.5 um/px in the OME-XML.*`mpp`.*--mpp",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_missing_or_doubtful_resolution_is_refused_until_overridden(case: str) -> None:
    properties, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"slide\.svs: .*{message}"):
        resolve_mpp(properties, None, "slide.svs")
    assert resolve_mpp(properties, 0.5, "a") == (0.5, "manifest", ())


@pytest.mark.parametrize("value", [0.0, 100.0, float("nan")])
def test_absurd_override_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="manifest"):
        resolve_mpp({}, value, "a")


ACCEPTED = {
    "x and y less than 1 % different": (both("0.2277", "0.2272"), 0.22745, ""),
    "x and y 1 to 5 % different": (
        both("0.25", "0.26"),
        0.255,
        "pixels are not square: 0.25 x 0.26 um/px, their mean is used",
    ),
    "resolution of one axis": ({"openslide.mpp-x": "0.25"}, 0.25, ""),
    **{
        f"{mpp} um/px and an objective of {power}x": (
            both(mpp, **{"openslide.objective-power": power}),
            float(mpp),
            f"{mpp} um/px are stated for an objective of {power}x" if odd else "",
        )
        for mpp, power, odd in (("0.25", "40", 0), ("0.234", "20", 0), ("0.5", "40", 0), ("2.5", "40", 1))
    },
    "objective of 0 or in words": (both("0.25", **{"openslide.objective-power": "unknown"}), 0.25, ""),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_odd_resolution_is_used_and_warned_about(case: str) -> None:
    properties, mpp, warning = ACCEPTED[case]
    expected = (pytest.approx(mpp), "openslide.mpp", (warning,) if warning else ())
    assert resolve_mpp(properties, None, "a") == expected


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
