"""Pieces that several methods share, on packed batches: segment operations, embedding, attention pooling, transformer.

Shapes: rows of B bags stand one below the other, `offsets` (B+1,) marks the bags, M = rows in all.
Paper: Section 3 (attention pooling, Equations 1 and 2) and Appendix (transformer layer); the exact layer choices
(GELU embedding, bias in W and none in w, no output projection, no feed-forward) follow the authors' code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from smmil.attention import packed_attention
from smmil.sm import Graph, Sm


def segment_sum(x: Tensor, offsets: Tensor) -> Tensor:
    """(M,D) -> (B,D), sums the rows of each bag."""
    return weighted_sum(None, x, offsets)


def weighted_sum(weight: Tensor | None, h: Tensor, offsets: Tensor) -> Tensor:
    """sum_i weight_i h_i over each bag: (M,) or None = 1, (M,D) -> (B,D). No product of size (M,D) is stored."""
    if h.dtype in (torch.bfloat16, torch.float16) or (weight is not None and weight.dtype != h.dtype):
        product = h if weight is None else weight[:, None] * h
        return torch.segment_reduce(product, "sum", offsets=offsets, axis=0)
    out: Tensor = _WeightedSum.apply(weight, h, offsets)
    return out


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor | None, h: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(weight, h if weight is not None else None, offsets)
        ctx.rows = len(h)
        every = torch.arange(len(h), device=h.device)
        return F.embedding_bag(every, h, offsets[:-1], mode="sum", per_sample_weights=weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, h, offsets = ctx.saved_tensors
        of_row = grad.index_select(0, bag_index(offsets, ctx.rows))
        grad_weight = (of_row * h).sum(1) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_weight, None, None
        return grad_weight, of_row if weight is None else of_row.mul_(weight[:, None]), None


def segment_mean(x: Tensor, offsets: Tensor) -> Tensor:
    """(M,D) -> (B,D), mean of the rows of each bag."""
    return segment_sum(x, offsets) / (offsets[1:] - offsets[:-1])[:, None].to(x.dtype)


def segment_max(x: Tensor, offsets: Tensor) -> Tensor:
    """(M,D) -> (B,D), largest value of each column in each bag."""
    return torch.segment_reduce(x, "max", offsets=offsets, axis=0)


def bag_index(offsets: Tensor, n_rows: int) -> Tensor:
    """(B+1,) -> (M,), the bag of each row."""
    bags = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(bags, offsets[1:] - offsets[:-1], output_size=n_rows)


def segment_rank(values: Tensor, offsets: Tensor) -> Tensor:
    """(M,) -> (M,) int64, place of each row in its bag: 0 = largest value; ties in the order of the rows."""
    bags = bag_index(offsets, len(values))
    order = values.argsort(descending=True, stable=True)
    order = order[bags[order].argsort(stable=True)]
    places = torch.arange(len(values), device=values.device) - offsets[bags]
    return torch.empty_like(places).index_copy_(0, order, places)


def segment_softmax(f: Tensor, offsets: Tensor) -> Tensor:
    """Softmax inside each bag, max-subtracted.

    Args:
        f: (M,) attention values.
        offsets: (B+1,).

    Returns:
        (M,) weights that sum to 1 in every bag.
    """
    bags = bag_index(offsets, len(f))
    # the maximum is a constant of the softmax, so no gradient has to pass through it
    top = torch.segment_reduce(f.detach(), "max", offsets=offsets, axis=0)
    raised = torch.exp(f - top[bags])
    return raised / torch.segment_reduce(raised, "sum", offsets=offsets, axis=0)[bags]


def plain_softmax(f: Tensor, offsets: Tensor) -> Tensor:
    """exp(f) over its sum in each bag, as the released code has it: overflows (NaN) for f above about 88."""
    raised = torch.exp(f)
    return raised / torch.segment_reduce(raised, "sum", offsets=offsets, axis=0)[bag_index(offsets, len(f))]


def attend(f: Tensor, h: Tensor, offsets: Tensor) -> Tensor:
    """Equation 2, z = softmax(f)^T H of every bag: (M,), (M,D) -> (B,D)."""
    return weighted_sum(segment_softmax(f, offsets), h, offsets)


def embedding(in_features: int, width: int = 512, act: str = "gelu") -> nn.Sequential:
    """The common embedding: Linear(P, width) and an activation.

    Args:
        in_features: P.
        width: D.
        act: "gelu", "relu" or "none".

    Raises:
        ValueError: another activation.
    """
    acts: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}
    if act not in acts:
        raise ValueError(f"embed_act: found {act!r}, expected one of {', '.join(acts)}")
    return nn.Sequential(nn.Linear(in_features, width), acts[act]())


class AttentionPool(nn.Module):
    """Attention values f = tanh(H W^T + b) w of Equation 1, optionally gated, optionally with Sm inside.

    Args:
        width: D.
        attention_dim: L.
        gated: f = w^T (tanh(V h) * sigmoid(U h)).
        sm: the Sm module, or None.
        placement: where Sm acts: "early" (Equation 12: on H), "mid" (11: before tanh), "late" (10: on f).
        spectral: spectral normalisation of the layers after Sm: early W and w, mid w, late none.

    Raises:
        ValueError: an unknown placement.
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
        if placement not in ("early", "mid", "late"):
            raise ValueError(f"placement: found {placement!r}, expected 'early', 'mid' or 'late'")
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
        """Pools every bag.

        Args:
            h: (M,D).
            offsets: (B+1,).
            graph: needed when the pool has Sm.

        Returns:
            f (M,) attention values before the softmax, z (B,D) bag embeddings.
        """
        if self.sm is None or graph is None:
            f = self._score(torch.tanh(self.W(h)), h)
        elif self.placement == "early":
            return self._early(h, offsets, graph, self.sm)
        elif self.placement == "mid":
            f = self._score(torch.tanh(self.sm(self.W(h), graph, offsets)), h)
        else:
            f = self.sm(self._score(torch.tanh(self.W(h)), h)[:, None], graph, offsets)[:, 0]
        return f, weighted_sum(self._weights(f, offsets), h, offsets)

    def _weights(self, f: Tensor, offsets: Tensor) -> Tensor:
        return plain_softmax(f, offsets) if self.plain_softmax else segment_softmax(f, offsets)

    def _score(self, hidden: Tensor, h: Tensor) -> Tensor:
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(h))
        score: Tensor = self.w(hidden)[:, 0]
        return score

    def _early(self, h: Tensor, offsets: Tensor, graph: Graph, sm: Sm) -> tuple[Tensor, Tensor]:
        """Equation 12 by its algebra: Sm = P is linear and symmetric and acts on rows.

        So P H W^T = P (H W^T) needs Sm on L columns instead of D, and z = (P H)^T s = H^T (P s) on one more.
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


class TransformerLayer(nn.Module):
    """X <- X + [Sm](MHA(LN(X))): no bias, no output projection, no feed-forward (authors' configuration).

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
        """(M,D) -> (M,D); attention stays inside each bag."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        heads = packed_attention(q, k, v, offsets.tolist(), self.n_heads, scale=self.scale)
        if self.sm is not None and graph is not None:
            heads = self.sm(heads, graph, offsets)
        return x + heads
