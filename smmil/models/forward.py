"""A forward pass in the precision that a job asks for, as training, validation and prediction run it."""

from __future__ import annotations

import torch

from smmil.compute.devices import autocast
from smmil.data.batch import BagBatch
from smmil.models.base import MILModel, Output


def forward(model: MILModel, batch: BagBatch, precision: str) -> Output:
    """Run the model in the given precision on x (M,P); bag_logit (B,) and instance_score (M,) are at least float32."""
    with autocast(batch.x.device, precision):
        output: Output = model(batch)
    if output.bag_logit.dtype != torch.float64:
        output.bag_logit, output.instance_score = output.bag_logit.float(), output.instance_score.float()
    return output
