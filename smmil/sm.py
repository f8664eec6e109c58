r"""The Sm operator: smoothing by the graph of a bag (paper, Equations 3 to 9).

Sm(U) = argmin_G  alpha E_D(G) + (1 - alpha) ||U - G||_F^2 = (I + gamma L)^-1 U,  gamma = alpha / (1 - alpha),
approximated by T steps of  G(0) = U,  G(t) = alpha A_hat G(t-1) + (1 - alpha) U,  where
A_hat = D^-1/2 A D^-1/2 and L = I - A_hat (the normalised Laplacian; with the plain one the steps can diverge).

Shapes: U is (M,D) on a packed batch, the graph is a neighbour table (M,K), so A_hat is block-diagonal over the bags
by construction. A node without neighbours gets a self loop, so Sm leaves it unchanged.

A_hat is symmetric and G(T) = sum_s c_s A_hat^s U is a polynomial in it. Hence the gradient with respect to U is that
polynomial of the incoming gradient g, and the one of <g, G(T)> with respect to alpha is sum_s (dc_s / dalpha)
<A_hat^s g, U>: both come from one sweep over the powers A_hat^s g, and nothing but (for a trainable alpha) U is kept.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from smmil import native


@dataclass(frozen=True)
class Graph:
    """The normalised adjacency A_hat as a neighbour table.

    Attributes:
        index: (M,K) int64, rows of the neighbours; padding points at the row itself with weight 0.
        weight: (M,K) the entries of A_hat.
        self_weight: (M,) diagonal of A_hat: 1 for isolated nodes, 0 otherwise.
        scale: (M,), positive, with A_hat[i,j] = scale[i] scale[j] on every edge, or None: the edges have weights of
            their own.
    """

    index: Tensor
    weight: Tensor
    self_weight: Tensor
    scale: Tensor | None = None

    @functools.cached_property
    def index32(self) -> Tensor:
        """`index` as int32, for the compiled path."""
        return self.index.to(torch.int32)

    def matmul(self, u: Tensor) -> Tensor:
        """A_hat @ u for u of shape (M,D)."""
        gathered = embedding_bag(self.index, u, mode="sum", per_sample_weights=self.weight)
        return torch.addcmul(gathered, self.self_weight[:, None], u)

    def dense(self) -> Tensor:
        """(M,M), for small graphs and tests."""
        rows = torch.arange(len(self.index), device=self.index.device)[:, None].expand_as(self.index)
        out = torch.diag(self.self_weight)
        return out.index_put((rows, self.index), self.weight, accumulate=True)


def normalise_adjacency(
    neighbors: Tensor, edge_weight: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Graph:
    """D^-1/2 A D^-1/2 of a symmetric neighbour table.

    Args:
        neighbors: (M,K) int64, -1 padded, symmetric, no self.
        edge_weight: (M,K) non-negative weights in the order of `neighbors`, symmetric; None = 1 for every edge.
        dtype: of the weights.

    Returns:
        The normalised graph; nodes without (positively weighted) edges carry a self loop of weight 1.

    Raises:
        ValueError: a table that is not two-dimensional, an index beyond the rows, or weights of another shape.
    """
    if neighbors.ndim != 2 or (neighbors.numel() and int(neighbors.max()) >= len(neighbors)):
        top = int(neighbors.max()) if neighbors.numel() else None
        raise ValueError(
            f"neighbors: found shape {tuple(neighbors.shape)}, largest index {top}; expected (M,K), index < M"
        )
    if edge_weight is not None and edge_weight.shape != neighbors.shape:
        raise ValueError(f"edge_weight: found shape {tuple(edge_weight.shape)}, expected {tuple(neighbors.shape)}")
    if neighbors.shape[1] == 0:
        neighbors, edge_weight = neighbors.new_full((len(neighbors), 1), -1), None
    present = neighbors >= 0
    own = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    index = torch.where(present, neighbors.long(), own)
    weight = present.to(dtype) if edge_weight is None else edge_weight.to(dtype) * present
    degree = weight.sum(1)
    isolated = degree == 0
    scale = torch.where(isolated, degree.new_ones(()), degree).rsqrt()
    edges = weight * scale[:, None] * scale[index]
    return Graph(index, edges, isolated.to(dtype), scale if edge_weight is None else None)


def sm_steps(u: Tensor, graph: Graph, alpha: Tensor | float, T: int = 10) -> Tensor:
    """T steps of Equation 8, G(t) = alpha A_hat G(t-1) + (1 - alpha) U.

    Args:
        u: (M,D).
        graph: normalised graph over the M rows.
        alpha: in [0,1), a number or a scalar tensor (differentiable, in closed form).
        T: number of steps; 0 gives U.

    Returns:
        (M,D), the smoothed U.

    Raises:
        ValueError: T < 0, or u without two axes or with other rows than the graph.
    """
    if T < 0:
        raise ValueError(f"T: found {T}, expected a number of steps >= 0")
    if u.ndim != 2 or u.shape[0] != graph.index.shape[0]:
        raise ValueError(
            f"u: found shape {tuple(u.shape)}, expected ({len(graph.index)}, D) as the graph has that many rows"
        )
    wide = _at_least_float32(u)
    factor = torch.as_tensor(alpha, dtype=wide.dtype, device=u.device)
    if torch.is_grad_enabled() and (wide.requires_grad or factor.requires_grad):
        out: Tensor = _Steps.apply(wide, factor, graph, T)
    else:
        out = _iterate(wide, float(factor), graph, T)
    return out if wide is u else out.to(u.dtype)


def sm_exact(u: Tensor, graph: Graph, alpha: Tensor | float, offsets: Tensor, *, max_nodes: int = 4096) -> Tensor:
    """The closed form of Equation 7, (I + gamma L)^-1 U = (1 - alpha) (I - alpha A_hat)^-1 U, bag by bag.

    The second form is used: it is defined for alpha = 0 and well scaled near 1.

    Args:
        u: (M,D).
        graph: normalised graph over the M rows.
        alpha: in [0,1), a number or a scalar tensor (differentiable).
        offsets: (B+1,) bag boundaries.
        max_nodes: largest bag that is solved densely.

    Returns:
        (M,D).

    Raises:
        ValueError: a bag larger than `max_nodes`.
    """
    bounds = offsets.tolist()
    largest = max((b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True)), default=0)
    if largest > max_nodes:
        raise ValueError(
            f"sm_exact: a bag has {largest} instances, the dense solve takes at most {max_nodes}; use T steps instead"
        )
    wide = _at_least_float32(u)
    factor = torch.as_tensor(alpha, dtype=wide.dtype, device=u.device)
    parts = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        rows = slice(start, stop)
        local = Graph(graph.index[rows] - start, graph.weight[rows], graph.self_weight[rows])
        eye = torch.eye(stop - start, dtype=wide.dtype, device=u.device)
        parts.append(torch.linalg.solve(eye - factor * local.dense().to(wide.dtype), (1 - factor) * wide[rows]))
    return torch.cat(parts).to(u.dtype)


def _at_least_float32(u: Tensor) -> Tensor:
    # ten steps in half precision would lose what the smoothing is about; autocast hands such tensors over
    return u.float() if u.dtype in (torch.bfloat16, torch.float16) else u


def dirichlet_energy(u: Tensor, graph: Graph) -> Tensor:
    """E_D(U) = tr(U^T L U) with L = I - A_hat (Equation 3 for the normalised Laplacian).

    Args:
        u: (M,D).
        graph: normalised graph over the M rows.

    Returns:
        Scalar >= 0 up to rounding. Nodes with a self loop contribute nothing.
    """
    return (u * (u - graph.matmul(u))).sum()


class Sm(nn.Module):
    """Sm with its alpha (paper, Section 4): T = 10 steps, alpha trainable and 0.5 at the start.

    Args:
        alpha: "trainable" = sigmoid(a) with a = 0 at the start, or a fixed number in [0,1).
        T: number of steps; "exact" solves the closed form (small bags only).

    Raises:
        ValueError: alpha outside [0,1), or T neither a number >= 0 nor "exact".
    """

    def __init__(self, alpha: float | str = "trainable", T: int | str = 10) -> None:
        super().__init__()
        if isinstance(alpha, str) and alpha != "trainable":
            raise ValueError(f"alpha: found {alpha!r}, expected 'trainable' or a number in [0, 1)")
        if not isinstance(alpha, str) and not 0 <= alpha < 1:
            raise ValueError(f"alpha: found {alpha}, expected a number in [0, 1)")
        if T != "exact" and (isinstance(T, str) or T < 0):
            raise ValueError(f"T: found {T!r}, expected a number of steps >= 0 or 'exact'")
        self.T = T
        self.a = nn.Parameter(torch.zeros(())) if alpha == "trainable" else None
        self.fixed_alpha = None if alpha == "trainable" else float(alpha)
        self.swapped = self.ratio = False

    def use_released(self, *, swapped: bool, ratio: bool) -> None:
        """Takes over what the released code does with alpha (docs/protocol.md); before training or loading weights.

        Args:
            swapped: a fixed alpha runs as 1 - alpha in the T steps; the exact solve is right there too.
            ratio: a trainable alpha is 1 / (1 + a) with a = 1 at the start, unbounded, instead of sigmoid(a).
        """
        self.swapped = swapped and self.a is None and self.T != "exact"
        self.ratio = ratio and self.a is not None
        if self.ratio and self.a is not None:
            nn.init.ones_(self.a)

    @property
    def alpha(self) -> Tensor | float:
        """The alpha that acts now; in [0,1) unless the released code's rules are in use."""
        if self.a is None:
            fixed = float(self.fixed_alpha or 0.0)
            return 1.0 - fixed if self.swapped else fixed
        return 1.0 / (1.0 + self.a) if self.ratio else torch.sigmoid(self.a)

    def forward(self, u: Tensor, graph: Graph, offsets: Tensor) -> Tensor:
        """Smooths u.

        Args:
            u: (M,D).
            graph: normalised graph of the batch.
            offsets: (B+1,), needed by the exact solve.

        Returns:
            (M,D).
        """
        if self.T == "exact":
            return sm_exact(u, graph, self.alpha, offsets)
        return sm_steps(u, graph, self.alpha, int(self.T))

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"alpha={'trainable' if self.a is not None else self.fixed_alpha}, T={self.T}"


def coefficients(alpha: float, T: int) -> tuple[list[float], list[float]]:
    """G(T) = sum_s c[s] A_hat^s U for s = 0..T, and d = dc / dalpha.

    Args:
        alpha: the trade-off.
        T: number of steps.
    """
    c = [(1 - alpha) * alpha**s for s in range(T)] + [alpha**T]
    d = [(1 - alpha) * s * alpha ** max(s - 1, 0) - alpha**s for s in range(T)] + [T * alpha ** max(T - 1, 0)]
    return c, d


class _Steps(torch.autograd.Function):
    """Equation 8 with the backward of this file's top; keeps at most U, never the T iterates."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, alpha: Tensor, graph: Graph, T: int) -> Tensor:
        ctx.graph, ctx.factor, ctx.T = graph, float(alpha), T
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(u)
        return _iterate(u, ctx.factor, graph, T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return _iterate(grad, ctx.factor, ctx.graph, ctx.T), None, None, None
        (u,) = ctx.saved_tensors
        return (*_gradients(grad, u, ctx.factor, ctx.graph, ctx.T), None, None)


def _iterate(u: Tensor, alpha: float, graph: Graph, T: int) -> Tensor:
    """G(T); compiled where possible."""
    if T > 0 and graph.weight.dtype == u.dtype and native.usable(u):
        return native.steps(u, graph.index32, graph.weight, graph.self_weight, graph.scale, alpha, T)
    g = u
    for _ in range(T):
        g = torch.add((1 - alpha) * u, graph.matmul(g), alpha=alpha)
    return g.clone() if T == 0 else g


def _gradients(grad: Tensor, u: Tensor, alpha: float, graph: Graph, T: int) -> tuple[Tensor, Tensor]:
    """With respect to U (M,D) and to alpha (scalar); compiled where possible."""
    c, d = coefficients(alpha, T)
    if T > 0 and graph.weight.dtype == u.dtype and native.usable(u):
        table = (graph.index32, graph.weight, graph.self_weight, graph.scale)
        total, slope = native.gradients(grad, u, *table, c, d)
        return total, u.new_tensor(slope)
    power = grad
    total, dots = c[0] * grad, [d[0] * (grad * u).sum()]
    for s in range(1, T + 1):
        power = graph.matmul(power)
        total = torch.add(total, power, alpha=c[s])
        dots.append(d[s] * (power * u).sum())
    return total, torch.stack(dots).sum()
