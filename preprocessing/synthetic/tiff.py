"""Pyramidal tiled TIFF as the public data sets distribute it; the bytes depend on the pixels only.

JPEG pyramids are YCbCr 4:2:0 (photometric 6), label pyramids are deflate-compressed RGB. Resolution is stored in px per
cm, from which OpenSlide derives `openslide.mpp-x`.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile


def encode_pyramid(
    image: npt.NDArray[np.uint8], factors: Sequence[int], mpp: float, tile: int, *, lossless: bool
) -> bytes:
    """Encode a pyramid.

    Args:
        image: (H, W, 3) uint8, level 0; H and W divisible by the largest factor.
        factors: downsampling factor of each level, 1 first.
        mpp: um per px at level 0.
        tile: side of a file tile, a multiple of 16.
        lossless: deflate and nearest neighbour (labels) instead of JPEG and area means (pictures).
    """
    h, w = image.shape[:2]
    coding: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 80}, "subsampling": (2, 2)}
    if lossless:
        coding = {"compression": "zlib", "predictor": True}
    buffer = BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for factor in factors:
            if lossless:
                level = np.ascontiguousarray(image[factor // 2 :: factor, factor // 2 :: factor])
            else:
                level = np.asarray(cv2.resize(image, (w // factor, h // factor), interpolation=cv2.INTER_AREA))
            writer.write(
                level,
                photometric="rgb",
                tile=(tile, tile),
                resolution=(1e4 / (mpp * factor),) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(factor > 1),
                metadata=None,
                software=False,
                maxworkers=1,
                **coding,
            )
    return buffer.getvalue()
