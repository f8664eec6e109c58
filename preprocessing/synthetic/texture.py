"""Random fields, nuclei and stain for synthetic H&E slides.

A slide is drawn as two dye planes (H, W) uint8, haematoxylin and eosin, and turned into RGB by Beer-Lambert absorption,
I = glass * exp(-(cH*odH + cE*odE)) (Ruifrok and Johnston 2001). Tissue outline and compartments are computed on a grid
`LOW` times coarser and enlarged; nuclei are stamped at full resolution. Structures have about a third of their physical
size, so that a 128-px tile shows about as many cells as a 512-px tile of a real slide. Points are (n, 2) int64, x y.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

LOW = 8
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

CONCENTRATION = 2.0 / 255.0
OD_HAEMATOXYLIN = np.array([0.66, 0.72, 0.34])
OD_EOSIN = np.array([0.10, 0.62, 0.30])


@dataclass(frozen=True)
class Cells:
    """Appearance of the nuclei of one compartment.

    Attributes:
        spacing: distance between neighbouring nuclei in px.
        keep: share of lattice points with a nucleus.
        radius: mean radius in px.
        spread: relative standard deviation of the radius.
        elongation: mean ratio of the axes.
        dark: haematoxylin of the rim, 0..1.
        vesicular: how much paler the centre is than the rim, 0..1.
    """

    spacing: float
    keep: float
    radius: float
    spread: float
    elongation: float
    dark: float
    vesicular: float


@dataclass(frozen=True)
class Stain:
    """Stain of one slide: absorbances (3,) of the two dyes, and the colour (3,) of bare glass in 0..255."""

    haematoxylin: npt.NDArray[np.float64]
    eosin: npt.NDArray[np.float64]
    glass: npt.NDArray[np.float64]


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], scale: float, octaves: int = 2) -> F32:
    """Draw a smooth field (h, w) float32 of zero mean and unit variance.

    `scale` is the correlation length in px; each of the `octaves` layers halves the scale and the amplitude.
    """
    h, w = shape
    out = np.zeros(shape, np.float32)
    for octave in range(octaves):
        # blurring on a grid finer than the scale keeps the field isotropic; interpolation alone shows the grid
        step = max(scale / 2**octave / 3.0, 1.0)
        coarse = rng.standard_normal((int(h / step) + 12, int(w / step) + 12)).astype(np.float32)
        coarse = np.asarray(cv2.GaussianBlur(coarse, (0, 0), 1.4), np.float32)
        layer = cv2.resize(coarse[5:-5, 5:-5], (w, h), interpolation=cv2.INTER_CUBIC)
        out += np.asarray(layer, np.float32) * np.float32(0.5**octave)
    return np.asarray((out - out.mean()) / (out.std() + 1e-6), np.float32)


def enlarge(field: U8, shape: tuple[int, int]) -> U8:
    """Enlarge a coarse map to `shape` (H, W) by linear interpolation."""
    return np.asarray(cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def look_up(plane: U8, table: U8) -> U8:
    """Map every px of a plane through a (256,) table."""
    return np.asarray(cv2.LUT(plane, table), np.uint8)


def times(a: U8, b: U8, unit: int) -> U8:
    """Multiply two planes (H, W) in which the value `unit` stands for 1, saturating."""
    return np.asarray(cv2.multiply(a, b, scale=1 / unit), np.uint8)


def sigmoid(middle: float, width: float) -> U8:
    """Return a table (256,) uint8 that rises from 0 to 255 around `middle`."""
    return to_u8(255 / (1 + np.exp(-(np.arange(256) - middle) / width)))


def to_u8(field: npt.NDArray[np.floating]) -> U8:
    """Round (H, W), or any shape, and clip to 0..255."""
    return np.asarray(np.clip(np.rint(field), 0, 255), np.uint8)


def blob(
    shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float], angle: float, noise: F32
) -> F32:
    """Return an ellipse (h, w) float32 with an outline deformed by `noise` (h, w): > 0 inside, 1 at the centre.

    Centre (x, y) and semi-axes are in px, the angle in radians.
    """
    ys, xs = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    dx, dy = xs - centre[0], ys - centre[1]
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / radii[0]
    v = (-dx * np.sin(angle) + dy * np.cos(angle)) / radii[1]
    return np.asarray(1.0 - np.sqrt(u * u + v * v) + noise, np.float32)


def fibres(rng: np.random.Generator, shape: tuple[int, int]) -> U8:
    """Draw wavy fibrous grain around 128 for the eosin plane, (h, w) uint8."""
    h, w = shape
    # wrapped before the blur, so that it tiles without seams
    noise = np.pad(rng.integers(0, 256, (512, 512), dtype=np.uint8), 32, mode="wrap")
    grain = cv2.GaussianBlur(noise, (0, 0), sigmaX=6.0, sigmaY=1.6)[32:-32, 32:-32]
    fine = cv2.GaussianBlur(noise, (0, 0), sigmaX=1.6)[32:-32, 32:-32]
    mixed = cv2.addWeighted(grain, 1.7, fine, 1.1, 128.0 * (1 - 1.7 - 1.1))
    low = (h // LOW + 1, w // LOW + 1)
    turn = smooth_field(rng, low, 28.0, 1) * np.float32(1.1)
    ys, xs = np.mgrid[: low[0], : low[1]].astype(np.float32) * np.float32(LOW)
    bend = smooth_field(rng, low, 16.0, 3) * np.float32(30.0)
    # a slowly rotating frame gives fibre bundles that change direction over the slide
    mx = xs * np.cos(turn * 0.35) + ys * np.sin(turn * 0.35) + bend
    my = -xs * np.sin(turn * 0.35) + ys * np.cos(turn * 0.35) + bend[::-1]
    map_x, map_y = (cv2.resize(m.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR) for m in (mx, my))
    return np.asarray(cv2.remap(mixed, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.uint8)


def nucleus_stamps(rng: np.random.Generator, cells: Cells) -> list[U8]:
    """Draw 40 single nuclei, each (s, s) uint8 haematoxylin with one odd s."""
    half = int(np.ceil(cells.radius * (1 + 2.2 * cells.spread) * np.sqrt(cells.elongation))) + 2
    ys, xs = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    stamps = []
    for _ in range(40):
        r = cells.radius * float(np.clip(1 + cells.spread * rng.standard_normal(), 0.55, 1 + 2.2 * cells.spread))
        stretch = np.sqrt(max(1.0, cells.elongation * (1 + 0.15 * rng.standard_normal())))
        theta, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        u = (xs * np.cos(theta) + ys * np.sin(theta)) / (r * stretch)
        v = (-xs * np.sin(theta) + ys * np.cos(theta)) / (r / stretch)
        wobble = 1 + 0.10 * np.cos(2 * np.arctan2(v, u) + phase) + 0.05 * np.cos(3 * np.arctan2(v, u) - phase)
        rho = np.sqrt(u * u + v * v) / wobble
        edge = np.clip((1 - rho) * r * 0.9 + 0.5, 0, 1)
        chromatin = 1 - cells.vesicular * np.clip(1.15 - rho, 0, 1) + 0.10 * rng.standard_normal(rho.shape)
        shade = cells.dark * (1 + 0.12 * rng.standard_normal())
        stamps.append(to_u8(255 * edge * np.clip(shade * chromatin, 0, 1)))
    return stamps


def lattice_points(rng: np.random.Generator, shape: tuple[int, int], spacing: float, keep: float) -> I64:
    """Draw points (n, 2) inside (h, w) on a jittered hexagonal lattice, each kept with probability `keep`."""
    h, w = shape
    rows, cols = int(h / (spacing * 0.87)) + 1, int(w / spacing) + 1
    gy, gx = np.mgrid[:rows, :cols].astype(np.float32)
    x = (gx + 0.5 * (gy % 2)) * spacing + rng.uniform(-0.33, 0.33, gx.shape) * spacing
    y = gy * spacing * 0.87 + rng.uniform(-0.33, 0.33, gy.shape) * spacing
    points = np.stack([x, y], -1).reshape(-1, 2).astype(np.int64)
    inside = (points >= 0).all(1) & (points[:, 0] < w) & (points[:, 1] < h) & (rng.random(len(points)) < keep)
    return np.asarray(points[inside])


def stamp(plane: U8, points: I64, stamps: list[U8], rng: np.random.Generator) -> None:
    """Draw nuclei into `plane` (H, W) in place, keeping the darker value; skip those that cross the border."""
    half = stamps[0].shape[0] // 2
    h, w = plane.shape
    ok = (points >= half).all(1) & (points[:, 0] < w - half) & (points[:, 1] < h - half)
    corners = (points[ok] - half).tolist()
    size = 2 * half + 1
    for (x, y), k in zip(corners, rng.integers(0, len(stamps), len(corners)).tolist(), strict=True):
        window = plane[y : y + size, x : x + size]
        np.maximum(window, stamps[k], out=window)


def sample_stain(rng: np.random.Generator, centre: int, strength: float = 1.0) -> Stain:
    """Draw the stain of one slide of medical centre 0 or 1; `strength` is the amount of dye, 1 = normal, 0.5 = pale."""
    # the second centre is more bluish, with less eosin
    shift, amount = ((np.ones(3), 1.0), (np.array([1.10, 0.97, 0.88]), 0.88))[centre]
    od_h = OD_HAEMATOXYLIN * shift * (1 + 0.05 * rng.standard_normal(3)) * (1 + 0.10 * rng.standard_normal())
    od_e = OD_EOSIN * (1 + 0.06 * rng.standard_normal(3)) * (1 + 0.12 * rng.standard_normal()) * amount
    glass = np.array([243.0, 242.0, 244.0]) + rng.uniform(-3, 3) + rng.uniform(-1.5, 1.5, 3)
    return Stain(od_h * strength, od_e * strength, glass)


def render(rng: np.random.Generator, h_plane: U8, e_plane: U8, stain: Stain) -> U8:
    """Turn two dye planes (H, W) into RGB (H, W, 3) uint8 by Beer-Lambert absorption, with camera noise and dust."""
    h, w = h_plane.shape
    levels = np.arange(256) * CONCENTRATION
    # nuclei are blurred by about one px, as the objective does
    h_plane = np.asarray(cv2.GaussianBlur(h_plane, (3, 3), 0), np.uint8)
    channels = []
    for c in range(3):
        through_h = to_u8(255 * np.exp(-levels * stain.haematoxylin[c]))
        through_e = to_u8(stain.glass[c] * np.exp(-levels * stain.eosin[c]))
        channels.append(times(look_up(h_plane, through_h), look_up(e_plane, through_e), 255))
    rgb = np.asarray(cv2.merge(channels), np.uint8)
    grain = np.pad(rng.integers(0, 6, (256, 256), dtype=np.uint8), ((0, 256), (0, 256)), mode="wrap")
    tiled = np.tile(grain, (h // 512 + 1, w // 512 + 1))[:h, :w]
    cv2.subtract(rgb, cv2.merge([tiled] * 3), dst=rgb)
    for x, y in rng.integers(0, (w, h), (6, 2)).tolist():
        cv2.circle(rgb, (x, y), int(rng.integers(1, 4)), (150, 150, 155), -1, cv2.LINE_AA)
    return rgb


def pen_line(rgb: U8, rng: np.random.Generator, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    """Draw a felt-pen stroke with soft edges inside `box` (x0, y0, x1, y1) in place."""
    x0, y0, x1, y1 = box
    t = np.linspace(0, 1, 24)
    wave = 0.5 + 0.35 * np.sin(2 * np.pi * (t * rng.uniform(0.5, 1.0) + rng.uniform()))
    along_x = (x1 - x0) > (y1 - y0)
    xs, ys = (x0 + t * (x1 - x0), y0 + wave * (y1 - y0)) if along_x else (x0 + wave * (x1 - x0), y0 + t * (y1 - y0))
    line = np.stack([xs, ys], 1).astype(np.int32)
    stroke = np.zeros(rgb.shape[:2], np.uint8)
    cv2.polylines(stroke, [line], False, 215, thickness=max(8, min(rgb.shape[:2]) // 45), lineType=cv2.LINE_AA)
    ink = np.asarray(cv2.GaussianBlur(stroke, (0, 0), 2.0), np.uint8)
    for c in range(3):
        paint = times(ink, np.full_like(ink, 255 - colour[c]), 255)
        rgb[..., c] = times(np.ascontiguousarray(rgb[..., c]), 255 - paint, 255)
