"""SETMIL (Zhao et al., MICCAI 2022): tokens on the slide's lattice, a pyramid of neighbourhoods, relative positions.

e = Linear(h) is placed on the bag's bounding box of lattice cells (row and column from 0, instances of a cell summed).
Pyramid, K = 3, 5, 7: the K x K neighbourhood of every cell (empty cells 0), LN, one-head attention with a skip from its
values, MLP; the three results are concatenated. A class token comes first, a fixed sinusoid of the cell's raster number
is added, and six pre-LN blocks follow whose attention logits have a learned bias per head and rounded distance
(iRPE: 0, 1, 2-3, 4 and more, pairs with the class token). LN, Linear on the class token.
Attention is restricted to occupied cells (`tokens="all"`: every cell of the box).
Score: the last block's attention from the class token to the instance's cell, mean over heads. The weights of a
bag's cells sum to at most 1, so scores fall as 1/N and do not compare across bags.

Shapes: (M,P) and the grid (M,2) -> bag_logit (B,), instance_score (M,). Time is quadratic in the cells of a bag, memory
is linear (a step on 20,000 cells: 4 GiB, at least ten minutes of one core); larger bags than `max_tokens` are refused.
"""

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from smmil.data.batch import BagBatch
from smmil.layers.attention import Bias, check_length, packed_attention, split_heads
from smmil.layers.dropout import Dropout
from smmil.layers.lattice_cells import Cells, lattice
from smmil.models.base import BaseOptions, MILModel, Output

KEEP = 2**25  # neighbourhood elements of a batch that are kept for the backward pass
BUCKETS = 5  # rounded distance 0, 1, 2-3, >= 4, and any pair with the class token


def sinusoid(number: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Encode positions (C,) as (C,width): sine in even, cosine in odd columns, wave lengths from 2 pi to 20000 pi."""
    column = torch.arange(width, device=number.device)
    rate = torch.pow(10000.0, -(2 * (column // 2)).double() / width)
    angle = number.double()[:, None] * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).to(dtype)


def distance_buckets(place: Tensor, start: int, stop: int) -> Tensor:
    """Return distance buckets of tokens start..stop to all, token 0 = class: cells (n,2) -> (stop - start, n + 1)."""
    tokens = F.pad(place, (0, 0, 1, 0)).float()
    # A matrix product would round the distances.
    distance = torch.cdist(tokens[start:stop], tokens, compute_mode="donot_use_mm_for_euclid_dist")
    bucket = torch.bucketize(distance, distance.new_tensor([0.5, 1.5, 3.5]))
    bucket[:, 0] = BUCKETS - 1
    if start == 0:
        bucket[0] = BUCKETS - 1
    return bucket


class PyramidLevel(nn.Module):
    """Attention among K x K neighbourhoods, then an MLP: (C,D) -> (C,W).

    Args:
        width: D.
        out: W.
        K: side of the neighbourhood.
        dropout: of attention, projection and MLP.
    """

    def __init__(self, width: int, out: int, K: int, dropout: float) -> None:
        super().__init__()
        self.K, self.dropout, self.scale = K, dropout, (width * K * K) ** -0.5
        self.norm = nn.LayerNorm(width * K * K)
        self.qkv = nn.Linear(width * K * K, 3 * out, bias=False)
        self.proj = nn.Sequential(nn.Linear(out, out), Dropout(dropout))
        self.mlp = mlp(out, out, dropout)

    def unfold(self, e: Tensor, cells: Cells) -> Tensor:
        """Gather neighbourhoods tap by tap, the middle tap is the cell itself: (C,D) -> (C, K K D)."""
        padded = torch.cat([e, e.new_zeros((1, e.shape[1]))])
        return padded.index_select(0, cells.neighbourhood(self.K).flatten()).view(len(e), -1)

    def _project(self, e: Tensor, cells: Cells) -> Tensor:
        out: Tensor = self.qkv(self.norm(self.unfold(e, cells)))
        return out

    def forward(self, e: Tensor, cells: Cells) -> Tensor:
        """Attend among the neighbourhoods of every bag: (C,D) -> (C,W)."""
        # K K copies of every cell are cheap to compute and large to store, so long bags recompute them in backward.
        large = len(e) * self.qkv.in_features > KEEP and torch.is_grad_enabled()
        qkv = checkpoint(self._project, e, cells, use_reentrant=False) if large else self._project(e, cells)
        q, k, v = qkv.chunk(3, -1)
        dropout = self.dropout if self.training else 0.0
        x = v + self.proj(packed_attention(q, k, v, cells.bounds, 1, scale=self.scale, dropout=dropout))
        out: Tensor = x + self.mlp(x)
        return out


def mlp(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return LN, Linear, GELU, Linear, (...,width) -> (...,width), with dropout after GELU and at the end."""
    first, second = nn.Linear(width, hidden), nn.Linear(hidden, width)
    return nn.Sequential(nn.LayerNorm(width), first, nn.GELU(), Dropout(dropout), second, Dropout(dropout))


class Block(nn.Module):
    """Pre-LN transformer block with a distance bias per head.

    Args:
        width: D.
        n_heads: heads.
        ratio: of the MLP.
        dropout: everywhere.
        relative: learn the bias.
    """

    def __init__(self, width: int, n_heads: int, ratio: int, dropout: float, relative: bool) -> None:
        super().__init__()
        self.n_heads, self.dropout, self.scale = n_heads, dropout, (width // n_heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Sequential(nn.Linear(width, width), Dropout(dropout))
        self.mlp = mlp(width, ratio * width, dropout)
        self.bias = nn.Parameter(torch.zeros(n_heads, BUCKETS)) if relative else None

    def distance_bias(self, place: Tensor) -> Bias | None:
        """Return the addend (h, stop - start, n + 1) of the logits of queries start..stop of a bag with cells (n,2)."""
        if self.bias is None:
            return None
        table = self.bias

        def bias(start: int, stop: int) -> Tensor:
            """Return the addend (h, stop - start, n + 1)."""
            bucket = distance_buckets(place, start, stop)
            # The backward pass of indexing adds millions of numbers one by one, so multiply with indicators instead.
            indicators = bucket == torch.arange(BUCKETS, device=place.device)[:, None, None]
            return torch.einsum("hc,cij->hij", table, indicators.to(table.dtype))

        return bias

    def forward(self, x: Tensor, bounds: list[int], places: list[Tensor]) -> Tensor:
        """Apply the block to packed tokens (T,D) and the cells (n,2) of every bag: -> (T,D)."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        biases = [self.distance_bias(place) for place in places]
        dropout = self.dropout if self.training else 0.0
        x = x + self.proj(
            packed_attention(q, k, v, bounds, self.n_heads, scale=self.scale, biases=biases, dropout=dropout)
        )
        out: Tensor = x + self.mlp(x)
        return out

    def class_attention(self, x: Tensor, bounds: list[int], places: list[Tensor]) -> Tensor:
        """Compute the attention of every class token to its cells, mean over heads: block input (T,D) -> (C,)."""
        q, k, _ = self.qkv(self.norm(x)).chunk(3, -1)
        rows = []
        for start, stop, place in zip(bounds[:-1], bounds[1:], places, strict=True):
            logits = self.scale * split_heads(q[start : start + 1], self.n_heads)
            logits = logits @ split_heads(k[start:stop], self.n_heads).mT
            if (bias := self.distance_bias(place)) is not None:
                logits = logits + bias(0, 1)
            rows.append(torch.softmax(logits, -1).mean(0)[0, 1:])
        return torch.cat(rows)


def initialise(module: nn.Module) -> None:
    """Initialise a Linear with weights from N(0, 0.02^2) and zero bias, as in the original repository."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SETMIL(MILModel):
    """Spatial-encoding transformer MIL.

    Args:
        in_features: P.
        token_dim: channels of e.
        pyramid: use the pyramid; without it, the blocks see Linear(e).
        sides: K of the pyramid's levels.
        level_dim: channels of a level.
        depth: blocks.
        n_heads: of a block.
        mlp_ratio: of a block.
        dropout: everywhere.
        relative: distance bias.
        tokens: "occupied" cells or "all" of the bounding box.
        max_tokens: largest number of cells and class token of a bag.
        base: see `MILModel`.

    Raises:
        ValueError: another choice of tokens.
    """

    needs = frozenset({"grid"})

    def __init__(
        self,
        in_features: int,
        *,
        token_dim: int = 128,
        pyramid: bool = True,
        sides: tuple[int, ...] = (3, 5, 7),
        level_dim: int = 64,
        depth: int = 6,
        n_heads: int = 16,
        mlp_ratio: int = 4,
        dropout: float = 0.2,
        relative: bool = True,
        tokens: str = "occupied",
        max_tokens: int = 32768,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        if tokens not in ("occupied", "all"):
            raise ValueError(f"tokens: found {tokens!r}, expected 'occupied' or 'all'")
        self.tokens, self.max_tokens = tokens, max_tokens
        dim = level_dim * len(sides)
        self.token = nn.Linear(self.width, token_dim)
        levels = [PyramidLevel(token_dim, level_dim, K, dropout) for K in sides]
        self.levels = nn.ModuleList(levels) if pyramid else None
        self.margin = max(sides) // 2
        self.lift = nn.Identity() if pyramid else nn.Linear(token_dim, dim)
        self.cls = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=0.02))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, n_heads, mlp_ratio, dropout, relative) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, 1)
        for part in (self.token, self.levels, self.lift, self.blocks, self.classifier):
            if part is not None:
                part.apply(initialise)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score (M,) of x (M,P) and the grid (M,2)."""
        cells = lattice(batch, occupied=self.tokens == "occupied", margin=self.margin)
        bounds = [bound + bag for bag, bound in enumerate(cells.bounds)]
        check_length(bounds, self.max_tokens, "setmil")
        e = self.token(self.embed(batch.x))
        x = self._levels(e.new_zeros((len(cells.keys), e.shape[1])).index_add(0, cells.of_instance, e), cells)
        x = x + sinusoid(cells.number + 1, x.shape[1], x.dtype)
        cls = self.cls + sinusoid(cells.number.new_zeros(1), x.shape[1], x.dtype)
        sizes = [stop - start for start, stop in zip(cells.bounds[:-1], cells.bounds[1:], strict=True)]
        x = self.dropout(torch.cat([part for rows in torch.split(x, sizes) for part in (cls, rows)]))
        places = list(torch.split(cells.place, sizes))
        before = x
        for block in self.blocks:
            before, x = x, block(x, bounds, places)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        score = last.class_attention(before, bounds, places)
        first = torch.tensor(bounds[:-1], device=x.device)
        return Output(self.classifier(self.norm(x[first]))[:, 0], score[cells.of_instance])

    def _levels(self, e: Tensor, cells: Cells) -> Tensor:
        if self.levels is None:
            out: Tensor = self.lift(e)
            return out
        return torch.cat([level(e, cells) for level in self.levels], 1)
