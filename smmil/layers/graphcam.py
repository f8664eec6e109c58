"""GraphCAM: the contribution of each token to a transformer's logit (Zheng et al., TMI 2022; Chefer et al., CVPR 2021).

Relevance R starts with a seed at the logit and is propagated back through the layers (LRP, alpha = 1). Per block,
C = mean over heads of relu(seed * d logit / d Attn * R(Attn)); the result is the class token's row of the rollout
Prod_l (I + C_l), later blocks on the left.

Rules, with s = R / Z: Linear: x+ (W+^T s) + x- (W-^T s), Z = x+ W+ + x- W-; product of two inputs: each input times
its gradient for s, both halved; addition: x s, then rescaled so that the parts share sum(R) in proportion to
|sum of the part|; a value used twice, and the choice of the class token: x * sum_k (R_k / x); LayerNorm, GELU, softmax,
dropout: unchanged. Every division a / b is a / (b + 1e-9) as in the original, negative b included.

The rules divide by sums that may almost cancel, which can amplify rounding a million times. Use float64.

Shapes: tokens (B,n,D), token 0 is the class token; the relevance of a bag does not depend on the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def safe_divide(a: Tensor, b: Tensor) -> Tensor:
    """Compute a / (b + 1e-9) elementwise (any shape, the same for both), 0 where b is 0."""
    shifted = b + 1e-9
    return torch.div(a, shifted.masked_fill_(shifted == 0, 1e-9)).masked_fill_(b == 0, 0.0)


def linear_rule(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Compute the relevance of x in F.linear(x, weight): x (...,D), weight (E,D), relevance (...,E) -> (...,D)."""
    up, down = weight.clamp(min=0), weight.clamp(max=0)
    positive, negative = x.clamp(min=0), x.clamp(max=0)
    s = safe_divide(relevance, F.linear(positive, up) + F.linear(negative, down))
    return positive * (s @ up) + negative * (s @ down)


def product_rule(a: Tensor, b: Tensor, product: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the relevance of a (...,m,d) and b (...,d,n) for product = a @ b (...,m,n), half for each."""
    s = safe_divide(relevance, product)
    return a * (s @ b.mT) / 2, b * (a.mT @ s) / 2


def addition_rule(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the relevance of a and b for a + b, sums per bag: (B,n,D) each."""
    s = safe_divide(relevance, a + b)
    ra, rb = a * s, b * s
    total, sum_a, sum_b = (t.sum((1, 2), keepdim=True) for t in (relevance, ra, rb))
    size = sum_a.abs() + sum_b.abs()
    share_a, share_b = safe_divide(sum_a.abs(), size) * total, safe_divide(sum_b.abs(), size) * total
    return ra * safe_divide(share_a, sum_a), rb * safe_divide(share_b, sum_b)


def clone_rule(x: Tensor, *relevances: Tensor) -> Tensor:
    """Compute the relevance of x that is used in several places, any shape, the same for all."""
    return x * sum(safe_divide(r, x) for r in relevances)


@dataclass
class Trace:
    """The intermediate values of a block, (B,n,D) or (B,h,n,...), that its relevance needs."""

    x: Tensor
    normed: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    logits: Tensor
    weights: Tensor
    values: Tensor
    attended: Tensor
    middle: Tensor
    normed_middle: Tensor
    hidden: Tensor
    out: Tensor


class Block(nn.Module):
    """Pre-LN transformer block: qkv without bias, output Linear, GELU MLP of `ratio` times the width."""

    def __init__(self, width: int, n_heads: int, ratio: int = 2) -> None:
        super().__init__()
        self.n_heads, self.scale = n_heads, (width // n_heads) ** -0.5
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B,n,D) -> (B,n,D)."""
        q, k, v = self._heads(self.norm1(x))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out

    def trace(self, x: Tensor) -> Trace:
        """Apply the block to x (B,n,D) and keep all intermediate values."""
        normed = self.norm1(x)
        q, k, v = self._heads(normed)
        logits = q @ k.mT
        weights = torch.softmax(logits * self.scale, -1)
        values = weights @ v
        attended = self.proj(values.transpose(1, 2).flatten(2))
        middle = x + attended
        normed_middle = self.norm2(middle)
        hidden = F.gelu(self.fc1(normed_middle))
        out = self.fc2(hidden)
        return Trace(x, normed, q, k, v, logits, weights, values, attended, middle, normed_middle, hidden, out)

    def relevance(self, t: Trace, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Propagate the relevance r (B,n,D) of the output tokens.

        Returns:
            Relevance of the residual path (B,n,D), of the weights (B,h,n,n) and of the values (B,h,n,d).
        """
        kept, changed = addition_rule(t.middle, t.out, r)
        changed = linear_rule(t.hidden, self.fc2.weight, changed)
        changed = linear_rule(t.normed_middle, self.fc1.weight, changed)
        kept, changed = addition_rule(t.x, t.attended, clone_rule(t.middle, kept, changed))
        flat = linear_rule(t.values.transpose(1, 2).flatten(2), self.proj.weight, changed)
        r_heads = flat.view(*flat.shape[:2], self.n_heads, -1).transpose(1, 2)
        return kept, *product_rule(t.weights, t.v, t.values, r_heads)

    def input_relevance(self, t: Trace, kept: Tensor, weights: Tensor, values: Tensor) -> Tensor:
        """Propagate the results of `relevance` to the block's input (B,n,D)."""
        rq, rk = product_rule(t.q, t.k.mT, t.logits, weights)
        qkv = torch.stack([rq, rk.mT, values]).permute(1, 3, 0, 2, 4).flatten(2)
        return clone_rule(t.x, kept, linear_rule(t.normed, self.qkv.weight, qkv))

    def _heads(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(normed).view(*normed.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v


def graphcam(
    blocks: Sequence[Block],
    norm: nn.Module,
    head: nn.Linear,
    tokens: Tensor,
    *,
    rule: str = "lrp",
    seed: str = "logit",
) -> Tensor:
    """Compute the rollout row of the class token, the contribution of each other token to a positive logit.

    Args:
        blocks: of the transformer.
        norm: LayerNorm after the blocks.
        head: Linear(D, 1) on the class token.
        tokens: (B,n,D), input of the first block.
        rule: "lrp", or "attention" = the attention weights in place of their relevance (no backward rules).
        seed: of both factors, gradient and relevance: "logit" (original; C grows with the square of the logit) or
            "one".

    Returns:
        (B,n-1), >= 0, without gradient.
    """
    # The rules need gradients even if the caller has disabled them.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(tokens.device.type, enabled=False):
        x = tokens.detach().clone().requires_grad_()
        traces: list[Trace] = []
        for block in blocks:
            traces.append(block.trace(x))
            x = traces[-1].middle + traces[-1].out
        z = norm(x)[:, 0]
        logit = head(z)
        start = logit.detach() if seed == "logit" else torch.ones_like(logit)
        gradients = torch.autograd.grad((start * logit).sum(), [t.weights for t in traces])
    with torch.no_grad():
        relevance = torch.zeros_like(x)
        relevance[:, 0] = clone_rule(z, linear_rule(z, head.weight, start))
        # The row e_cls (I + C_L) ... (I + C_1) needs products with vectors only.
        rollout = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:1].expand(len(x), 1, -1)
        for block, t, gradient in zip(reversed(blocks), reversed(traces), reversed(gradients), strict=True):
            weights = t.weights
            if rule == "lrp":
                kept, weights, values = block.relevance(t, relevance)
                relevance = block.input_relevance(t, kept, weights, values)
            rollout = rollout + rollout @ (gradient * weights).clamp(min=0).mean(1)
    return rollout[:, 0, 1:]
