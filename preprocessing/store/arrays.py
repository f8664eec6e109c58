"""The geometry of one bag before it is stored."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.outlines import Outlines


@dataclass
class Instances:
    """Instances of one bag; N may be 0 (an empty bag is an outcome, not an error).

    Attributes:
        coords: (N,2) int32 or (N,1) float32; the arrays are described in `preprocessing.store.bags`.
        grid: (N,2) int32.
        neighbors: (N,K) int32.
        coverage: (N,) float32.
        attrs: what is needed to read the pixels again and to trust them.
        thumbnail: (h,w,3) uint8 picture for quality control, or None.
        outlines: polygons on the thumbnail.
    """

    coords: npt.NDArray[Any]
    grid: npt.NDArray[np.int32]
    neighbors: npt.NDArray[np.int32]
    coverage: npt.NDArray[np.float32]
    attrs: InstanceAttrs = InstanceAttrs()
    thumbnail: npt.NDArray[np.uint8] | None = None
    outlines: Outlines = field(default_factory=Outlines)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The stored arrays by name: `coords` (N,2) or (N,1), `grid` (N,2), `neighbors` (N,K) and `coverage` (N,)."""
        return {name: getattr(self, name) for name in ("coords", "grid", "neighbors", "coverage")}
