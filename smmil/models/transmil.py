"""TransMIL (Shao et al., NeurIPS 2021): two Nystrom attention layers around a convolutional position encoding (PPEG).

The N tokens of a bag are filled up to a square of side S = ceil(sqrt N) with its first S^2 - N tokens, a learned class
token goes in front. x <- x + Nystrom(LN x); PPEG: tokens as an S x S picture, x + dw7x7(x) + dw5x5(x) + dw3x3(x);
x <- x + Nystrom(LN x); LN; Linear on the class token. The order of the instances matters (PPEG).

Score: the second layer's attention from the class token to the real tokens, mean over heads; approximated attention may
be negative. A bag with no more tokens than landmarks gets exact attention (see `smmil.layers.nystrom`).

Shapes: (M,P) -> bag_logit (B,), instance_score (M,). Bags that fill the same square run together.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smmil.data.batch import BagBatch
from smmil.layers.depthwise import depthwise
from smmil.layers.nystrom import NystromAttention
from smmil.layers.pooling import embedding
from smmil.models.base import MILModel, Output


class PPEG(nn.Module):
    """x + dw7x7(x) + dw5x5(x) + dw3x3(x) on tokens as a picture: (G,S^2,D) -> (G,S^2,D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw7, self.dw5, self.dw3 = (
            nn.Conv2d(width, width, side, padding=side // 2, groups=width) for side in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """Encodes positions; `side` = S."""
        # a sum of centred convolutions is one convolution with the sum of the zero-padded kernels
        kernel = self.dw7.weight + F.pad(self.dw5.weight, [1] * 4) + F.pad(self.dw3.weight, [2] * 4)
        bias = self.dw7.bias + self.dw5.bias + self.dw3.bias  # type: ignore[operator]
        picture = tokens.mT.reshape(len(tokens), -1, side, side)
        encoded = depthwise(picture, kernel, bias)
        return tokens + encoded.flatten(2).mT


class TransMIL(MILModel):
    """Transformer with Nystrom attention.

    Args:
        in_features: P.
        n_heads: heads of 64.
        n_landmarks: m.
        pinv_iterations: of the pseudo-inverse.
        dropout: behind the output projection of the attention.
        value_conv: kernel length of the value convolution, 0 = none.
        out_proj: output projection in the attention.
        prenorm: LayerNorm inside the layers.
        pad_to_landmarks: approximate small bags too, padded with zeros as in the original.
        width: D.
        embed_act: activation of the embedding.
        pos_weight: see `MILModel`.
    """

    def __init__(
        self,
        in_features: int,
        *,
        n_heads: int = 8,
        n_landmarks: int = 256,
        pinv_iterations: int = 6,
        dropout: float = 0.1,
        value_conv: int = 33,
        out_proj: bool = True,
        prenorm: bool = True,
        pad_to_landmarks: bool = False,
        width: int = 512,
        embed_act: str = "gelu",
        pos_weight: float | None = None,
    ) -> None:
        super().__init__(pos_weight=pos_weight)
        self.embed = embedding(in_features, width, embed_act)
        self.cls = nn.Parameter(torch.randn(width))
        self.layers = nn.ModuleList(
            NystromAttention(
                width,
                n_heads=n_heads,
                n_landmarks=n_landmarks,
                iterations=pinv_iterations,
                value_conv=value_conv,
                out_proj=out_proj,
                dropout=dropout,
                pad_to_landmarks=pad_to_landmarks,
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) if prenorm else nn.Identity() for _ in range(2))
        self.ppeg = PPEG(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """(M,P) -> bag_logit (B,), instance_score (M,)."""
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

    def _square(self, tokens: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """(G,S^2,D) -> logits (G,1), attention of the class token (G,S^2)."""
        x = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], 1)
        x = x + self.layers[0](self.norms[0](x))[0]
        x = torch.cat([x[:, :1], self.ppeg(x[:, 1:], side)], 1)
        attended, row = self.layers[1](self.norms[1](x), with_row=True)
        return self.classifier(self.norm((x + attended)[:, 0])), row[:, 1:]
