"""Tiled TIFF pyramids for slide tests, and ways to damage them.

Pictures are (h, w, 3) uint8; `missing` gives tiles of byte count 0 (OpenSlide: transparent), `corrupt` overwrites the
entropy-coded bytes of one tile so that no decoder can read it.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

Image = npt.NDArray[np.uint8]


def texture(height: int, width: int, seed: int = 0) -> Image:
    """Smooth coloured noise on pink: compresses like tissue, differs everywhere."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(image * 0.6 + np.array([90, 40, 80]), 0, 255), np.uint8)


def tissue(seed: int = 0, height: int = 704, width: int = 896) -> Image:
    """Two coloured ellipses on white (h, w, 3)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for x, y in ((0.3, 0.35), (0.62, 0.6)):
        centre = (int((x + rng.uniform(-0.1, 0.1)) * width), int((y + rng.uniform(-0.1, 0.1)) * height))
        cv2.ellipse(mask, centre, (width // 5, height // 5), float(rng.uniform(0, 90)), 0, 360, 1, -1)
    return np.where(mask[..., None] > 0, np.minimum(texture(height, width, seed), [230, 140, 190]), 245).astype(
        np.uint8
    )


def shrunk(image: Image, factor: int, interpolation: int = cv2.INTER_AREA) -> Image:
    """Shrink a picture, sizes rounded up."""
    size = (-(-image.shape[1] // factor), -(-image.shape[0] // factor))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def write_tiff(
    path: Path,
    levels: list[Image],
    *,
    tile: int = 128,
    mpp: float | None = 0.5,
    unit: str = "CENTIMETER",
    compression: str | None = "jpeg",
    subsampling: tuple[int, int] = (2, 2),
    quality: int = 90,
    bigtiff: bool = False,
    **extra: Any,
) -> Path:
    """Write `levels` (finest first) as one tiled pyramid; `mpp` None writes no resolution."""
    per_unit = {"CENTIMETER": 1e4, "INCH": 25400.0, "NONE": 1e4}[unit]
    coding: dict[str, Any] = {"compression": compression}
    if compression == "jpeg":
        coding |= {"compressionargs": {"level": quality}, "subsampling": subsampling}
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as writer:
        for number, level in enumerate(levels):
            resolution: dict[str, Any] = {}
            if mpp is not None:
                scale = mpp * levels[0].shape[1] / level.shape[1]
                resolution = {"resolution": (per_unit / scale,) * 2, "resolutionunit": unit}
            writer.write(
                level,
                photometric="rgb",
                tile=(tile, tile),
                subfiletype=int(number > 0),
                metadata=None,
                maxworkers=1,
                **resolution,
                **(coding | extra),
            )
    return path


def _patch(path: Path, level: int, tag: str, index: int, value: int) -> None:
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[level].tags[tag]
        size = {3: 2, 4: 4, 16: 8}[int(entry.dtype)]
        offset, order = entry.valueoffset + index * size, "big" if tiff.byteorder == ">" else "little"
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(value.to_bytes(size, order))


def missing(path: Path, level: int, index: int) -> None:
    """Turn one file tile into a missing one (offset and byte count 0)."""
    _patch(path, level, "TileOffsets", index, 0)
    _patch(path, level, "TileByteCounts", index, 0)


def corrupt(path: Path, level: int, index: int) -> None:
    """Destroy one file tile."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[level].dataoffsets[index], tiff.pages[level].databytecounts[index]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * count)


def philips_description(width_mm: float, factors: list[int]) -> str:
    """The XML by which OpenSlide knows a Philips file and the spacing of its levels."""

    def attribute(name: str, content: str) -> str:
        return f'<Attribute Name="{name}" Group="0x301D" Element="0x1" PMSVR="IString">{content}</Attribute>'

    def spacing(factor: int) -> str:
        value = f"&quot;{width_mm * factor:.9f}&quot; &quot;{width_mm * factor:.9f}&quot;"
        return attribute("DICOM_PIXEL_SPACING", value)

    levels = "".join(f'<DataObject ObjectType="PixelDataRepresentation">{spacing(f)}</DataObject>' for f in factors)
    sequence = attribute("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", f"<Array>{levels}</Array>")
    image = attribute("PIM_DP_IMAGE_TYPE", "WSI") + spacing(1) + sequence
    scanned = f'<Array><DataObject ObjectType="DPScannedImage">{image}</DataObject></Array>'
    return f'<DataObject ObjectType="DPUfsImport">{attribute("PIM_DP_SCANNED_IMAGES", scanned)}</DataObject>'


def write_philips(path: Path, image: Image, factors: list[int], *, tile: int = 128, mpp: float = 0.25) -> Path:
    """A Philips pyramid: every directory padded to whole tiles, as the scanner does."""
    with tifffile.TiffWriter(path) as writer:
        for number, factor in enumerate(factors):
            level = image[::factor, ::factor]
            pad = [(0, -side % tile) for side in level.shape[:2]]
            writer.write(
                np.pad(level, [*pad, (0, 0)], constant_values=77),
                photometric="rgb",
                tile=(tile, tile),
                subfiletype=int(number > 0),
                compression="jpeg",
                compressionargs={"level": 80},
                subsampling=(2, 2),
                software="Philips DP v1.0",
                description=philips_description(mpp / 1000, factors) if number == 0 else "",
                metadata=None,
                maxworkers=1,
            )
    return path
