"""Every layer with a computation of its own gives in float32 the results and gradients that it gives in float64.

Over many lengths, because a kernel may be wrong at some only: torch's oneDNN gradient of the value convolution is off
by up to 20 % of its largest entry at 46, 61, 76, 91, ... tokens. GraphCAM needs float64 and has no gradient.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.bags import lattice_table, make_batch
from smmil.layers.attention import attention, packed_attention
from smmil.layers.depthwise import depthwise
from smmil.layers.dropout import Dropout
from smmil.layers.graph_layers import GEN, chebyshev_basis, mincut_pool, propagate
from smmil.layers.graphcam import Block as GraphCAMBlock
from smmil.layers.nystrom import NystromAttention
from smmil.layers.pooling import AttentionPool
from smmil.layers.segments import plain_softmax, segment_max, segment_mean, segment_softmax, weighted_sum
from smmil.models import setmil
from smmil.models.camil import feature_similarity, neighbour_weights
from smmil.models.iibmil import EncoderLayer
from smmil.models.transmil import PPEG
from smmil.sm.operator import Graph, Sm, normalise_adjacency

LENGTHS = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 46, 61, 64, 65, 76, 91, 106, 121, 226, 256, 257, 301]
D = 8


class Numbers:
    """The same random numbers and weights in any type; lists what gradients are taken of."""

    def __init__(self, n: int, dtype: torch.dtype) -> None:
        torch.manual_seed(n)
        self.n, self.dtype, self.leaves = n, dtype, list[Tensor]()

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers."""
        self.leaves.append(torch.randn(shape).to(self.dtype).requires_grad_())
        return self.leaves[-1]

    def rows(self) -> Tensor:
        """Normal numbers, (n,D)."""
        return self.normal(self.n, D)

    def layer(self, module: nn.Module) -> Any:
        """A layer with weights of this type."""
        module = module.to(self.dtype)
        self.leaves += module.parameters()
        return module

    def graph(self) -> Graph:
        """A square lattice of n nodes, row by row."""
        return normalise_adjacency(lattice_table(self.n), dtype=self.dtype)

    @property
    def bounds(self) -> list[int]:
        """Two bags, one where there is one row."""
        return sorted({0, self.n // 3, self.n})

    @property
    def offsets(self) -> Tensor:
        """Two bags, one where there is one row."""
        return torch.tensor(self.bounds)

    @property
    def one_bag(self) -> Tensor:
        """All rows."""
        return torch.tensor([0, self.n])


def heads(x: Numbers) -> list[Tensor]:
    return [x.normal(2, x.n, 4) for _ in range(3)]


def bias_of(x: Numbers) -> Callable[[int, int], Tensor]:
    table = x.normal(2, x.n, x.n)
    return lambda start, stop: table[:, start:stop]


def pool(x: Numbers, **options: Any) -> Any:
    layer = x.layer(AttentionPool(D, 4, sm=Sm(), **options))
    return layer(x.rows(), x.one_bag, x.graph())


def cells(x: Numbers) -> Any:
    return setmil.lattice(make_batch([x.n], 1))


def setmil_block(x: Numbers) -> Tensor:
    place = cells(x).place
    return x.layer(setmil.Block(16, 2, 1, 0.2))(x.normal(x.n + 1, 16), [0, x.n + 1], [place])


def camil_weights(x: Numbers) -> Tensor:
    table = lattice_table(x.n)
    similarity = feature_similarity(torch.randn(x.n, D).to(x.dtype), table)
    return neighbour_weights(x.rows(), x.rows(), table, *similarity, x.one_bag)


LAYERS: dict[str, Callable[[Numbers], Any]] = {
    "sm steps": lambda x: x.layer(Sm())(x.rows(), x.graph(), x.one_bag),
    "sm exact": lambda x: x.layer(Sm(T="exact"))(x.rows(), x.graph(), x.one_bag),
    "nystrom": lambda x: x.layer(NystromAttention(16, n_heads=2))(x.normal(1, x.n, 16), with_row=True),
    "nystrom, few landmarks": lambda x: x.layer(NystromAttention(16, n_heads=2, n_landmarks=32))(x.normal(1, x.n, 16)),
    "nystrom, exact": lambda x: x.layer(NystromAttention(16, n_heads=2, small_bags="exact"))(x.normal(1, x.n, 16)),
    "value convolution": lambda x: depthwise(x.normal(2, 2, x.n, 16), x.normal(2, 1, 33, 1)),
    "image convolution": lambda x: depthwise(x.normal(1, 4, x.n, 9), x.normal(4, 1, 7, 7), x.normal(4)),
    "ppeg": lambda x: x.layer(PPEG(D))(x.normal(1, min(x.n, 20) ** 2, D), min(x.n, 20)),
    "attention": lambda x: attention(*heads(x), scale=0.5),
    "attention with bias": lambda x: attention(*heads(x), scale=0.5, bias=bias_of(x)),
    "attention with dropout": lambda x: attention(*heads(x), scale=0.5, dropout=0.3),
    "packed attention": lambda x: packed_attention(*(x.rows() for _ in range(3)), x.bounds, 2, scale=0.5),
    "dropout": lambda x: x.layer(Dropout(0.3))(x.rows()),
    "weighted sum": lambda x: weighted_sum(x.normal(x.n), x.rows(), x.offsets),
    "segment mean": lambda x: segment_mean(x.rows(), x.offsets),
    "segment max": lambda x: segment_max(x.rows(), x.offsets),
    "segment softmax": lambda x: segment_softmax(x.normal(x.n), x.offsets),
    "plain softmax": lambda x: plain_softmax(x.normal(x.n), x.offsets),
    "propagate": lambda x: propagate(x.rows(), x.graph()),
    "chebyshev": lambda x: chebyshev_basis(x.rows(), x.graph(), 4),
    "gen": lambda x: x.layer(GEN(D))(x.rows(), lattice_table(x.n)),
    "mincut": lambda x: mincut_pool(torch.softmax(x.rows(), 1), x.rows(), x.graph(), x.one_bag),
    "pool": lambda x: x.layer(AttentionPool(D, 4))(x.rows(), x.offsets),
    "pool, early": lambda x: pool(x, placement="early"),
    "pool, early and gated": lambda x: pool(x, placement="early", gated=True),
    "pool, mid": lambda x: pool(x, placement="mid"),
    "pool, late": lambda x: pool(x, placement="late"),
    "gtp block": lambda x: x.layer(GraphCAMBlock(D, 2))(x.normal(2, x.n, D)),
    "iibmil layer": lambda x: x.layer(EncoderLayer(D, hidden=16))(x.rows(), x.bounds),
    "setmil level": lambda x: x.layer(setmil.PyramidLevel(4, D, 3, 0.2))(x.normal(x.n, 4), cells(x)),
    "setmil block": setmil_block,
    "camil weights": camil_weights,
}


def results(layer: Callable[[Numbers], Any], n: int, dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients as float64."""
    numbers = Numbers(n, dtype)
    out = layer(numbers)
    parts = [part for part in (out if isinstance(out, tuple) else (out,)) if part is not None]
    total = sum((part * torch.randn(part.shape).to(dtype)).sum() for part in parts)
    gradients = torch.autograd.grad(total, numbers.leaves, allow_unused=True)
    return [t.detach().double() for t in (*parts, *gradients) if t is not None]


def largest_error(layer: Callable[[Numbers], Any], n: int) -> float:
    """Largest error of a result or gradient, relative to its largest entry, at least to 1 % of that of all."""
    actual, expected = (results(layer, n, dtype) for dtype in (torch.float32, torch.float64))
    assert len(actual) == len(expected) > 1
    tops = [float(t.abs().max()) for t in expected]
    pairs = zip(actual, expected, tops, strict=True)
    return max(float((a - b).abs().max()) / max(top, 0.01 * max(tops)) for a, b, top in pairs)


@pytest.mark.parametrize("name", LAYERS)
def test_float32_equals_float64_at_every_length(name: str) -> None:
    errors = {n: largest_error(LAYERS[name], n) for n in LENGTHS}
    assert {n: error for n, error in errors.items() if not error < 2e-5} == {}
