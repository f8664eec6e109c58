"""TransMIL (Shao et al., NeurIPS 2021): two Nystrom attention layers around a convolutional position encoding (PPEG).

The N tokens of a bag are extended to a square of side S = ceil(sqrt N) with its first S^2 - N tokens, after a learned
class token. x <- x + Nystrom(LN x); PPEG: tokens as an S x S image, x + dw7x7(x) + dw5x5(x) + dw3x3(x);
x <- x + Nystrom(LN x); LN; Linear on the class token. The order of the instances matters (PPEG).

Score: the second layer's attention from the class token to the real tokens, mean over heads; approximated attention may
be negative. The weights of a bag and its padding sum to about 1, so scores do not compare across bags.

Shapes: (M,P) -> bag_logit (B,), instance_score (M,). Bags with the same S run together; `forward_reference` takes them
one by one.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smmil.data.batch import BagBatch
from smmil.layers.depthwise import depthwise
from smmil.layers.nystrom import NystromAttention, NystromOptions
from smmil.models.base import MILModel, Output


class PPEG(nn.Module):
    """Position encoding x + dw7x7(x) + dw5x5(x) + dw3x3(x) of tokens as an image: (G,S^2,D) -> (G,S^2,D).

    A sum of centred convolutions is one convolution with the sum of the zero-padded kernels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw7, self.dw5, self.dw3 = (
            nn.Conv2d(width, width, side, padding=side // 2, groups=width) for side in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """Encode positions, `side` = S: (G,S^2,D) -> (G,S^2,D)."""
        kernel = self.dw7.weight + F.pad(self.dw5.weight, [1] * 4) + F.pad(self.dw3.weight, [2] * 4)
        bias = self.dw7.bias + self.dw5.bias + self.dw3.bias  # type: ignore[operator]
        image = tokens.mT.reshape(len(tokens), -1, side, side)
        return tokens + depthwise(image, kernel, bias).flatten(2).mT

    def forward_reference(self, tokens: Tensor, side: int) -> Tensor:
        """Encode positions as written, by three convolutions: (G,S^2,D) -> (G,S^2,D)."""
        x = tokens.mT.reshape(len(tokens), -1, side, side)
        out: Tensor = x + self.dw7(x) + self.dw5(x) + self.dw3(x)
        return out.flatten(2).mT


class TransMIL(MILModel):
    """Transformer with Nystrom attention; `dropout` acts after the output projection of the attention."""

    def __init__(
        self,
        in_features: int,
        *,
        dropout: float = 0.1,
        width: int = 512,
        embed_act: str = "gelu",
        pos_weight: float | None = None,
        **nystrom: Unpack[NystromOptions],
    ) -> None:
        super().__init__(in_features, width=width, embed_act=embed_act, pos_weight=pos_weight)
        self.cls = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(NystromAttention(width, dropout=dropout, **nystrom) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ppeg = PPEG(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score (M,) of x (M,P)."""
        h, starts, sizes = self.embed(batch.x), batch.offsets.tolist(), batch.sizes.tolist()
        sides: dict[int, list[int]] = {}
        for bag, n in enumerate(sizes):
            sides.setdefault(math.isqrt(n - 1) + 1, []).append(bag)
        logits: list[Tensor] = [h] * len(sizes)
        scores: list[Tensor] = [h] * len(sizes)
        for side, bags in sides.items():
            place = torch.arange(side * side, device=h.device)
            rows = torch.stack([starts[bag] + place % sizes[bag] for bag in bags])
            logit, attention = self._square(h[rows], side)
            for i, bag in enumerate(bags):
                logits[bag], scores[bag] = logit[i], attention[i, : sizes[bag]]
        return Output(torch.cat(logits), torch.cat(scores))

    def forward_reference(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score (M,) bag by bag."""
        logits, scores = [], []
        for h in self.embed(batch.x).split(batch.sizes.tolist()):
            side = math.ceil(math.sqrt(len(h)))
            logit, attention = self._square(torch.cat([h, h[: side**2 - len(h)]])[None], side)
            logits.append(logit[0])
            scores.append(attention[0, : len(h)])
        return Output(torch.cat(logits), torch.cat(scores))

    def _square(self, tokens: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Compute logits (G,1) and the attention of the class token (G,S^2) from tokens (G,S^2,D)."""
        x = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], 1)
        x = x + self.layers[0](self.norms[0](x))[0]
        x = torch.cat([x[:, :1], self.ppeg(x[:, 1:], side)], 1)
        attended, row = self.layers[1](self.norms[1](x), with_row=True)
        return self.classifier(self.norm((x + attended)[:, 0])), row[:, 1:]
