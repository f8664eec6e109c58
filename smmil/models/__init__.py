"""The methods, one file each; `smmil.config.methods.METHODS` registers them.

`build_model(key, in_features)` returns a `MILModel`.
"""

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

from smmil.config.methods import get_method
from smmil.layers.pooling import AttentionPool
from smmil.models.base import MILModel, Output
from smmil.sm.operator import Sm

# of smmil.config.quirks.QUIRKS: those that no argument of a method stands for
MODEL_QUIRKS = frozenset({"sm_alpha_rule", "sm_alpha_param", "softmax", "graph_isolated"})


def model_factory(key: str) -> Callable[..., MILModel]:
    """Import the class or function that builds a registered method."""
    module, _, name = get_method(key).build.partition(":")
    factory: Callable[..., MILModel] = getattr(import_module(module), name)
    return factory


def build_model(
    key: str,
    in_features: int,
    *,
    pos_weight: float | None = None,
    quirks: Collection[str] = (),
    **options: Any,
) -> MILModel:
    """Build a method by its key.

    Args:
        key: key of `smmil.config.methods.METHODS`.
        in_features: P of the encoder.
        pos_weight: weight of positive bags, None = 1.
        quirks: some of `MODEL_QUIRKS`, where the released code differs from the paper.
        options: arguments of the method; they override those of its entry.

    Raises:
        ValueError: an unknown key, quirk or option.
    """
    factory, fixed = model_factory(key), get_method(key).options
    unknown = sorted(set(quirks) - MODEL_QUIRKS)
    if unknown:
        raise ValueError(f"quirks: found {unknown}, expected some of {', '.join(sorted(MODEL_QUIRKS))}")
    try:
        model = factory(in_features, pos_weight=pos_weight, **{**fixed, **options})
    except TypeError as error:
        raise ValueError(f"method {key!r}: {error}; check its options") from error
    for module in model.modules() if quirks else ():
        if isinstance(module, Sm):
            module.use_released(
                swapped="sm_alpha_rule" in quirks,
                ratio="sm_alpha_param" in quirks,
                isolated="graph_isolated" in quirks,
            )
        elif isinstance(module, AttentionPool):
            module.plain_softmax = "softmax" in quirks
    return model


__all__ = ["MODEL_QUIRKS", "MILModel", "Output", "build_model"]
