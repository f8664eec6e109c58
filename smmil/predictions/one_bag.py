"""Scores of one bag under a trained run, on the device of its batch; see `smmil.predictions.runs` for the arrays."""

from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch

from smmil.data.batch import BagBatch
from smmil.models.base import MILModel, forward
from smmil.predictions.signed import Direction, signed_score
from smmil.sm.operator import dirichlet_energy, normalise_adjacency


def score_bag(
    model: MILModel, batch: BagBatch, direction: Direction | None = None
) -> tuple[float, npt.NDArray[Any], tuple[float, float], npt.NDArray[Any] | None]:
    """Score a bag in float32.

    Args:
        model: in eval mode.
        batch: one bag of N instances, on the device of the model.
        direction: for the sign-aware score, on any device; None = no sign-aware score.

    Returns:
        The logit, the instance scores (N,), their energy, and the sign-aware scores (N,) or None.
    """
    output, x = forward(model, batch, "float32"), batch.x
    score = output.instance_score.float()
    signed = None
    if direction is not None:
        local = replace(direction, vector=direction.vector.to(x.device), origin=direction.origin.to(x.device))
        signed = signed_score(local, x).cpu().numpy()
    logit = float(output.bag_logit.double()[0])
    # The caller raises for a wrong number of scores, because it knows the name of the bag.
    energy = score_energy(score, batch.neighbors) if len(score) == len(x) else (0.0, 0.0)
    return logit, score.cpu().numpy(), energy, signed


def score_energy(score: torch.Tensor, neighbors: torch.Tensor) -> tuple[float, float]:
    """Compute the Dirichlet energy of one bag's scores (N,), raw and divided by their squared norm."""
    rows = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    graph = normalise_adjacency(torch.where(neighbors == rows, -1, neighbors), dtype=torch.float64)
    f = score.double()[:, None]
    # Rounding may leave the energy of a constant score slightly negative.
    energy, norm = max(0.0, float(dirichlet_energy(f, graph))), float((f * f).sum())
    return energy, energy / norm if norm > 0 else 0.0
