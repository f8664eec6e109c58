"""Draws one figure of the paper, or a companion of it, from stored metrics, predictions and logs.

| figure | content | needs |
|---|---|---|
| fig4 | histograms of instance scores by label, a panel per method and dataset | metrics, index |
| fig5 | attention maps beside the truth, one bag per dataset, every method | metrics, index, instances |
| fig6a, fig6b, fig7 | metrics against alpha, spectral normalisation, number of steps | metrics |
| fig12 | one bag's map at every alpha | metrics, index, instances |
| cd | critical-difference diagram of mean ranks | metrics |
| histograms | fig4 of one dataset | metrics, index |
| curves, resources | learning curves; time and memory per method, of one dataset | metrics, runs |

Writes `X.png`, `X.pdf` and `X.json` (title, caption, notes, runs, number of missing runs, protocol, command).

Run alone:
    python -m smmil.figures --figure fig6a --layout layout.json --metrics results/*/metrics/*/*.json --out
    fig6a.png
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smmil.figures.job import Drawn, Job

log = logging.getLogger(__name__)

# figure -> module:function, imported when the figure is drawn
DRAWERS = {
    "fig4": "smmil.figures.histograms:draw",
    "fig5": "smmil.figures.map_grids:draw_methods",
    "fig6a": "smmil.figures.sweeps:draw_alpha",
    "fig6b": "smmil.figures.sweeps:draw_spectral_norm",
    "fig7": "smmil.figures.sweeps:draw_steps",
    "fig12": "smmil.figures.map_grids:draw_alphas",
    "cd": "smmil.figures.ranks:draw",
    "histograms": "smmil.figures.histograms:draw",
    "curves": "smmil.figures.curves:draw",
    "resources": "smmil.figures.resources:draw",
}


def drawer(figure: str) -> "Callable[[Job], Drawn]":
    """Return the function that draws a figure.

    Raises:
        ValueError: unknown figure.
    """
    if figure not in DRAWERS:
        raise ValueError(f"--figure: found {figure!r}, expected one of {', '.join(DRAWERS)}")
    module, name = DRAWERS[figure].split(":")
    function: Callable[[Job], Drawn] = getattr(importlib.import_module(module), name)
    return function


def _folders(pairs: Sequence[str]) -> dict[str, Path]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ValueError(f"--instances: found {wrong[0]!r}, expected dataset=folder")
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}
