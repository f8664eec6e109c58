"""PathGCN = Patch-GCN (Chen et al., MICCAI 2021): residual GEN layers, all depths concatenated, gated attention.

x_0 = Dropout(ReLU(Linear(h))), x_1 = GEN(x_0), x_l = Dropout(x_(l-1) + ReLU(LN(GEN(x_(l-1))))) for l = 2, 3;
[x_0 .. x_3] -> Linear ReLU Dropout -> gated attention (dropout on both gates) -> Linear ReLU -> Linear.
The graph is the common 0/1 neighbourhood in place of the original's 8 nearest coordinates. Score: f.

Variant "gcn": layers x_l = ReLU(LN(Linear(A x + x))), concatenated with the embedding, then Linear ReLU and plain
attention of 128.

Shapes: (M,P) and the graph -> bag_logit (B,), instance_score (M,).
"""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.dropout import Dropout
from smmil.layers.graph_layers import GEN, plain_adjacency, propagate
from smmil.layers.pooling import AttentionPool, attend
from smmil.models.base import BaseOptions, MILModel, Output


class PathGCN(MILModel):
    """Graph convolution with softmax aggregation; `graph_dropout` acts after each residual graph layer."""

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        hidden: int = 128,
        n_layers: int = 3,
        dropout: float = 0.25,
        graph_dropout: float = 0.1,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        joined = hidden * (n_layers + 1)
        self.reduce = nn.Sequential(nn.Linear(self.width, hidden), nn.ReLU(), Dropout(dropout))
        self.layers = nn.ModuleList(GEN(hidden) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(n_layers - 1))
        self.graph_dropout = Dropout(graph_dropout)
        self.join = nn.Sequential(nn.Linear(joined, joined), nn.ReLU(), Dropout(dropout))
        self.V = nn.Sequential(nn.Linear(joined, joined), nn.Tanh(), Dropout(dropout))
        self.U = nn.Sequential(nn.Linear(joined, joined), nn.Sigmoid(), Dropout(dropout))
        self.w = nn.Linear(joined, 1)
        self.classifier = nn.Sequential(nn.Linear(joined, joined), nn.ReLU(), nn.Linear(joined, 1))

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P) and the graph."""
        h = self.join(self.node_features(self.embed(batch.x), batch.neighbors))
        f = self.w(self.V(h) * self.U(h))[:, 0]
        return Output(self.classifier(attend(f, h, batch.offsets))[:, 0], f)

    def node_features(self, h: Tensor, neighbors: Tensor) -> Tensor:
        """Compute all depths side by side: embedding (M,D) -> (M, (n_layers + 1) hidden)."""
        x = self.reduce(h)
        depths = [x, self.layers[0](x, neighbors)]
        for layer, norm in zip(list(self.layers)[1:], self.norms, strict=True):
            step = torch.relu(norm(layer(depths[-1], neighbors)))
            depths.append(self.graph_dropout(depths[-1] + step))
        return torch.cat(depths, 1)


class PlainGCN(MILModel):
    """The variant "gcn": plain graph convolutions in place of GEN."""

    needs = frozenset({"neighbors"})

    def __init__(
        self, in_features: int, *, n_layers: int = 4, attention_dim: int = 128, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(in_features, **base)
        width = self.width
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_layers))
        self.join = nn.Sequential(nn.Linear((n_layers + 1) * width, width), nn.ReLU())
        self.pool = AttentionPool(width, attention_dim)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P) and the graph."""
        graph = plain_adjacency(batch.neighbors, dtype=batch.x.dtype)
        depths = [self.embed(batch.x)]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            depths.append(torch.relu(norm(layer(propagate(depths[-1], graph) + depths[-1]))))
        f, z = self.pool(self.join(torch.cat(depths, 1)), batch.offsets)
        return Output(self.classifier(z)[:, 0], f)


def pathgcn(in_features: int, *, variant: str = "gen", **options: Any) -> MILModel:
    """Build the variant "gen" (`PathGCN`) or "gcn" (`PlainGCN`) with the options of its class."""
    check_choice("variant", variant, "gen", "gcn")
    return PathGCN(in_features, **options) if variant == "gen" else PlainGCN(in_features, **options)
