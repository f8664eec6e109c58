"""Peers for our readers, written as users write them: OpenSlide + Pillow + torchvision, npy, Zarr, HDF5.

Only public interfaces are used, and nothing is slowed down. Where a common tool does more (CLAM opens its HDF5 file of
coordinates for every tile), the peer here is spared it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Image = npt.NDArray[np.uint8]


def openslide_tiles(handle: Any, coords: npt.NDArray[np.integer], side: int) -> Iterator[Image]:
    """Read tiles of level 0 as RGB arrays."""
    for x, y in coords.tolist():
        yield np.asarray(handle.read_region((x, y), 0, (side, side)).convert("RGB"))


class ClamTiles:
    """Map-style dataset like CLAM's for feature extraction: read_region, Pillow, torchvision's transforms."""

    def __init__(
        self,
        handle: Any,
        coords: npt.NDArray[np.integer],
        side: int,
        output: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        from torchvision import transforms

        self._handle, self._coords, self._side = handle, coords, side
        self._transform = transforms.Compose(
            [transforms.Resize(output), transforms.ToTensor(), transforms.Normalize(mean=mean, std=std)]
        )

    def __len__(self) -> int:
        return len(self._coords)

    def __getitem__(self, index: int) -> "Tensor":
        x, y = (int(v) for v in self._coords[index])
        picture = self._handle.read_region((x, y), 0, (self._side, self._side)).convert("RGB")
        tile: Tensor = self._transform(picture)
        return tile


def clam_batches(tiles: ClamTiles, batch_size: int) -> Iterator["Tensor"]:
    """Yield encoder input (B, 3, h, w) float32, loaded in this process so that its CPU time counts."""
    from torch.utils.data import DataLoader

    dataset: Any = tiles  # a loader takes anything with a length and items
    yield from DataLoader(dataset, batch_size=batch_size, shuffle=False, num_workers=0)
