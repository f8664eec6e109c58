"""Scores of one bag under a trained run, on the device of its batch; see `smmil.predictions.runs` for the arrays."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from smmil.data.batch import BagBatch
from smmil.models.base import MILModel, forward
from smmil.predictions.signed import Direction, signed_score
from smmil.sm.operator import Graph, dirichlet_energy, normalise_adjacency, sm_steps

# steps and alpha of the smoothed sign-aware score; the paper's, fixed
SM_STEPS, SM_ALPHA = 10, 0.5


class BagScores(NamedTuple):
    """Scores of one bag.

    Attributes:
        logit: logit of the bag.
        score: (N,) instance scores.
        energy: Dirichlet energy of the scores, raw and normalised.
        signed: (N,) sign-aware scores, None without a direction.
        signed_sm: (N,) the same, smoothed.
    """

    logit: float
    score: npt.NDArray[Any]
    energy: tuple[float, float]
    signed: npt.NDArray[Any] | None = None
    signed_sm: npt.NDArray[Any] | None = None


def score_bag(model: MILModel, batch: BagBatch, direction: Direction | None = None) -> BagScores:
    """Score a bag of N instances in float32.

    Args:
        model: in eval mode.
        batch: one bag, x (N,P), on the device of the model.
        direction: for the sign-aware score, on any device; None = no sign-aware score.
    """
    output, x = forward(model, batch, "float32"), batch.x
    score = output.instance_score.float()
    # The caller raises for a wrong number of scores, because it knows the name of the bag.
    energy = score_energy(score, batch.neighbors) if len(score) == len(x) else (0.0, 0.0)
    scores = BagScores(float(output.bag_logit.double()[0]), score.cpu().numpy(), energy)
    if direction is None:
        return scores
    local = replace(direction, vector=direction.vector.to(x.device), origin=direction.origin.to(x.device))
    signed = signed_score(local, x)
    smoothed = smooth_score(signed, batch.neighbors)
    return scores._replace(signed=signed.cpu().numpy(), signed_sm=smoothed.cpu().numpy())


def score_energy(score: torch.Tensor, neighbors: torch.Tensor) -> tuple[float, float]:
    """Compute the Dirichlet energy of one bag's scores (N,), raw and divided by their squared norm."""
    f = score.double()[:, None]
    # Rounding may leave the energy of a constant score slightly negative.
    energy, norm = max(0.0, float(dirichlet_energy(f, _plain_graph(neighbors)))), float((f * f).sum())
    return energy, energy / norm if norm > 0 else 0.0


def smooth_score(
    score: torch.Tensor, neighbors: torch.Tensor, *, alpha: float = SM_ALPHA, T: int = SM_STEPS
) -> torch.Tensor:
    """Smooth one bag's scores with T steps of Sm: (N,) and neighbours (N,K) -> (N,) float32.

    The graph is that of the energies: weights 1, no self loops. Scores proportional to the square root of the degree
    are left unchanged. Equal scores are so only where all degrees are equal; elsewhere they shrink at instances with
    few neighbours (ends of a scan, edges of the tissue) and grow next to them. An instance without neighbours keeps its
    score.
    """
    return sm_steps(score.double()[:, None], _plain_graph(neighbors), alpha, T)[:, 0].float()


def _plain_graph(neighbors: torch.Tensor) -> Graph:
    """Normalise the neighbours (N,K) of one bag with weights 1, without self loops."""
    rows = torch.arange(len(neighbors), device=neighbors.device)[:, None]
    return normalise_adjacency(torch.where(neighbors == rows, -1, neighbors), dtype=torch.float64)
