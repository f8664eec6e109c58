"""Adam (Kingma & Ba, with PyTorch's defaults) as torch has it, without the import of torch's compiler.

torch's optimisers import `torch._dynamo` on their first call, 5 s of CPU in every job, only to say that they are not to
be compiled. Nothing here compiles; the same methods are called without that wrapper, so every bit stays the same
(`tests/test_overhead.py` holds them against each other). Where a release of torch wraps otherwise, it works as usual.
"""

import inspect
from collections.abc import Iterable

import torch
from torch import nn

# methods that ask the compiler, on their first call, for a version of themselves that is never compiled
WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`; its gradients are never differentiated through."""

    # the wrapper that is left out turns gradients off around the step, and imports the compiler
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def make_adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam on the given parameters.

    Args:
        parameters: of the model.
        learning_rate: before any schedule.
    """
    given = list(parameters)
    for name in WRAPPED:
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            plain.__dict__.setdefault("__dynamo_disable", plain)
    # on the CPU torch's one pass over weights, gradients and moments instead of one per operation: 5 to 19 % of a step
    fused = all(parameter.device.type == "cpu" for parameter in given)
    return Adam(given, lr=learning_rate, fused=fused or None)


def warmup_factor(epoch: int, warmup_epochs: int, start: float) -> float:
    """Factor of the base learning rate in an epoch (1-based): linear from `start` to 1, then 1 (LinearLR, closed form).

    A function of the epoch alone: there is no scheduler whose state a resumed run could get wrong.
    """
    done = epoch - 1
    return 1.0 if done >= warmup_epochs else start + (1.0 - start) * done / warmup_epochs
