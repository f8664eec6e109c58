"""What a training step moves besides the weights: put back when the step fails, held when it is done in passes.

Both serve `smmil.memory`: a step that ran out of memory leaves no trace, and a step in passes moves as much as a whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


class Undo:
    """What a training step moves before its optimiser step, so that a failed step leaves no trace.

    The state of the random generators, buffers, and tensors that a module with extra state keeps in dicts (it replaces
    them and never writes into them: IIB-MIL's soft labels).

    Args:
        model: in training.
        device: whose generator is drawn from, beside the CPU's.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self.stores = [
            (value, dict(value))
            for module in model.modules()
            if type(module).get_extra_state is not nn.Module.get_extra_state
            for name, value in vars(module).items()
            if type(value) is dict and not name.startswith("_")
        ]
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for buffer, value in self.buffers:
            buffer.copy_(value)
        for store, values in self.stores:
            store.clear()
            store.update(values)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


@contextmanager
def frozen_parametrizations(model: nn.Module) -> Iterator[None]:
    """Holds what parametrizations advance at every training pass (the power iterations of spectral normalisation)."""
    moving = [m for m in model.modules() if isinstance(m, ParametrizationList) and m.training]
    for module in moving:
        module.train(False)
    try:
        yield
    finally:
        for module in moving:
            module.train()
