"""Mean and max pooling, the baselines without attention: one linear layer per instance, s_i = c h_i + c0, and a pool.

mean: logit = mean_i s_i = c (mean of H) + c0. max over instances: logit = max_i s_i, the standard MIL assumption
(a bag is as positive as its most positive instance). max over the embedding: logit = c max_i(H) + c0, per column.
Score: s_i.

Shapes: (M,P) -> bag_logit (B,), instance_score (M,).
"""

from typing import Unpack

from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.segments import segment_max, segment_mean
from smmil.models.base import BaseOptions, MILModel, Output


class Pooling(MILModel):
    """Pooling by "mean", "max" (over instance logits) or "max_embedding" (over each column of H)."""

    def __init__(self, in_features: int, *, pool: str = "mean", **base: Unpack[BaseOptions]) -> None:
        super().__init__(in_features, **base)
        check_choice("pool", pool, "mean", "max", "max_embedding")
        self.pool = pool
        self.classifier = nn.Linear(self.width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score s (M,) of x (M,P)."""
        h = self.embed(batch.x)
        s = self.classifier(h)
        if self.pool == "max_embedding":
            logit = self.classifier(segment_max(h, batch.offsets))
        else:
            logit = (segment_mean if self.pool == "mean" else segment_max)(s, batch.offsets)
        return Output(logit[:, 0], s[:, 0])
