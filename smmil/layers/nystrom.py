r"""Nystrom attention (Xiong et al., AAAI 2021), shared by TransMIL and CAMIL.

softmax(Q K^T) V is approximated through m landmarks Q_l, K_l (means of consecutive segments of the sequence) by
softmax(Q K_l^T) pinv(softmax(Q_l K_l^T)) softmax(Q_l K^T) V, in O(n m) time and memory. The pseudo-inverse is the
iteration Z <- Z/4 (13 I - A Z (15 I - A Z (7 I - A Z))) from Z = A^T / (largest column sum * largest row sum), the
maxima over the heads of one sequence. A depthwise convolution of the values along the sequence is added.

The sequence is padded in front with zeros to a multiple of m, without a mask, as in the original. A sequence that has
no more tokens than landmarks gets exact attention (`pad_to_landmarks=True` pads it too).

Shapes: (G,n,D) for G sequences of the same length n; the result of a sequence does not depend on the others.
"""

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smmil.layers.dropout import Dropout


def iterative_pinv(a: Tensor, iterations: int = 6) -> Tensor:
    """Approximate the Moore-Penrose inverse, with one starting point per sequence: (G,h,m,m) -> (G,h,m,m)."""
    size = a.abs()
    columns, rows = size.sum(-2).amax((-2, -1)), size.sum(-1).amax((-2, -1))
    z = a.mT / (columns * rows)[:, None, None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z


def landmarks(t: Tensor, m: int) -> Tensor:
    """Average segments of n/m consecutive tokens: (G,h,n,d) -> (G,h,m,d)."""
    return t.reshape(*t.shape[:2], m, -1, t.shape[3]).mean(3)


def nystrom(q: Tensor, k: Tensor, v: Tensor, m: int, iterations: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Compute attention through m landmarks.

    Args:
        q: (G,h,n,d), already scaled by d^-1/2; n is a multiple of m.
        k: (G,h,n,d).
        v: (G,h,n,d).
        m: landmarks.
        iterations: of the pseudo-inverse.

    Returns:
        Attended values (G,h,n,d), and the factors pinv(softmax(Q_l K_l^T)) (G,h,m,m), softmax(Q_l K^T) (G,h,m,n).
    """
    ql, kl = landmarks(q, m), landmarks(k, m)
    # The iteration needs at least float32, also under autocast.
    with torch.autocast(q.device.type, enabled=False):
        wide = torch.promote_types(q.dtype, torch.float32)
        inverse = iterative_pinv(torch.softmax((ql @ kl.mT).to(wide), -1), iterations)
        inverse = inverse.to(q.dtype)
    near = torch.softmax(ql @ k.mT, -1)
    return torch.softmax(q @ kl.mT, -1) @ (inverse @ (near @ v)), inverse, near


class NystromOptions(TypedDict, total=False):
    """The keyword arguments of `NystromAttention` that methods pass on."""

    n_heads: int
    n_landmarks: int
    pinv_iterations: int
    value_conv: int
    out_proj: bool
    pad_to_landmarks: bool


class NystromAttention(nn.Module):
    """Multi-head Nystrom attention with value convolution and output projection.

    Args:
        width: D = n_heads * head width.
        n_heads: heads.
        n_landmarks: m.
        pinv_iterations: of the pseudo-inverse.
        value_conv: kernel length of the depthwise value convolution (one filter per head), 0 = none.
        out_proj: apply Linear(D, D) with bias and dropout to the concatenated heads.
        dropout: after the output projection.
        pad_to_landmarks: approximate sequences of at most m tokens too, padded with zeros to m as in the original.
    """

    def __init__(
        self,
        width: int = 512,
        *,
        n_heads: int = 8,
        n_landmarks: int = 256,
        pinv_iterations: int = 6,
        value_conv: int = 33,
        out_proj: bool = True,
        dropout: float = 0.0,
        pad_to_landmarks: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.m, self.iterations, self.pad = n_heads, n_landmarks, pinv_iterations, pad_to_landmarks
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.conv = (
            nn.Conv2d(n_heads, n_heads, (value_conv, 1), padding=(value_conv // 2, 0), groups=n_heads, bias=False)
            if value_conv
            else None
        )
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout)) if out_proj else nn.Identity()

    def forward(self, x: Tensor, *, with_row: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend inside every sequence.

        Args:
            x: (G,n,D).
            with_row: also return the attention row of the first token.

        Returns:
            (G,n,D), and (G,n) the mean over heads of the first token's (approximate) attention to every token, or None.
        """
        n = x.shape[1]
        q, k, v = self.qkv(x).view(len(x), n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        attend = self._exact if n <= self.m and not self.pad else self._approximate
        heads, row = attend(q, k, v, with_row)
        if self.conv is not None:
            heads = heads + self.conv(v)
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
        # qkv has no bias, so padding q, k and v with zeros equals padding x.
        front = -n % m
        q, k, v = (F.pad(t, (0, 0, front, 0)) for t in (q * q.shape[-1] ** -0.5, k, v))
        heads, inverse, near = nystrom(q, k, v, m, self.iterations)
        if not with_row:
            return heads[:, :, front:], None
        first = torch.softmax(q[:, :, front : front + 1] @ landmarks(k, m).mT, -1)
        return heads[:, :, front:], (first @ inverse @ near).mean(1)[:, 0, front:]
