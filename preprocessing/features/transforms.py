"""Turn tiles into encoder input: resize, then normalise.

Every resize is bilinear with antialias. 8-bit tiles stay 8-bit, as in Pillow, CLAM and the training of the encoders:
rows are resized and rounded, then columns. CPUs use torch's integer kernel, which equals Pillow's resize from 512 to
224 px and is otherwise off by at most one grey level in under 1 % of the values. GPUs do the same two passes in
float32. CT slices are resized in float32. Policies:

| policy | encoder input |
|---|---|
| `resize224` (default), `resize{n}` | the whole tile, resized to 224 x 224 (n x n) |
| `weights` | the published resize and centre crop, e.g. 256 then 224, which cuts off the tile's border |
| `native` | the tile as read (not for transformers of fixed input size) |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_SQUARE = re.compile(r"resize([1-9][0-9]{1,3})")


@dataclass(frozen=True)
class Resize:
    """A resolved policy, in px; 0 = no such step.

    Attributes:
        side: side of the resized square, or of its shorter side if `shorter`.
        shorter: whether the aspect ratio is kept.
        crop: side of the centre crop after the resize.
    """

    side: int = 0
    shorter: bool = False
    crop: int = 0

    @property
    def output(self) -> int:
        """Side of the result in px; 0 = that of the tile."""
        return self.crop or self.side


def check_policy(policy: str) -> None:
    """Raise ValueError if a policy's name is unknown."""
    if policy not in ("weights", "native") and not _SQUARE.fullmatch(policy):
        raise ValueError(f"resize policy {policy!r}, expected resize224 (or another side), weights or native")


def resolve_policy(policy: str, *, published: tuple[int, int], fixed_input: int = 0, encoder: str = "") -> Resize:
    """Resolve a policy's name for one encoder.

    Args:
        policy: name of the policy.
        published: (resize of the shorter side, centre crop) published with the weights, px.
        fixed_input: the only side the encoder accepts, px; 0 = any.
        encoder: its name, for the error message.

    Raises:
        ValueError: an unknown policy, or one that the encoder does not accept.
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


def resized(tiles: Tensor, resize: Resize) -> Tensor:
    """Resize tiles (B, H, W, 3), uint8 or float32 in [0, 1], to (B, 3, h, w) of that type, channels last in memory."""
    import torch

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
    """Interpolate (B, 3, H, W) to `size` (h, w), bilinear with antialias; uint8 is rounded after each pass."""
    import torch
    from torch.nn.functional import interpolate

    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    if x.dtype == torch.uint8 and x.device.type == "cpu":
        return interpolate(x, size=size, **options)
    if x.dtype == torch.uint8:
        rows = interpolate(x.float(), size=(int(x.shape[2]), size[1]), **options).round_()
        return interpolate(rows, size=size, **options).round_().to(torch.uint8)
    # the vectorised float kernel needs contiguous planes
    return interpolate(x.contiguous(), size=size, **options)


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
        x: (B, 3, h, w), uint8 or float32 in [0, 1].
        mean: (3,), for values in [0, 1].
        std: (3,), for values in [0, 1].

    Returns:
        (B, 3, h, w) float32, channels last in memory.
    """
    import torch

    # A pass over a float batch costs as much as its resize, so mean and std are scaled instead of the bytes, and the
    # arithmetic runs on contiguous rows (B, h, w * 3).
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    batch, channels, height, width = x.shape
    shift, scale = (torch.tensor(values, device=x.device).mul_(unit).repeat(width) for values in (mean, std))
    rows = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    # a copy also of floats, because encoders of one pass share the batch
    out = rows.to(torch.float32, copy=True).sub_(shift).div_(scale)
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)
