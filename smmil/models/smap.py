"""SmAP (paper, Section 4.1, Equations 10 to 12): ABMIL with Sm in the attention pooling.

early: H <- Sm(H), then Equations 1 and 2, so z is pooled from the smoothed H.
mid:   f = tanh(Sm(H W^T + b)) w, z from the raw H.
late:  f = Sm(tanh(H W^T + b) w), z from the raw H.
Score: f (late: after Sm). The pool is `smmil.layers.pooling.AttentionPool`.

Shapes: (M,P) and the graph -> bag_logit (B,), instance_score (M,).
"""

from typing import Unpack

from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers.pooling import AttentionPool
from smmil.models.base import BaseOptions, MILModel, Output, graph_of
from smmil.sm.operator import Sm


class SmAP(MILModel):
    """Attention pooling with Sm; `placement` is "early" (the paper's default), "mid" or "late"."""

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        placement: str = "early",
        alpha: float | str = "trainable",
        T: int | str = 10,
        spectral_norm: bool = True,
        attention_dim: int = 128,
        gated: bool = False,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        self.pool = AttentionPool(
            self.width, attention_dim, gated=gated, sm=Sm(alpha, T), placement=placement, spectral=spectral_norm
        )
        self.classifier = nn.Linear(self.width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P) and the graph."""
        f, z = self.pool(self.embed(batch.x), batch.offsets, graph_of(batch))
        return Output(self.classifier(z)[:, 0], f)
