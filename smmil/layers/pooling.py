"""Embedding and attention pooling on packed batches (paper, Section 3, Equations 1 and 2; with Sm Equations 10 to 12).

The activation GELU, the bias of W and the absence of one in w follow the authors' code.

Shapes: M rows of B bags, `offsets` (B+1,) -> f (M,), z (B,D).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from smmil.layers import check_choice
from smmil.layers.segments import plain_softmax, segment_softmax, weighted_sum
from smmil.sm.operator import Graph, Sm


def attend(f: Tensor, h: Tensor, offsets: Tensor) -> Tensor:
    """Compute Equation 2, z = softmax(f)^T H of every bag: (M,), (M,D) -> (B,D)."""
    return weighted_sum(segment_softmax(f, offsets), h, offsets)


def attend_reference(f: Tensor, h: Tensor, offsets: Tensor) -> Tensor:
    """Compute Equation 2 as written, bag by bag: (M,), (M,D) -> (B,D)."""
    bags = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    return torch.stack([torch.softmax(f[a:b], 0) @ h[a:b] for a, b in bags])


def embedding(in_features: int, width: int = 512, act: str = "gelu") -> nn.Sequential:
    """Build the common embedding (M,P) -> (M,D): Linear(P, D) and an activation."""
    acts: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}
    check_choice("embed_act", act, *acts)
    return nn.Sequential(nn.Linear(in_features, width), acts[act]())


class AttentionPool(nn.Module):
    """Attention pooling, f = tanh(H W^T + b) w and z = softmax(f)^T H, optionally gated, optionally with Sm.

    Args:
        width: D.
        attention_dim: L.
        gated: use f = w^T (tanh(V h) * sigmoid(U h)).
        sm: the Sm module, or None.
        placement: where Sm acts: "early" (Equation 12: on H), "mid" (11: before tanh), "late" (10: on f).
        spectral: normalise the layers after Sm spectrally: early W and w, mid w, late none.
    """

    def __init__(
        self,
        width: int,
        attention_dim: int = 128,
        *,
        gated: bool = False,
        sm: Sm | None = None,
        placement: str = "early",
        spectral: bool = True,
    ) -> None:
        super().__init__()
        check_choice("placement", placement, "early", "mid", "late")
        self.W = nn.Linear(width, attention_dim)
        self.w = nn.Linear(attention_dim, 1, bias=False)
        self.gate = nn.Linear(width, attention_dim) if gated else None
        self.sm, self.placement = sm, placement
        self.plain_softmax = False
        if sm is not None and spectral and placement != "late":
            spectral_norm(self.w)
            if placement == "early":
                spectral_norm(self.W)
                if self.gate is not None:
                    spectral_norm(self.gate)

    def forward(self, h: Tensor, offsets: Tensor, graph: Graph | None = None) -> tuple[Tensor, Tensor]:
        """Pool every bag, h (M,D): -> attention values before the softmax f (M,), bag embeddings z (B,D)."""
        if self.sm is None or graph is None:
            f = self._score(torch.tanh(self.W(h)), h)
        elif self.placement == "early":
            return self._early(h, offsets, graph, self.sm)
        elif self.placement == "mid":
            f = self._score(torch.tanh(self.sm(self.W(h), graph, offsets)), h)
        else:
            f = self.sm(self._score(torch.tanh(self.W(h)), h)[:, None], graph, offsets)[:, 0]
        return f, weighted_sum(self._weights(f, offsets), h, offsets)

    def forward_reference(self, h: Tensor, offsets: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        """Compute f (M,) and z (B,D) of "early" as Equation 12 is written: H <- Sm(H), then Equations 1 and 2."""
        if self.sm is not None:
            h = self.sm(h, graph, offsets)
        f = self._score(torch.tanh(self.W(h)), h)
        return f, attend_reference(f, h, offsets)

    def _weights(self, f: Tensor, offsets: Tensor) -> Tensor:
        return plain_softmax(f, offsets) if self.plain_softmax else segment_softmax(f, offsets)

    def _score(self, hidden: Tensor, h: Tensor) -> Tensor:
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(h))
        score: Tensor = self.w(hidden)[:, 0]
        return score

    def _early(self, h: Tensor, offsets: Tensor, graph: Graph, sm: Sm) -> tuple[Tensor, Tensor]:
        """Compute Equation 12 with Sm on L + 1 instead of D columns; `forward_reference` is the plain form.

        Sm = P is linear, symmetric and acts on rows, so (P H) W^T = P (H W^T) and z = (P H)^T s = H^T (P s).
        """
        projected = F.linear(h, self.W.weight)
        gates = [] if self.gate is None else [F.linear(h, self.gate.weight)]
        smoothed = sm(torch.cat([projected, *gates], 1), graph, offsets)
        hidden = torch.tanh(smoothed[:, : projected.shape[1]] + self.W.bias)
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(smoothed[:, projected.shape[1] :] + self.gate.bias)
        f = self.w(hidden)[:, 0]
        weight = sm(self._weights(f, offsets)[:, None], graph, offsets)
        return f, weighted_sum(weight[:, 0], h, offsets)
