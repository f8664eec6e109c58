"""The attention kernel against torch, forward and backward: what the transformers of the methods spend beside products.

In: nothing. Out: a table, or with `--json` a list of {name, ours, peer, ratio, target, unit}; milliseconds of CPU time.
`plain` is 8 heads of 64 values (T+AP, SmTAP, TransMIL, CAMIL), the peer torch's fused attention; `biased` is SETMIL's,
16 heads of 12 values with an addend by kind of pair and, in `dropped`, dropout of the weights. torch's fused attention
has no gradient of the addends and no dropout on a CPU: the peer is the formula in torch. Results and gradients are
compared before anything is timed (not of `dropped`: the random numbers differ).
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench.timing import Step, add_arguments, scale_of
from bench.trials import Different, Trial, run_trials
from preprocessing.cli import guard, setup_logging

PLAIN, BIASED, KINDS = (40, 200, 500, 1000, 4000), (40, 200, 500, 2000), 5
HEADS, BIASED_HEADS, WIDTH, BIASED_WIDTH, DROPOUT = 8, 16, 64, 12, 0.2
# of 200 tokens and more: no slower than torch's own, and quicker where it has none
TARGET_PLAIN, TARGET_BIASED, TARGET_DROPPED = 0.9, 1.0, 2.0


def plain(n: int) -> tuple[Step, Step]:
    """Softmax attention and its gradients."""
    import torch
    from torch.nn import functional as F

    from smmil.attention import packed_attention

    qkv, weight = torch.randn(n, 3 * HEADS * WIDTH, requires_grad=True), torch.randn(n, HEADS * WIDTH)

    def ours() -> object:
        q, k, v = qkv.chunk(3, -1)
        out = packed_attention(q, k, v, [0, n], HEADS, scale=WIDTH**-0.5)
        return out.detach(), *torch.autograd.grad((out * weight).sum(), qkv)

    def theirs() -> object:
        q, k, v = qkv.view(1, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        return out.detach(), *torch.autograd.grad((out * weight).sum(), qkv)

    return ours, theirs


def biased(n: int, dropout: float = 0.0) -> tuple[Step, Step]:
    """Attention with a learned addend by kind of pair, and all gradients."""
    import torch
    from torch.nn import functional as F

    from smmil.attention import Bias, packed_attention
    from smmil.fused_attention import kinds_table

    width = BIASED_HEADS * BIASED_WIDTH
    qkv, weight = torch.randn(n, 3 * width, requires_grad=True), torch.randn(n, width)
    table = torch.randn(BIASED_HEADS, KINDS, requires_grad=True)
    kinds, scale = kinds_table(n, qkv.device).random_(KINDS), BIASED_WIDTH**-0.5
    # the peer's gradient by a product: through indexing it takes many times as long
    indicators = (kinds == torch.arange(KINDS)[:, None, None]).float()

    def ours() -> object:
        q, k, v = qkv.chunk(3, -1)
        bias = [Bias(table, kinds)]
        out = packed_attention(q, k, v, [0, n], BIASED_HEADS, scale=scale, biases=bias, dropout=dropout)
        return out.detach(), *torch.autograd.grad((out * weight).sum(), (qkv, table))

    def theirs() -> object:
        q, k, v = qkv.view(n, 3, BIASED_HEADS, BIASED_WIDTH).permute(1, 2, 0, 3)
        weights = torch.softmax(scale * q @ k.mT + torch.einsum("hc,cij->hij", table, indicators), -1)
        out = (F.dropout(weights, dropout) @ v).transpose(0, 1).flatten(1)
        return out.detach(), *torch.autograd.grad((out * weight).sum(), (qkv, table))

    return ours, theirs


def same(ours: Any, theirs: Any) -> None:
    """Raises `Different` unless results and gradients agree to rounding."""
    import torch

    for own, other in zip(ours, theirs, strict=True):
        if not torch.allclose(own, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3):
            raise Different(f"attention: results differ by up to {float((own - other).abs().max()):.2g}")


def trials(scale: float) -> list[Trial]:
    """All lengths."""
    out = []
    for full in PLAIN:
        n, least = max(2, round(full * scale)), TARGET_PLAIN if full >= 200 else None
        out.append(Trial(f"plain/{full}", f"{HEADS} heads of {WIDTH}, {n} tokens", partial(plain, n), least, same))
    for full in BIASED:
        n, name = max(2, round(full * scale)), f"{BIASED_HEADS} heads of {BIASED_WIDTH}, bias"
        least, dropped = (TARGET_BIASED, TARGET_DROPPED) if full >= 200 else (None, None)
        out.append(Trial(f"biased/{full}", f"{name}, {n} tokens", partial(biased, n), least, same))
        out.append(Trial(f"dropped/{full}", f"{name}, dropout, {n} tokens", partial(biased, n, DROPOUT), dropped))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Command line, see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    setup_logging()
    return run_trials(trials(scale_of(arguments)), arguments)


if __name__ == "__main__":
    raise SystemExit(guard(main)())
