"""Methods and batches in float64 that the tests of layers and methods share."""

import dataclasses

import torch
from torch import Tensor

from smmil.data.batch import BagBatch, pack
from smmil.models import MILModel, Output, build_model
from tests.helpers.graphs import make_bag

F64, P = torch.float64, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of a seed, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def build(name: str, **options) -> MILModel:
    """A method with weights of seed 0, float64, in evaluation mode."""
    torch.manual_seed(0)
    return build_model(name, P, **options).double().eval()


def batch_of(*sizes: int, y: float | None = None) -> BagBatch:
    """A float64 batch of random bags; `y` labels all of them, None labels every second bag positive."""
    batch = pack([make_bag(n, s, features=P, y=float(s % 2) if y is None else y) for s, n in enumerate(sizes)])
    return dataclasses.replace(batch, x=batch.x.double(), y=batch.y.double())


def assert_same(actual: Output, expected: Output, **tolerances: float) -> None:
    """Compare bag logits and instance scores."""
    torch.testing.assert_close(actual.bag_logit, expected.bag_logit, **tolerances)
    torch.testing.assert_close(actual.instance_score, expected.instance_score, **tolerances)


def assert_outputs(output: Output, logit: Tensor, score: Tensor, **tolerances: float) -> None:
    """Compare bag logits (B,) and instance scores (M,) of any shape with those of another implementation."""
    assert_same(output, Output(logit.reshape(-1), score.reshape(-1)), **tolerances)


def apart(model: MILModel, batch: BagBatch) -> Output:
    """The output of a batch whose bags are scored one by one."""
    singles = [model(single) for single in batch.split()]
    return Output(torch.cat([s.bag_logit for s in singles]), torch.cat([s.instance_score for s in singles]))
