"""Linear layers through oneDNN where torch would use a slower library.

torch multiplies float32 matrices on a CPU by MKL, which on AMD processors leaves out the 512-bit instructions; oneDNN,
which torch carries for other operations, is about twice as fast there, in the same precision (float32 products, another
order of sums: results differ by rounding). On Intel's own processors MKL is as fast and needs no code made for every
new number of rows, so there it stays. The operator is the one torch's own compiler emits for linear layers. Where
it is missing, off the CPU, in another precision, or for matrices so small that the call costs more than the product,
`torch.nn.functional.linear` computes. `SMMIL_NATIVE=0` in the environment switches it off.

Shapes: x (...,P), weight (D,P), bias (D,) -> (...,D); a (r,d), b (n,d) -> (r,n).
"""

import functools
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# multiplications below which the plain call is as fast
SMALL = 2**18


@functools.cache
def available() -> bool:
    """Whether products are made by oneDNN here; by rule, not by timing: the next process has to get the same bits."""
    return os.environ.get("SMMIL_NATIVE", "1") != "0" and not mkl_is_at_home(_processor()) and works()


def mkl_is_at_home(processor: str) -> bool:
    """Whether torch has MKL and the processor is Intel's.

    Args:
        processor: what the system says of it, as /proc/cpuinfo.
    """
    return "GenuineIntel" in processor and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()  # not Linux


@functools.cache
def works() -> bool:
    """Whether this build and this processor have the operator."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        # an operator that torch does not document: believed only after it has given the right numbers
        return torch.allclose(product(x, weight, torch.ones(4)), F.linear(x, weight, torch.ones(4)))
    except (RuntimeError, TypeError):
        return False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X weight^T + bias.

    Args:
        x: (...,P).
        weight: (D,P).
        bias: (D,) or None.

    Returns:
        (...,D).
    """
    plain = x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32
    if plain or x.numel() * len(weight) < SMALL or torch.is_autocast_enabled("cpu") or not available():
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]).contiguous(), weight, bias)
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`; the same parameters under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """(...,P) -> (...,D)."""
        return linear(x, self.weight, self.bias)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """A B^T + bias by oneDNN, without gradient; only where it `works`.

    Args:
        a: (r,d), its rows or its columns side by side: anything else takes a hundred times as long.
        b: (n,d), likewise.
        bias: (n,) or None.

    Returns:
        (r,n).
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        grad = grad.contiguous()
        return (
            product(grad, weight.T) if need_x else None,
            product(grad.T, x.T) if need_weight else None,
            grad.sum(0) if need_bias else None,
        )
