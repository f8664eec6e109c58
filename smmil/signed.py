r"""A sign-aware score of instances, found without any label of an instance (and without labels of bags, too).

Bag labels do not identify the sign of attention: a run may attend to what is NOT the lesion, or a transformer may have
mixed the evidence into every token, and its bag AUROC is as good as ever. What bag labels do identify is the bag logit
z, so the score asks the logit. For the trained model and its validation bags b with features X_b (N_b,P):

    v_b = sum_i dz(X_b) / dx_i          the gradient of the logit for a shift that all instances of the bag share
    v   = mean_b v_b                    one direction (P,) per run
    signed_i = s <v, x_i - m>           m = mean over all validation instances, s = +1 or -1

in logits: by how much z would rise, to first order, if a whole bag moved from the average instance to this one. For
mean pooling with a linear classifier it is exactly the instance's contribution c . (h_i - mean h), times N. The
direction carries what the softmax, the value path and the graph do with a feature, but no attention weight of the
instance itself: what is looked away from still gets the sign that the logit gives to its kind.

s makes the first-order picture agree with the model: it is the sign of the correlation, over validation bags, between
the bag mean of <v, x_i - m> and z itself (s = 1 below three bags, or where one of them is constant). The correlation
is kept as `signed_agreement` in the meta of a predictions file: far below one, z is no linear matter and the score is
not to be trusted; negative, it has been turned around.

Why this one. Compared over 50 runs (ABMIL, SmAP-early, CLAM, DSMIL, T+AP, TransMIL; 15 to 25 epochs, the three
miniature cohorts, random encoder), with the instance labels looked at only for this comparison (AUROC of test tiles):

- gradient x input (attention times the instance's contribution, to first order) and the drop of the logit when an
  instance is removed follow the attention that they should correct: a token of little weight moves little. T+AP: .32
  to .69, and .33 to .61 on the scans.
- the raw score turned by its rank correlation with a contribution cannot mend a run that is neither upright nor
  inverted (a T+AP at .515 stays there), and turned two good runs around (.785 to .215, .686 to .314).
- the logit of the bag that holds one instance alone costs a forward pass of M bags, and is noise where a method is lost
  in a bag of one (T+AP .56, TransMIL .51).
- the direction: .67 to .95 in all runs but one (a TransMIL at .235, whose agreement is -0.53: s makes it .765); .70
  where DSMIL's own score is inverted (.36), .91 where T+AP's says nothing (.515), .92 to .95 against ABMIL's .78 to .92
  on slides. On scans upright attention is better than it (.75 to .86 against .71 to .83).

When it fails: it is linear in the features and knows no neighbours, so it cannot show that a method smooths well, and
is blind to lesions that differ only in their surroundings or in a curved way; on weak models (bag AUROC near one half)
the sign is noise like everything else. It stands beside the method's own score, never in its place.

Cost: one forward and backward pass over the validation bags, then one product (N,P) x (P,) per bag.

Training leaves the direction of a finished run in its folder as `direction.safetensors` (`vector`, `origin` (P,) and
`agreement` (1,), float64; metadata `about`: the SHA-256 of the run's weights and of these numbers), so that images of
which no validation bag is at hand get the score too. Runs of before have no such file, and no sign-aware score there.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from smmil.data import BagBatch
from smmil.nn import segment_mean, segment_sum

if TYPE_CHECKING:
    from smmil.batches import BagCache
    from smmil.models.base import MILModel


log = logging.getLogger(__name__)

DIRECTION_FILE = "direction.safetensors"


@dataclass(frozen=True)
class Direction:
    """Where the bag logit of a run rises.

    Attributes:
        vector: (P,) float64, s v.
        origin: (P,) float64, m.
        agreement: correlation of the bag means with the logits before s; 0 where it is not defined.
    """

    vector: Tensor
    origin: Tensor
    agreement: float


def find_direction(model: "MILModel", cache: "BagCache", index: Sequence[int]) -> Direction:
    """The direction of a trained run.

    Args:
        model: on the device of the cache; put in eval mode, its parameters untouched.
        cache: holds the bags.
        index: positions of the validation bags.

    Returns:
        The direction, on the device of the cache; a zero vector where no gradient is finite.

    Raises:
        ValueError: no bag.
    """
    if not index:
        raise ValueError("signed score: found no validation bag, expected at least one")
    from smmil.each_bag import in_groups

    model.eval()
    passes = [
        [value.to(cache.device) for value in found] for found in in_groups(model, cache, index, _shifts_and_means)
    ]
    gradient, logit, mean, weight = (torch.cat(parts) for parts in zip(*passes, strict=True))
    usable = gradient.isfinite().all(1)
    vector = gradient[usable].mean(0) if bool(usable.any()) else torch.zeros_like(gradient[0])
    origin = (mean * weight[:, None]).sum(0) / weight.sum()
    agreement = _correlation((mean - origin) @ vector, logit)
    return Direction(-vector if agreement < 0 else vector, origin, agreement)


def shift_gradients(model: "MILModel", batch: BagBatch) -> tuple[Tensor, Tensor]:
    """Gradients (B,P) of the bags' logits for a shift shared by its instances, and the logits (B,); float64.

    Bags of a batch do not see each other, so that the gradient of the sum of their logits is that of each.
    """
    gradient, logit = _gradient(model, batch)
    if gradient is None:
        # DFTD trains its tiers apart, by a detach between them: the logit depends on the features all the same
        with _NoDetach():
            gradient, logit = _gradient(model, batch)
    if gradient is None:
        gradient = torch.zeros_like(batch.x)
    return segment_sum(gradient.double(), batch.offsets), logit.detach().double()


def _shifts_and_means(model: "MILModel", batch: BagBatch) -> tuple[Tensor, ...]:
    """`shift_gradients`, the bags' mean features (B,P), and their numbers of instances (B,)."""
    return *shift_gradients(model, batch), segment_mean(batch.x.double(), batch.offsets), batch.sizes.double()


def _gradient(model: "MILModel", batch: BagBatch) -> tuple[Tensor | None, Tensor]:
    from smmil.training import forward

    with torch.enable_grad():
        x = batch.x.clone().requires_grad_()
        logit = forward(model, replace(batch, x=x), "float32").bag_logit
        if not logit.requires_grad:
            return None, logit
        (gradient,) = torch.autograd.grad(logit.sum(), x, allow_unused=True)
    return gradient, logit


class _NoDetach(TorchFunctionMode):
    """Lets gradients pass where a method has stopped them for its training."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.detach else func(*args, **(kwargs or {}))


def signed_score(direction: Direction, x: Tensor) -> Tensor:
    """(N,P) features -> (N,) float32 scores, higher = more positive."""
    return ((x.double() - direction.origin) @ direction.vector).float()


def save_direction(folder: Path | str, direction: Direction, weights_sha256: str) -> None:
    """Writes the direction of a finished run into its folder.

    Args:
        folder: the run directory.
        direction: found with the run's selected weights.
        weights_sha256: of their file, as `done.json` has it.
    """
    from safetensors.torch import save

    from preprocessing.cli import write_bytes

    agreement = torch.tensor([direction.agreement], dtype=torch.float64)
    named = {"agreement": agreement, "origin": direction.origin.cpu(), "vector": direction.vector.cpu()}
    tensors = {name: value.double().contiguous() for name, value in named.items()}
    # one entry: the library writes several in any order
    about = json.dumps({"weights_sha256": weights_sha256, "sha256": _checksum(tensors)}, sort_keys=True)
    write_bytes(Path(folder) / DIRECTION_FILE, save(tensors, {"about": about}))


def read_direction(folder: Path | str, weights_sha256: str) -> Direction | None:
    """The direction that `save_direction` left with a run; None, with a line in the log, if there is none to trust.

    Args:
        folder: the run directory.
        weights_sha256: of the run's weights; a direction of others is not used.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / DIRECTION_FILE
    if not path.exists():
        log.info("%s: trained before directions were kept: no sign-aware score", folder)
        return None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["sha256"] != _checksum(tensors):
            raise ValueError("its numbers fail their checksum")
        if about["weights_sha256"] != weights_sha256:
            raise ValueError("it belongs to other weights than the run's")
    except (SafetensorError, KeyError, ValueError) as error:
        log.warning("%s: damaged or of another run (%s); no sign-aware score", path, error)
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
