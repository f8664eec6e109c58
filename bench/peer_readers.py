"""The usual ways to read what ours reads, as peers: OpenSlide + Pillow + torchvision, pydicom + NumPy, npy, Zarr, HDF5.

Written from the public interfaces of those libraries, as their users write it; nothing is slowed down. Where a common
tool does more (CLAM opens its HDF5 file of coordinates for every tile), the peer here is spared it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Image = npt.NDArray[np.uint8]


def openslide_tiles(handle: Any, coords: npt.NDArray[np.integer], side: int) -> Iterator[Image]:
    """Tiles of level 0 as RGB arrays."""
    for x, y in coords.tolist():
        yield np.asarray(handle.read_region((x, y), 0, (side, side)).convert("RGB"))


def bare_decoder(path: Path, n: int) -> Callable[[], None]:
    """A step that decodes n JPEG tiles held in memory into one place: what no reader with this codec can go below."""
    import imagecodecs
    import tifffile

    from preprocessing.tile_memory import tile_memory

    with tifffile.TiffFile(path) as tiff, open(path, "rb") as stream:
        page: Any = tiff.pages[0]
        data = []
        for offset, count in list(zip(page.dataoffsets, page.databytecounts, strict=True))[:n]:
            stream.seek(offset)
            data.append(stream.read(count))
        how = {"tables": page.jpegtables, "colorspace": page.photometric.name, "outcolorspace": "RGB"}
        tile = tile_memory((page.tilelength, page.tilewidth, 3))

    def decode() -> None:
        for code in data:
            imagecodecs.jpeg8_decode(code, **how, out=tile)

    return decode


class ClamTiles:
    """A map-style dataset as CLAM's for feature extraction: read_region, Pillow, torchvision's transforms."""

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
    """Encoder input (B, 3, h, w) float32, loaded in this process so that its CPU time counts."""
    from torch.utils.data import DataLoader

    dataset: Any = tiles  # a loader takes anything with a length and items
    yield from DataLoader(dataset, batch_size=batch_size, shuffle=False, num_workers=0)


def dicom_windows(path: Path, windows: Sequence[tuple[float, float]]) -> npt.NDArray[np.float32]:
    """A slice as windowed channels (H, W, C) in [0, 1]."""
    import pydicom

    data = pydicom.dcmread(path)
    hu = data.pixel_array.astype(np.float32) * np.float32(data.RescaleSlope) + np.float32(data.RescaleIntercept)
    channels = [np.clip((hu - np.float32(lv - wd / 2)) / np.float32(wd), 0, 1) for lv, wd in windows]
    return np.stack(channels, axis=-1).astype(np.float32, copy=False)
