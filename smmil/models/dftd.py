"""DTFD-MIL (Zhang et al., CVPR 2022; the paper spells it DFTD): attention pooling in two tiers over pseudo-bags.

A bag is split at random into G = min(4, N) pseudo-bags. Tier 1: gated attention inside every pseudo-bag, z_g,
pseudo-logit c z_g + c0. Each pseudo-bag is distilled to z_g (AFS), or to its instances of highest (and lowest)
c^T (a_i h_i). Tier 2: gated attention over the distilled features, bag logit. The features are detached: tier 2 does
not train tier 1, as in the original with its two optimisers. Loss = mean_g BCE(pseudo-logit, Y) + BCE(bag, Y).
Score: c h_i, without attention weight or bias, so it does not depend on the split.

The split: training draws from torch's generator; evaluation hashes bag id and row, so a bag gets the same split in
every batch and on every device.

SmDFTD: H <- Sm(H) in every pseudo-bag on its induced sub-graph, normalised again (edges between pseudo-bags are lost:
the paper's explanation of its bag results); tier 1's attention layers spectrally normalised; score c Sm(H)_i on the
whole graph, computed as Sm(H c)_i (`score_reference` is the plain form).

Shapes: (M,P) and, with Sm, the graph -> bag_logit (B,), instance_score (M,).
"""

import zlib
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.pooling import AttentionPool
from smmil.layers.segments import bag_index, segment_rank, segment_softmax
from smmil.models.base import BaseOptions, MILModel, Output, smoother
from smmil.sm.operator import Graph, Sm, normalise_adjacency


class DFTD(MILModel):
    """DTFD-MIL.

    Args:
        n_pseudo: G.
        distill: "afs" = pooled vectors; "maxmin" / "max" = the `k` instances of highest and lowest / highest CAM.
        k: instances per pseudo-bag and side that "maxmin" and "max" select.
        sm: Sm on the pseudo-bags; SmDFTD has it.
    """

    def __init__(
        self,
        in_features: int,
        *,
        n_pseudo: int = 4,
        distill: str = "afs",
        k: int = 1,
        sm: bool = False,
        alpha: float | str = "trainable",
        T: int | str = 10,
        spectral_norm: bool = True,
        attention_dim: int = 128,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        check_choice("distill", distill, "afs", "maxmin", "max")
        if min(n_pseudo, k) < 1:
            raise ValueError(f"found n_pseudo {n_pseudo} and k {k}, expected at least 1 each")
        self.n_pseudo, self.distill, self.k = n_pseudo, distill, k
        self.needs = frozenset({"neighbors"} if sm else ())
        smooth = Sm(alpha, T) if sm else None
        self.pool = AttentionPool(self.width, attention_dim, gated=True, sm=smooth, spectral=spectral_norm)
        self.classifier = nn.Linear(self.width, 1)
        self.bag_pool = AttentionPool(self.width, attention_dim, gated=True)
        self.bag_classifier = nn.Linear(self.width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score c h_i (M,) of x (M,P)."""
        h = self.embed(batch.x)
        score = smoother(self.pool.sm, batch)(F.linear(h, self.classifier.weight))
        keys = torch.rand(len(h), device=h.device) if self.training else split_keys(batch)
        logit, extra = self._tiers(h, batch, keys)
        return Output(logit, score[:, 0], extra)

    def score_reference(self, batch: BagBatch) -> Tensor:
        """Compute the instance score (M,) as written: H <- Sm(H) on the whole graph, then c h_i."""
        return smoother(self.pool.sm, batch)(self.embed(batch.x)) @ self.classifier.weight[0]

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Return {"bce": of tier 2, "pseudo": mean over bags of the mean over pseudo-bags (tier 1)}, scalars."""
        # Pseudo-logits may have half precision; the caller converts only the bag logit.
        pseudo, groups = output.extra["pseudo_logit"].to(output.bag_logit.dtype), output.extra["groups"]
        target = batch.y.to(pseudo.dtype).repeat_interleave(groups)
        weight = 1 / (batch.n_bags * groups.to(pseudo.dtype)).repeat_interleave(groups)
        losses = F.binary_cross_entropy_with_logits(
            pseudo, target, pos_weight=self.pos_weight.to(pseudo.dtype), reduction="none"
        )
        return {"bce": self.bag_loss(output.bag_logit, batch.y), "pseudo": (weight * losses).sum()}

    def _tiers(self, h: Tensor, batch: BagBatch, keys: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the bag logits (B,) of embedded instances (M,D) that are split by their keys (M,), and the extra."""
        order, offsets, groups = split_bags(batch, keys, self.n_pseudo)
        graph = None if self.pool.sm is None else induced_graph(batch, order, offsets)
        h = h[order]
        f, z = self.pool(h, offsets, graph)
        extra = {"pseudo_logit": self.classifier(z)[:, 0], "groups": groups}
        if self.distill == "afs":
            tokens, counts = z, groups
        else:
            features = h if self.pool.sm is None or graph is None else self.pool.sm(h, graph, offsets)
            rows = self._select(f, features, offsets)
            owner = batch.bag_index[rows]
            rows, counts = rows[owner.argsort(stable=True)], torch.bincount(owner, minlength=batch.n_bags)
            tokens = features[rows]
        return self.bag_classifier(self.bag_pool(tokens.detach(), _bounds(counts))[1])[:, 0], extra

    def _select(self, f: Tensor, features: Tensor, offsets: Tensor) -> Tensor:
        """Return the rows of highest (and lowest) class activation a_i (c h_i) in each pseudo-bag; rows may repeat."""
        cam = segment_softmax(f, offsets) * F.linear(features, self.classifier.weight)[:, 0]
        rank = segment_rank(cam.detach(), offsets)
        rows = (rank < self.k).nonzero()[:, 0]
        if self.distill == "max":
            return rows
        size = (offsets[1:] - offsets[:-1])[bag_index(offsets, len(f))]
        return torch.cat([rows, (rank >= size - self.k).nonzero()[:, 0]])


def split_bags(batch: BagBatch, keys: Tensor, n_pseudo: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut every bag, in descending order of its keys (M,), into G = min(n_pseudo, N) parts; N mod G get one more.

    Returns:
        order (M,): row of the batch at each place, pseudo-bag by pseudo-bag; offsets (sum G + 1,) of the pseudo-bags;
        groups (B,): G of each bag.
    """
    rows = torch.arange(len(keys), device=keys.device)
    places = batch.offsets[batch.bag_index] + segment_rank(keys, batch.offsets)
    order = torch.empty_like(rows).index_copy_(0, places, rows)
    groups = batch.sizes.clamp(max=n_pseudo)
    bags = bag_index(_bounds(groups), int(groups.sum()))
    number = torch.arange(len(bags), device=keys.device) - _bounds(groups)[bags]
    sizes = (batch.sizes // groups)[bags] + (number < (batch.sizes % groups)[bags])
    return order, _bounds(sizes), groups


def split_keys(batch: BagBatch) -> Tensor:
    """Hash (bag id, row in the bag) to (M,) int64, a fixed permutation of each bag."""
    # Another text would give other splits, hence other predictions of trained runs.
    seeds = [zlib.crc32(f"0/{bag_id}".encode()) for bag_id in batch.bag_ids]
    bags = batch.bag_index
    rows = torch.arange(len(bags), device=bags.device) - batch.offsets[bags]
    keys = (torch.tensor(seeds, device=bags.device)[bags] << 31) + rows
    # These are the mixing steps of splitmix64; int64 products wrap around.
    for factor in (-4658895280553007687, -7723592293110705685):
        keys = (keys ^ (keys >> 30)) * factor
    return keys ^ (keys >> 31)


def induced_graph(batch: BagBatch, order: Tensor, offsets: Tensor) -> Graph:
    """Return A_hat (M,M) of the rows in `order` (M,) without the edges between pseudo-bags, normalised again."""
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    neighbors = batch.neighbors[order]
    target, pseudo = place[neighbors.clamp(min=0)], bag_index(offsets, len(order))
    inside = (neighbors >= 0) & (pseudo[target] == pseudo[:, None])
    weight = None if batch.edge_weight is None else batch.edge_weight[order]
    return normalise_adjacency(torch.where(inside, target, -1), weight, dtype=batch.x.dtype)


def _bounds(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(0), (1, 0))
