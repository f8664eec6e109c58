"""Memory for tiles that a JPEG codec fills.

libjpeg-turbo on x86 writes rows that begin at a multiple of 32 bytes (16 with SSE2) past the cache, which costs an
eighth of decoding a tile, and whoever uses the tile next has to fetch it from main memory. NumPy's memory begins at
such an address every other time. Tile widths in a TIFF are multiples of 16 px, rows thus of 48 bytes: 8 bytes past a
multiple of 16, no row begins at such an address.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

ALIGNMENT, PAST = 16, 8


def tile_memory(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An array (..., H, W, 3) of bytes, not filled, that begins 8 bytes past a multiple of 16."""
    size = math.prod(shape)
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = (PAST - block.ctypes.data) % ALIGNMENT
    return block[first : first + size].reshape(shape)
