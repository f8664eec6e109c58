"""CLAM's tissue and patching rules, written a second time from the description only: loops and SciPy.

Points are (x, y); pictures are (h, w[, 3]) uint8; polygons are lists of integer vertices.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image = npt.NDArray[np.uint8]
Point = tuple[float, float]


def saturation(rgb: Image) -> Image:
    """HSV saturation in OpenCV's 12-bit fixed point."""
    out = np.zeros(rgb.shape[:2], np.uint8)
    for index in np.ndindex(*out.shape):
        high, low = int(rgb[index].max()), int(rgb[index].min())
        factor = round(255 * 4096 / high) if high else 0
        out[index] = ((high - low) * factor + 2048) >> 12
    return out


def median(image: Image, side: int) -> Image:
    """Median of side x side, border replicated."""
    return np.asarray(ndimage.median_filter(image, side, mode="nearest"))


def closing_shifted(mask: Image, side: int) -> Image:
    """Dilation then erosion, both looking at offsets -(side // 2) .. side - 1 - side // 2: even sides shift."""
    dilated = ndimage.maximum_filter(mask, side, mode="constant", cval=0)
    return np.asarray(ndimage.minimum_filter(dilated, side, mode="constant", cval=255))


def closing_true(mask: Image, side: int) -> Image:
    """Closing by its definition: a pixel stays off iff some side x side square covers it without meeting the mask.

    Squares may hang over the border, where nothing is set, as long as their middle stays in the picture.
    """
    h, w = mask.shape
    middle = side // 2
    out = np.full_like(mask, 255)
    for top in range(-middle, h - middle):
        for left in range(-middle, w - middle):
            part = (slice(max(top, 0), max(top + side, 0)), slice(max(left, 0), max(left + side, 0)))
            if not mask[part].any():
                out[part] = 0
    return out


def inside(polygon: Sequence[Sequence[int]], point: Point) -> int:
    """+1 inside, 0 on the outline, -1 outside (even-odd), every edge looked at."""
    px, py = point
    crossings = 0
    n = len(polygon)
    for i in range(n):
        (ax, ay), (bx, by) = (map(int, polygon[i]), map(int, polygon[(i + 1) % n]))
        cross = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
        if cross == 0 and min(ax, bx) <= px <= max(ax, bx) and min(ay, by) <= py <= max(ay, by):
            return 0
        if (ay > py) != (by > py) and ((cross > 0) == (by > ay)):
            crossings += 1
    return 1 if crossings % 2 else -1


def passes(polygon: Sequence[Sequence[int]], origin: tuple[int, int], footprint: int, name: str) -> bool:
    """The four contour functions."""
    x, y = origin
    half = footprint // 2
    centre = (x + half, y + half)
    shift = int(half * 0.5)
    points = [(centre[0] + a * shift, centre[1] + b * shift) for a in (-1, 1) for b in (-1, 1)] if shift else [centre]
    if name == "basic":
        return inside(polygon, origin) >= 0
    if name == "center":
        return inside(polygon, centre) >= 0
    results = [inside(polygon, point) >= 0 for point in points]
    return all(results) if name == "four_pt_hard" else any(results)


def accepted(
    polygon: Sequence[Sequence[int]],
    holes: Sequence[Sequence[Sequence[int]]],
    origin: tuple[int, int],
    footprint: int,
    name: str,
) -> bool:
    """Contour function and holes together."""
    centre = (origin[0] + footprint / 2, origin[1] + footprint / 2)
    return passes(polygon, origin, footprint, name) and not any(inside(hole, centre) > 0 for hole in holes)


def patches(
    polygon: Sequence[Sequence[int]],
    holes: Sequence[Sequence[Sequence[int]]],
    footprint: int,
    step: int,
    dimensions: tuple[int, int],
    name: str,
    padding: bool,
) -> list[tuple[int, int]]:
    """Patches of one contour in CLAM's order: all y of the first x, then the next x."""
    xs, ys = [int(p[0]) for p in polygon], [int(p[1]) for p in polygon]
    x0, y0, w, h = min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1
    stop_x, stop_y = x0 + w, y0 + h
    if not padding:
        stop_x = min(stop_x, dimensions[0] - footprint + 1)
        stop_y = min(stop_y, dimensions[1] - footprint + 1)
    origins = []
    for x in range(x0, stop_x, step):
        for y in range(y0, stop_y, step):
            if accepted(polygon, holes, (x, y), footprint, name):
                origins.append((x, y))
    return origins


def polygon_area(points: Sequence[Point]) -> float:
    """Shoelace area."""
    (x, y), (next_x, next_y) = np.transpose(points), np.transpose([*points[1:], points[0]])
    return abs(float((x * next_y - next_x * y).sum())) / 2


def clipped_area(points: Sequence[Point], box: tuple[float, float, float, float]) -> float:
    """Area of a simple polygon inside a box (x0, y0, x1, y1): cut by one side after the other (Sutherland-Hodgman)."""
    shape = [(float(x), float(y)) for x, y in points]
    for axis, limit, sign in ((0, box[0], 1), (1, box[1], 1), (0, box[2], -1), (1, box[3], -1)):
        cut: list[Point] = []
        for i, a in enumerate(shape):
            b = shape[(i + 1) % len(shape)]
            keep_a, keep_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if keep_a:
                cut.append(a)
            if keep_a != keep_b:
                t = (limit - a[axis]) / (b[axis] - a[axis])
                cut.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
        shape = cut
        if not shape:
            return 0.0
    return polygon_area(shape)
