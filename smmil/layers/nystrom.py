r"""Nystrom attention (Xiong et al., AAAI 2021), shared by TransMIL and CAMIL.

softmax(Q K^T) V is approximated through m landmarks Q_l, K_l (means of consecutive segments of the sequence) by
softmax(Q K_l^T) pinv(softmax(Q_l K_l^T)) softmax(Q_l K^T) V, in O(n m) time and memory. The pseudo-inverse is the
iteration Z <- Z/4 (13 I - A Z (15 I - A Z (7 I - A Z))) from Z = A^T / (largest column sum * largest row sum), the
maxima over the heads of one sequence. A depthwise convolution of the values along the sequence is added.

The sequence is padded in front with zeros to a multiple of m, without a mask, as in the original. The c segments that
consist of padding are equal, so only one of them is computed and counts c times: its column in a softmax has weight c,
i.e. log c is added to its logits. Products of such matrices are right as they are. The transpose of A is not: there,
element (i, j) is multiplied by c_j / c_i. `small_bags="exact"` gives a sequence of at most m tokens exact attention
instead.

Shapes: (G,n,D) for G sequences of the same length n; the result of a sequence does not depend on the others.
"""

import math
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smmil.layers import check_choice
from smmil.layers.depthwise import depthwise
from smmil.layers.dropout import Dropout


def iterative_pinv(a: Tensor, iterations: int = 6, count: Tensor | None = None) -> Tensor:
    """Approximate the Moore-Penrose inverse, (G,h,m,m) -> (G,h,m,m), with one starting point per sequence.

    `count` (m,) says how many equal rows and columns each one stands for, None = 1; a column of `a` and of the result
    is the sum of its equal columns.
    """
    transposed = (a if count is None else a * (count[:, None] / count)).mT
    columns, rows = transposed.abs().sum(-1).amax((-2, -1)), a.abs().sum(-1).amax((-2, -1))
    z = transposed / (columns * rows)[:, None, None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


def landmarks(t: Tensor, m: int) -> Tensor:
    """Average segments of n/m consecutive tokens: (G,h,n,d) -> (G,h,m,d)."""
    return t.reshape(*t.shape[:2], m, -1, t.shape[3]).mean(3)


def nystrom(
    q: Tensor, k: Tensor, v: Tensor, m: int, iterations: int = 6, copies: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute attention through m landmarks; the first segment stands for `copies` equal ones.

    q, k and v are (G,h,n,d), q already scaled by d^-1/2; n is a multiple of m.

    Returns:
        Attended values (G,h,n,d) and the factors softmax(Q K_l^T) (G,h,n,m), pinv(softmax(Q_l K_l^T)) (G,h,m,m) and
        softmax(Q_l K^T) (G,h,m,n).
    """
    ql, kl = landmarks(q, m), landmarks(k, m)
    # The iteration needs at least float32, also under autocast.
    wide = torch.promote_types(q.dtype, torch.float32)
    count = torch.ones(m, dtype=wide, device=q.device)
    count[0] = copies
    bias = count.log()
    with torch.autocast(q.device.type, enabled=False):
        inverse = iterative_pinv(torch.softmax((ql @ kl.mT).to(wide) + bias, -1), iterations, count).to(q.dtype)
    far = torch.softmax(q @ kl.mT + bias, -1).to(q.dtype)
    near = torch.softmax(ql @ k.mT + bias.repeat_interleave(k.shape[2] // m), -1).to(q.dtype)
    return far @ (inverse @ (near @ v)), far, inverse, near


class NystromOptions(TypedDict, total=False):
    """The keyword arguments of `NystromAttention` that methods pass on."""

    n_heads: int
    n_landmarks: int
    pinv_iterations: int
    value_conv: int
    small_bags: str


class NystromAttention(nn.Module):
    """Multi-head Nystrom attention with value convolution and output projection.

    Args:
        width: D = n_heads * head width.
        n_heads: heads.
        n_landmarks: m.
        pinv_iterations: of the pseudo-inverse.
        value_conv: kernel length of the depthwise value convolution (one filter per head), 0 = none.
        dropout: after the output projection.
        small_bags: what happens to sequences of at most m tokens: "pad" with zeros to m, as in the original, or "exact"
            attention.
    """

    def __init__(
        self,
        width: int = 512,
        *,
        n_heads: int = 8,
        n_landmarks: int = 256,
        pinv_iterations: int = 6,
        value_conv: int = 33,
        dropout: float = 0.0,
        small_bags: str = "pad",
    ) -> None:
        super().__init__()
        check_choice("small_bags", small_bags, "pad", "exact")
        self.n_heads, self.m, self.iterations = n_heads, n_landmarks, pinv_iterations
        self.exact = small_bags == "exact"
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.conv = (
            nn.Conv2d(n_heads, n_heads, (value_conv, 1), padding=(value_conv // 2, 0), groups=n_heads, bias=False)
            if value_conv
            else None
        )
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout))

    def padded_length(self, n: int) -> int:
        """Return a length, for few groups of equal lengths, to which zeros in front of n tokens change no result."""
        if self.exact and n <= self.m:
            return n
        return min(math.ceil(n / 16) * 16, math.ceil(n / self.m) * self.m)

    def forward(self, x: Tensor, *, with_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend inside every sequence: (G,n,D) -> (G,n,D).

        The second result is None, or with `with_row` (G,n), the first token's (approximate) attention, mean over heads.
        """
        n = x.shape[1]
        q, k, v = self.qkv(x).view(len(x), n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        attend = self._exact if self.exact and n <= self.m else self._approximate
        heads, row = attend(q, k, v, with_row)
        if self.conv is not None:
            heads = heads + depthwise(v, self.conv.weight)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out, row

    def _exact(self, q: Tensor, k: Tensor, v: Tensor, with_row: bool) -> tuple[Tensor, Tensor | None]:
        heads = F.scaled_dot_product_attention(q, k, v)
        if not with_row:
            return heads, None
        logits = q.shape[-1] ** -0.5 * q[:, :, :1] @ k.mT
        return heads, torch.softmax(logits, -1).mean(1)[:, 0]

    def _approximate(self, q: Tensor, k: Tensor, v: Tensor, with_row: bool) -> tuple[Tensor, Tensor | None]:
        n, m = q.shape[2], self.m
        length = math.ceil(n / m)
        padding = m * length - n
        copies = max(padding // length, 1)
        front = padding - (copies - 1) * length
        # qkv has no bias, so padding q, k and v with zeros equals padding x.
        q, k, v = (F.pad(t, (0, 0, front, 0)) for t in (q * q.shape[-1] ** -0.5, k, v))
        heads, far, inverse, near = nystrom(q, k, v, m - copies + 1, self.iterations, copies)
        row = (far[:, :, front : front + 1] @ inverse @ near).mean(1)[:, 0, front:] if with_row else None
        return heads[:, :, front:], row
