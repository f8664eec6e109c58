"""The registry of methods: one method, one file, one line.

`build_model(name, in_features)` gives a `MILModel`; what a row of a table is called, and its group, is in
`smmil/config/methods.py`.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from smmil.layers.pooling import AttentionPool
from smmil.models.abmil import ABMIL
from smmil.models.base import MILModel, Output
from smmil.models.camil import CAMIL
from smmil.models.clam import CLAM
from smmil.models.deepgraphsurv import DeepGraphSurv
from smmil.models.dftd import DFTD
from smmil.models.dsmil import DSMIL
from smmil.models.gtp import GTP
from smmil.models.iibmil import IIBMIL
from smmil.models.pathgcn import pathgcn
from smmil.models.penalty import ABMILPenalty, TransformerPenalty
from smmil.models.pooling import Pooling
from smmil.models.setmil import SETMIL
from smmil.models.smap import SmAP
from smmil.models.transformer import TransformerMIL
from smmil.models.transmil import TransMIL
from smmil.sm.operator import Sm

MODELS: dict[str, Callable[..., MILModel]] = {
    "abmil": ABMIL,
    "abmil_gated": partial(ABMIL, gated=True),
    "clam": CLAM,
    "clam_mb": partial(CLAM, multi_branch=True),
    "dsmil": DSMIL,
    "dftd": DFTD,
    "dftd_maxmin": partial(DFTD, distill="maxmin"),
    "dftd_max": partial(DFTD, distill="max"),
    "smclam": partial(CLAM, sm=True),
    "smdsmil": partial(DSMIL, sm=True),
    "smdftd": partial(DFTD, sm=True),
    "abmil_penalty": ABMILPenalty,
    "t_penalty": TransformerPenalty,
    "mean_pool": Pooling,
    "max_pool": partial(Pooling, pool="max"),
    "smap_early": partial(SmAP, placement="early"),
    "smap_mid": partial(SmAP, placement="mid"),
    "smap_late": partial(SmAP, placement="late"),
    "t_ap": partial(TransformerMIL, sm_transformer=False, sm_pool=False),
    "smt_ap": partial(TransformerMIL, sm_transformer=True, sm_pool=False),
    "t_smap": partial(TransformerMIL, sm_transformer=False, sm_pool=True),
    "smtap": partial(TransformerMIL, sm_transformer=True, sm_pool=True),
    "deepgraphsurv": DeepGraphSurv,
    "pathgcn": pathgcn,
    "transmil": TransMIL,
    "setmil": SETMIL,
    "gtp": GTP,
    "camil": CAMIL,
    "iibmil": IIBMIL,
}


# of smmil.config.quirks.QUIRKS: those that no argument of a method stands for
MODEL_QUIRKS = frozenset({"sm_alpha_rule", "sm_alpha_param", "softmax", "graph_isolated"})


def build_model(
    name: str,
    in_features: int,
    *,
    pos_weight: float | None = None,
    quirks: Collection[str] = (),
    **options: Any,
) -> MILModel:
    """Builds a method by name.

    Args:
        name: a key of `MODELS`.
        in_features: P of the encoder.
        pos_weight: weight of positive bags, None = 1.
        quirks: some of `MODEL_QUIRKS`, where the released code differs from the paper.
        options: the method's own arguments.

    Raises:
        ValueError: an unknown name or option.
    """
    if name not in MODELS:
        raise ValueError(f"method: found {name!r}, expected one of {', '.join(sorted(MODELS))}")
    strange = sorted(set(quirks) - MODEL_QUIRKS)
    if strange:
        raise ValueError(f"quirks: found {strange}, expected some of {', '.join(sorted(MODEL_QUIRKS))}")
    try:
        model = MODELS[name](in_features, pos_weight=pos_weight, **options)
    except TypeError as error:
        raise ValueError(f"method {name!r}: {error}; check its options") from error
    if quirks:
        _use_released(model, frozenset(quirks))
    return model


def _use_released(model: MILModel, quirks: frozenset[str]) -> None:
    model.quirks = quirks
    for module in model.modules():
        if isinstance(module, Sm):
            module.use_released(swapped="sm_alpha_rule" in quirks, ratio="sm_alpha_param" in quirks)
        elif isinstance(module, AttentionPool):
            module.plain_softmax = "softmax" in quirks


__all__ = ["MODELS", "MILModel", "Output", "build_model"]
