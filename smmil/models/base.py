"""What every method is: `forward(batch) -> Output`, `loss(batch, output) -> named terms`.

Shapes: a batch packs B bags of M instances; `bag_logit` is (B,), `instance_score` (M,), higher = more positive.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from smmil.data.batch import BagBatch
from smmil.sm.operator import Graph, Sm, normalise_adjacency


@dataclass
class Output:
    """What a method says of a batch.

    Attributes:
        bag_logit: (B,), > 0 means positive.
        instance_score: (M,), higher means more positive; comparable across bags.
        extra: named tensors a method's own loss or a figure needs.
    """

    bag_logit: Tensor
    instance_score: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)


class MILModel(nn.Module, ABC):
    """Base of every method.

    `needs` names what a method reads of a batch beyond features, bounds and bag labels: "neighbors" (weights included),
    "grid". Training batches hold nothing else, least of all labels of instances.

    Args:
        pos_weight: weight of positive bags in the cross entropy (n_neg / n_pos), None = 1.
    """

    needs: frozenset[str] = frozenset()
    pos_weight: Tensor

    def __init__(self, *, pos_weight: float | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", torch.tensor(1.0 if pos_weight is None else float(pos_weight)))

    @abstractmethod
    def forward(self, batch: BagBatch) -> Output:
        """Scores a batch."""

    def start_epoch(self, epoch: int) -> None:  # noqa: B027 - a hook, not an obligation
        """Called by the training loop when an epoch begins (or is resumed), for methods with a schedule.

        Args:
            epoch: counted from 1.
        """

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Named loss terms, each a scalar that is already weighted; their sum is what training minimises.

        Args:
            batch: labelled bags.
            output: of `forward` on the same batch.

        Returns:
            {"bce": mean over bags}, and whatever a method adds.
        """
        return {"bce": self.bag_loss(output.bag_logit, batch.y)}

    def bag_loss(self, logit: Tensor, y: Tensor) -> Tensor:
        """Binary cross entropy of bag logits, positive bags weighted; mean over bags."""
        return binary_cross_entropy_with_logits(logit, y.to(logit.dtype), pos_weight=self.pos_weight.to(logit.dtype))


def graph_of(batch: BagBatch) -> Graph:
    """Return A_hat of a batch, in the precision of its features."""
    return normalise_adjacency(batch.neighbors, batch.edge_weight, dtype=batch.x.dtype)


def smoother(sm: Sm | None, batch: BagBatch) -> Callable[[Tensor], Tensor]:
    """Return U -> Sm(U), (M,D) -> (M,D), on the graph of a batch; the identity without Sm."""
    if sm is None:
        return lambda u: u
    return partial(sm, graph=graph_of(batch), offsets=batch.offsets)
