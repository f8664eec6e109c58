"""Build encoders, load and verify their weights, and run them: tiles (B, H, W, 3) to features (B, P) float32.

Evaluation mode, no gradients, channels-last memory. Float32 means float32 (no TF32 on the GPU); bfloat16 is autocast
and stays within a cosine of 0.999 of it. Features of a tile do not depend on the rest of its batch.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.features.encoders import Encoder, check_weights, get_encoder, recorded_hash, weight_file
from preprocessing.features.random_weights import CALIBRATION_PX, randomise
from preprocessing.features.transforms import Resize, normalised, resized, resolve_policy

if TYPE_CHECKING:
    from torch import Tensor, nn


def _with_timm_settings(encoder: Encoder, model: Any) -> Encoder:
    """Return the entry of a timm model with the mean, std, input size and P of the model."""
    import importlib

    # imported by name, because timm has no type declarations
    data = importlib.import_module("timm.data").resolve_model_data_config(model)
    side = int(data["input_size"][1])
    fixed = side if data.get("fixed_input_size") or model.pretrained_cfg.get("fixed_input_size") else 0
    published = (max(side, round(side / float(data["crop_pct"]))), side)
    mean, std = tuple(map(float, data["mean"])), tuple(map(float, data["std"]))
    return replace(encoder, dim=int(model.num_features), mean=mean, std=std, published=published, fixed_input=fixed)


class LoadedEncoder:
    """A network in evaluation mode on its device: tiles (B, H, W, 3) to features (B, P) float32.

    Attributes:
        encoder: its entry, with P, mean and std of a timm model.
        resize: applied to a tile first.
    """

    def __init__(self, encoder: Encoder, model: nn.Module, resize: Resize, device: str, precision: str) -> None:
        import torch

        self.encoder, self.resize, self.precision = encoder, resize, precision
        self.device = torch.device(device)
        # convolutions on the GPU would use TF32 otherwise, and pick algorithms by timing
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        layout: Any = torch.channels_last
        self.model = model.eval().requires_grad_(False).to(self.device).to(memory_format=layout)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Compute the features (B, P) of a batch of tiles (B, H, W, 3), uint8 or float32 in [0, 1]."""
        return self.forward(resized(tiles.to(self.device), self.resize))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features (B, P) of a resized batch (B, 3, h, w), uint8 or float32 in [0, 1]."""
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            out: Tensor = self.model(normalised(x, self.encoder.mean, self.encoder.std))
        out = out.float()
        if out.ndim != 2 or (self.encoder.dim and out.shape[1] != self.encoder.dim):
            raise ValueError(
                f"encoder {self.encoder.name}: output {tuple(out.shape)}, expected (B, {self.encoder.dim})"
            )
        return out


def load_encoder(
    name: str,
    weights: Path | str = "",
    *,
    mode: str = "pretrained",
    seed: int = 0,
    policy: str = "resize224",
    device: str = "cpu",
    precision: str = "float32",
) -> LoadedEncoder:
    """Build an encoder and load its weights.

    Args:
        name: key of `ENCODERS` or `timm/NAME`.
        weights: folder of the weight files (not used in mode random).
        mode: "pretrained" or "random".
        seed: of random weights.
        policy: resize policy, see `preprocessing.features.transforms`.
        device: "cpu", "cuda", ...
        precision: "float32", or "bf16" for autocast.

    Raises:
        ValueError: an unknown name or policy, missing weights, or weights that do not fit or whose hash is not the
            expected one.
    """
    encoder = get_encoder(name)
    path = None if mode == "random" else weight_file(name, weights)
    if not name.startswith("timm/"):
        resize = _resolve(policy, encoder)  # before the network: a wrong policy should not cost seconds
    model = encoder.build()
    if name.startswith("timm/"):
        encoder = _with_timm_settings(encoder, model)
        resize = _resolve(policy, encoder)
    if path is None:
        model = randomise(encoder.cut(model), seed, side=encoder.fixed_input or CALIBRATION_PX)
    else:
        _load_state(encoder, model, path)
        model = encoder.cut(model)
    return LoadedEncoder(encoder, model, resize, device, precision)


def _resolve(policy: str, encoder: Encoder) -> Resize:
    return resolve_policy(policy, published=encoder.published, fixed_input=encoder.fixed_input, encoder=encoder.name)


def _load_state(encoder: Encoder, model: nn.Module, path: Path) -> None:
    """Load a weight file strictly, from the same bytes that are hashed."""
    data = path.read_bytes()
    check_weights(encoder, path, hashlib.sha256(data).hexdigest(), recorded_hash(path))
    if data[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        from safetensors.torch import load

        state = load(data)
    else:
        import torch

        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    try:
        if encoder.by_order:
            state = dict(zip(model.state_dict(), state.values(), strict=True))
        model.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: does not fit encoder {encoder.name}: {' '.join(str(error).split())[:300]}"
        ) from error
