"""Draw one lymph-node slide: tissue, compartments, lesions with their outlines, and artefacts.

Compartments: capsule and trabeculae (eosin, few spindle nuclei), cortex (small dense lymphocytes), germinal centres
(dense, larger and paler, most similar to a lesion), histiocytic sinuses (large pale cells) and fat. A lesion is a
contiguous region of larger, vesicular, less regular nuclei in denser cytoplasm. Cell types mix at borders, and size,
darkness and stain vary between slides, so that the classes overlap in single tiles.
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.synthetic import texture
from preprocessing.synthetic.texture import F32, I64, LOW, U8, Cells

STROMA, CORTEX, FOLLICLE, LESION, SINUS, FAT = range(6)
CELLS: dict[int, Cells] = {
    STROMA: Cells(14.0, 0.45, 3.0, 0.18, 2.4, 0.80, 0.10),
    CORTEX: Cells(9.5, 0.80, 3.4, 0.12, 1.15, 0.88, 0.15),
    FOLLICLE: Cells(10.5, 0.82, 4.15, 0.20, 1.20, 0.75, 0.38),
    LESION: Cells(11.2, 0.78, 4.5, 0.26, 1.35, 0.75, 0.43),
    SINUS: Cells(14.0, 0.75, 4.3, 0.18, 1.4, 0.66, 0.45),
    FAT: Cells(30.0, 0.20, 2.8, 0.15, 1.8, 0.80, 0.10),
}
EOSIN = np.array([118, 52, 64, 70, 84, 46], np.float32)
HAEMATOXYLIN = np.array([12, 30, 35, 35, 20, 6], np.float32)
# (cell type, compartment) -> share of the compartment's places taken by that type
INFILTRATE = {(CORTEX, LESION): 0.20, (CORTEX, STROMA): 0.12, (SINUS, CORTEX): 0.12, (STROMA, LESION): 0.10}


@dataclass(frozen=True)
class NodeSpec:
    """Content of one slide of (width, height) px from medical centre 0 or 1, with a number of lesions.

    Attributes:
        lesion_share: lesion area as a share of tissue area; 0 = normal.
        cut_out: whether the largest lesion encloses a normal island.
        special: "" | "pen" | "pale" | "two_pieces" | "empty".
    """

    size: tuple[int, int]
    centre: int
    lesion_share: float
    lesions: int
    cut_out: bool
    special: str


@dataclass
class Outlines:
    """Polygons (n, 2) float64, x y in level-0 px: lesions, the largest first, and cut-outs."""

    tumor: list[npt.NDArray[np.float64]] = field(default_factory=list)
    cut: list[npt.NDArray[np.float64]] = field(default_factory=list)


def tissue_field(rng: np.random.Generator, shape: tuple[int, int], pieces: int) -> F32:
    """Draw the coarse tissue field (h, w), > 0 inside and increasing inwards."""
    h, w = shape
    noise = texture.smooth_field(rng, shape, 0.16 * min(h, w), 3) * np.float32(0.10)
    if pieces == 1:
        centre = (w * rng.uniform(0.47, 0.53), h * rng.uniform(0.47, 0.53))
        radii = (w * rng.uniform(0.38, 0.43), h * rng.uniform(0.37, 0.42))
        return texture.blob(shape, centre, radii, rng.uniform(-0.2, 0.2), noise)
    split = rng.uniform(0.44, 0.56)
    left, right = (w * split * 0.40, h * 0.38), (w * (1 - split) * 0.40, h * 0.36)
    first = texture.blob(shape, (w * split * 0.5, h * 0.5), left, rng.uniform(-0.1, 0.1), noise)
    second = texture.blob(shape, (w * (1 + split) * 0.5, h * 0.5), right, rng.uniform(-0.1, 0.1), noise)
    return np.asarray(np.maximum(first, second), np.float32)


def grow_region(
    rng: np.random.Generator, allowed: npt.NDArray[np.bool_], depth: F32, area: float
) -> npt.NDArray[np.bool_]:
    """Draw one contiguous region (h, w) of about `area` coarse px inside `allowed`, around a random deep point."""
    ys, xs = np.nonzero(allowed & (depth > np.quantile(depth[allowed], 0.35)))
    k = int(rng.integers(len(xs)))
    radius = float(np.sqrt(area / np.pi))
    gy, gx = np.mgrid[: allowed.shape[0], : allowed.shape[1]]
    distance = np.hypot(gx - xs[k], gy - ys[k]) / radius
    distance = distance + 0.22 * texture.smooth_field(rng, allowed.shape, max(radius * 0.9, 4.0), 2)
    distance = np.where(allowed, distance, np.inf)
    rank = min(int(area), int(allowed.sum()) - 1)
    region = (distance <= np.partition(distance[allowed], rank)[rank]).astype(np.uint8)
    region = cv2.morphologyEx(region, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=4)
    return np.asarray(parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def outline_of(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Trace a contiguous coarse region (h, w) as a level-0 polygon (n, 2) float64."""
    fine = cv2.resize(region.astype(np.uint8) * 255, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    fine = cv2.GaussianBlur(fine, (0, 0), 2.0)
    contours, _ = cv2.findContours((fine > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.8, True)[:, 0, :]
    return np.asarray((contour + 0.5) * (LOW / 4), np.float64)


def plan_lesions(rng: np.random.Generator, spec: NodeSpec, tissue: F32) -> tuple[npt.NDArray[np.bool_], Outlines]:
    """Draw the lesion outlines and, from them so that they agree, the coarse lesion mask (h, w)."""
    mask = np.zeros(tissue.shape, np.uint8)
    outlines = Outlines()
    if spec.lesion_share <= 0:
        return mask.astype(bool), outlines
    inside = tissue > 0.02
    portions = np.sort(rng.dirichlet(np.full(spec.lesions, 4.0)))[::-1] if spec.lesions > 1 else np.ones(1)
    for k, portion in enumerate(portions):
        # a margin keeps neighbouring outlines apart
        free = inside & (cv2.dilate(mask, np.ones((9, 9), np.uint8)) == 0)
        region = grow_region(rng, free, tissue, max(30.0, portion * spec.lesion_share * inside.sum()))
        polygon = outline_of(region)
        outlines.tumor.append(polygon)
        cv2.fillPoly(mask, [np.rint(polygon / LOW - 0.5).astype(np.int32)], 1)
        if k == 0 and spec.cut_out:
            core = cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2) > 0
            if core.sum() > 40:
                depth = np.asarray(cv2.distanceTransform(core.astype(np.uint8), 2, 3), np.float32)
                island = outline_of(grow_region(rng, core, depth, 0.18 * core.sum()))
                outlines.cut.append(island)
                cv2.fillPoly(mask, [np.rint(island / LOW - 0.5).astype(np.int32)], 0)
    return mask.astype(bool), outlines


def compartments(rng: np.random.Generator, tissue: F32, lesion: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Draw the coarse map (h, w) uint8 of compartments, valid where tissue > 0."""
    shape = tissue.shape
    scale = 0.10 * min(shape)
    kind = np.where(texture.smooth_field(rng, shape, scale, 3) > -0.35, CORTEX, STROMA).astype(np.uint8)
    kind[texture.smooth_field(rng, shape, scale * 0.8) > 1.25] = SINUS
    kind[texture.smooth_field(rng, shape, scale) > 1.55] = FAT
    kind[np.abs(texture.smooth_field(rng, shape, scale * 1.6)) < 0.09] = STROMA
    ys, xs = np.nonzero((tissue > 0.08) & (tissue < 0.7))
    noise = texture.smooth_field(rng, shape, 6.0) * np.float32(0.12)
    for k in rng.integers(0, len(xs), int(rng.integers(5, 10))):
        r = min(shape) * rng.uniform(0.035, 0.075)
        kind[texture.blob(shape, (xs[k], ys[k]), (r, r * rng.uniform(0.7, 1.0)), rng.uniform(0, np.pi), noise) > 0] = (
            FOLLICLE
        )
    kind[tissue < 0.045] = STROMA
    kind[lesion] = LESION
    return kind


def place_nuclei(
    rng: np.random.Generator, plane: U8, kind: npt.NDArray[np.uint8], inside: npt.NDArray[np.bool_]
) -> None:
    """Stamp the nuclei of every compartment into the haematoxylin plane (H, W) in place."""
    last = np.array([inside.shape[1] - 1, inside.shape[0] - 1])
    crowd = np.clip(1 + 0.16 * texture.smooth_field(rng, (inside.shape[0], inside.shape[1]), 14.0), 0.5, 1.3)
    grow, shade = 1 + 0.05 * rng.standard_normal(), 1 + 0.05 * rng.standard_normal()
    for cell, cells in CELLS.items():
        radius = cells.radius * grow * (1 + 0.05 * rng.standard_normal())
        dark = min(1.0, cells.dark * shade * (1 + 0.05 * rng.standard_normal()))
        varied = replace(cells, radius=radius, dark=dark)
        points = texture.lattice_points(rng, (plane.shape[0], plane.shape[1]), cells.spacing, cells.keep)
        # jitter blurs the borders between cell types
        jittered: I64 = np.rint(points + rng.normal(0, 5.0, points.shape)).astype(np.int64) // LOW
        x, y = np.clip(jittered, 0, last).T
        compartment = kind[y, x]
        keep = compartment == cell
        for (guest, host), share in INFILTRATE.items():
            if guest == cell:
                keep |= (compartment == host) & (rng.random(len(points)) < share)
        x, y = np.clip(points // LOW, 0, last).T
        keep &= inside[y, x] & (rng.random(len(points)) < crowd[y, x])
        texture.stamp(plane, points[keep], texture.nucleus_stamps(rng, varied), rng)


def draw_fat(rng: np.random.Generator, planes: tuple[U8, U8], kind: npt.NDArray[np.uint8]) -> None:
    """Clear both dye planes (H, W) inside fat vacuoles, leaving thin membranes, in place."""
    h, w = planes[0].shape
    for x, y in texture.lattice_points(rng, (h, w), 30.0, 1.0).tolist():
        if kind[min(y // LOW, kind.shape[0] - 1), min(x // LOW, kind.shape[1] - 1)] == FAT:
            radius = int(rng.integers(11, 16))
            for plane in planes:
                cv2.circle(plane, (x, y), radius, 2, -1, cv2.LINE_AA)


def draw_node(rng: np.random.Generator, spec: NodeSpec) -> tuple[U8, Outlines]:
    """Draw RGB (H, W, 3) uint8 and the lesion outlines; width and height must be multiples of `LOW`."""
    w, h = spec.size
    low = (h // LOW, w // LOW)
    stain = texture.sample_stain(rng, spec.centre, 0.5 if spec.special == "pale" else 1.0)
    if spec.special == "empty":
        zero = np.zeros((h, w), np.uint8)
        return texture.render(rng, zero, zero, stain), Outlines()
    tissue = tissue_field(rng, low, 2 if spec.special == "two_pieces" else 1)
    lesion, outlines = plan_lesions(rng, spec, tissue)
    kind = compartments(rng, tissue, lesion)
    crack = texture.to_u8(128 + 60 * texture.smooth_field(rng, low, 26.0, 2))
    # steep curves after enlarging give sharp borders and thin fissures
    border = texture.look_up(texture.enlarge(texture.to_u8(128 + tissue * 1800), (h, w)), texture.sigmoid(128.0, 9.0))
    fissure = texture.look_up(texture.enlarge(crack, (h, w)), texture.to_u8(64 * np.abs(np.arange(256) - 128.0) + 70))
    crisp = texture.times(border, fissure, 255)
    blotch = 1 + 0.10 * texture.smooth_field(rng, low, 12.0)
    eosin = texture.to_u8(np.asarray(cv2.GaussianBlur(EOSIN[kind] * blotch, (0, 0), 1.0), np.float32))
    haem = texture.to_u8(np.asarray(cv2.GaussianBlur(HAEMATOXYLIN[kind] * blotch, (0, 0), 1.0), np.float32))
    e_plane = texture.times(texture.enlarge(eosin, (h, w)), texture.fibres(rng, (h, w)), 128)
    h_plane = texture.enlarge(haem, (h, w))
    place_nuclei(rng, h_plane, kind, tissue > 0.0)
    draw_fat(rng, (h_plane, e_plane), kind)
    h_plane, e_plane = texture.times(h_plane, crisp, 255), texture.times(e_plane, crisp, 255)
    rgb = texture.render(rng, h_plane, e_plane, stain)
    if spec.special == "pen":
        box = (int(0.05 * w), int(0.06 * h), int(0.95 * w), int(0.20 * h))
        texture.pen_line(rgb, rng, box, (40, 90, 190) if rng.random() < 0.5 else (30, 140, 90))
    return rgb, outlines
