"""Mean and max pooling, the sanity rows: embedding, one linear layer per instance, s_i = c h_i + c0, and a pooling.

mean: logit = mean_i s_i = c (mean of H) + c0. max over instances: logit = max_i s_i, the standard MIL assumption itself
(a bag is as positive as its most positive instance). max over the embedding: logit = c max_i(H) + c0, per column.
Score: s_i.
"""

from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers.pooling import embedding
from smmil.layers.segments import segment_max, segment_mean
from smmil.models.base import MILModel, Output

POOLS = ("mean", "max", "max_embedding")


class Pooling(MILModel):
    """Mean or max pooling.

    Args:
        in_features: P.
        pool: "mean", "max" (over instance logits) or "max_embedding" (over each column of H).
        width: D of the embedding.
        embed_act: activation of the embedding.
        pos_weight: see `MILModel`.

    Raises:
        ValueError: an unknown pooling.
    """

    def __init__(
        self,
        in_features: int,
        *,
        pool: str = "mean",
        width: int = 512,
        embed_act: str = "gelu",
        pos_weight: float | None = None,
    ) -> None:
        super().__init__(pos_weight=pos_weight)
        if pool not in POOLS:
            raise ValueError(f"pool: found {pool!r}, expected one of {', '.join(POOLS)}")
        self.pool = pool
        self.embed = embedding(in_features, width, embed_act)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """(M,P) -> bag_logit (B,), instance_score s (M,)."""
        h = self.embed(batch.x)
        s = self.classifier(h)
        if self.pool == "max_embedding":
            logit = self.classifier(segment_max(h, batch.offsets))
        else:
            logit = (segment_mean if self.pool == "mean" else segment_max)(s, batch.offsets)
        return Output(logit[:, 0], s[:, 0])
