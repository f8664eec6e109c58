"""T+AP, SmT+AP, T+SmAP and SmT+SmAP = SmTAP (paper, Section 4.2, Equation 13).

Embedding, two layers X <- X + [Sm](MHA(LN X)), a final LayerNorm, then attention pooling, with Sm (early) or without.
Every Sm has its own alpha. Score: f of the pool.

Shapes: (M,P) and, with Sm, the graph -> bag_logit (B,), instance_score (M,).
"""

from typing import Unpack

from torch import Tensor, nn

from smmil.data.batch import BagBatch
from smmil.layers.attention import packed_attention
from smmil.layers.pooling import AttentionPool
from smmil.models.base import BaseOptions, MILModel, Output, graph_of
from smmil.sm.operator import Graph, Sm


class TransformerLayer(nn.Module):
    """X <- X + [Sm](MHA(LN(X))) without bias, output projection and feed-forward part (authors' configuration).

    Sm smooths the concatenated heads before the residual (Equation 13).
    """

    def __init__(self, width: int = 512, n_heads: int = 8, sm: Sm | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.n_heads, self.scale, self.sm = n_heads, (width // n_heads) ** -0.5, sm

    def forward(self, x: Tensor, offsets: Tensor, graph: Graph | None = None) -> Tensor:
        """Apply the layer inside every bag: (M,D) -> (M,D)."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        heads = packed_attention(q, k, v, offsets.tolist(), self.n_heads, scale=self.scale)
        if self.sm is not None and graph is not None:
            heads = self.sm(heads, graph, offsets)
        return x + heads


class TransformerMIL(MILModel):
    """Transformer encoder and attention pooling, each with or without Sm.

    Args:
        sm_transformer: Sm in the transformer layers (SmT).
        sm_pool: Sm in the pool (SmAP).
        spectral_norm: of the pool; the transformer is never normalised.
    """

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        sm_transformer: bool = False,
        sm_pool: bool = False,
        placement: str = "early",
        alpha: float | str = "trainable",
        T: int | str = 10,
        spectral_norm: bool = True,
        n_layers: int = 2,
        n_heads: int = 8,
        attention_dim: int = 128,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        width = self.width
        self.layers = nn.ModuleList(
            TransformerLayer(width, n_heads, Sm(alpha, T) if sm_transformer else None) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)
        sm = Sm(alpha, T) if sm_pool else None
        self.pool = AttentionPool(width, attention_dim, sm=sm, placement=placement, spectral=spectral_norm)
        self.classifier = nn.Linear(width, 1)
        self.uses_graph = sm_transformer or sm_pool

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P) and, with Sm, the graph."""
        graph = graph_of(batch) if self.uses_graph else None
        x = self.embed(batch.x)
        for layer in self.layers:
            x = layer(x, batch.offsets, graph)
        f, z = self.pool(self.norm(x), batch.offsets, graph)
        return Output(self.classifier(z)[:, 0], f)
