"""GTP (Zheng et al., IEEE TMI 2022): graph convolution, min-cut pooling to C clusters, a small transformer, GraphCAM.

Y = BN(l2norm((A H + H) W + b)), A the 0/1 adjacency; S = softmax(Linear(Y)); X' = S^T Y; a class token (zeros at the
start) and three pre-LN blocks; LN; Linear. Loss = bag cross entropy + cut loss + orthogonality loss, weights 1.
Score: S times the GraphCAM row of the class token over the clusters (see `smmil.layers.graphcam`). Scores rank the
instances of a bag; they do not compare across bags, because they grow about with the square of the bag's logit.

Shapes: (M,P) and the graph -> bag_logit (B,), instance_score (M,). BatchNorm in training runs over all real nodes of
the batch; a batch of one node uses the running statistics.
"""

import copy
import dataclasses
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.graph_layers import mincut_pool, plain_adjacency, propagate
from smmil.layers.graphcam import Block, graphcam
from smmil.models.base import BaseOptions, MILModel, Output
from smmil.sm.operator import Graph


class GTP(MILModel):
    """Graph-transformer.

    Args:
        relevance: "lrp", or "attention" (GraphCAM with attention weights in place of relevance; cheap).
        seed: of GraphCAM, "logit" or "one".
        hidden: width of graph layer and transformer.
    """

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        relevance: str = "lrp",
        seed: str = "logit",
        n_clusters: int = 100,
        hidden: int = 64,
        depth: int = 3,
        n_heads: int = 8,
        mlp_ratio: int = 2,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        check_choice("relevance", relevance, "lrp", "attention")
        check_choice("seed", seed, "logit", "one")
        self.relevance, self.seed = relevance, seed
        self.conv = nn.Linear(self.width, hidden)
        self.bn = nn.BatchNorm1d(hidden)
        self.assign = nn.Linear(hidden, n_clusters)
        self.cls = nn.Parameter(torch.zeros(hidden))
        self.blocks = nn.ModuleList(Block(hidden, n_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.classifier = nn.Linear(hidden, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score (M,) of x (M,P) and the graph; both losses (B,) in extra."""
        _, tokens, cut, orthogonality = self._clusters(batch)
        x = tokens
        for block in self.blocks:
            x = block(x)
        logit = self.classifier(self.norm(x)[:, 0])[:, 0]
        # Training does not read scores, and GraphCAM costs more than the step.
        score = logit.new_zeros(len(batch.x)) if self.training else self._score(batch).to(logit.dtype)
        return Output(logit, score, {"cut": cut, "orthogonality": orthogonality})

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Compute bag cross entropy, cut loss and orthogonality loss, scalars, means over bags."""
        auxiliary = {name: output.extra[name].mean() for name in ("cut", "orthogonality")}
        return {**super().loss(batch, output), **auxiliary}

    def _clusters(self, batch: BagBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute cluster weights (M,C), transformer tokens (B,1+C,D), cut loss (B,) and orthogonality loss (B,)."""
        graph = plain_adjacency(batch.neighbors, dtype=batch.x.dtype)
        y = self._nodes(self.embed(batch.x), graph)
        s = torch.softmax(self.assign(y), -1)
        pooled, cut, orthogonality = mincut_pool(s, y, graph, batch.offsets)
        return s, torch.cat([self.cls.expand(len(pooled), 1, -1), pooled], 1), cut, orthogonality

    def _score(self, batch: BagBatch) -> Tensor:
        """Compute GraphCAM of the clusters and return it to the nodes, (M,) float64.

        The relevance rules are ill-conditioned: in float32 the scores of a bag would depend on its batch and device.
        """
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(batch.x.device.type, enabled=False):
            wide = copy.deepcopy(self).double()
            s, tokens, _, _ = wide._clusters(dataclasses.replace(batch, x=batch.x.double()))
            blocks = [block for block in wide.blocks if isinstance(block, Block)]
            row = graphcam(blocks, wide.norm, wide.classifier, tokens, rule=self.relevance, seed=self.seed)
            return (s * row[batch.bag_index]).sum(1)

    def _nodes(self, h: Tensor, graph: Graph) -> Tensor:
        """Compute Y = BN(l2norm((A H + H) W + b)): (M,width) -> (M,hidden).

        (A H + H) W = A (H W) + H W, so the graph acts on `hidden` columns; `nodes_reference` is the plain form.
        """
        projected = F.linear(h, self.conv.weight)
        return self._normalise(propagate(projected, graph) + projected + self.conv.bias)

    def nodes_reference(self, h: Tensor, a: Tensor) -> Tensor:
        """Compute Y as written, with a dense A (M,M): (M,width) -> (M,hidden)."""
        return self._normalise(self.conv(a @ h + h))

    def _normalise(self, y: Tensor) -> Tensor:
        y = F.normalize(y, dim=1)
        if self.training and len(y) == 1:
            return F.batch_norm(
                y, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, eps=self.bn.eps
            )
        out: Tensor = self.bn(y)
        return out
