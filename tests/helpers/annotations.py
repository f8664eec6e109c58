"""Annotation files as ASAP and QuPath write them."""

from preprocessing.tiling.annotations import read_lesion

SQUARE = [(0, 0), (100, 0), (100, 100), (0, 100)]
INNER = [(20, 20), (40, 20), (40, 40), (20, 40)]
WHOLE, BIT = 100 * 100, 20 * 20  # their areas


def asap(outlines: list[tuple[str, str, list[tuple[float, float]]]], shuffle: bool = False) -> str:
    """ASAP XML of (group, type, points)."""
    parts = []
    for number, (group, kind, points) in enumerate(outlines):
        rows = [f'<Coordinate Order="{i}" X="{x:g}" Y="{y:g}" />' for i, (x, y) in enumerate(points)]
        if shuffle:
            rows = rows[::2] + rows[1::2]
        parts.append(
            f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{''.join(rows)}</Coordinates></Annotation>"
        )
    group = '<Group Name="Tumor" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>'
    groups = f"<AnnotationGroups>{group}</AnnotationGroups>"
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(parts)}</Annotations>{groups}</ASAP_Annotations>'
    )


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def read_asap(folder, *outlines, shuffle: bool = False, **options):
    """Read the lesion of an ASAP file with these outlines."""
    return read_lesion(write(folder / "a.xml", asap(list(outlines), shuffle)), **options)


def feature(coordinates, name: str | None = "Tumor", kind: str = "Polygon", **properties) -> dict:
    """A GeoJSON feature as QuPath writes it."""
    if name is not None:
        properties = {"classification": {"name": name}, **properties}
    geometry = None if kind == "null" else {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation", **properties}}


def far(points: list, dx: float = 500) -> list:
    """Points moved to the right."""
    return [(x + dx, y) for x, y in points]
