"""DeepGraphSurv (Li et al., MICCAI 2018): spectral graph convolution beside graph-convolutional attention.

Lhat = 2 L / lambda_max - I with lambda_max = 2, hence Lhat = -A_hat; Cheb(x) = Linear([Z_0 .. Z_(K-1)]) on the
Chebyshev polynomials Z_k of Lhat, K = 5. R = ReLU(Cheb(h)), f = w ReLU(Cheb'(h)), z = softmax(f)^T R, then a linear
classifier. Cross entropy of the bag label stands in place of the survival loss. Score: f.

Variant "propagation": h = ReLU(Linear(x)), three times Y <- ReLU(A_hat Y + Y), f = w ReLU((A_hat + I) Linear(Y)),
z = softmax(f)^T Y.

Shapes: (M,P) and the graph -> bag_logit (B,), instance_score (M,).
"""

from typing import Unpack

import torch
from torch import nn

from smmil.data.batch import BagBatch
from smmil.layers import check_choice
from smmil.layers.graph_layers import chebyshev_basis, propagate
from smmil.layers.pooling import attend
from smmil.models.base import BaseOptions, MILModel, Output, graph_of


class DeepGraphSurv(MILModel):
    """Chebyshev convolutions for representation and attention, or the variant "propagation" of `n_steps`."""

    needs = frozenset({"neighbors"})

    def __init__(
        self,
        in_features: int,
        *,
        variant: str = "chebyshev",
        K: int = 5,
        n_steps: int = 3,
        attention_dim: int = 128,
        **base: Unpack[BaseOptions],
    ) -> None:
        if variant == "propagation":
            base.setdefault("embed_act", "relu")
        super().__init__(in_features, **base)
        if K < 1:
            raise ValueError(f"K: found {K}, expected a number of Chebyshev polynomials >= 1")
        check_choice("variant", variant, "chebyshev", "propagation")
        self.variant, self.K, self.n_steps, width = variant, K, n_steps, self.width
        if variant == "chebyshev":
            self.represent = nn.Linear(K * width, width, bias=False)
            self.attention = nn.Linear(K * width, attention_dim, bias=False)
        else:
            self.attention = nn.Linear(width, attention_dim)
        self.w = nn.Linear(attention_dim, 1)
        self.classifier = nn.Linear(width, 1)

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score f (M,) of x (M,P) and the graph."""
        graph, h = graph_of(batch), self.embed(batch.x)
        if self.variant == "chebyshev":
            # Both branches filter the same signal, so they share its polynomials.
            basis = chebyshev_basis(h, graph, self.K)
            represented, attended = torch.relu(self.represent(basis)), torch.relu(self.attention(basis))
        else:
            for _ in range(self.n_steps):
                h = torch.relu(propagate(h, graph) + h)
            linear = self.attention(h)
            represented, attended = h, torch.relu(propagate(linear, graph) + linear)
        f = self.w(attended)[:, 0]
        return Output(self.classifier(attend(f, represented, batch.offsets))[:, 0], f)
