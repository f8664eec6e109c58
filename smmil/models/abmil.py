"""ABMIL (Ilse et al., ICML 2018; paper, Equations 1 and 2): embedding, attention pooling, linear classifier.

f = tanh(H W^T + b) w, z = softmax(f)^T H, logit = c z + c0. Score: f, before the softmax, because softmax depends on
the bag's size and is not comparable between bags.
"""

from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers.pooling import AttentionPool, embedding
from smmil.models.base import MILModel, Output


class ABMIL(MILModel):
    """Attention-based MIL.

    Args:
        in_features: P.
        width: D of the embedding.
        attention_dim: L.
        gated: gated attention of the same publication; the paper builds on the plain one.
        embed_act: activation of the embedding.
        pos_weight: see `MILModel`.
    """

    def __init__(
        self,
        in_features: int,
        *,
        width: int = 512,
        attention_dim: int = 128,
        gated: bool = False,
        embed_act: str = "gelu",
        pos_weight: float | None = None,
    ) -> None:
        super().__init__(pos_weight=pos_weight)
        self.embed = embedding(in_features, width, embed_act)
        self.pool = AttentionPool(width, attention_dim, gated=gated)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """(M,P) -> bag_logit (B,), instance_score f (M,)."""
        f, z = self.pool(self.embed(batch.x), batch.offsets)
        return Output(self.classifier(z)[:, 0], f)
