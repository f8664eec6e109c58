"""Graph layers that several methods share, on packed batches: propagation, Chebyshev basis, GEN aggregation, min-cut.

Sources: Chebyshev filters, Defferrard et al. 2016, Section 2.1; GEN (softmax aggregation), Li et al. 2020,
"DeeperGCN", Section 3.2; min-cut pooling, Bianchi et al. 2020, Equations 3 to 6.

Shapes: M rows of B bags, `offsets` (B+1,); a graph is a neighbour table (M,K) that never links two bags, so every
operation acts bag by bag. `chebyshev_reference` and `mincut_reference` are the definitions on one bag.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from smmil.layers.segments import segment_sum
from smmil.sm.operator import Graph, normalise_adjacency


def plain_adjacency(neighbors: Tensor, *, dtype: torch.dtype = torch.float32) -> Graph:
    """Return the 0/1 adjacency A (M,M) of a neighbour table (M,K); isolated nodes have a self loop."""
    graph = normalise_adjacency(neighbors, dtype=dtype)
    return Graph(graph.index, (graph.weight > 0).to(dtype), graph.self_weight)


def propagate(u: Tensor, graph: Graph) -> Tensor:
    """Compute A u for a symmetric A: (M,D) -> (M,D); backward applies A to the gradient and stores nothing."""
    out: Tensor = _Propagate.apply(u.to(graph.weight.dtype), graph)
    return out


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, graph: Graph) -> Tensor:
        """Compute A u: (M,D) -> (M,D)."""
        ctx.graph = graph
        return graph.matmul(u)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Compute A grad, the gradient of u: (M,D) -> (M,D)."""
        return ctx.graph.matmul(grad.contiguous()), None


def chebyshev_basis(x: Tensor, graph: Graph, K: int) -> Tensor:
    """Compute Z_0 = x, Z_1 = Lhat x, Z_k = 2 Lhat Z_(k-1) - Z_(k-2) for k < K, side by side: (M,D) -> (M, K D).

    Lhat = 2 L / lambda_max - I = L - I with L = I - A_hat and its bound lambda_max = 2.
    """

    def shifted(z: Tensor) -> Tensor:
        """Compute Lhat z: (M,D) -> (M,D)."""
        return (z - propagate(z, graph)) - z

    basis = [x, shifted(x)][:K]
    while len(basis) < K:
        basis.append(2 * shifted(basis[-1]) - basis[-2])
    return torch.cat(basis, 1)


def chebyshev_reference(x: Tensor, lhat: Tensor, K: int) -> Tensor:
    """Compute Z_k = T_k(Lhat) x, T_k(cos t) = cos(k t), from the eigenvalues of a dense Lhat: (N,D) -> (N, K D)."""
    values, vectors = torch.linalg.eigh(lhat)
    angle = torch.arccos(values.clamp(-1, 1))[:, None]
    return torch.cat([vectors @ (torch.cos(k * angle) * (vectors.T @ x)) for k in range(K)], 1)


class GEN(nn.Module):
    """GEN: out_i = MLP(x_i + sum_j a_ij m_j), m = ReLU(x) + 1e-7, a = softmax of t m_j over the neighbours j.

    The softmax is per channel. MLP = Linear(D, 2D), LayerNorm, ReLU, Linear(2D, D), without biases; t is learned and
    starts at 1.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.ones(()))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width, bias=False),
            nn.LayerNorm(2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width, bias=False),
        )

    def forward(self, x: Tensor, neighbors: Tensor) -> Tensor:
        """Apply the layer: x (M,D), neighbors (M,K) -1 padded -> (M,D)."""
        out: Tensor = self.mlp(x + self.aggregate(x, neighbors))
        return out

    def aggregate(self, x: Tensor, neighbors: Tensor) -> Tensor:
        """Compute sum_j a_ij m_j, 0 for nodes without neighbours: (M,D) -> (M,D)."""
        present = (neighbors >= 0)[:, :, None]
        messages = torch.relu(x) + 1e-7
        # The backward pass of index_select adds rows; that of indexing sorts the indices first.
        gathered = messages.index_select(0, neighbors.clamp(min=0).flatten()).view(*neighbors.shape, -1)
        logits = (self.t * gathered).masked_fill(~present, torch.finfo(x.dtype).min)
        return (torch.softmax(logits, 1) * gathered * present).sum(1)


def mincut_pool(s: Tensor, y: Tensor, graph: Graph, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pool every bag's nodes y (M,D) by soft clusters s (M,C) on the adjacency A.

    Returns:
        X' = S^T Y (B,C,D), cut loss -tr(S^T A S) / tr(S^T D S) (B,), orthogonality loss
        ||S^T S / ||S^T S||_F - I / sqrt(C)||_F (B,).
    """
    degree = graph.weight.sum(1) + graph.self_weight
    inside = (s * propagate(s, graph)).sum(1)
    within = torch.stack([inside, degree * s.square().sum(1)], 1)
    cut, volume = segment_sum(within, offsets).unbind(1)
    n_clusters, bounds = s.shape[1], offsets.tolist()
    both = torch.cat([s, y], 1)
    # One product per bag computes S^T S and S^T Y together.
    products = [s[a:b].T @ both[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    gram, pooled = torch.split(torch.stack(products), [n_clusters, y.shape[1]], 2)
    balanced = torch.eye(n_clusters, dtype=s.dtype, device=s.device) / math.sqrt(n_clusters)
    scale = torch.linalg.matrix_norm(gram, keepdim=True)
    return pooled, -cut / volume, torch.linalg.matrix_norm(gram / scale - balanced)


def mincut_reference(s: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute X' (C,D) and both losses of one bag as written: s (N,C), y (N,D), dense a (N,N)."""
    gram, n_clusters = s.T @ s, s.shape[1]
    cut = -torch.trace(s.T @ a @ s) / torch.trace(s.T @ torch.diag(a.sum(1)) @ s)
    return s.T @ y, cut, (gram / gram.norm() - torch.eye(n_clusters).to(s) / math.sqrt(n_clusters)).norm()
