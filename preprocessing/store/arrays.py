"""What a bag's geometry is, before it is stored: the arrays of the bag store's *instances* tree.

| array | shape, dtype | meaning |
|---|---|---|
| `coords` | (N,2) int32 | level-0 px (x, y) of the top-left corner; CT: (N,1) float32, mm along the slice normal |
| `grid` | (N,2) int32 | lattice cell (row, col); CT: (slice index, 0) |
| `neighbors` | (N,K) int32 | indices of the neighbours, -1 padded, symmetric, no self |
| `coverage` | (N,) float32 | fraction of the tile inside the lesion, NaN = not annotated |
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Instances:
    """One bag's instances; N may be 0 (an empty bag is an outcome, not an error).

    Attributes:
        coords: (N,2) int32 or (N,1) float32.
        grid: (N,2) int32.
        neighbors: (N,K) int32.
        coverage: (N,) float32.
        attrs: JSON-able facts needed to read the pixels again and to trust them (mpp and its source, preset, sizes).
        thumbnail: (h,w,3) uint8 picture for quality control, or None.
        outlines: JSON-able polygons for quality control: `downsample` of the thumbnail, `tissue`, `holes`, `lesion`
            as lists of level-0 polygons.
    """

    coords: npt.NDArray[Any]
    grid: npt.NDArray[np.int32]
    neighbors: npt.NDArray[np.int32]
    coverage: npt.NDArray[np.float32]
    attrs: dict[str, Any] = field(default_factory=dict)
    thumbnail: npt.NDArray[np.uint8] | None = None
    outlines: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coords)
