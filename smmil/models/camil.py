r"""CAMIL (Fourkioti et al., ICLR 2024): Nystrom attention, then attention that is constrained to the neighbours.

t = H + Nystrom(H); g_ij = (q_i . k_j / sqrt d) s_ij on the neighbours of i and i itself; w = softmax over the bag's
instances of sum_j g_ij; l_i = w_i v_i; m_i = sigma(l_i) l_i + (1 - sigma(l_i)) t_i. Gated attention values f are read
from t, z = sum_i softmax(f)_i m_i, then a linear classifier.
Similarity of raw features: s_ij = exp(-d_ij / ||d_i||_2), d_i the distances to i's neighbours; s_ii = max_j s_ij, 1
without neighbours. Score: f, which does not see the neighbours.

Shapes: (M,P) and the graph -> bag_logit (B,), instance_score (M,). Bags of about equal size run through the Nystrom
layer together.
"""

from collections import defaultdict
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.nystrom import NystromAttention, NystromOptions
from smmil.layers.pooling import AttentionPool, attend
from smmil.layers.segments import segment_softmax
from smmil.models.base import MILModel, Output


@torch.no_grad()
def feature_similarity(x: Tensor, neighbors: Tensor) -> tuple[Tensor, Tensor]:
    """Compute s_ij and s_ii of raw features: (M,P), (M,K) -1 padded -> (M,K) zero on padding, (M,)."""
    present = neighbors >= 0
    index = neighbors.clamp(min=0)
    # One neighbour at a time, because (M,K,P) would be the largest tensor of the method.
    columns = [torch.linalg.vector_norm(x - x[index[:, k]], dim=1) for k in range(neighbors.shape[1])]
    distance = torch.stack(columns, 1) * present
    norm = torch.linalg.vector_norm(distance, dim=1, keepdim=True)
    similarity = torch.exp(-distance / torch.where(norm > 0, norm, 1)) * present
    return similarity, torch.where(present.any(1), similarity.amax(1), 1.0)


def neighbour_weights(
    q: Tensor, k: Tensor, neighbors: Tensor, similarity: Tensor, self_similarity: Tensor, offsets: Tensor
) -> Tensor:
    """Compute w = softmax over each bag of sum_j q_i . k_j s_ij / sqrt d, by sum_j q_i . k_j s_ij = q_i . (S k)_i.

    q and k are (M,d); the neighbours (M,K) are padded with -1, where the similarity (M,K) is 0; s_ii and w are (M,).
    """
    mixed = embedding_bag(neighbors.clamp(min=0), k, mode="sum", per_sample_weights=similarity.to(k.dtype))
    mixed = mixed + self_similarity.to(k.dtype)[:, None] * k
    return segment_softmax((q * mixed).sum(1) * q.shape[1] ** -0.5, offsets)


def neighbour_weights_reference(q: Tensor, k: Tensor, s: Tensor) -> Tensor:
    """Compute w of one bag as written: q (N,d), k (N,d), dense s (N,N) -> (N,)."""
    return torch.softmax((q @ k.T / q.shape[1] ** 0.5 * s).sum(1), 0)


def fuse(local: Tensor, t: Tensor, *, released: bool = False) -> Tensor:
    """Compute m = sigma(l) l + (1 - sigma(l)) t; `released` 2 l s^2 + 2 t (1 - s^2), s = sigma(-l): (M,D) each."""
    if released:
        share = torch.sigmoid(-local).square()
        return 2 * (local * share + t * (1 - share))
    share = torch.sigmoid(local)
    return share * local + (1 - share) * t


class CAMIL(MILModel):
    """Context-aware MIL.

    Args:
        code: "published" equations, or "released_without_convolution": values from H, the released fusion, attention
            from m, and `value_conv` 0 unless given. The released convolution runs across heads, not along the sequence.
    """

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        code: str = "published",
        key_dim: int = 256,
        attention_dim: int = 128,
        dropout: float = 0.0,
        width: int = 512,
        embed_act: str = "gelu",
        pos_weight: float | None = None,
        **nystrom: Unpack[NystromOptions],
    ) -> None:
        super().__init__(in_features, width=width, embed_act=embed_act, pos_weight=pos_weight)
        check_choice("code", code, "published", "released_without_convolution")
        self.released = code != "published"
        if self.released:
            nystrom.setdefault("value_conv", 0)
        self.transformer = NystromAttention(width, dropout=dropout, **nystrom)
        self.q, self.k = (nn.Linear(width, key_dim, bias=False) for _ in range(2))
        self.v = nn.Linear(width, width)
        self.pool = AttentionPool(width, attention_dim, gated=True)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P) and the graph."""
        h = self.embed(batch.x)
        t = h + self._global(h, batch)
        similarity = feature_similarity(batch.x, batch.neighbors)
        weight = neighbour_weights(self.q(t), self.k(t), batch.neighbors, *similarity, batch.offsets)
        local = weight[:, None] * self.v(h if self.released else t)
        m = fuse(local, t, released=self.released)
        f, z = self.pool(m if self.released else t, batch.offsets)
        if not self.released:
            z = attend(f, m, batch.offsets)
        return Output(self.classifier(z)[:, 0], f)

    def _global(self, x: Tensor, batch: BagBatch) -> Tensor:
        """Apply Nystrom attention inside every bag, bags of about equal size together: (M,D) -> (M,D)."""
        sizes = batch.sizes.tolist()
        bags, groups = torch.split(x, sizes), defaultdict[int, list[int]](list)
        for bag, n in enumerate(sizes):
            groups[self.transformer.padded_length(n)].append(bag)
        parts = list(bags)
        for length, members in groups.items():
            out, _ = self.transformer(torch.stack([pad(bags[bag], (0, 0, length - sizes[bag], 0)) for bag in members]))
            for bag, attended in zip(members, out, strict=True):
                parts[bag] = attended[length - sizes[bag] :]
        return torch.cat(parts)
