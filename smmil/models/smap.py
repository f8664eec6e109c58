"""SmAP (paper, Section 4.1, Equations 10 to 12): ABMIL with Sm in the attention pooling.

early: H <- Sm(H), then Equations 1 and 2, so that z uses the smoothed H too. mid: f = tanh(Sm(H W^T + b)) w.
late: f = Sm(tanh(H W^T + b) w). mid and late pool the raw H. Score: f (late: after Sm).
"""

from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers.pooling import AttentionPool, embedding
from smmil.models.base import MILModel, Output, graph_of
from smmil.sm.operator import Sm


class SmAP(MILModel):
    """Attention pooling with Sm.

    Args:
        in_features: P.
        placement: "early" (the paper's default), "mid" or "late".
        alpha: "trainable" (0.5 at the start) or a fixed number in [0,1).
        T: steps, or "exact".
        spectral_norm: normalise the layers right after Sm.
        width: D of the embedding.
        attention_dim: L.
        gated: gated attention.
        embed_act: activation of the embedding.
        pos_weight: see `MILModel`.
    """

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        placement: str = "early",
        alpha: float | str = "trainable",
        T: int | str = 10,
        spectral_norm: bool = True,
        width: int = 512,
        attention_dim: int = 128,
        gated: bool = False,
        embed_act: str = "gelu",
        pos_weight: float | None = None,
    ) -> None:
        super().__init__(pos_weight=pos_weight)
        self.embed = embedding(in_features, width, embed_act)
        sm = Sm(alpha, T)
        self.pool = AttentionPool(width, attention_dim, gated=gated, sm=sm, placement=placement, spectral=spectral_norm)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """(M,P) and the graph -> bag_logit (B,), instance_score f (M,)."""
        f, z = self.pool(self.embed(batch.x), batch.offsets, graph_of(batch))
        return Output(self.classifier(z)[:, 0], f)
