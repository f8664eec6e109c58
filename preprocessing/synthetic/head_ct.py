"""Draw one head CT in Hounsfield units: anatomy that changes along z, haemorrhages by subtype, and look-alikes.

Coordinates: x right, y back, both -1..1 over the field of view; z from 0 (skull base) to 1 (vertex). Brain about 35 HU,
CSF 8, fat -90, skull 500 to 1300, air -1000, blood 45 to 75 with soft edges. Every scan has structures as dense as
blood: venous sinuses, falx, vessels at the base, beam hardening under the skull, streaks between the petrous bones and
calcifications. Volumes are (n, m, m) float32 HU, slices from base to vertex.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
SIDES = (-1.0, 1.0)

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
# range of z in which each subtype occurs
EXTENT = {
    "epidural": (0.28, 0.92),
    "intraparenchymal": (0.28, 0.82),
    "intraventricular": (0.40, 0.80),
    "subarachnoid": (0.26, 0.90),
    "subdural": (0.30, 0.96),
}
SCALP, SKULL = 0.055, 0.065
VENTRICLES = (0.38, 0.82)


@dataclass(frozen=True)
class Bleed:
    """One haemorrhage: subtype and first and last slice, inclusive."""

    subtype: str
    first: int
    last: int


@dataclass(frozen=True)
class Frame:
    """Coordinates of a scan: x, y (1, m, m); z (n, 1, 1); depth (n, m, m) below the skin, negative outside the head."""

    x: F32
    y: F32
    z: F32
    depth: F32

    @property
    def inner(self) -> F32:
        """Depth (n, m, m) below the inner table of the skull."""
        return self.depth - np.float32(SCALP + SKULL)


def blur(volume: F32, sigma: float) -> F32:
    """Blur every slice of (n, m, m) by a Gaussian of `sigma` px."""
    return np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in volume])


def volume_field(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> F32:
    """Draw a smooth volume (n, m, m), zero mean and unit variance; `scale` px in plane, about two slices along z."""
    n, m, _ = shape
    side = int(m / scale) + 4
    coarse = rng.standard_normal((n // 2 + 3, side, side)).astype(np.float32)
    planes = np.stack([cv2.resize(plane, (m, m), interpolation=cv2.INTER_CUBIC) for plane in blur(coarse, 0.7)])
    at = np.linspace(0, len(planes) - 1.001, n)
    low, part = at.astype(int), (at % 1)[:, None, None].astype(np.float32)
    field = planes[low] * (1 - part) + planes[low + 1] * part
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def head_frame(rng: np.random.Generator, n: int, m: int) -> Frame:
    """Draw the outline of one head, slightly rotated and shifted."""
    axis = np.linspace(-1, 1, m, dtype=np.float32)
    angle = rng.normal(0, 0.09)
    y0, x0 = np.meshgrid(axis - rng.normal(-0.03, 0.03), axis - rng.normal(0, 0.03), indexing="ij")
    x = (x0 * np.cos(angle) + y0 * np.sin(angle))[None]
    y = (-x0 * np.sin(angle) + y0 * np.cos(angle))[None]
    z = np.linspace(0.0, 1.0, n, dtype=np.float32)[:, None, None]
    size = rng.uniform(0.92, 1.06)
    profile = np.sqrt(1 - ((z - 0.42) / 0.74) ** 2)
    a, b = 0.72 * size * profile, 0.89 * size * profile * rng.uniform(0.94, 1.04)
    # the skull is wider at the back than at the front
    r = np.sqrt((x / (a * (1 + 0.10 * y))) ** 2 + (y / b) ** 2)
    return Frame(
        np.asarray(x, np.float32), np.asarray(y, np.float32), z, np.asarray((1 - r) * np.sqrt(a * b), np.float32)
    )


def ball(frame: Frame, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Mask:
    """Return the mask (n, m, m) of an ellipsoid around centre x, y, z."""
    (cx, cy, cz), (rx, ry, rz) = centre, radii
    return np.asarray(((frame.x - cx) / rx) ** 2 + ((frame.y - cy) / ry) ** 2 + ((frame.z - cz) / rz) ** 2 < 1)


def ventricles(frame: Frame, wide: float) -> Mask:
    """Return the mask (n, m, m) of the lateral and third ventricles; `wide` scales their width."""
    mid = np.clip((frame.z - VENTRICLES[0]) / (VENTRICLES[1] - VENTRICLES[0]), 0, 1)
    there = (frame.z > VENTRICLES[0]) & (frame.z < VENTRICLES[1])
    height = np.sqrt(np.clip(1 - (2 * mid - 1) ** 2, 0, 1)) * 0.5 + 0.5
    bend = 0.055 + 0.75 * (frame.y - 0.02) ** 2
    lateral = np.abs(np.abs(frame.x) - bend) < 0.036 * wide * height * (1 + 1.2 * np.abs(frame.y - 0.02))
    lateral &= np.hypot(frame.y - 0.02, 0.5 * (np.abs(frame.x) - bend)) < 0.36 * height
    third = (np.abs(frame.x) < 0.012 * wide) & (np.abs(frame.y - 0.02) < 0.10) & (frame.z < 0.55)
    return np.asarray((lateral | third) & there & (frame.inner > 0.08))


def draw_bone_and_air(rng: np.random.Generator, volume: F32, frame: Frame, grain: F32) -> None:
    """Draw scalp, skull, petrous bones, sinuses, orbits and the head rest into (n, m, m) HU, in place."""
    depth, inner, z = frame.depth, frame.inner, frame.z
    scalp = (depth > 0) & (depth <= SCALP)
    volume[scalp] = np.where(depth[scalp] < 0.018, 20.0, -80.0)
    skull = (depth > SCALP) & (inner <= 0)
    middle = np.abs(inner + SKULL / 2) < SKULL * 0.22
    volume[skull] = (1150 + 90 * grain)[skull]
    volume[skull & middle] = (560 + 90 * grain)[skull & middle]
    for side in SIDES:
        petrous = ball(frame, (side * 0.36, 0.16, 0.06), (0.20, 0.10, 0.11)) & (inner > -0.01)
        volume[petrous] = (850 + 200 * grain)[petrous]
        volume[petrous & (grain > 0.9)] = -850
        orbit = ball(frame, (side * 0.24, -0.56, 0.03), (0.17, 0.17, 0.13)) & (depth > 0)
        volume[orbit] = -85
        volume[orbit & ball(frame, (side * 0.24, -0.62, 0.03), (0.11, 0.11, 0.10))] = 12
    nose = ball(frame, (0.0, -0.55, 0.0), (0.09, 0.20, 0.16)) & (depth > SCALP)
    volume[nose] = np.where(np.abs(np.sin(frame.x * 60 + frame.y * 25) + 0 * z)[nose] < 0.25, 300.0, -960.0)
    rest = (np.abs(frame.y - 0.96 + 0.22 * frame.x**2) < 0.012) & (np.abs(frame.x) < 0.62)
    volume[rest & (depth < -0.01)] = rng.uniform(-150, 180)


def draw_brain(rng: np.random.Generator, volume: F32, frame: Frame, sulcus: F32, vent: Mask) -> None:
    """Draw grey and white matter, sulci and ventricles into (n, m, m) HU, in place."""
    brain = frame.inner > 0
    folds = frame.inner + 0.035 * sulcus
    tissue = 29.5 + 7.5 / (1 + np.exp((folds - 0.11) / 0.015)) + rng.normal(0, 1.0)
    for side in SIDES:
        tissue += 6.0 * ball(frame, (side * 0.17, -0.02, 0.50), (0.09, 0.17, 0.10))
    volume[brain] = tissue[brain]
    atrophy = rng.uniform(0.6, 1.6)
    grooves = brain & (np.abs(sulcus) < 0.10 * atrophy) & (frame.inner < 0.10) & (frame.z > 0.25)
    cistern = ball(frame, (0.0, 0.02, 0.27), (0.14, 0.10, 0.05)) & (sulcus > -0.4)
    volume[grooves | (brain & cistern) | vent] = 8.0
    cerebellum = brain & (frame.z < 0.28) & (frame.y > 0.12)
    volume[cerebellum] += 2.0


def draw_look_alikes(rng: np.random.Generator, volume: F32, frame: Frame, vent: Mask) -> None:
    """Draw dense structures that are not blood into (n, m, m) HU, in place."""
    brain = frame.inner > 0
    falx = brain & (np.abs(frame.x) < 0.011) & (np.abs(frame.y) > 0.22) & (frame.z > 0.40)
    volume[falx] = rng.uniform(42, 56)
    sagittal = brain & (frame.inner < 0.055) & (np.abs(frame.x) < 0.045) & (frame.y > 0.2) & (frame.z > 0.30)
    volume[sagittal] = rng.uniform(48, 66)
    lateral = brain & (frame.inner < 0.05) & (np.abs(frame.z - 0.22) < 0.05) & (frame.y > 0.35)
    volume[lateral & (np.sign(frame.x) == rng.choice(SIDES))] = rng.uniform(46, 64)
    for _ in range(int(rng.integers(3, 7))):
        place = (rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.1), rng.uniform(0.2, 0.34))
        volume[ball(frame, place, (0.022, 0.022, 0.05)) & brain] = rng.uniform(48, 68)
    if rng.random() < 0.7:
        volume[ball(frame, (0.0, 0.13, 0.52), (0.022, 0.022, 0.045))] = rng.uniform(90, 220)
    if rng.random() < 0.6:
        for side in SIDES:
            plexus = ball(frame, (side * 0.19, 0.26, 0.56), (0.035, 0.05, 0.08))
            volume[plexus & vent] = rng.uniform(60, 150)
    if rng.random() < 0.35:
        for side in SIDES:
            volume[ball(frame, (side * 0.15, 0.0, 0.5), (0.03, 0.05, 0.06))] = rng.uniform(52, 80)
    hardening = rng.uniform(0, 14)
    volume += np.float32(hardening) * np.exp(-np.clip(frame.inner, 0, None) / 0.022) * brain


def profile(n: int, bleed: Bleed) -> F32:
    """Return the size of a haemorrhage per slice (n, 1, 1): 0 outside its range, 0.65 to 1 inside."""
    k = np.arange(n, dtype=np.float32)
    half = (bleed.last - bleed.first) / 2 + 0.5
    u = np.clip(np.abs(k - (bleed.first + bleed.last) / 2) / half, 0, 1)
    size = 0.65 + 0.35 * np.sqrt(1 - u**2)
    return np.where((k >= bleed.first) & (k <= bleed.last), size, 0.0).astype(np.float32)[:, None, None]


def bleed_mask(
    rng: np.random.Generator, frame: Frame, bleed: Bleed, sulcus: F32, bend: F32, vent: Mask, scale: float
) -> Mask:
    """Return the mask (n, m, m) of one haemorrhage."""
    size = scale * profile(len(frame.z), bleed)
    here, brain = size > 0, frame.inner > 0
    side, where = rng.choice(SIDES), rng.uniform(-0.9, 0.9)
    angle = np.arctan2(frame.y, frame.x * side)
    if bleed.subtype == "intraparenchymal":
        cx, cy, r = side * rng.uniform(0.12, 0.30), rng.uniform(-0.3, 0.32), rng.uniform(0.06, 0.13)
        rho = np.hypot(frame.x - cx, (frame.y - cy) / rng.uniform(0.8, 1.4)) + 0.008 * bend
        return np.asarray(here & (rho < r * size) & (frame.inner > 0.01))
    if bleed.subtype == "intraventricular":
        level = rng.uniform(-0.05, 0.12)
        return np.asarray(here & vent & (frame.y + 0.04 * bend > level + 0.2 * (1 - size)))
    if bleed.subtype == "subdural":
        thick, reach = rng.uniform(0.05, 0.09), rng.uniform(0.6, 1.0)
        crescent = thick * size * np.sqrt(np.clip(1 - ((angle - where) / reach) ** 2, 0, 1))
        return np.asarray(here & brain & (frame.inner < crescent + 0.006 * bend))
    if bleed.subtype == "epidural":
        thick, reach = rng.uniform(0.09, 0.15), rng.uniform(0.30, 0.46)
        lens = thick * size * np.clip(1 - ((angle - where) / reach) ** 2, 0, 1)
        return np.asarray(here & brain & (frame.inner < lens))
    spread = rng.uniform(0.8, 1.2)
    near = np.abs(angle - where) < spread * size
    lines = (np.abs(sulcus) < 0.30 * size) & (frame.inner < 0.17 * size)
    return np.asarray(here & brain & near & lines)


def draw_head(
    rng: np.random.Generator,
    n: int,
    m: int,
    bleeds: tuple[Bleed, ...],
    scale: float = 1.0,
    blood_hu: tuple[float, float] = (47.0, 66.0),
) -> F32:
    """Draw one scan.

    Args:
        rng: random stream of the scan.
        n: number of slices.
        m: rows and columns.
        bleeds: haemorrhages.
        scale: in-plane scale of the haemorrhages.
        blood_hu: minimum and maximum density of blood, HU.

    Returns:
        (n, m, m) float32 HU from skull base to vertex, within -1000..2800.
    """
    frame = head_frame(rng, n, m)
    grain, bend = volume_field(rng, (n, m, m), m / 40), volume_field(rng, (n, m, m), m / 10)
    sulcus = volume_field(rng, (n, m, m), m / 15)
    vent = ventricles(frame, rng.uniform(0.7, 1.7))
    volume = np.full((n, m, m), -1000.0, np.float32)
    draw_brain(rng, volume, frame, sulcus, vent)
    draw_look_alikes(rng, volume, frame, vent)
    # blood has its own stream, so that everything else is the same with and without it
    blood_rng = rng.spawn(1)[0]
    for bleed in bleeds:
        mask = bleed_mask(blood_rng, frame, bleed, sulcus, bend, vent, scale)
        blood = blood_rng.uniform(*blood_hu) + 4.0 * bend
        volume[mask] = np.maximum(volume, blood)[mask]
    draw_bone_and_air(rng, volume, frame, grain)
    volume = blur(volume, 0.55 * m / 128)
    noise = blur(rng.standard_normal((n, m, m)).astype(np.float32), 0.7)
    volume += noise * np.float32(rng.uniform(7.0, 13.0)) * np.clip(frame.depth / 0.02, 0.25, 1.0)
    streaks = np.sin(frame.y * rng.uniform(30, 50) + 4 * frame.x) * np.exp(-(((frame.y - 0.16) / 0.18) ** 2))
    volume += np.float32(rng.uniform(4, 14)) * streaks * np.exp(-((frame.z / 0.16) ** 2)) * (frame.inner > 0)
    return np.clip(volume, -1000.0, 2800.0)
