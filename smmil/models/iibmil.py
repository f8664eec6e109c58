"""IIB-MIL (Ren et al., MICCAI 2023): a bag decoder, and an instance head trained with prototype-based soft labels.

Encoder, three stages, z = 256: Linear-Tanh-LN stack (512, 1024, 512, 512, 256), post-LN transformer layer, plus
ReLU(Linear(H)). Instance head LN, Linear(256, 2). Decoder: five learned queries, two post-LN layers (self-attention,
cross-attention to the instances, MLP), concatenated into Linear(1280, 1).
Prototypes p_0, p_1: of all instances in the B_c bags of label c in a batch of B, the tenth with the highest class-c
probability (none of fewer than ten) updates p_c, most probable first, each by p <- m_c p + (1 - m_c) x with
1 - m_c = (1 - m) B / B_c, m = .99, m_c >= 0.
Soft labels q: (1,0) in negative bags; (1/2,1/2) in positive ones at first, and from epoch 3 on, per visit,
q <- m q + (1 - m) onehot(argmax_c p_c . x) with m = .94; ties keep q. `loss` updates labels and prototypes, in training
mode only, without gradient; labels first, by the prototypes of the previous step.
Loss = bag cross entropy + soft cross entropy of the instances (mean over a bag's instances, then over bags).
Score: instance logit 1 - logit 0.

Shapes: (M,P) -> bag_logit (B,), instance_score (M,). Attention is exact: memory linear, time quadratic.
"""

import hashlib
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from smmil.data.batch import BagBatch
from smmil.layers.attention import check_length, packed_attention
from smmil.layers.dropout import Dropout
from smmil.layers.segments import segment_mean
from smmil.models.base import BaseOptions, MILModel, Output


class EncoderLayer(nn.Module):
    """Post-LN transformer encoder layer with ReLU, on packed bags; `hidden` is the width of the feed-forward part."""

    def __init__(self, width: int, n_heads: int = 2, hidden: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.n_heads, self.scale, self.p = n_heads, (width // n_heads) ** -0.5, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bounds: list[int]) -> Tensor:
        """Apply the layer inside every bag `bounds[b]:bounds[b+1]`: (M,D) -> (M,D)."""
        q, k, v = self.qkv(x).chunk(3, -1)
        p = self.p if self.training else 0.0
        heads = packed_attention(q, k, v, bounds, self.n_heads, scale=self.scale, dropout=p)
        x = self.norm1(x + self.dropout(self.out(heads)))
        hidden = self.dropout(torch.relu(self.linear1(x)))
        out: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return out


class Stage(nn.Module):
    """Linear-Tanh-LN stack and a transformer layer: (M,inputs) -> (M,z)."""

    def __init__(self, inputs: int, z: int, dropout: float) -> None:
        super().__init__()
        widths = [inputs, 2 * z, 4 * z, 2 * z, 2 * z, z]
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(a, b), nn.Tanh(), nn.LayerNorm(b)]
        self.stack = nn.Sequential(*layers)
        self.transformer = EncoderLayer(z, dropout=dropout)

    def forward(self, x: Tensor, bounds: list[int]) -> Tensor:
        """Apply the stage without its skip: (M,inputs) -> (M,z)."""
        out: Tensor = self.transformer(self.stack(x), bounds)
        return out


class SoftLabels(nn.Module):
    """Soft labels q_1 of the instances of the positive training bags by bag id; one tensor in the state dict.

    The tensor is int64: number of bags, their keys, their sizes, then all q_1 as the bits of float64 numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, Tensor] = {}

    @staticmethod
    def key(bag_id: str) -> int:
        """Return 63 bits of the SHA-256 of a bag id."""
        return int.from_bytes(hashlib.sha256(bag_id.encode()).digest()[:8], "big") >> 1

    def get(self, bag_id: str, like: Tensor) -> Tensor:
        """Return q_1 (N,) with device and type of `like`; 1/2 for a new bag or a changed number of instances."""
        q = self.values.get(self.key(bag_id))
        if q is None or q.shape != like.shape:
            return torch.full_like(like, 0.5)
        return q.to(like)

    def put(self, bag_id: str, q: Tensor) -> None:
        """Store q_1 (N,) of a bag."""
        self.values[self.key(bag_id)] = q.detach().clone()

    def get_extra_state(self) -> Tensor:
        """Return all labels as one int64 tensor (L,) on the CPU."""
        sizes = [len(q) for q in self.values.values()]
        head = torch.tensor([len(sizes), *self.values, *sizes], dtype=torch.int64)
        return torch.cat([head, *(q.cpu().double().view(torch.int64) for q in self.values.values())])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the labels from the tensor (L,) of `get_extra_state`."""
        n = int(state[0])
        keys, sizes = state[1 : 1 + n].tolist(), state[1 + n : 1 + 2 * n].tolist()
        labels = torch.split(state[1 + 2 * n :].clone().view(torch.float64), sizes)
        self.values = {key: q.clone() for key, q in zip(keys, labels, strict=True)}


class IIBMIL(MILModel):
    """Joint supervision of instances and bags; the momenta are the m of the prototypes and of the soft labels."""

    prototypes: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        z: int = 256,
        depth: int = 3,
        n_queries: int = 5,
        decoder_depth: int = 2,
        dropout: float = 0.1,
        prototype_momentum: float = 0.99,
        label_momentum: float = 0.94,
        warmup_epochs: int = 2,
        max_tokens: int = 65536,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(in_features, **base)
        self.prototype_momentum, self.label_momentum = prototype_momentum, label_momentum
        self.warmup_epochs, self.max_tokens, self.epoch = warmup_epochs, max_tokens, 1
        width = self.width
        self.stages = nn.ModuleList(Stage(width if i == 0 else z, z, dropout) for i in range(depth))
        self.skips = nn.ModuleList(nn.Linear(width, z) for _ in range(depth))
        self.instance_head = nn.Sequential(nn.LayerNorm(z), nn.Linear(z, 2))
        self.queries = nn.Parameter(torch.randn(n_queries, z))
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(z, 4, 2 * z, dropout, batch_first=True) for _ in range(decoder_depth)
        )
        self.classifier = nn.Linear(n_queries * z, 1)
        self.register_buffer("prototypes", torch.zeros(2, z))
        self.labels = SoftLabels()

    def start_epoch(self, epoch: int) -> None:
        """Store the epoch (from 1) for the warm-up of the soft labels."""
        self.epoch = epoch

    def forward(self, batch: BagBatch) -> Output:
        """Compute bag_logit (B,) and instance_score (M,) of x (M,P); instance logits (M,2) in extra."""
        bounds = batch.offsets.tolist()
        check_length(bounds, self.max_tokens, "iibmil")
        h = self.embed(batch.x)
        x = h
        for stage, skip in zip(self.stages, self.skips, strict=True):
            x = stage(x, bounds) + torch.relu(skip(h))
        logits = self.instance_head(x)
        pairs = zip(bounds[:-1], bounds[1:], strict=True)
        bag_logit = torch.cat([self.classifier(self._decode(x[a:b])) for a, b in pairs])
        return Output(bag_logit[:, 0], logits[:, 1] - logits[:, 0], {"instance_logits": logits, "encoded": x})

    def loss(self, batch: BagBatch, output: Output) -> dict[str, Tensor]:
        """Compute bag and soft instance cross entropy, scalars; in training, update labels and prototypes once."""
        logits, encoded = output.extra["instance_logits"], output.extra["encoded"].detach()
        probability = torch.softmax(logits.detach(), -1)
        bounds, targets = batch.offsets.tolist(), torch.zeros_like(probability[:, 1])
        for start, stop, y, bag_id in zip(bounds[:-1], bounds[1:], batch.y.tolist(), batch.bag_ids, strict=True):
            if y == 1:
                targets[start:stop] = self._soft_label(bag_id, encoded[start:stop], targets[start:stop])
        if self.training:
            for label in (0, 1):
                bags = batch.y == label
                rows = bags[batch.bag_index]
                self._move_prototype(label, encoded[rows], probability[rows, label], int(bags.sum()) / len(bags))
        soft = torch.stack([1 - targets, targets], 1)
        entropy = -(soft * log_softmax(logits, -1)).sum(1, keepdim=True)
        return {**super().loss(batch, output), "instance": segment_mean(entropy, batch.offsets).mean()}

    def _decode(self, memory: Tensor) -> Tensor:
        """Decode the encoded instances of one bag: (N,z) -> (1, n_queries z)."""
        queries = self.queries[None]
        for layer in self.decoder:
            queries = layer(queries, memory[None])
        return queries.flatten(1)

    @torch.no_grad()
    def _soft_label(self, bag_id: str, encoded: Tensor, like: Tensor) -> Tensor:
        """Return q_1 (N,) of a positive bag; in training after the warm-up, update and store it."""
        q = self.labels.get(bag_id, like)
        if self.training and self.epoch > self.warmup_epochs:
            negative, positive = (encoded.to(self.prototypes.dtype) @ self.prototypes.T).unbind(1)
            moved = self.label_momentum * q + (1 - self.label_momentum) * (positive > negative).to(q.dtype)
            q = torch.where(positive == negative, q, moved)
            self.labels.put(bag_id, q)
        return q

    @torch.no_grad()
    def _move_prototype(self, label: int, encoded: Tensor, probability: Tensor, share: float) -> None:
        """Update p <- m_c p + (1 - m_c) x for the most probable tenth of the instances, in one sum.

        `encoded` (N,z) are all instances of the bags of a label, `share` = B_c / B is that of these bags in the batch.
        """
        if (k := len(encoded) // 10) == 0:
            return
        m = max(0.0, 1 - (1 - self.prototype_momentum) / share)
        chosen = encoded[probability.topk(k).indices].to(self.prototypes.dtype)
        decay = m ** torch.arange(k - 1, -1, -1, dtype=chosen.dtype, device=chosen.device)
        self.prototypes[label] = m**k * self.prototypes[label] + (1 - m) * (decay @ chosen)


def moved_prototype_reference(p: Tensor, encoded: Tensor, probability: Tensor, m: float) -> Tensor:
    """Compute the recursion of a prototype as written: p (z,), encoded (N,z), probability (N,) -> (z,)."""
    for i in probability.topk(len(encoded) // 10).indices:
        p = m * p + (1 - m) * encoded[i]
    return p
