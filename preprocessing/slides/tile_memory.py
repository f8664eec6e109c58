"""Memory for decoded tiles and for batches of floats that is fast to fill.

On x86 libjpeg-turbo bypasses the cache for rows that begin at a multiple of 32 bytes (16 with SSE2), which makes
decoding an eighth slower and the next access a cache miss. Tile widths in a TIFF are multiples of 16 px, so rows are
multiples of 48 bytes: starting 8 bytes past a multiple of 16, no row begins at such an address.

Allocating new pages for every batch costs more than filling them, so `Reused` returns the same memory once it is free.
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
    """Return an uninitialised uint8 array (..., H, W, 3) that begins 8 bytes past a multiple of 16."""
    size = math.prod(shape)
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = (PAST - block.ctypes.data) % ALIGNMENT
    return block[first : first + size].reshape(shape)


class Reused(threading.local):
    """A thread's float32 memory for one tensor at a time; memory that is still referenced is not reused."""

    _whole: npt.NDArray[np.float32] | None = None
    _lent: weakref.ref[Any] | None = None

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """Return uninitialised float32 (B, C, H, W) or any shape, in the previous tensor's memory if that is free."""
        import torch

        whole = self._whole
        if whole is None or whole.shape != shape or (self._lent is not None and self._lent() is not None):
            whole = self._whole = np.empty(shape, np.float32)
        # the tensor's storage, which its views share, keeps this array object alive
        lent = whole[:]
        self._lent = weakref.ref(lent)
        return torch.from_numpy(lent)
