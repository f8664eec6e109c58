"""One training run: plain PyTorch, resumable at every batch, the same bits with or without interruption on a CPU.

Protocol (methods.md sections 3, 5 and 6): Adam with PyTorch's defaults; learning rate times .1 .28 .46 .64 .82 1 1 ...
by epoch; batches of whole bags in a seeded order, none dropped; after every epoch the selection score
`validation bag AUROC - validation BCE` keeps the weights when it is at least the best so far (ties: later). With one
class in validation AUROC counts 0. A class weight enters the training and the validation loss.

Shapes: see `smmil.data.BagBatch`. Losses are means over the bags of an epoch.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from smmil.batches import BagCache, chunks
from smmil.data import BagBatch
from smmil.devices import autocast, restore_rng_state, rng_state
from smmil.metrics import auroc
from smmil.models.base import MILModel, Output
from smmil.nn import segment_softmax, segment_sum
from smmil.runs import append_log, load_state, save_state, truncate_log

if TYPE_CHECKING:
    from smmil.training_options import TrainingOptions


class Interrupted(Exception):
    """Training stopped on request; the state on disk continues exactly here."""


@dataclass
class Best:
    """The selected epoch so far (1-based; 0 = none yet)."""

    epoch: int = 0
    score: float = -math.inf
    weights: dict[str, Any] = field(default_factory=dict)


@dataclass
class Cursor:
    """Position in a run: batches done in the epoch under way, and their sums.

    Attributes:
        epoch: under way, 1-based.
        step: batches of it already done.
        order: its order of training bags, empty before it begins.
        sums: (term -> sum over bags) as float64 scalars on the device; `grad_norm` sums over steps.
        seconds: spent on it, over all sittings.
    """

    epoch: int = 1
    step: int = 0
    order: list[int] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def warmup_factor(epoch: int, warmup_epochs: int, start: float) -> float:
    """Factor of the base learning rate in an epoch (1-based): linear from `start` to 1, then 1 (LinearLR, closed form).

    A function of the epoch alone: there is no scheduler whose state a resumed run could get wrong.
    """
    done = epoch - 1
    return 1.0 if done >= warmup_epochs else start + (1.0 - start) * done / warmup_epochs


def selection_score(bag_auroc: float | None, bce: float) -> float:
    """Validation bag AUROC (0 when undefined: one class) minus validation BCE."""
    return (0.0 if bag_auroc is None else bag_auroc) - bce


def class_weight(labels: Sequence[float]) -> float:
    """pos_weight = n_negative / n_positive of the training bags."""
    positive = sum(1 for y in labels if y == 1)
    if not 0 < positive < len(labels):
        raise ValueError(
            f"class_weight: found {positive} positive of {len(labels)} training bags, expected both classes"
        )
    return (len(labels) - positive) / positive


def forward(model: MILModel, batch: BagBatch, precision: str) -> Output:
    """Runs the model under the asked precision; logits and scores come back in at least float32."""
    with autocast(batch.x.device, precision):
        output: Output = model(batch)
    if output.bag_logit.dtype != torch.float64:
        output.bag_logit, output.instance_score = output.bag_logit.float(), output.instance_score.float()
    return output


class Fit:
    """One run under way.

    Args:
        model: freshly initialised, on its device.
        cache: all bags of the job.
        train: positions of the training bags in the cache.
        val: positions of the validation bags.
        options: training options.
        base_lr: learning rate after warm-up.
        seed: of the order of bags.
        folder: the run directory.
        key: of the run; a state with another key is ignored.
        stop: asked before every batch; True saves the state and raises `Interrupted`.
        report: called with every finished epoch's log row.
    """

    def __init__(
        self,
        model: MILModel,
        cache: BagCache,
        train: Sequence[int],
        val: Sequence[int],
        options: "TrainingOptions",
        *,
        base_lr: float,
        seed: int,
        folder: Path,
        key: str,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        self.model, self.cache, self.options = model, cache, options
        self.train, self.val = list(train), list(val)
        self.base_lr, self.folder, self.key = base_lr, folder, key
        self.stop, self.report = stop, report
        self.optimizer = torch.optim.Adam(model.parameters(), lr=base_lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.cursor, self.best = Cursor(), Best()

    def run(self) -> Best:
        """Trains to the last epoch, from the saved state if there is one.

        Raises:
            Interrupted: `stop` said so; the state is saved.
            ValueError: a loss or gradient is not finite.
        """
        self._resume()
        while self.cursor.epoch <= self.options.epochs:
            row = self._epoch()
            append_log(self.folder / "log.jsonl", row)
            self.cursor = Cursor(epoch=self.cursor.epoch + 1)
            if self.cursor.epoch > self.options.epochs or row["epoch"] % self.options.checkpoint_every == 0:
                self._save()
            self.report(row)
        return self.best

    def _epoch(self) -> dict[str, Any]:
        started, cursor = time.perf_counter(), self.cursor
        learning_rate = self.base_lr * warmup_factor(
            cursor.epoch, self.options.warmup_epochs, self.options.warmup_start
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if not cursor.order:
            cursor.order = [self.train[i] for i in torch.randperm(len(self.train), generator=self.generator).tolist()]
        self.model.train()
        self.model.start_epoch(cursor.epoch)
        remaining = chunks(cursor.order, self.options.batch_size)[cursor.step :]
        for batch in self.cache.batches(remaining):
            if self.stop():
                cursor.seconds += time.perf_counter() - started
                self._save()
                raise Interrupted
            self._step(batch)
            cursor.step += 1
        row: dict[str, Any] = {"epoch": cursor.epoch, "lr": learning_rate, **self._train_means()}
        row |= validate(self.model, self.cache, self.val, self.options)
        self._check_finite(row)
        row["selection"] = selection_score(row["val_bag_auroc"], row["val_selection_bce"])
        row["kept"] = row["selection"] >= self.best.score
        if row["kept"]:
            self.best = Best(cursor.epoch, row["selection"], _snapshot(self.model))
        row["seconds"] = round(cursor.seconds + time.perf_counter() - started, 4)
        return row

    def _step(self, batch: BagBatch) -> None:
        """One optimiser step. Sums stay on the device: reading them every step would make it wait."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.model.loss(batch, forward(self.model, batch, self.options.precision))
        total = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(total)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        values = {name: term.detach().double() * batch.n_bags for name, term in {**terms, "": total}.items()}
        for name, value in {**values, "grad_norm": norm.double()}.items():
            self.cursor.sums[name] = self.cursor.sums[name] + value if name in self.cursor.sums else value

    def _train_means(self) -> dict[str, float]:
        sums = {name: float(value) for name, value in self.cursor.sums.items()}
        norm = sums.pop("grad_norm") / self.cursor.step
        losses = {f"loss_{name}" if name else "loss": value / len(self.train) for name, value in sums.items()}
        return {**losses, "grad_norm": norm}

    def _check_finite(self, row: dict[str, Any]) -> None:
        bad = [f"{name} = {value}" for name, value in row.items() if value is not None and not math.isfinite(value)]
        if bad:
            raise ValueError(
                f"run {self.folder.name}, epoch {row['epoch']}: {', '.join(bad)}; expected finite numbers. Lower the"
                " learning rate, use precision float32, or look for extreme features; the last state is kept"
            )

    def _save(self) -> None:
        cursor, best = self.cursor, self.best
        save_state(
            self.folder / "state.pt",
            {
                "key": self.key,
                "cursor": {**vars(cursor), "sums": dict(cursor.sums)},
                "best": dict(vars(best)),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "order_generator": self.generator.get_state(),
                "rng": rng_state(),
            },
        )

    def _resume(self) -> None:
        state = load_state(self.folder / "state.pt")
        if state is not None and state["key"] == self.key:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["order_generator"])
            restore_rng_state(state["rng"])
            self.best = Best(**state["best"])
            self.cursor = Cursor(**state["cursor"])
            self.cursor.sums = {name: value.to(self.cache.device) for name, value in self.cursor.sums.items()}
        truncate_log(self.folder / "log.jsonl", self.cursor.epoch)


def _snapshot(model: MILModel) -> dict[str, Any]:
    """A copy of the state dict on the CPU (tensors; extra state is needed for training only)."""
    weights = model.state_dict().items()
    return {name: value.detach().cpu().clone() for name, value in weights if isinstance(value, Tensor)}


@torch.no_grad()
def validate(model: MILModel, cache: BagCache, index: Sequence[int], options: "TrainingOptions") -> dict[str, Any]:
    """Validation metrics of one epoch.

    Returns:
        `val_loss`, `val_loss_<term>` (means over bags), `val_bag_auroc` and `val_instance_auroc` (None if undefined),
        `val_selection_bce` (the bag cross entropy that selects: class weight included; mean over bags, or
        mean of batch means as released), `val_score_entropy` (entropy of the softmax of a bag's instance
        scores over log N, mean over bags: 1 = the same everywhere, 0 = one instance).
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    collected: list[tuple[Tensor, ...]] = []
    entropies: list[Tensor] = []
    for batch in cache.batches(chunks(index, options.batch_size)):
        output = forward(model, batch, options.precision)
        terms = model.loss(batch, output)
        for name, term in {**terms, "": torch.stack(list(terms.values())).sum()}.items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=term.device)) + term * batch.n_bags
        collected.append((output.bag_logit.double(), batch.y.double(), output.instance_score, batch.y_inst))
        entropies.append(_entropy(output.instance_score.double(), batch))
    logits, y, scores, y_inst = (torch.cat(parts) for parts in zip(*collected, strict=True))
    weight = model.pos_weight.double()
    per_bag = binary_cross_entropy_with_logits(logits, y, pos_weight=weight, reduction="none")
    released = options.protocol == "as_released"
    means = [part.mean() for part in torch.split(per_bag, options.batch_size if released else len(per_bag))]
    known = y_inst >= 0
    finite = bool(torch.isfinite(logits).all()) and bool(torch.isfinite(scores).all())
    return {
        **{f"val_loss_{name}" if name else "val_loss": float(value) / len(index) for name, value in sums.items()},
        "val_selection_bce": float(torch.stack(means).mean()),
        "val_bag_auroc": auroc(y.cpu().numpy(), logits.cpu().numpy()) if finite else math.nan,
        "val_instance_auroc": auroc(y_inst[known].cpu().numpy(), scores[known].cpu().numpy()) if finite else math.nan,
        "val_score_entropy": float(torch.cat(entropies).mean()),
    }


def _entropy(score: Tensor, batch: BagBatch) -> Tensor:
    """(M,) -> (B,): entropy of each bag's softmax over its maximum log N; 0 for a single instance."""
    entropy = segment_sum(torch.special.entr(segment_softmax(score, batch.offsets))[:, None], batch.offsets)[:, 0]
    return entropy / batch.sizes.clamp(min=2).double().log()
