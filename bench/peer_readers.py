"""Peers of our readers: OpenSlide + Pillow + torchvision, and pydicom + NumPy.

Written against the public interfaces of those libraries, as their users do; nothing is slowed down. Extra work of
common tools (CLAM opens its HDF5 file of coordinates for every tile) is left out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
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


def dicom_windows(path: Path, windows: Sequence[tuple[float, float]]) -> npt.NDArray[np.float32]:
    """Read a slice as windowed channels (H, W, C) in [0, 1]."""
    import pydicom

    data = pydicom.dcmread(path)
    hu = data.pixel_array.astype(np.float32) * np.float32(data.RescaleSlope) + np.float32(data.RescaleIntercept)
    channels = [np.clip((hu - np.float32(lv - wd / 2)) / np.float32(wd), 0, 1) for lv, wd in windows]
    return np.stack(channels, axis=-1).astype(np.float32, copy=False)
