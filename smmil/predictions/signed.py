r"""A sign-aware instance score, computed without instance labels and without bag labels.

Bag labels do not identify the sign of attention: a run may attend to what is NOT the lesion, or a transformer may mix
the evidence into every token, with the same bag AUROC. Bag labels do identify the bag logit z, so the score uses z. For
the trained model and its validation bags b with features X_b (N_b,P):

    v_b = sum_i dz(X_b) / dx_i          the gradient of the logit for a shift shared by all instances of the bag
    v   = mean_b v_b                    one direction (P,) per run
    signed_i = s <v, x_i - m>           m = mean over all validation instances, s = +1 or -1

The unit is logits: by how much z would rise, to first order, if a whole bag moved from the mean instance to this one.
For mean pooling with a linear classifier it is the exact contribution c . (h_i - mean h), times N. The direction
includes what softmax, value path and graph do with a feature, but no attention weight of the instance itself.

s is the sign of the correlation, over validation bags, between the bag mean of <v, x_i - m> and z (s = 1 below three
bags, or if one of them is constant). The correlation is kept as `signed_agreement` in the meta of a predictions file.
If negative, the score has been inverted. A low one does not make the sign doubtful: `smmil.evaluate.signs` says what
does.

Limits: the score is linear in the features and ignores neighbours, so it cannot show smoothing, and it misses lesions
that differ only in their surroundings or nonlinearly. With a weak model (bag AUROC near one half) the sign is noise. It
complements the method's own score and does not replace it. Ten steps of Sm over the score itself give
`signed_sm_score` (`smmil.predictions.one_bag.smooth_score`): neighbours share a lesion more often than not.

Cost: one forward and backward pass over the validation bags, then one product (N,P) x (P,) per bag.

Training writes `direction.safetensors` (`vector`, `origin` (P,) and `agreement` (1,), float64; metadata
`about`: SHA-256 of the run's weights and of these numbers), so that bags of other data sets get the score too.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from preprocessing.common.files import write_bytes
from smmil.data.batch import BagBatch
from smmil.data.cache import BagCache
from smmil.layers.segments import segment_mean, segment_sum
from smmil.models.base import MILModel, forward
from smmil.predictions.memory import in_groups

log = logging.getLogger(__name__)

DIRECTION_FILE = "direction.safetensors"


@dataclass(frozen=True)
class Direction:
    """The direction in feature space along which the bag logit of a run rises.

    Attributes:
        vector: (P,) float64, s v.
        origin: (P,) float64, m.
        agreement: correlation of the bag means with the logits before s; 0 if undefined.
    """

    vector: Tensor
    origin: Tensor
    agreement: float


def find_direction(model: MILModel, cache: BagCache, index: Sequence[int]) -> Direction:
    """Compute the direction of a trained run, on the device of the cache; a zero vector if no gradient is finite.

    Args:
        model: on the device of the cache; set to eval mode.
        cache: holds the bags, x (N,P).
        index: positions of the validation bags.

    Raises:
        ValueError: no bag.
    """
    if not index:
        raise ValueError("signed score: found no validation bag, expected at least one")
    model.eval()
    groups = in_groups(model, cache, index, _shifts_and_means)
    values = [[value.to(cache.device) for value in group] for group in groups]
    gradient, logit, mean, weight = (torch.cat(parts) for parts in zip(*values, strict=True))
    # One bag whose gradient overflows must not spoil the direction of the run.
    usable = gradient.isfinite().all(1)
    vector = gradient[usable].mean(0) if bool(usable.any()) else torch.zeros_like(gradient[0])
    origin = (mean * weight[:, None]).sum(0) / weight.sum()
    agreement = _correlation((mean - origin) @ vector, logit)
    return Direction(-vector if agreement < 0 else vector, origin, agreement)


def shift_gradients(model: MILModel, batch: BagBatch) -> tuple[Tensor, Tensor]:
    """Compute the gradients (B,P) of the bag logits for a shared shift of the instances, and the logits (B,); float64.

    In eval mode the bags of a batch are independent, so one backward pass of the sum gives the gradient of each.
    """
    gradient, logit = _gradient(model, batch)
    if gradient is None:
        # DFTD detaches between its tiers, although the logit depends on the features.
        with _NoDetach():
            gradient, logit = _gradient(model, batch)
    if gradient is None:
        gradient = torch.zeros_like(batch.x)
    return segment_sum(gradient.double(), batch.offsets), logit.detach().double()


def _shifts_and_means(model: MILModel, batch: BagBatch) -> tuple[Tensor, ...]:
    """Compute `shift_gradients`, the mean features (B,P) and the numbers of instances (B,) of the bags."""
    return *shift_gradients(model, batch), segment_mean(batch.x.double(), batch.offsets), batch.sizes.double()


def _gradient(model: MILModel, batch: BagBatch) -> tuple[Tensor | None, Tensor]:
    with torch.enable_grad():
        x = batch.x.clone().requires_grad_()
        logit = forward(model, replace(batch, x=x), "float32").bag_logit
        if not logit.requires_grad:
            return None, logit
        (gradient,) = torch.autograd.grad(logit.sum(), x, allow_unused=True)
    return gradient, logit


class _NoDetach(TorchFunctionMode):
    """Context in which `Tensor.detach` does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.detach else func(*args, **(kwargs or {}))


def signed_score(direction: Direction, x: Tensor) -> Tensor:
    """Score instances: (N,P) features -> (N,) float32, higher = more positive."""
    return ((x.double() - direction.origin) @ direction.vector).float()


def save_direction(folder: Path | str, direction: Direction, weights_sha256: str) -> None:
    """Write the direction of a finished run into its directory; the hash is that of its weights in `done.json`."""
    agreement = torch.tensor([direction.agreement], dtype=torch.float64)
    values = {"agreement": agreement, "origin": direction.origin.cpu(), "vector": direction.vector.cpu()}
    tensors = {name: value.double().contiguous() for name, value in values.items()}
    # safetensors writes several metadata entries in any order.
    about = json.dumps({"weights_sha256": weights_sha256, "sha256": _checksum(tensors)}, sort_keys=True)
    write_bytes(Path(folder) / DIRECTION_FILE, save(tensors, {"about": about}))


def read_direction(folder: Path | str, weights_sha256: str) -> Direction | None:
    """Read the direction of a run; None, with a warning, if it is missing, damaged or of other weights."""
    path = Path(folder) / DIRECTION_FILE
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["sha256"] != _checksum(tensors):
            raise ValueError("its numbers fail their checksum")
        if about["weights_sha256"] != weights_sha256:
            raise ValueError("it belongs to other weights than the run's")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s: missing, damaged or of another run (%s); no sign-aware score", path, error)
        return None
    return Direction(tensors["vector"], tensors["origin"], float(tensors["agreement"][0]))


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} ".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _correlation(a: Tensor, b: Tensor) -> float:
    if len(a) < 3:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0
