"""Tiles to encoder input, on the device: resize, then normalise.

One resize for every encoder and tile: bilinear with antialias. 8-bit tiles stay 8-bit, as in Pillow, CLAM and the
training of the encoders: rows first, rounded, then columns, rounded. On the CPU that is torch's integer kernel (pixels
of Pillow's bilinear resize from 512 to 224 px, else at most one grey level off, in under 1 % of the values), several
times faster than floats, or a compiled loop with the same bits, `TileResize`, where tiles are decoded; a GPU does the
same two passes on floats. CT slices are resized as float32. Policies:

| policy | what the encoder sees of a tile |
|---|---|
| `resize224` (default), `resize{n}` | the whole tile, resized to 224 x 224 (n x n) |
| `weights` | the resize and centre crop the weights were published with, e.g. 256 then 224: the tile's rim is lost |
| `native` | the tile as it was read (not for transformers of fixed input size) |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from preprocessing import pixel_kernel
from preprocessing.tile_memory import Reused

if TYPE_CHECKING:
    from torch import Tensor

# the last batch's memory: a network is done with its input before the next one
_BATCH = Reused()
_SQUARE = re.compile(r"resize([1-9][0-9]{1,3})")


@dataclass(frozen=True)
class Resize:
    """A resolved policy: `side` = square resize of the whole tile; `crop` = centre crop after it; 0 = none of it."""

    side: int = 0
    shorter: bool = False
    crop: int = 0

    @property
    def output(self) -> int:
        """Side of the result in px, 0 if it is the tile's own."""
        return self.crop or self.side


def check_policy(policy: str) -> None:
    """Refuses unknown names of resize policies.

    Raises:
        ValueError: naming what is expected.
    """
    if policy not in ("weights", "native") and not _SQUARE.fullmatch(policy):
        raise ValueError(f"resize policy {policy!r}, expected resize224 (or another side), weights or native")


def resolve_policy(policy: str, *, published: tuple[int, int], fixed_input: int = 0, encoder: str = "") -> Resize:
    """Turns a policy's name into numbers for one encoder.

    Args:
        policy: name of the policy.
        published: (resize of the shorter side, centre crop) the weights were published with, px.
        fixed_input: the only side the encoder accepts, 0 = any.
        encoder: its name, for the message.

    Raises:
        ValueError: an unknown policy, or one that the encoder cannot take.
    """
    check_policy(policy)
    if policy == "weights":
        resize = Resize(published[0], shorter=True, crop=published[1])
    elif policy == "native":
        resize = Resize()
    else:
        resize = Resize(int(policy.removeprefix("resize")))
    if fixed_input and resize.output != fixed_input:
        raise ValueError(
            f"encoder {encoder} takes {fixed_input} px only: policy {policy!r}, expected resize{fixed_input}"
        )
    return resize


class TileResize:
    """The square resize to `side` px of single 8-bit tiles on the CPU, without torch: the pixels of `resized`.

    Tiles of floats stay as they are.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def shape(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
        """Shape of the result for a tile of this shape and type."""
        return (self.side, self.side, 3) if dtype == np.uint8 else shape

    def __call__(self, tile: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Puts a tile (H, W, 3) into `out`."""
        if tile.shape == out.shape:
            out[...] = tile
        else:
            pixel_kernel.resize(np.ascontiguousarray(tile), out)


def tile_resize(resizes: Iterable[Resize]) -> TileResize | None:
    """What can be done to every tile once for all these policies; None if they differ, crop, or nothing is compiled."""
    found = set(resizes)
    side = max((resize.side for resize in found), default=0)
    return TileResize(side) if side and found == {Resize(side)} and pixel_kernel.can_resize() else None


def resized(tiles: Tensor, resize: Resize) -> Tensor:
    """Resizes a batch.

    Args:
        tiles: (B, H, W, 3) uint8, or float32 in [0, 1].
        resize: what to do.

    Returns:
        (B, 3, h, w) as the tiles are, uint8 or float32 in [0, 1], channels last in memory.
    """
    import torch

    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype not in (torch.uint8, torch.float32):
        raise ValueError(
            f"tiles are {tiles.dtype}{tuple(tiles.shape)}, expected uint8 or float32 of shape (B, H, W, 3)"
        )
    x = tiles.permute(0, 3, 1, 2)
    height, width = int(x.shape[2]), int(x.shape[3])
    if resize.side:
        size = (resize.side, resize.side)
        if resize.shorter:
            scale = resize.side / min(height, width)
            size = (max(resize.side, int(height * scale)), max(resize.side, int(width * scale)))
        if size != (height, width):
            x = _interpolated(x, size)
    if resize.crop:
        top, left = (int(x.shape[2]) - resize.crop) // 2, (int(x.shape[3]) - resize.crop) // 2
        x = x[:, :, top : top + resize.crop, left : left + resize.crop]
    return x.contiguous(memory_format=torch.channels_last)


def _interpolated(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialias, (B, 3, H, W) to `size` (h, w); bytes are rounded after each of the two passes."""
    import torch
    from torch.nn.functional import interpolate

    how: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    if x.dtype == torch.uint8 and x.device.type == "cpu":
        return interpolate(x, size=size, **how)
    if x.dtype == torch.uint8:
        rows = interpolate(x.float(), size=(int(x.shape[2]), size[1]), **how).round_()
        return interpolate(rows, size=size, **how).round_().to(torch.uint8)
    # resizing planes of contiguous rows is what the vectorised kernel for floats is fast at
    return interpolate(x.contiguous(), size=size, **how)


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtracts the channels' mean and divides by their deviation.

    Args:
        x: (B, 3, h, w), uint8 or float32 in [0, 1].
        mean: of the channels in [0, 1].
        std: likewise.

    Returns:
        (B, 3, h, w) float32, channels last in memory, which may be an earlier batch's that nobody holds any more.
    """
    import torch

    # Every pass over a batch of floats costs as much as resizing it: bytes are scaled through mean and std, and rows of
    # whole pixels (B, h, w * 3) let the arithmetic run along memory, which three channels in the last place do not.
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    batch, channels, height, width = x.shape
    shift, scale = (torch.tensor(values, device=x.device).mul_(unit) for values in (mean, std))
    pixels = x.permute(0, 2, 3, 1)
    if x.dtype == torch.uint8 and x.device.type == "cpu" and channels == 3 and pixel_kernel.available():
        out = _BATCH.tensor((batch, height, width, channels))
        pixel_kernel.normalise(pixels.contiguous().numpy(), shift.numpy(), scale.numpy(), out.numpy())
        return out.permute(0, 3, 1, 2)
    rows = pixels.reshape(batch, height, width * channels)
    shift, scale = shift.repeat(width), scale.repeat(width)
    out = (rows.float().sub_(shift) if x.dtype == torch.uint8 else rows.sub(shift)).div_(scale)
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)
