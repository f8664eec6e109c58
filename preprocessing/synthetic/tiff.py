"""Pyramidal tiled TIFF as the public data sets distribute it; the bytes depend on the pixels only.

JPEG pyramids are YCbCr 4:2:0 (photometric 6), label pyramids are deflate-compressed RGB. Resolution is stored in px per
cm, from which OpenSlide derives `openslide.mpp-x`.
"""

from collections.abc import Sequence
from io import BytesIO

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

    Raises:
        ValueError: a side of the image is not divisible by the largest factor.
    """
    h, w = image.shape[:2]
    if h % factors[-1] or w % factors[-1]:
        raise ValueError(f"slide of {w} x {h} px, expected multiples of the last level's factor {factors[-1]}")
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
                compression="zlib" if lossless else "jpeg",
                predictor=lossless,
                compressionargs=None if lossless else {"level": 80},
                subsampling=None if lossless else (2, 2),
            )
    return buffer.getvalue()
