"""A pre-norm transformer layer over packed bags (paper, Section 4.2, Equation 13).

Shapes: (M,D) and, with Sm, the graph -> (M,D).
"""

from torch import Tensor, nn

from smmil.layers.attention import packed_attention
from smmil.sm.operator import Graph, Sm


class TransformerLayer(nn.Module):
    """X <- X + [Sm](MHA(LN(X))) without bias, output projection and feed-forward part (authors' configuration).

    Args:
        width: D = query, key and value width.
        n_heads: attention heads.
        sm: smooths the concatenated heads before the residual (Equation 13), or None.
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
