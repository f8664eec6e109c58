"""Weights of ours into torchmil, the test-only oracle; its lazily built layers hide the linear layer in `.module`."""

import torch
from torch import nn

from smmil.layers.pooling import AttentionPool


def copy_linear(peer: nn.Module, ours: nn.Linear) -> None:
    """Copies weight and, where the peer has one, bias."""
    target = getattr(peer, "module", peer)
    with torch.no_grad():
        target.weight.copy_(ours.weight)
        if target.bias is not None:
            target.bias.copy_(ours.bias)


def copy_pool(peer: nn.Module, W: nn.Linear, w: nn.Linear, gate: nn.Linear | None = None) -> None:
    """Copies the layers of an attention pool."""
    copy_linear(peer.fc1, W)
    copy_linear(peer.fc2, w)
    if gate is not None:
        copy_linear(peer.fc_gated, gate)


def copy_attention_pool(peer: nn.Module, ours: AttentionPool) -> None:
    """Copies our attention pool into torchmil's."""
    copy_pool(peer, ours.W, ours.w, ours.gate)
