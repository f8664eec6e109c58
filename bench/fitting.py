"""A plain training loop for the benches (Adam, shuffled batches, last weights), and text tables.

In: bags and a registry name. Out: bag logits (B,) and instance scores, one array per bag, both float64.
The protocol of the paper (warm-up, selection on validation) is in `smmil.train`; these tasks are too small for it.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from smmil.data.batch import Bag
    from smmil.models import MILModel

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FitOptions:
    """How a model is trained.

    Attributes:
        epochs: passes over the bags.
        batch_size: bags per step.
        lr: of Adam.
        weight_decay: of Adam.
    """

    epochs: int = 30
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.0


def fit(name: str, bags: "Sequence[Bag]", options: FitOptions, seed: int, **model_options: Any) -> "MILModel":
    """Build a method and train it on labelled bags.

    Args:
        name: registry key.
        bags: training bags.
        options: of the loop.
        seed: of the weights and of the order of the bags.
        model_options: the method's own.

    Returns:
        The model after the last epoch, in evaluation mode.
    """
    import torch

    from smmil.data.batch import pack
    from smmil.models import build_model

    torch.manual_seed(seed)
    model = build_model(name, bags[0].x.shape[1], **model_options).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    for _ in range(options.epochs):
        order = torch.randperm(len(bags)).tolist()
        for start in range(0, len(bags), options.batch_size):
            batch = pack([bags[i] for i in order[start : start + options.batch_size]])
            optimiser.zero_grad()
            torch.autograd.backward(list(model.loss(batch, model(batch)).values()))
            optimiser.step()
    return model.eval()


def predict(model: "MILModel", bags: "Sequence[Bag]", batch_size: int = 64) -> tuple[Floats, list[Floats]]:
    """Return bag logits (B,) and one array of instance scores per bag."""
    import torch

    from smmil.data.batch import pack

    logits, scores = [], []
    for start in range(0, len(bags), batch_size):
        batch = pack(bags[start : start + batch_size])
        # no torch.no_grad(): GraphCAM scores need gradients of the forward pass
        output = model(batch)
        logits.append(output.bag_logit.detach().double())
        scores += [part.double().numpy() for part in output.instance_score.detach().split(batch.sizes.tolist())]
    return torch.cat(logits).numpy(), scores


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns to their widest cell, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (header, *rows)
    )


def make_fit_parser(name: str, doc: str | None, defaults: FitOptions) -> argparse.ArgumentParser:
    """Return the parser of `bench.NAME`: --methods, --seeds, --threads, --json and the fields of `FitOptions`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(doc or "").split("\n")[0])
    parser.add_argument("--methods", help="comma-separated registry keys (default: see the top of the file)")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions; the mean is shown")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--weight-decay", type=float, default=defaults.weight_decay)
    return parser


def fit_options(arguments: argparse.Namespace) -> FitOptions:
    """Return the parsed `FitOptions`."""
    return FitOptions(arguments.epochs, arguments.batch_size, arguments.lr, arguments.weight_decay)


def chosen_methods(text: str | None, default: Callable[[], Sequence[str]]) -> list[str]:
    """Return the registry keys named in `text`, or the default.

    Raises:
        ValueError: a name the registry does not have.
    """
    from smmil.config.methods import METHODS

    names = list(default()) if text is None else [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(METHODS))
    if unknown or not names:
        raise ValueError(f"--methods: found {', '.join(unknown) or 'none'}, expected keys of {', '.join(METHODS)}")
    return names


def mean(values: Sequence[float | None]) -> float | None:
    """Average the defined values; None when there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
