"""DSMIL (Li et al., CVPR 2021): an instance stream selects the critical instance m, a bag stream attends by similarity.

s_i = w_m h_i + b_m; m = argmax s (the first on ties); q(h) = tanh(Q_2 ReLU(Q_1 h)); a = softmax_i(q_i q_m / sqrt(128));
z = sum a_i h_i; logit = c z + c0. Loss = 0.5 BCE(bag) + 0.5 BCE(s_m). Score: s_i, which localises better than a_i.

SmDSMIL: H <- Sm(H) before both streams (`forward_reference`), query layers spectrally normalised. Sm = P is linear,
symmetric and acts on rows, so `forward` applies it to the 129 columns of the first linear layers, P(H W^T) = (P H) W^T,
and to the weights, H^T (P a) = (P H)^T a, instead of to the 512 columns of H.

Shapes: (M,P) and, with Sm, the graph -> bag_logit (B,), instance_score (M,).
"""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as normalise

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.segments import segment_rank, segment_softmax, weighted_sum
from smmil.models.base import BaseOptions, MILModel, Output, smoother
from smmil.sm.operator import Sm


class DSMIL(MILModel):
    """Dual-stream MIL.

    Args:
        nonlinear_q: query of two layers; False = one linear layer.
        passing_v: use values ReLU(Linear(h)) instead of h.
        score: "instance" = s_i, "attention" = q_i q_m / sqrt(q_dim), before the softmax.
        bag_weight: weight of the bag stream's loss.
        instance_weight: weight of the critical instance's loss.
        sm: Sm on H; SmDSMIL has it.
    """

    def __init__(
        self,
        in_features: int,
        *,
        nonlinear_q: bool = True,
        passing_v: bool = False,
        score: str = "instance",
        q_dim: int = 128,
        bag_weight: float = 0.5,
        instance_weight: float = 0.5,
        sm: bool = False,
        alpha: float | str = "trainable",
        T: int | str = 10,
        spectral_norm: bool = True,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        check_choice("score", score, "instance", "attention")
        self.score, self.bag_weight, self.instance_weight = score, bag_weight, instance_weight
        self.instance = nn.Linear(self.width, 1)
        self.query = nn.Linear(self.width, q_dim)
        self.query_2 = nn.Linear(q_dim, q_dim) if nonlinear_q else None
        self.value = nn.Linear(self.width, self.width) if passing_v else None
        self.classifier = nn.Linear(self.width, 1)
        self.sm = Sm(alpha, T) if sm else None
        self.needs = frozenset({"neighbors"} if sm else ())
        if sm and spectral_norm:
            for layer in (self.query, self.query_2):
                if layer is not None:
                    normalise(layer)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score s (M,) of x (M,P)."""
        h, offsets = self.embed(batch.x), batch.offsets
        smooth = smoother(self.sm, batch)
        s, hidden = self._linear(h, smooth)
        q = self._query(hidden)
        critical = (segment_rank(s.detach(), offsets) == 0).nonzero()[:, 0]
        f = (q * q[critical][batch.bag_index]).sum(1) / q.shape[1] ** 0.5
        a = segment_softmax(f, offsets)
        weight, values = (smooth(a[:, None])[:, 0], h) if self.value is None else (a, torch.relu(self.value(smooth(h))))
        z = weighted_sum(weight, values, offsets)
        score = s if self.score == "instance" else f
        return Output(self.classifier(z)[:, 0], score, {"critical": s[critical], "critical_row": critical})

    def forward_reference(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score s (M,) as written: H <- Sm(H), then both streams bag by bag."""
        smoothed = smoother(self.sm, batch)(self.embed(batch.x))
        logits, scores = [], []
        for h in torch.split(smoothed, batch.sizes.tolist()):
            s, q = self.instance(h)[:, 0], self._query(self.query(h))
            a = torch.softmax(q @ q[s.argmax()] / q.shape[1] ** 0.5, 0)
            logits.append(self.classifier(a @ (h if self.value is None else torch.relu(self.value(h)))))
            scores.append(s)
        return Output(torch.cat(logits), torch.cat(scores))

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Return {"bce": weighted loss of the bag stream, "critical": that of the critical instances}, scalars."""
        # The critical logits may have half precision; the caller converts only the bag logit.
        critical = output.extra["critical"].to(output.bag_logit.dtype)
        return {
            "bce": self.bag_weight * self.bag_loss(output.bag_logit, batch.y),
            "critical": self.instance_weight * self.bag_loss(critical, batch.y),
        }

    def _query(self, hidden: Tensor) -> Tensor:
        return hidden if self.query_2 is None else torch.tanh(self.query_2(torch.relu(hidden)))

    def _linear(self, h: Tensor, smooth: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the first linear layers of both streams on Sm(H): H (M,D) -> (M,), (M,q_dim)."""
        columns = smooth(torch.cat([F.linear(h, self.instance.weight), F.linear(h, self.query.weight)], 1))
        return columns[:, 0] + self.instance.bias, columns[:, 1:] + self.query.bias
