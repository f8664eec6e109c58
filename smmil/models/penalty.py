"""ABMIL+PENALTY and T+PENALTY (paper, Table 5): a smoothness term in the loss in place of Sm.

loss = BCE + lambda mean over bags of (1/N) f^T (I - A_hat) f, f (M,) the raw attention values, lambda = 1. The graph
is read in training only; prediction is that of ABMIL and T+AP.

`on = "softmax"` is the penalty of SA-DMIL (Wu et al., MICCAI 2023) on a = softmax(f):
(1 - lambda) BCE + lambda a^T L^k a, L = D + I - A, not normalised.

Shapes: (M,P), and the graph in `loss` -> bag_logit (B,), instance_score (M,).
"""

from typing import Any

from torch import Tensor

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.segments import segment_softmax, segment_sum
from smmil.models.abmil import ABMIL
from smmil.models.base import MILModel, Output, graph_of
from smmil.models.transformer import TransformerMIL
from smmil.sm.operator import Graph


class Penalised(MILModel):
    """A method whose loss has the penalty; combine with the class of the method.

    Args:
        penalty: lambda, >= 0, for "softmax" at most 1.
        on: "raw" = attention values, "softmax" = attention weights (SA-DMIL).
        power: k of SA-DMIL, 1 or 2.
    """

    needs = frozenset({"neighbors"})

    def __init__(
        self, in_features: int, *, penalty: float = 1.0, on: str = "raw", power: int = 1, **options: Any
    ) -> None:
        super().__init__(in_features, **options)
        check_choice("on", on, "raw", "softmax")
        if power not in (1, 2):
            raise ValueError(f"power: found {power}, expected 1 or 2")
        if penalty < 0 or (on == "softmax" and penalty > 1):
            raise ValueError(f"penalty: found {penalty}, expected a number >= 0, for 'softmax' at most 1")
        self.penalty, self.on, self.power = penalty, on, power

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Compute {"bce": bag loss, "penalty": weighted roughness of the attention values}, scalars."""
        bce, f = self.bag_loss(output.bag_logit, batch.y), output.instance_score.to(batch.x.dtype)
        if self.on == "raw":
            return {"bce": bce, "penalty": self.penalty * raw_penalty(f, batch).mean()}
        rough = softmax_penalty(f, batch, self.power).mean()
        return {"bce": (1 - self.penalty) * bce, "penalty": self.penalty * rough}


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
