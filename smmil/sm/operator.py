"""The smooth operator Sm (paper, Equations 3 to 9): smooth instance features over the graph of their bag.

With the normalised adjacency A_hat = D^-1/2 A D^-1/2 and the normalised Laplacian L = I - A_hat (with the plain one the
T steps can diverge),

    E_D(U) = tr(U^T L U)                                                         Dirichlet energy  (Equation 3)
    Sm(U)  = argmin_G  alpha E_D(G) + (1 - alpha) ||U - G||_F^2                                    (Equation 5)
           = (I + gamma L)^-1 U,  gamma = alpha / (1 - alpha)                    exact solve       (Equation 7)
    G(0) = U,  G(t) = alpha A_hat G(t-1) + (1 - alpha) U,  t = 1..T              T steps           (Equation 8)

`energy_reference`, `exact_reference` and `steps_reference` are these formulas on one dense A_hat. The functions that
the methods call, `dirichlet_energy`, `sm_exact` and `sm_steps`, compute the same on a packed batch: U is (M,D) and the
graph is a neighbour table (M,K), so A_hat is block-diagonal over the bags.

The T steps have gradients in closed form. G(T) = sum_s c_s A_hat^s U is a polynomial in A_hat, and A_hat is symmetric.
For an incoming gradient g, the gradient of U is the same polynomial applied to g, and the gradient of alpha is
sum_s (dc_s / dalpha) <A_hat^s g, U>. No iterate is stored, and U only if alpha is trainable.
"""

import functools
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from smmil.sm import native


def steps_reference(u: Tensor, a_hat: Tensor, alpha: Tensor | float, T: int = 10) -> Tensor:
    """Compute the T steps of Equation 8 as written: (M,D) and a dense (M,M) A_hat -> (M,D)."""
    g = u
    for _ in range(T):
        g = alpha * a_hat @ g + (1 - alpha) * u
    return g


def exact_reference(u: Tensor, a_hat: Tensor, alpha: Tensor | float) -> Tensor:
    """Compute Equation 7 as written, (I + gamma L)^-1 U: (M,D) and a dense (M,M) A_hat -> (M,D)."""
    eye, gamma = torch.eye(len(a_hat)).to(a_hat), alpha / (1 - alpha)
    return torch.inverse(eye + gamma * (eye - a_hat)) @ u


def energy_reference(u: Tensor, a_hat: Tensor) -> Tensor:
    """Compute Equation 3 as written, tr(U^T L U): (M,D) and a dense (M,M) A_hat -> scalar."""
    return torch.trace(u.T @ (torch.eye(len(a_hat)).to(a_hat) - a_hat) @ u)


@dataclass(frozen=True)
class Graph:
    """The normalised adjacency A_hat as a neighbour table.

    Attributes:
        index: (M,K) int64, rows of the neighbours; padding is the row itself with weight 0.
        weight: (M,K), the entries of A_hat.
        self_weight: (M,), the diagonal of A_hat: 1 for isolated nodes, 0 otherwise.
    """

    index: Tensor
    weight: Tensor
    self_weight: Tensor

    @functools.cached_property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return index (M,K) as int32, weight (M,K) and self_weight (M,) for the compiled kernel."""
        return self.index.to(torch.int32), self.weight, self.self_weight

    def matmul(self, u: Tensor) -> Tensor:
        """Multiply A_hat with u: (M,D) -> (M,D)."""
        gathered = embedding_bag(self.index, u, mode="sum", per_sample_weights=self.weight)
        return torch.addcmul(gathered, self.self_weight[:, None], u)

    def dense(self) -> Tensor:
        """Return A_hat as a dense (M,M) matrix, for small graphs and tests."""
        rows = torch.arange(len(self.index), device=self.index.device)[:, None].expand_as(self.index)
        out = torch.diag(self.self_weight)
        return out.index_put((rows, self.index), self.weight, accumulate=True)


def normalise_adjacency(
    neighbors: Tensor, edge_weight: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Graph:
    """Normalise a symmetric neighbour table to A_hat = D^-1/2 A D^-1/2.

    Nodes without an edge of positive weight get a self loop of weight 1, so Sm leaves them unchanged.

    Args:
        neighbors: (M,K) int64, padded with -1, symmetric, without self loops.
        edge_weight: (M,K) non-negative symmetric weights in the order of `neighbors`; None = 1 for every edge.
        dtype: type of the weights.

    Raises:
        ValueError: the table is not two-dimensional, has an index beyond its rows, or the weights have another shape.
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
    rows = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    index = torch.where(present, neighbors.long(), rows)
    weight = present.to(dtype) if edge_weight is None else edge_weight.to(dtype) * present
    degree = weight.sum(1)
    isolated = degree == 0
    scale = torch.where(isolated, degree.new_ones(()), degree).rsqrt()
    return Graph(index, weight * scale[:, None] * scale[index], isolated.to(dtype))


def sm_steps(u: Tensor, graph: Graph, alpha: Tensor | float, T: int = 10) -> Tensor:
    """Compute the T steps of Equation 8, G(t) = alpha A_hat G(t-1) + (1 - alpha) U: (M,D) -> (M,D).

    alpha is a number or a differentiable scalar tensor in [0,1); half precision is smoothed in float32.

    Raises:
        ValueError: T < 0, or u is not (M,D) with the rows of the graph.
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
    """Solve Equation 7 bag by bag, as (I + gamma L)^-1 U = (1 - alpha) (I - alpha A_hat)^-1 U: (M,D) -> (M,D).

    The second form has no gamma, which grows without bound as alpha approaches 1. Other arguments as in `sm_steps`.

    Raises:
        ValueError: a bag is larger than `max_nodes`; the dense matrix has as many rows and columns.
    """
    wide = _at_least_float32(u)
    factor = torch.as_tensor(alpha, dtype=wide.dtype, device=u.device)
    parts = []
    for start, stop in pairwise(offsets.tolist()):
        if stop - start > max_nodes:
            raise ValueError(
                f"sm_exact: a bag has {stop - start} instances, the dense solve takes at most {max_nodes}; use T steps"
                " instead"
            )
        rows = slice(start, stop)
        local = Graph(graph.index[rows] - start, graph.weight[rows], graph.self_weight[rows])
        eye = torch.eye(stop - start, dtype=wide.dtype, device=u.device)
        parts.append(torch.linalg.solve(eye - factor * local.dense().to(wide.dtype), (1 - factor) * wide[rows]))
    return torch.cat(parts).to(u.dtype)


def _at_least_float32(u: Tensor) -> Tensor:
    # Rounding errors of ten steps in half precision would exceed the differences between neighbours.
    return u.float() if u.dtype in (torch.bfloat16, torch.float16) else u


def dirichlet_energy(u: Tensor, graph: Graph) -> Tensor:
    """Compute E_D(U) = tr(U^T L U), Equation 3 with L = I - A_hat: (M,D) -> scalar, >= 0 up to rounding."""
    return (u * (u - graph.matmul(u))).sum()


class Sm(nn.Module):
    """The smooth operator as a layer (paper, Section 4).

    Args:
        alpha: "trainable" = sigmoid(a), initialised to 0.5 (a = 0), or a fixed number in [0,1).
        T: number of steps, or "exact" to solve Equation 7 (bags of at most 4096 instances).
    """

    def __init__(self, alpha: float | str = "trainable", T: int | str = 10) -> None:
        super().__init__()
        if alpha != "trainable" and (isinstance(alpha, str) or not 0 <= alpha < 1):
            raise ValueError(f"alpha: found {alpha!r}, expected 'trainable' or a number in [0, 1)")
        if T != "exact" and (isinstance(T, str) or T < 0):
            raise ValueError(f"T: found {T!r}, expected a number of steps >= 0 or 'exact'")
        self.T = T
        self.a = nn.Parameter(torch.zeros(())) if alpha == "trainable" else None
        self.fixed_alpha = 0.0 if alpha == "trainable" else float(alpha)
        self.swapped = self.ratio = self.isolated = False

    def use_released(self, *, swapped: bool, ratio: bool, isolated: bool = False) -> None:
        """Act as the released code does (docs/reference/protocol.md). Call before training or loading weights.

        Args:
            swapped: use 1 - alpha for a fixed alpha above 0 in the T steps; 0 leaves U as it is. The exact solve is not
                affected.
            ratio: use 1 / (1 + a), initialised with a = 1 and unbounded, for a trainable alpha.
            isolated: keep the self loop of nodes without neighbours in bags of one instance only; any other such node
                has a row of zeros, so Sm shrinks it.
        """
        self.isolated = isolated
        self.swapped = swapped and self.a is None and self.T != "exact"
        self.ratio = ratio and self.a is not None
        if self.ratio and self.a is not None:
            nn.init.ones_(self.a)

    @property
    def alpha(self) -> Tensor | float:
        """Return the current alpha, a scalar; in [0,1) unless `use_released` was called."""
        if self.a is None:
            return 1.0 - self.fixed_alpha if self.swapped and self.fixed_alpha else self.fixed_alpha
        return 1.0 / (1.0 + self.a) if self.ratio else torch.sigmoid(self.a)

    def forward(self, u: Tensor, graph: Graph, offsets: Tensor) -> Tensor:
        """Smooth u, (M,D) -> (M,D), on the graph of a batch; the T steps ignore the bag boundaries `offsets`."""
        if self.isolated:
            sizes = offsets.diff()
            alone = (sizes == 1).repeat_interleave(sizes)
            graph = replace(graph, self_weight=graph.self_weight * alone)
        if self.T == "exact":
            return sm_exact(u, graph, self.alpha, offsets)
        return sm_steps(u, graph, self.alpha, int(self.T))


def coefficients(alpha: float, T: int) -> tuple[list[float], list[float]]:
    """Return the coefficients c of G(T) = sum_s c[s] A_hat^s U, s = 0..T, and d = dc / dalpha."""
    c = [(1 - alpha) * alpha**s for s in range(T)] + [alpha**T]
    d = [(1 - alpha) * s * alpha ** max(s - 1, 0) - alpha**s for s in range(T)] + [T * alpha ** max(T - 1, 0)]
    return c, d


class _Steps(torch.autograd.Function):
    """Equation 8 with the closed-form gradients of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, alpha: Tensor, graph: Graph, T: int) -> Tensor:
        """Compute G(T) of u (M,D) with a scalar alpha: -> (M,D)."""
        ctx.graph, ctx.alpha, ctx.T = graph, float(alpha), T
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(u)
        return _iterate(u, ctx.alpha, graph, T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Compute the gradients of u (M,D) and of the scalar alpha."""
        if not ctx.needs_input_grad[1]:
            return _iterate(grad, ctx.alpha, ctx.graph, ctx.T), None, None, None
        (u,) = ctx.saved_tensors
        return (*_gradients(grad, u, ctx.alpha, ctx.graph, ctx.T), None, None)


def _compiled(u: Tensor, graph: Graph, T: int) -> bool:
    return T > 0 and graph.weight.dtype == u.dtype and native.usable(u)


def _iterate(u: Tensor, alpha: float, graph: Graph, T: int) -> Tensor:
    """Compute G(T), (M,D) -> (M,D), with the compiled kernel where possible."""
    if _compiled(u, graph, T):
        return native.polynomial(u, graph.table, alpha, [1 - alpha] * T + [1.0])
    g = u
    for _ in range(T):
        g = torch.add((1 - alpha) * u, graph.matmul(g), alpha=alpha)
    return g.clone() if T == 0 else g


def _gradients(grad: Tensor, u: Tensor, alpha: float, graph: Graph, T: int) -> tuple[Tensor, Tensor]:
    """Compute the gradients of U, (M,D), and of alpha, a scalar."""
    c, d = coefficients(alpha, T)
    if _compiled(u, graph, T):
        return _iterate(grad, alpha, graph, T), native.polynomial(grad, graph.table, 1.0, d, other=u)
    # One sweep over the powers A_hat^s grad serves both gradients.
    power = grad
    total, dots = c[0] * grad, [d[0] * (grad * u).sum()]
    for s in range(1, T + 1):
        power = graph.matmul(power)
        total = torch.add(total, power, alpha=c[s])
        dots.append(d[s] * (power * u).sum())
    return total, torch.stack(dots).sum()
