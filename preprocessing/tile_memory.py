"""Memory for decoded tiles and for batches of floats, of the kind that is quick to fill.

libjpeg-turbo on x86 writes rows that begin at a multiple of 32 bytes (16 with SSE2) past the cache, which costs an
eighth of decoding a tile, and whoever uses the tile next has to fetch it from main memory. NumPy's memory begins at
such an address every other time. Tile widths in a TIFF are multiples of 16 px, rows thus of 48 bytes: 8 bytes past a
multiple of 16, no row begins at such an address.

New pages for every batch cost more than filling them: `Reused` hands the same ones out, never under somebody's hands.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT, PAST = 16, 8


def tile_memory(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An array (..., H, W, 3) of bytes, not filled, that begins 8 bytes past a multiple of 16."""
    size = math.prod(shape)
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = (PAST - block.ctypes.data) % ALIGNMENT
    return block[first : first + size].reshape(shape)


class Reused(threading.local):
    """A thread's float32 memory for one tensor at a time; memory that somebody still holds is left to him."""

    _whole: npt.NDArray[np.float32] | None = None
    _lent: weakref.ref[Any] | None = None

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor, not filled: in the memory of the last one if that is gone, with all its views, and was as large."""
        import torch

        whole = self._whole
        if whole is None or whole.shape != shape or (self._lent is not None and self._lent() is not None):
            whole = self._whole = np.empty(shape, np.float32)
        # the tensor's storage, which its views share, keeps this very array alive
        lent = whole[:]
        self._lent = weakref.ref(lent)
        return torch.from_numpy(lent)
