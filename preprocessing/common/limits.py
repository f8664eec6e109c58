"""Sizes beyond which a file is rejected as damaged or hostile, from its header, before anything is unpacked.

A few bytes can claim a picture that fills any memory, or that takes days to read (a decompression bomb). The limits are
well beyond any scanner: 75 x 50 mm at 0.1 um/px is 750,000 x 500,000 px; a CT slice has 512 x 512 px.
"""

from pathlib import Path
from typing import Any

MAX_SIDE_PX, MAX_SLIDE_PX, MAX_TILE_PX = 1 << 20, 1 << 39, 1 << 26
MAX_SLICE_PX = 4096 * 4096
MAX_MASK_PX = 50_000_000
MAX_INFLATED = 256 << 20
# um per px at level 0
MPP_MIN, MPP_MAX = 0.1, 20.0


def check_slide_sizes(handle: Any, path: Path) -> None:
    """Raise `ValueError` if levels or file tiles of a slide, an open OpenSlide, are beyond any scanner."""
    for level, (width, height) in enumerate(handle.level_dimensions):
        sides = (handle.properties.get(f"openslide.level[{level}].tile-{side}", "0") for side in ("width", "height"))
        tile_w, tile_h = map(int, sides)
        if max(width, height) > MAX_SIDE_PX or width * height > MAX_SLIDE_PX or tile_w * tile_h > MAX_TILE_PX:
            raise ValueError(
                f"{path}: level {level} claims {width} x {height} px in tiles of {tile_w} x {tile_h}, expected at most "
                f"{MAX_SIDE_PX} px a side and {MAX_TILE_PX} px a tile; the file is damaged: copy it again or skip it"
            )
