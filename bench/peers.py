"""torchmil 1.0.2 as the peer of the method benches: its models, made equal to ours where they can be.

Every builder takes one of our models and the width P of its input, and returns the peer with our weights.
What is worked around in torchmil 1.0.2 (nothing of it is timed):
- its dataset's float64 adjacency makes Sm raise: float32 here;
- CAMIL and TransMIL get the landmarks and heads of the originals (CAMIL's default raises);
- its trainer is not used: losses are summed, so auxiliary ones count;
- CLAM's instance loss runs as released, on padded rows too (its compute_loss drops the mask);
- TransMIL knows no mask and CAMIL ignores padding in its Nystrom layer: padded rows take part, as released.
Weights that have a counterpart are copied (ABMIL, SmAP, the transformers, CLAM, DSMIL, DFTD); the others differ in
architecture (GTP, CAMIL) and keep their own, with the sizes of ours.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.bags import Padded
from smmil.models import MILModel

Loss = Callable[[Padded], Tensor]


def copy(peer: Any, ours: Any) -> None:
    """Copy the weight and, where both have one, the bias of a layer; torchmil wraps some in `.module`."""
    target = getattr(peer, "module", peer)
    with torch.no_grad():
        target.weight.copy_(ours.weight)
        if target.bias is not None and ours.bias is not None:
            target.bias.copy_(ours.bias)


def copy_pool(peer: Any, W: Any, w: Any, gate: Any = None) -> None:
    """Copy the layers of an attention pool."""
    copy(peer.fc1, W)
    copy(peer.fc2, w)
    if gate is not None:
        copy(peer.fc_gated, gate)


def features(ours: Any) -> nn.Sequential:
    """Return Linear and GELU with our weights."""
    layer = ours.embed[0]
    out = nn.Sequential(nn.Linear(layer.in_features, layer.out_features), nn.GELU())
    copy(out[0], layer)
    return out


def abmil(ours: Any, P: int) -> Any:
    from torchmil.models import ABMIL

    peer = ABMIL((P,), att_dim=128, feat_ext=features(ours))
    copy_pool(peer.pool, ours.pool.W, ours.pool.w)
    copy(peer.classifier, ours.classifier)
    return peer


def smap_early(ours: Any, P: int) -> Any:
    from torchmil.models import SmABMIL

    # The peer's fixed alpha acts as 1 - alpha.
    alpha = "trainable" if ours.pool.sm.a is not None else 1.0 - ours.pool.sm.fixed_alpha
    peer = SmABMIL((P,), sm_alpha=alpha, feat_ext=features(ours))
    copy(peer.pool.proj1, ours.pool.W)
    copy(peer.pool.proj2, ours.pool.w)
    copy(peer.last_layer, ours.classifier)
    return peer


def t_ap(ours: Any, P: int) -> Any:
    from torchmil.models import TransformerABMIL

    peer = TransformerABMIL(
        (P,), transf_n_layers=2, transf_use_mlp=False, transf_add_self=False, feat_ext=features(ours)
    )
    _transformer(peer, ours)
    copy_pool(peer.pool, ours.pool.W, ours.pool.w)
    copy(peer.last_layer, ours.classifier)
    return peer


def smtap(ours: Any, P: int) -> Any:
    from torchmil.models import SmTransformerABMIL

    peer = SmTransformerABMIL(
        (P,), transf_n_layers=2, transf_n_heads=8, transf_use_mlp=False, transf_add_self=False, feat_ext=features(ours)
    )
    _transformer(peer, ours)
    copy(peer.pool.proj1, ours.pool.W)
    copy(peer.pool.proj2, ours.pool.w)
    copy(peer.last_layer, ours.classifier)
    return peer


def _transformer(peer: Any, ours: Any) -> None:
    for theirs, mine in zip(peer.transformer_encoder.layers, ours.layers, strict=True):
        copy(theirs.att_module.qkv_nn, mine.qkv)
        copy(theirs.norm1, mine.norm)
    copy(peer.transformer_encoder.norm, ours.norm)


def clam(ours: Any, P: int) -> Any:
    from torchmil.models import CLAM_SB

    peer = CLAM_SB((P,), att_dim=256, gated=True, k_sample=8, feat_ext=features(ours))
    copy_pool(peer.pool, ours.attention.V, ours.attention.w, ours.attention.U)
    copy(peer.classifier, ours.classifier)
    return peer


def dsmil(ours: Any, P: int) -> Any:
    from torchmil.models import DSMIL

    peer = DSMIL((P,), att_dim=128, nonlinear_q=True, feat_ext=features(ours))
    copy(peer.q_nn[0], ours.query)
    copy(peer.q_nn[2], ours.query_2)
    copy(peer.inst_classifier, ours.instance)
    copy(peer.bag_classifier, ours.classifier)
    return peer


def dftd(ours: Any, P: int) -> Any:
    from torchmil.models import DTFDMIL
    from torchmil.nn import AttentionPool

    peer = DTFDMIL((P,), n_groups=4, distill_mode="afs", feat_ext=features(ours))
    for name, mine in (("attention_pool", ours.pool), ("u_attention_pool", ours.bag_pool)):
        pool = AttentionPool(in_dim=512, att_dim=128, gated=True)
        copy_pool(pool, mine.W, mine.w, mine.gate)
        setattr(peer, name, pool)
    copy(peer.classifier, ours.classifier)
    copy(peer.u_classifier, ours.bag_classifier)
    return peer


def transmil(ours: Any, P: int) -> Any:
    from torchmil.models import TransMIL

    return TransMIL((P,), n_heads=8, n_landmarks=256, feat_ext=features(ours))


def camil(ours: Any, P: int) -> Any:
    from torchmil.models import CAMIL

    return CAMIL((P,), gated_pool=True, n_heads=8, n_landmarks=256, feat_ext=features(ours))


def gtp(ours: Any, P: int) -> Any:
    from torchmil.models import GTP

    return GTP((P,), n_clusters=100, n_layers=3, feat_ext=features(ours))


PEERS: dict[str, Callable[[Any, int], Any]] = {
    f.__name__: f for f in (abmil, smap_early, t_ap, smtap, clam, dsmil, dftd, transmil, camil, gtp)
}
NEEDS_GRAPH = frozenset({"smap_early", "smtap", "camil", "gtp"})
NO_MASK = frozenset({"transmil"})


def peer_loss(method: str, ours: MILModel, P: int) -> tuple[Any, Loss]:
    """Return the peer of a method, and its loss of padded bags."""
    peer = PEERS[method](ours, P).train()

    def loss(bags: Padded) -> Tensor:
        inputs: list[Tensor | None] = [bags.X]
        if method in NEEDS_GRAPH:
            inputs.append(bags.adj)
        if method not in NO_MASK:
            inputs.append(bags.mask)
        _, losses = peer.compute_loss(bags.Y, *inputs)
        return torch.stack([value.float().mean() for value in losses.values()]).sum()

    return peer, loss
