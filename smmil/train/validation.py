"""Validation losses and metrics of an epoch, and the selection score.

Shapes: see `smmil.data.batch.BagBatch`. Losses are means over the validation bags.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from smmil.config.training_options import TrainingOptions
from smmil.data.batch import BagBatch
from smmil.data.cache import BagCache, chunks
from smmil.evaluate.metrics import auroc
from smmil.layers.segments import segment_softmax, segment_sum
from smmil.models.base import MILModel, forward


def selection_score(bag_auroc: float | None, bce: float) -> float:
    """Return validation bag AUROC (0 if undefined: one class) minus validation BCE."""
    return (0.0 if bag_auroc is None else bag_auroc) - bce


@torch.no_grad()
def validate(
    model: MILModel, cache: BagCache, index: Sequence[int], options: TrainingOptions
) -> dict[str, float | None]:
    """Compute the validation metrics of one epoch.

    Args:
        model: set to eval mode.
        cache: holds the bags.
        index: positions of the validation bags.
        options: training options.

    Returns:
        `val_loss`, `val_loss_<term>` (means over bags), `val_bag_auroc` and `val_instance_auroc` (None if undefined),
        `val_selection_bce` (bag cross entropy with class weight, for the selection score; mean over bags, or mean of
        batch means as released), `val_score_entropy` (entropy of the softmax of a bag's instance scores over log N,
        mean over bags: 1 = uniform, 0 = one instance).
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    collected: list[tuple[Tensor, ...]] = []
    entropies: list[Tensor] = []
    for batch in cache.batches(chunks(index, options.batch_size)):
        output = forward(model, batch, options.precision)
        terms = model.loss(batch, output)
        for name, term in {**terms, "": torch.stack(list(terms.values())).sum()}.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=term.device)) + term * batch.n_bags
        collected.append((output.bag_logit.double(), batch.y.double(), output.instance_score, batch.y_inst))
        entropies.append(_entropy(output.instance_score.double(), batch))
    logits, y, scores, y_inst = (torch.cat(parts) for parts in zip(*collected, strict=True))
    weight = model.pos_weight.double()
    per_bag = binary_cross_entropy_with_logits(logits, y, pos_weight=weight, reduction="none")
    released = "select_val_loss" in options.active_quirks
    means = [part.mean() for part in torch.split(per_bag, options.batch_size if released else len(per_bag))]
    known = y_inst >= 0
    finite = bool(torch.isfinite(logits).all()) and bool(torch.isfinite(scores).all())
    return {
        **{f"val_loss_{name}" if name else "val_loss": float(value) / len(index) for name, value in sums.items()},
        "val_selection_bce": float(torch.stack(means).mean()),
        "val_bag_auroc": auroc(y.cpu().numpy(), logits.cpu().numpy()) if finite else math.nan,
        "val_instance_auroc": auroc(y_inst[known].cpu().numpy(), scores[known].cpu().numpy()) if finite else math.nan,
        "val_score_entropy": float(torch.cat(entropies).mean()),
    }


def _entropy(score: Tensor, batch: BagBatch) -> Tensor:
    """Compute the entropy of each bag's softmax over its maximum log N: (M,) -> (B,); 0 for a single instance."""
    entropy = segment_sum(torch.special.entr(segment_softmax(score, batch.offsets))[:, None], batch.offsets)[:, 0]
    return entropy / batch.sizes.clamp(min=2).double().log()
