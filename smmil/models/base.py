"""The interface of every method: `forward(batch) -> Output` and `loss(batch, output) -> named terms`.

Shapes: a batch packs B bags of M instances in all. Features (M,P) are embedded to H (M,D); `bag_logit` is (B,) and
`instance_score` (M,). Embedding: paper, Section 3.

Arguments that methods share and their classes do not explain again:

- `in_features` P; `width` D; `attention_dim` L, the hidden width of the attention; `gated` f = w^T (tanh(V h) *
  sigmoid(U h)) for f = w^T tanh(V h).
- methods with Sm: `alpha` "trainable" (0.5 at the start) or a fixed number in [0,1), `T` steps or "exact",
  `spectral_norm` of the layers right after Sm.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from smmil.compute.devices import autocast
from smmil.data.batch import BagBatch
from smmil.layers.pooling import embedding
from smmil.sm.operator import Graph, Sm, normalise_adjacency


@dataclass
class Output:
    """The result of a method on a batch.

    Attributes:
        bag_logit: (B,), > 0 means positive.
        instance_score: (M,), higher means more positive within a bag. Across bags, scores compare only where
            `smmil.config.methods.Method.scores_compare` says so.
        extra: named tensors that the method's own loss or a figure needs.
    """

    bag_logit: Tensor
    instance_score: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)


class BaseOptions(TypedDict, total=False):
    """The keyword arguments of `MILModel`, which most methods pass on."""

    width: int
    embed_act: str
    pos_weight: float | None


class MILModel(nn.Module, ABC):
    """Base of every method: the embedding H = act(X W^T + b) and the bag loss.

    `needs` names what a method reads of a batch besides features, bounds and bag labels: "neighbors" (weights included)
    or "grid". Training batches hold nothing else, in particular no labels of instances.

    Args:
        in_features: P of the encoder.
        width: D of the embedding.
        embed_act: activation of the embedding, "gelu", "relu" or "none".
        pos_weight: weight of positive bags in the cross entropy (n_neg / n_pos), None = 1.
    """

    needs: frozenset[str] = frozenset()
    pos_weight: Tensor

    def __init__(
        self, in_features: int, *, width: int = 512, embed_act: str = "gelu", pos_weight: float | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("pos_weight", torch.tensor(1.0 if pos_weight is None else float(pos_weight)))
        self.width, self.embed = width, embedding(in_features, width, embed_act)

    @abstractmethod
    def forward(self, batch: BagBatch) -> Output:
        """Compute bag logits (B,) and instance scores (M,) of a batch with x (M,P)."""

    def start_epoch(self, epoch: int) -> None:  # noqa: B027
        """Prepare for an epoch (from 1); called at every start and resume, for methods with a schedule."""

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Compute the named loss terms, weighted scalars whose sum training minimises; "bce" is the mean over bags."""
        return {"bce": self.bag_loss(output.bag_logit, batch.y)}

    def bag_loss(self, logit: Tensor, y: Tensor) -> Tensor:
        """Compute the weighted binary cross entropy of bags: logits (B,), labels (B,) -> scalar, mean over bags."""
        return binary_cross_entropy_with_logits(logit, y.to(logit.dtype), pos_weight=self.pos_weight.to(logit.dtype))


def graph_of(batch: BagBatch) -> Graph:
    """Return A_hat (M,M) of a batch as a neighbour table (M,K), in the precision of its features."""
    return normalise_adjacency(batch.neighbors, batch.edge_weight, dtype=batch.x.dtype)


def smoother(sm: Sm | None, batch: BagBatch) -> Callable[[Tensor], Tensor]:
    """Return U -> Sm(U), (M,D) -> (M,D), on the graph of a batch; the identity without Sm."""
    if sm is None:
        return lambda u: u
    return partial(sm, graph=graph_of(batch), offsets=batch.offsets)


def forward(model: MILModel, batch: BagBatch, precision: str) -> Output:
    """Run the model in the given precision; logits (B,) and scores (M,) are returned in at least float32."""
    with autocast(batch.x.device, precision):
        output: Output = model(batch)
    if output.bag_logit.dtype != torch.float64:
        output.bag_logit, output.instance_score = output.bag_logit.float(), output.instance_score.float()
    return output
