"""SETMIL (Zhao et al., MICCAI 2022): tokens on the slide's lattice, a pyramid of neighbourhoods, relative positions.

e = Linear(h) is placed on the bag's bounding box of lattice cells (row and column from 0, instances of a cell summed).
Pyramid, K = 3, 5, 7: the K x K neighbourhood of every cell (empty cells 0), LN, one-head attention with a skip from its
values, MLP; the three results are concatenated. A class token comes first, a fixed sinusoid of the cell's raster number
is added, and six pre-LN blocks follow whose attention logits have a learned bias per head and rounded distance
(iRPE: 0, 1, 2-3, 4 and more, pairs with the class token). LN, Linear on the class token.
Attention is restricted to occupied cells.
Score: the last block's attention from the class token to the instance's cell, mean over heads. The weights of a
bag's cells sum to at most 1, so scores fall as 1/N and do not compare across bags.

Shapes: (M,P) and the grid (M,2) -> bag_logit (B,), instance_score (M,). Time is quadratic in the cells of a bag, memory
is linear (a step on 20,000 cells: 4 GiB, at least ten minutes of one core); larger bags than `max_tokens` are refused.
Cells have sorted keys and a binary search returns their neighbours, so memory does not depend on the size of the boxes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from smmil.data.batch import BagBatch
from smmil.layers.attention import check_length, packed_attention, split_heads
from smmil.layers.dropout import Dropout
from smmil.models.base import BaseOptions, MILModel, Output

KEEP = 2**25  # neighbourhood elements of a batch that are kept for the backward pass
BUCKETS = 5  # rounded distance 0, 1, 2-3, >= 4, and any pair with the class token


@dataclass(frozen=True)
class Cells:
    """The occupied lattice cells of a batch, C in all, raster order inside every bag.

    Attributes:
        keys: (C,) int64, ascending; one row down is `stride`, one column right is 1.
        place: (C,2) int64 row and column within the bag's box.
        number: (C,) int64, row * box width + column.
        of_instance: (M,) int64, the cell of each instance.
        bounds: B+1 cell numbers.
    """

    keys: Tensor
    stride: int
    place: Tensor
    number: Tensor
    of_instance: Tensor
    bounds: list[int]

    def neighbourhood(self, K: int) -> Tensor:
        """Return the K x K cells around each cell, row by row: (C, K*K) int64, C where there is no cell."""
        reach = torch.arange(K, device=self.keys.device) - K // 2
        keys = self.keys[:, None] + (reach[:, None] * self.stride + reach).flatten()
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, place, len(self.keys))


def lattice(batch: BagBatch, margin: int = 3) -> Cells:
    """Return the cells of a batch with grid (M,2), whose boxes get a margin, K // 2 for K x K neighbourhoods."""
    bag = batch.bag_index
    where = bag[:, None].expand(-1, 2)
    empty = batch.grid.new_zeros((batch.n_bags, 2))
    low = empty.scatter_reduce(0, where, batch.grid, "amin", include_self=False)
    shifted = batch.grid - low[bag]
    extent = empty.scatter_reduce(0, where, shifted, "amax", include_self=False) + 1
    height, stride = (int(side) + 2 * margin for side in extent.amax(0))
    row, col = (shifted + margin).unbind(1)
    keys, of_instance = torch.unique((bag * height + row) * stride + col, return_inverse=True)
    owner = keys // stride // height
    place = torch.stack([keys // stride % height, keys % stride], 1) - margin
    counts = torch.bincount(owner, minlength=batch.n_bags).cumsum(0).tolist()
    return Cells(keys, stride, place, place[:, 0] * extent[owner, 1] + place[:, 1], of_instance, [0, *counts])


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
    """Attention among K x K neighbourhoods, then an MLP: (C,width) -> (C,out)."""

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
    """Pre-LN transformer block with a learned distance bias per head, dropout everywhere."""

    def __init__(self, width: int, n_heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout, self.scale = n_heads, dropout, (width // n_heads) ** -0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Sequential(nn.Linear(width, width), Dropout(dropout))
        self.mlp = mlp(width, ratio * width, dropout)
        self.bias = nn.Parameter(torch.zeros(n_heads, BUCKETS))

    def distance_bias(self, place: Tensor, start: int, stop: int) -> Tensor:
        """Return the addend (h, stop - start, n + 1) of the logits of queries start..stop of a bag with cells (n,2)."""
        bucket = distance_buckets(place, start, stop)
        # The backward pass of indexing adds millions of numbers one by one, so multiply with indicators instead.
        indicators = bucket == torch.arange(BUCKETS, device=place.device)[:, None, None]
        return torch.einsum("hc,cij->hij", self.bias, indicators.to(self.bias.dtype))

    def forward(self, x: Tensor, bounds: list[int], places: list[Tensor]) -> Tensor:
        """Apply the block to packed tokens (T,D) and the cells (n,2) of every bag: -> (T,D)."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        biases = [partial(self.distance_bias, place) for place in places]
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
            logits = logits @ split_heads(k[start:stop], self.n_heads).mT + self.distance_bias(place, 0, 1)
            rows.append(torch.softmax(logits, -1).mean(0)[0, 1:])
        return torch.cat(rows)


def initialise(module: nn.Module) -> None:
    """Initialise a Linear with weights from N(0, 0.02^2) and zero bias, as in the original repository."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class SETMIL(MILModel):
    """Spatial-encoding transformer MIL; `sides` are the K of the pyramid's levels."""

    needs = frozenset({"grid"})

    def __init__(
        self,
        in_features: int,
        *,
        token_dim: int = 128,
        sides: tuple[int, ...] = (3, 5, 7),
        level_dim: int = 64,
        depth: int = 6,
        n_heads: int = 16,
        mlp_ratio: int = 4,
        dropout: float = 0.2,
        max_tokens: int = 32768,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        self.max_tokens, self.margin, dim = max_tokens, max(sides) // 2, level_dim * len(sides)
        self.token = nn.Linear(self.width, token_dim)
        self.levels = nn.ModuleList(PyramidLevel(token_dim, level_dim, K, dropout) for K in sides)
        self.cls = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=0.02))
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, n_heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, 1)
        for part in (self.token, self.levels, self.blocks, self.classifier):
            part.apply(initialise)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score (M,) of x (M,P) and the grid (M,2)."""
        cells = lattice(batch, self.margin)
        bounds = [bound + bag for bag, bound in enumerate(cells.bounds)]
        check_length(bounds, self.max_tokens, "setmil")
        e = self.token(self.embed(batch.x))
        e = e.new_zeros((len(cells.keys), e.shape[1])).index_add(0, cells.of_instance, e)
        x = torch.cat([level(e, cells) for level in self.levels], 1)
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
