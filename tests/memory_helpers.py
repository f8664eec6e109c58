"""Runs on a device with a budget: the injected out-of-memory errors of `test_memory.py`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from smmil.batches import BagCache
from smmil.data import Bag, BagBatch
from smmil.models import build_model
from smmil.runs import MEASURED, read_log
from smmil.training import Fit
from smmil.training_options import TrainingOptions
from tests.graphs import make_bag

P = 6
CPU = torch.device("cpu")


def bags(n: int = 7, dtype: torch.dtype = torch.float64) -> list[Bag]:
    made = [make_bag(2 + 3 * (i % 4), i, features=P, y=float(i % 2)) for i in range(n)]
    return [dataclasses.replace(bag, x=bag.x.to(dtype)) for bag in made]


def fit(folder: Path, method: str = "abmil", *, model: nn.Module | None = None, **settings) -> Fit:
    """Seven bags in batches of four, float64; `method_options` go to the method."""
    torch.manual_seed(0)
    made = settings.pop("made", None) or bags()
    built = model or build_model(method, P, pos_weight=1.5, **settings.pop("method_options", {}))
    options = TrainingOptions(**{"device": "cpu", "batch_size": 4, "epochs": 2, **settings})
    index = list(range(len(made)))
    folder.mkdir(parents=True, exist_ok=True)
    cache = BagCache(made, CPU)
    return Fit(built.to(made[0].x.dtype), cache, index, index, options, base_lr=1e-3, seed=0, folder=folder, key="k")


class Budget:
    """A device on which a pass over more than `most` bags fails, early or late, in training or also in validation.

    Args:
        running: whose passes are counted.
        fails: (fit, batch) -> whether this pass is too large.
        where: forward | backward (after the gradients have been added) | packing.
        patch: pytest's monkeypatch.
    """

    error: BaseException = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nsecond line")

    def __init__(self, running: Fit, fails: Callable[[Fit, BagBatch], bool], where: str, patch: pytest.MonkeyPatch):
        self.raised = 0
        self.passes: list[tuple[bool, int]] = []
        self.last = False
        backward, pack = torch.autograd.backward, running.cache.batch

        def refuse() -> None:
            self.raised += 1
            raise self.error

        def entered(model, inputs, output) -> None:
            self.passes.append((model.training, inputs[0].n_bags))
            self.last = fails(running, inputs[0])
            if self.last and (where == "forward" or not model.training):
                refuse()

        def backwards(total: torch.Tensor) -> None:
            backward(total)
            if self.last and where == "backward":
                refuse()

        def packing(index, *fields) -> BagBatch:
            batch = pack(index, *fields)
            if where == "packing" and fails(running, batch):
                refuse()
            return batch

        running.model.register_forward_hook(entered)
        patch.setattr(torch.autograd, "backward", backwards)
        patch.setattr(running.cache, "batch", packing)


def more_than(most: int) -> Callable[[Fit, BagBatch], bool]:
    return lambda running, batch: batch.n_bags > most


def numbers(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if v is not None and k not in {*MEASURED, "bags_per_pass"}}
        for row in read_log(folder / "log.jsonl")
    ]


def assert_close(a: Fit, b: Fit, rtol: float) -> None:
    for one, two in zip(numbers(a.folder), numbers(b.folder), strict=True):
        assert one == pytest.approx(two, rel=rtol, abs=1e-12)
    for name, value in a.model.state_dict().items():
        torch.testing.assert_close(value, b.model.state_dict()[name], rtol=rtol, atol=1e-12, msg=name)


def resident(running: Fit) -> Fit:
    """As on a GPU: the features live on the device."""
    running.cache.to_device()
    return running


def device_is_full(running: Fit, batch: BagBatch) -> bool:
    return running.cache.resident and running.model.training
