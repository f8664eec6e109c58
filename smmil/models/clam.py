"""CLAM (Lu et al., Nature BME 2021): gated attention pooling, and clustering of the most and least attended instances.

f = w^T (tanh(V h) * sigmoid(U h)), z = softmax(f)^T H, logit = c z + c0 (SB, one attention branch). With k = min(8,
N // 2), the k most attended instances of a bag of class y get target 1, the k least attended target 0, in the instance
classifier of class y; loss = 0.7 bag BCE + 0.3 instance loss. N // 2 keeps the two sets apart in small bags, where the
original crashes or labels an instance both ways. MB: one branch f_c and one classifier per class, logit = c_1 - c_0,
instances chosen by the branch of the true class. Score: f (MB: of the positive class).

SmCLAM: H <- Sm(H) before attention, pooling and instance selection; attention layers spectrally normalised.

Shapes: (M,P) and, with Sm, the graph -> bag_logit (B,), instance_score (M,).
"""

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as normalise

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.dropout import Dropout
from smmil.layers.pooling import attend
from smmil.layers.segments import segment_rank
from smmil.models.base import BaseOptions, MILModel, Output, smoother
from smmil.sm.operator import Sm


class ClamAttention(nn.Module):
    """Attention values of CLAM, one column per branch, with dropout on both gates: (M,D) -> (M,branches)."""

    def __init__(self, width: int, attention_dim: int, branches: int, *, gated: bool, dropout: float) -> None:
        super().__init__()
        self.V = nn.Linear(width, attention_dim)
        self.U = nn.Linear(width, attention_dim) if gated else None
        # The bias shifts every f alike, so the softmax ignores it; the original has it.
        self.w = nn.Linear(attention_dim, branches)
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """Compute f before the softmax: (M,D) -> (M,branches)."""
        hidden = self.dropout(torch.tanh(self.V(h)))
        if self.U is not None:
            hidden = hidden * self.dropout(torch.sigmoid(self.U(h)))
        f: Tensor = self.w(hidden)
        return f

    def normalise(self) -> None:
        """Add spectral normalisation to every layer."""
        for layer in (self.V, self.U, self.w):
            if layer is not None:
                normalise(layer)


class CLAM(MILModel):
    """CLAM_SB and CLAM_MB.

    Args:
        multi_branch: MB, one attention branch and one classifier per class.
        k: largest number of instances per cluster.
        bag_weight: weight of the bag loss; the instance loss has 1 - bag_weight.
        inst_loss: "ce", or "svm" = the smooth top-1 SVM of the CLAM publication (margin 1, temperature 1).
        subtyping: also push the most attended instances out of the other class, halving the instance loss.
        sm: Sm on H; SmCLAM has it.
        attention_dim: 256 = small, 384 = big.
        dropout: after the embedding and on both gates.
    """

    def __init__(
        self,
        in_features: int,
        *,
        multi_branch: bool = False,
        k: int = 8,
        bag_weight: float = 0.7,
        inst_loss: str = "ce",
        subtyping: bool = False,
        sm: bool = False,
        alpha: float | str = "trainable",
        T: int | str = 10,
        spectral_norm: bool = True,
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        check_choice("inst_loss", inst_loss, "ce", "svm")
        if k < 0 or not 0 <= bag_weight <= 1:
            raise ValueError(f"found k = {k} and bag_weight = {bag_weight}, expected k >= 0 and a weight in [0, 1]")
        self.k, self.bag_weight, self.inst_loss, self.subtyping = k, bag_weight, inst_loss, subtyping
        branches = 2 if multi_branch else 1
        self.embed.append(Dropout(dropout))
        self.sm = Sm(alpha, T) if sm else None
        self.needs = frozenset({"neighbors"} if sm else ())
        self.attention = ClamAttention(self.width, attention_dim, branches, gated=gated, dropout=dropout)
        if sm and spectral_norm:
            self.attention.normalise()
        self.classifier = nn.Linear(self.width, branches)
        # Two logits (out, in) for each of the two classes.
        self.instance_classifiers = nn.Linear(self.width, 4)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P); extra: "h" (M,D), "attention" (M,branches)."""
        h = smoother(self.sm, batch)(self.embed(batch.x))
        f = self.attention(h)
        z = torch.stack([attend(branch, h, batch.offsets) for branch in f.unbind(1)], 1)
        logits = (z * self.classifier.weight).sum(-1) + self.classifier.bias
        logit = logits[:, 0] if f.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        return Output(logit, f[:, -1], {"h": h, "attention": f})

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Return {"bce": weighted bag loss, "instance": weighted clustering loss}, scalars, means over bags."""
        return {
            "bce": self.bag_weight * self.bag_loss(output.bag_logit, batch.y),
            "instance": (1 - self.bag_weight) * self.instance_loss(batch, output).mean(),
        }

    def instance_loss(self, batch: BagBatch, output: Output) -> Tensor:
        """Compute the clustering loss of each bag (B,), 0 where N = 1. Targets come from attention, not predictions."""
        true, other = batch.y.long(), 1 - batch.y.long()
        top, bottom = self.clusters(batch, output, true)
        rows = (top | bottom).nonzero()[:, 0]
        loss = self._bag_means(batch, output, true, rows, top[rows].long())
        if self.subtyping:
            rows = self.clusters(batch, output, other)[0].nonzero()[:, 0]
            loss = (loss + self._bag_means(batch, output, other, rows, torch.zeros_like(rows))) / 2
        return loss

    def clusters(self, batch: BagBatch, output: Output, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return two (M,) bool: the k most and the k least attended instances by the branch of `label` (B,)."""
        f, bags, sizes = output.extra["attention"].detach(), batch.bag_index, batch.sizes
        branch = f[:, 0] if f.shape[1] == 1 else f.gather(1, label[bags, None])[:, 0]
        rank = segment_rank(branch, batch.offsets)
        k = (sizes // 2).clamp(max=self.k)
        return rank < k[bags], rank >= (sizes - k)[bags]

    def _bag_means(self, batch: BagBatch, output: Output, label: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        """Average over each bag (B,) the losses of some rows (R,) in the instance classifier of the bag's `label`."""
        bags = batch.bag_index[rows]
        # Features may come from a forward pass in half precision; losses use the precision of the weights.
        h = output.extra["h"][rows].to(self.instance_classifiers.weight.dtype)
        logits = self.instance_classifiers(h).unflatten(1, (2, 2))
        chosen = logits[torch.arange(len(rows), device=rows.device), label[bags]]
        losses = instance_losses(chosen, target, self.inst_loss)
        zero = losses.new_zeros(batch.n_bags)
        count = torch.bincount(bags, minlength=batch.n_bags).clamp(min=1)
        return zero.index_add(0, bags, losses) / count


def instance_losses(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    """Compute the loss of every instance from logits (R,2) and targets (R,) in {0,1}: -> (R,).

    "ce", or "svm": softplus(1 - (s_target - s_other)), the smooth top-1 SVM for two classes.
    """
    if kind == "ce":
        return F.cross_entropy(logits, target, reduction="none")
    difference = (logits[:, 1] - logits[:, 0]) * (2 * target - 1)
    return F.softplus(1 - difference)
