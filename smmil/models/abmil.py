"""ABMIL (Ilse et al., ICML 2018; paper, Equations 1 and 2): embedding, attention pooling, linear classifier.

f = tanh(H W^T + b) w, z = softmax(f)^T H, logit = c z + c0. Score: f before the softmax, because softmax depends on
the size of the bag and is not comparable between bags.

Shapes: (M,P) -> bag_logit (B,), instance_score (M,).
"""

from typing import Unpack

from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers.pooling import AttentionPool
from smmil.models.base import BaseOptions, MILModel, Output


class ABMIL(MILModel):
    """Attention-based MIL; the paper builds on the plain attention, `gated` is the other one of the publication."""

    def __init__(
        self, in_features: int, *, attention_dim: int = 128, gated: bool = False, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(in_features, **base)
        self.pool = AttentionPool(self.width, attention_dim, gated=gated)
        self.classifier = nn.Linear(self.width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P)."""
        f, z = self.pool(self.embed(batch.x), batch.offsets)
        return Output(self.classifier(z)[:, 0], f)
