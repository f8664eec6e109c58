"""Memory for decoded tiles that is fast to fill.

On x86 libjpeg-turbo bypasses the cache for rows that begin at a multiple of 32 bytes (16 with SSE2), which makes
decoding an eighth slower and the next access a cache miss. Tile widths in a TIFF are multiples of 16 px, so rows are
multiples of 48 bytes: starting 8 bytes past a multiple of 16, no row begins at such an address.
"""

import math

import numpy as np
import numpy.typing as npt

ALIGNMENT, PAST = 16, 8


def tile_memory(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Return an uninitialised uint8 array (..., H, W, 3) that begins 8 bytes past a multiple of 16."""
    size = math.prod(shape)
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = (PAST - block.ctypes.data) % ALIGNMENT
    return block[first : first + size].reshape(shape)
