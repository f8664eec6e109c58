"""ABMIL+PENALTY and T+PENALTY (paper, Table 5): a smoothness term in the loss in place of Sm.

loss = BCE + lambda mean over bags of (1/N) f^T (I - A_hat) f, f (M,) the raw attention values, lambda = 1. The graph
is read in training only; prediction is that of ABMIL and T+AP.

`on = "softmax"` is the penalty of SA-DMIL (Wu et al., MICCAI 2023) on a = softmax(f):
(1 - lambda) BCE + lambda a^T L^k a, L = D + I - A, not normalised.

Shapes: (M,P), and the graph in `loss` -> bag_logit (B,), instance_score (M,).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from smmil.data.batch import BagBatch
from smmil.layers.segments import segment_softmax, segment_sum
from smmil.models.abmil import ABMIL
from smmil.models.base import MILModel, Output, graph_of
from smmil.models.transformer import TransformerMIL
from smmil.sm.operator import Graph

TARGETS = ("raw", "softmax")


@dataclass(frozen=True)
class Penalty:
    """The loss of both rows.

    Attributes:
        weight: lambda.
        on: "raw" = attention values, "softmax" = attention weights (SA-DMIL).
        power: k of SA-DMIL, 1 or 2.

    Raises:
        ValueError: an unknown `on`, a power other than 1 and 2, or a negative lambda (above 1 for "softmax").
    """

    weight: float = 1.0
    on: str = "raw"
    power: int = 1

    def __post_init__(self) -> None:
        if self.on not in TARGETS or self.power not in (1, 2):
            raise ValueError(f"found on = {self.on!r}, power = {self.power}; expected one of {TARGETS}, and 1 or 2")
        if self.weight < 0 or (self.on == "softmax" and self.weight > 1):
            raise ValueError(f"penalty: found {self.weight}, expected a number >= 0, for 'softmax' at most 1")

    def terms(self, bce: Tensor, f: Tensor, batch: BagBatch) -> dict[str, Tensor]:
        """Return {"bce": bag loss, "penalty": weighted roughness} of attention values f (M,)."""
        f = f.to(batch.x.dtype)
        if self.on == "raw":
            return {"bce": bce, "penalty": self.weight * raw_penalty(f, batch).mean()}
        rough = softmax_penalty(f, batch, self.power).mean()
        return {"bce": (1 - self.weight) * bce, "penalty": self.weight * rough}


class Penalised(MILModel):
    """A method whose loss has the penalty; combine with the class of the method.

    Args:
        in_features: P.
        penalty: lambda.
        on: see `Penalty`.
        power: see `Penalty`.
        options: of the method.

    Raises:
        ValueError: see `Penalty`.
    """

    needs = frozenset({"neighbors"})

    def __init__(
        self, in_features: int, *, penalty: float = 1.0, on: str = "raw", power: int = 1, **options: Any
    ) -> None:
        super().__init__(in_features, **options)
        self.penalty = Penalty(penalty, on, power)

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Compute bag loss and penalty, scalars."""
        return self.penalty.terms(self.bag_loss(output.bag_logit, batch.y), output.instance_score, batch)


class ABMILPenalty(Penalised, ABMIL):
    """ABMIL with the penalty."""


class TransformerPenalty(Penalised, TransformerMIL):
    """T+AP with the penalty."""


def raw_penalty(f: Tensor, batch: BagBatch) -> Tensor:
    """Compute (1/N) f^T (I - A_hat) f, the Dirichlet energy per instance, of every bag: (M,) -> (B,)."""
    column = f[:, None]
    energy = segment_sum(column * (column - graph_of(batch).matmul(column)), batch.offsets)[:, 0]
    return energy / batch.sizes.to(f.dtype)


def softmax_penalty(f: Tensor, batch: BagBatch, power: int = 1) -> Tensor:
    """Compute a^T L^power a of every bag, a = softmax(f), L = D + I - A: (M,) -> (B,)."""
    a = segment_softmax(f, batch.offsets)[:, None]
    present = batch.neighbors >= 0
    weight = present.to(f.dtype) if batch.edge_weight is None else batch.edge_weight.to(f.dtype) * present
    adjacency = Graph(batch.neighbors.clamp(min=0), weight, weight.new_zeros(len(weight)))
    diagonal = weight.sum(1, keepdim=True) + 1
    rough = diagonal * a - adjacency.matmul(a)
    # L is symmetric, so a^T L^2 a = |L a|^2.
    return segment_sum((rough if power == 2 else a) * rough, batch.offsets)[:, 0]
