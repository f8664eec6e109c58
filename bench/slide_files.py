"""Slides for the benches: tiled JPEG TIFFs with the tile size and the bytes per tile of scanned tissue.

In: side and tile size. Out: a file with one level, 4:2:0 JPEG of quality 80, about 45 kB per 512-px tile, 0.5 um/px;
and the attributes by which the stages read 512-px tiles of it.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.store.attrs import InstanceAttrs

Image = npt.NDArray[np.uint8]
TILE_PX, MPP = 512, 0.5
_BLOCK = 2048


def tissue(side: int) -> Image:
    """Draw pink and violet noise of several scales, (side, side, 3)."""
    import cv2

    rng = np.random.default_rng(0)
    image = np.zeros((side, side, 3), np.float32)
    for scale, strength in ((64, 0.5), (16, 0.35), (4, 0.3), (2, 0.12)):
        coarse = rng.standard_normal((side // scale + 2, side // scale + 2, 3)).astype(np.float32)
        image += strength * np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return np.asarray(np.clip(image * [38, 45, 30] + [205, 150, 190], 0, 255), np.uint8)


def write_slide(path: Path, side: int) -> Path:
    """Write a square slide of repeated blocks of 2048 px."""
    import tifffile

    block = tissue(min(side, _BLOCK))
    times = -(-side // len(block))
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            np.tile(block, (times, times, 1))[:side, :side],
            photometric="rgb",
            tile=(TILE_PX, TILE_PX),
            compression="jpeg",
            compressionargs={"level": 80},
            subsampling=(2, 2),
            resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER",
            metadata=None,
            maxworkers=1,
        )
    return path


def lattice(dimensions: tuple[int, int], *, offset: int = 0, most: int | None = None) -> npt.NDArray[np.int32]:
    """Return (N, 2) level-0 (x, y) of tiles side by side, row by row; `most` keeps whole rows near the middle."""
    columns, rows = ((size - offset) // TILE_PX for size in dimensions)
    if columns < 1 or rows < 1:
        raise ValueError(f"--slide: found {dimensions[0]} x {dimensions[1]} px, expected {TILE_PX + offset} at least")
    first = 0
    if most is not None:
        # as square as the slide allows
        columns = min(columns, max(1, round(most**0.5)))
        kept = min(rows, max(1, most // columns))
        first, rows = (rows - kept) // 2, kept
    x, y = np.meshgrid(np.arange(columns), np.arange(first, first + rows))
    return (np.stack([x.ravel(), y.ravel()], axis=1) * TILE_PX + offset).astype(np.int32)


def attributes() -> InstanceAttrs:
    """Return the attributes that a bag of unscaled 512-px tiles of level 0 records for its reader."""
    return InstanceAttrs(
        tile_px=TILE_PX,
        read_px=TILE_PX,
        l0_step_px=TILE_PX,
        l0_footprint_px=TILE_PX,
        resize_filter="none",
        recipe="clam",
    )
