"""Seeded random weights whose features distinguish textures: for the demo and for tests, never for results.

Convolutions and linear layers get He-normal weights from one seeded generator, in the order of the modules. Batch
normalisation then gets the statistics of a fixed, seeded batch of procedural textures, layer after layer in one pass:
without them every layer of an untrained network shrinks or enlarges its input, and all features are nearly equal.
The last normalisation of a residual branch is scaled to 0.2, which keeps differences of the last bit (and bfloat16)
small through 50 layers. Numbers are the same on every machine up to float rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

CALIBRATION_TILES = 16
CALIBRATION_PX = 128
BRANCH_SCALE = 0.2
_OCTAVES = (1, 2, 4, 8, 16, 32)
_TEXTURE_SEED = 20_240_613


def textures(n: int, side: int, seed: int) -> Tensor:
    """Draw colour textures: smooth noise of several scales, (n, 3, side, side) float32 in [0, 1]."""
    import torch
    from torch.nn.functional import interpolate

    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(n, 3, side, side)
    for tile in out:
        noise = torch.zeros(3, side, side)
        for scale in _OCTAVES:
            coarse = torch.randn(1, 3, max(1, side // scale), max(1, side // scale), generator=generator)
            weight = torch.rand(1, generator=generator)
            noise += weight * interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)[0]
        contrast, level = torch.rand(2, 3, 1, 1, generator=generator)
        tile.copy_((0.3 * contrast * noise + level).clamp(0, 1))
    return out


def randomise(module: nn.Module, seed: int, *, side: int = CALIBRATION_PX) -> nn.Module:
    """Set seeded random weights and calibrated normalisation statistics of a network, in place.

    Args:
        module: an encoder on the CPU; input (B, 3, side, side).
        seed: of the weights; the textures are always the same.
        side: input side in px the network accepts.

    Returns:
        The network followed by a standardisation of its features over the textures. Without it the mean of all
        features would be several times larger than their differences, and training would fail.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    affine = {id(p) for m in module.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if id(parameter) in affine:
                continue
            if parameter.ndim > 1:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values * (2.0 / parameter[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                parameter.zero_()
        for part in module.modules():
            last = _end_of_branch(part)
            if last is not None:
                last.weight.fill_(BRANCH_SCALE)
    return nn.Sequential(module, _calibrate(module, side))


def _end_of_branch(part: nn.Module) -> nn.BatchNorm2d | None:
    """Return the last normalisation of a residual block (basic or bottleneck), None for any other module."""
    from torch import nn

    for number in (3, 2):
        norm = getattr(part, f"bn{number}", None)
        if hasattr(part, f"conv{number}") and isinstance(norm, nn.BatchNorm2d):
            return norm
    return None


def _calibrate(module: nn.Module, side: int) -> nn.Module:
    """Set the statistics of the normalisations and return the layer that standardises the features."""
    import torch
    from torch import nn

    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    tiles = (textures(CALIBRATION_TILES, side, _TEXTURE_SEED) - 0.5) / 0.25
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over a batch differ in the last bit with the number of threads
    if norms:
        for norm in norms:
            norm.momentum = None  # the running statistics become those of the one batch
            norm.train()
        with torch.no_grad():
            module(tiles)
    module.eval()
    with torch.no_grad():
        features = module(tiles)
        last = nn.BatchNorm1d(features.shape[1], momentum=None, affine=False).train()
        last(features)
    torch.set_num_threads(threads)
    return last.eval()
