"""Draw one prostate needle biopsy: strips of stroma with glands, cancer zones by Gleason pattern, and labels.

Benign glands are large, branched and open; pattern 3 is many small round glands, pattern 4 fused nests with several
lumina, pattern 5 sheets of cells without lumen. Each pattern has a benign look-alike: atrophy for 3, crowded glands for
4, inflammation for 5. Labels follow the two centres: Radboud outlines glands (0 background, 1 stroma, 2 benign
epithelium, 3 4 5 Gleason), Karolinska zones (0 background, 1 benign, 2 cancer). Full-resolution arrays are (H, W);
coarse maps (h, w) are `LOW` times smaller.
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.synthetic import texture
from preprocessing.synthetic.texture import F32, I64, LOW, U8, Cells

BENIGN, ATROPHY, INFLAMED, CROWDED = 2, 6, 7, 8


@dataclass(frozen=True)
class Glands:
    """Glands of one zone: lattice spacing px, share of places kept, radius range px, wobble, lumina, dyes."""

    spacing: float
    keep: float
    radius: tuple[float, float]
    wobble: float
    lumen: float
    lumina: int
    eosin: int
    haematoxylin: int


GLANDS: dict[int, Glands] = {
    BENIGN: Glands(104.0, 0.62, (28.0, 46.0), 0.22, 0.62, 1, 58, 22),
    ATROPHY: Glands(43.0, 0.86, (13.0, 19.0), 0.16, 0.50, 1, 62, 26),
    CROWDED: Glands(64.0, 0.88, (24.0, 36.0), 0.20, 0.34, 2, 64, 27),
    3: Glands(40.0, 0.92, (13.0, 19.0), 0.10, 0.46, 1, 64, 28),
    4: Glands(60.0, 0.92, (25.0, 35.0), 0.16, 0.22, 4, 66, 30),
}
LINING = {
    BENIGN: Cells(7.0, 1.0, 2.9, 0.14, 1.5, 0.80, 0.25),
    ATROPHY: Cells(7.0, 1.0, 3.0, 0.15, 1.3, 0.82, 0.27),
    CROWDED: Cells(8.6, 1.0, 3.0, 0.16, 1.4, 0.80, 0.28),
    3: Cells(7.6, 1.0, 3.2, 0.20, 1.2, 0.78, 0.40),
    4: Cells(8.6, 1.0, 3.3, 0.22, 1.2, 0.78, 0.40),
}
STROMAL = Cells(15.0, 0.50, 2.6, 0.18, 2.6, 0.78, 0.10)
SHEET = Cells(9.8, 0.66, 3.3, 0.24, 1.3, 0.78, 0.40)
LYMPHOCYTE = Cells(8.6, 0.72, 2.9, 0.10, 1.1, 0.88, 0.12)


@dataclass(frozen=True)
class BiopsySpec:
    """Content of one slide; `length` and `width` are the means of its strips, px at level 0.

    Attributes:
        provider: "radboud" or "karolinska"; determines stain and labels.
        gleason: primary and secondary pattern, or None for a benign slide.
        cancer_share: share of the strips' length with cancer.
    """

    provider: str
    gleason: tuple[int, int] | None
    cancer_share: float
    strips: int
    length: int
    width: int
    pen: bool


def lay_strips(rng: np.random.Generator, spec: BiopsySpec) -> tuple[F32, F32]:
    """Lay out the strips side by side on the coarse grid.

    Returns:
        Tissue field (h, w), > 0 inside, and position along all strips together (h, w) in 0..1.
    """
    unit = 2 * LOW
    widths = spec.width * rng.uniform(0.85, 1.15, spec.strips) / LOW
    lengths = spec.length * rng.uniform(0.80, 1.15, spec.strips) / LOW
    gap = 90 / LOW
    h = int(np.ceil((lengths.max() + 2 * gap) / (unit / LOW))) * (unit // LOW)
    w = int(np.ceil((widths.sum() + gap * (spec.strips + 1)) / (unit / LOW))) * (unit // LOW)
    ys, xs = np.mgrid[:h, :w].astype(np.float32)
    noise = texture.smooth_field(rng, (h, w), 16.0, 3)
    tissue = np.full((h, w), -1.0, np.float32)
    along = np.zeros((h, w), np.float32)
    ends = np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum()
    left = gap
    for k in range(spec.strips):
        half = widths[k] / 2
        bend = rng.uniform(0.05, 0.14) * half * np.sin(ys / h * rng.uniform(3, 8) + rng.uniform(0, 6))
        across = np.abs(xs - (left + half) - bend)
        top = (h - lengths[k]) / 2
        beyond = np.maximum(np.maximum(top + half - ys, ys - (top + lengths[k] - half)), 0)
        field = 1 - np.maximum(across / half, np.hypot(across, beyond * 1.1) / half) + 0.05 * noise
        strip = field > tissue
        tissue[strip] = field[strip]
        along[strip] = (ends[k] + (ends[k + 1] - ends[k]) * np.clip((ys - top) / lengths[k], 0, 1))[strip]
        left += widths[k] + gap
    return tissue, along


def zones(rng: np.random.Generator, spec: BiopsySpec, tissue: F32, along: F32) -> npt.NDArray[np.uint8]:
    """Draw the coarse zone map (h, w) uint8: 2 6 8 benign glands, 7 inflammation, 3 4 5 cancer."""
    zone = np.full(tissue.shape, BENIGN, np.uint8)
    field = texture.smooth_field(rng, tissue.shape, 34.0, 2)
    zone[field > 0.45] = ATROPHY
    zone[field < -0.7] = CROWDED
    zone[texture.smooth_field(rng, tissue.shape, 26.0, 2) > 1.0] = INFLAMED
    if spec.gleason is not None:
        primary, secondary = spec.gleason
        start = rng.uniform(0, 1 - spec.cancer_share)
        place = (along + 0.012 * texture.smooth_field(rng, tissue.shape, 14.0, 2) - start) / spec.cancer_share
        # infiltrating growth leaves benign islands
        cancer = (place >= 0) & (place < 1) & (texture.smooth_field(rng, tissue.shape, 14.0, 2) < 1.1)
        # the primary pattern is by definition the larger one
        part = rng.uniform(0.62, 0.75)
        from_start = place < part if rng.random() < 0.5 else place > 1 - part
        zone[cancer] = np.where(from_start[cancer], primary, secondary)
    return zone


def draw_glands(rng: np.random.Generator, planes: tuple[U8, U8, U8], points: I64, kind: int) -> npt.NDArray[np.int64]:
    """Draw the glands of one kind at `points` (n, 2) into the planes (H, W) of haematoxylin, eosin and label, in place.

    Returns:
        Positions (m, 2) of nuclei (x, y), level-0 px.
    """
    h_plane, e_plane, label = planes
    look = GLANDS[kind]
    theta = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    nuclei = [np.zeros((0, 2), np.int64)]
    for x, y in points.tolist():
        radius = rng.uniform(*look.radius)
        phase = rng.uniform(0, 2 * np.pi, 3)
        shape = 1 + look.wobble * (np.cos(2 * theta + phase[0]) + 0.6 * np.cos(3 * theta + phase[1]))
        shape += 0.4 * look.wobble * np.cos(5 * theta + phase[2])
        unit = np.stack([np.cos(theta), np.sin(theta)], 1) * shape[:, None] * radius
        outline = np.rint(unit + (x, y)).astype(np.int32)
        cv2.fillPoly(
            label, [np.rint(unit * (1 + 3.0 / radius) + (x, y)).astype(np.int32)], kind if kind <= 5 else BENIGN
        )
        cv2.fillPoly(e_plane, [outline], int(look.eosin * rng.uniform(0.9, 1.1)))
        cv2.fillPoly(h_plane, [outline], look.haematoxylin)
        for _ in range(look.lumina):
            shift = (0.0, 0.0) if look.lumina == 1 else rng.uniform(-0.5, 0.5, 2) * radius
            hole = np.rint(unit * look.lumen * rng.uniform(0.8, 1.1) + (x, y) + shift).astype(np.int32)
            cv2.fillPoly(e_plane, [hole], int(rng.integers(3, 22)))
            cv2.fillPoly(h_plane, [hole], 2)
        nuclei.append(lining(rng, unit, LINING[kind].spacing, filled=look.lumina > 1) + np.array([x, y]))
    return np.concatenate(nuclei)


def lining(rng: np.random.Generator, unit: npt.NDArray[np.float64], spacing: float, *, filled: bool) -> I64:
    """Place a gland's nuclei (n, 2) relative to its centre, along the wall or, if `filled`, all over a nest."""
    radius = float(np.hypot(*unit.T).mean())
    rings = np.arange(0.88 * radius, 0.3 * radius, -spacing) / radius if filled else np.array([0.84])
    places = []
    for ring in rings:
        count = max(3, int(2 * np.pi * radius * ring / spacing))
        at = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * len(unit) / count
        places.append(unit[at.astype(np.int64) % len(unit)] * ring + rng.normal(0, 0.8, (count, 2)))
    return np.asarray(np.rint(np.concatenate(places)), np.int64)


def at(coarse: npt.NDArray[Any], points: I64) -> npt.NDArray[Any]:
    """Return the values (n,) of a coarse map at level-0 points (n, 2)."""
    x, y = np.clip(points[:, 0] // LOW, 0, coarse.shape[1] - 1), np.clip(points[:, 1] // LOW, 0, coarse.shape[0] - 1)
    return np.asarray(coarse[y, x])


def draw_cells(rng: np.random.Generator, planes: tuple[U8, U8, U8], tissue: F32, zone: npt.NDArray[np.uint8]) -> None:
    """Draw glands, nuclei, stroma, sheets and inflammation into haematoxylin, eosin and label (H, W), in place."""
    h_plane, e_plane, label = planes
    shape = (h_plane.shape[0], h_plane.shape[1])
    grow, shade = 1 + 0.05 * rng.standard_normal(), 1 + 0.05 * rng.standard_normal()

    def varied(cells: Cells) -> list[U8]:
        return texture.nucleus_stamps(
            rng, replace(cells, radius=cells.radius * grow, dark=min(1.0, cells.dark * shade))
        )

    free = texture.lattice_points(rng, shape, STROMAL.spacing, STROMAL.keep)
    texture.stamp(h_plane, free[(at(tissue, free) > 0) & (at(zone, free) != 5)], varied(STROMAL), rng)
    for kind, look in GLANDS.items():
        points = texture.lattice_points(rng, shape, look.spacing, look.keep)
        points = points[(at(zone, points) == kind) & (at(tissue, points) > 0.04)]
        places = draw_glands(rng, planes, points, kind)
        inside = (places >= 0).all(1) & (places[:, 0] < shape[1]) & (places[:, 1] < shape[0])
        places = places[inside]
        # skip nuclei inside a neighbour's lumen, which is almost free of eosin
        texture.stamp(h_plane, places[e_plane[places[:, 1], places[:, 0]] > 25], varied(LINING[kind]), rng)
    for kind, cells in ((5, SHEET), (INFLAMED, LYMPHOCYTE)):
        points = texture.lattice_points(rng, shape, cells.spacing, cells.keep)
        texture.stamp(h_plane, points[(at(zone, points) == kind) & (at(tissue, points) > 0)], varied(cells), rng)
    np.copyto(label, 5, where=texture.enlarge((zone == 5).astype(np.uint8) * 255, shape) > 127)


def draw_biopsy(rng: np.random.Generator, spec: BiopsySpec) -> tuple[U8, U8]:
    """Draw RGB (H, W, 3) uint8 and labels (H, W) uint8 in the provider's coding; H and W are multiples of 16."""
    tissue, along = lay_strips(rng, spec)
    zone = zones(rng, spec, tissue, along)
    low = (tissue.shape[0], tissue.shape[1])
    h, w = low[0] * LOW, low[1] * LOW
    border = texture.look_up(texture.enlarge(texture.to_u8(128 + tissue * 1500), (h, w)), texture.sigmoid(128.0, 9.0))
    sheet = np.asarray(cv2.GaussianBlur((zone == 5).astype(np.float32), (0, 0), 1.0), np.float32)
    blotch = 1 + 0.10 * texture.smooth_field(rng, low, 12.0)
    e_plane = texture.enlarge(texture.to_u8((98 - 22 * sheet) * blotch), (h, w))
    h_plane = texture.enlarge(texture.to_u8((12 + 14 * sheet) * blotch), (h, w))
    label = np.ones((h, w), np.uint8)
    draw_cells(rng, (h_plane, e_plane, label), tissue, zone)
    e_plane = texture.times(texture.times(e_plane, texture.fibres(rng, (h, w)), 128), border, 255)
    h_plane = texture.times(h_plane, border, 255)
    stain = texture.sample_stain(rng, int(spec.provider == "karolinska"))
    rgb = texture.render(rng, h_plane, e_plane, stain)
    if spec.pen:
        texture.pen_line(rgb, rng, (int(0.02 * w), int(0.04 * h), int(0.98 * w), int(0.16 * h)), (30, 130, 90))
    if spec.provider == "karolinska":
        cancer = cv2.resize(((zone >= 3) & (zone <= 5)).astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
        label = np.asarray(cancer + 1, np.uint8)
    # the public slides are cut out of their scans, so everything beyond a margin around the tissue is white
    near = cv2.dilate((tissue > 0).astype(np.uint8), np.ones((9, 9), np.uint8))
    if not spec.pen:
        rgb[cv2.resize(near, (w, h), interpolation=cv2.INTER_NEAREST) == 0] = 255
    label[border < 128] = 0
    if rng.random() < 0.5:
        rgb, label = np.ascontiguousarray(rgb.transpose(1, 0, 2)), np.ascontiguousarray(label.T)
    return rgb, label
