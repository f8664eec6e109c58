"""One training run: plain PyTorch, resumable at every batch, the same bits with or without interruption on a CPU.

Protocol (methods.md sections 3, 5 and 6): Adam with PyTorch's defaults; learning rate times .1 .28 .46 .64 .82 1 1 ...
by epoch; batches of whole bags in a seeded order, none dropped; after every epoch the selection score
`validation bag AUROC - validation BCE` keeps the weights when it is at least the best so far (ties: later). With one
class in validation AUROC counts 0. A class weight enters the training and the validation loss.

Shapes: see `smmil.data.BagBatch`. Losses are means over the bags of an epoch.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smmil.background import Writer, frozen
from smmil.batches import BagCache, chunks
from smmil.data import BagBatch
from smmil.devices import peak_memory, restore_rng_state, rng_state
from smmil.memory import Frugal
from smmil.models.base import MILModel
from smmil.optimizer import make_adam, warmup_factor
from smmil.runs import append_log, load_state, save_state, truncate_log
from smmil.undo import Undo, frozen_parametrizations
from smmil.validation import forward as forward
from smmil.validation import selection_score as selection_score
from smmil.validation import validate as validate

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


def class_weight(labels: Sequence[float]) -> float:
    """pos_weight = n_negative / n_positive of the training bags."""
    positive = sum(1 for y in labels if y == 1)
    if not 0 < positive < len(labels):
        raise ValueError(
            f"class_weight: found {positive} positive of {len(labels)} training bags, expected both classes"
        )
    return (len(labels) - positive) / positive


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
        on_step: called after every step with its epoch, its number and how many the epoch has.
        method: its name, for messages; "" = that of the model's class.
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
        on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None,
        method: str = "",
    ) -> None:
        self.model, self.cache, self.options = model, cache, options
        self.train, self.val = list(train), list(val)
        self.base_lr, self.folder, self.key = base_lr, folder, key
        self.stop, self.report, self.on_step = stop, report, on_step
        self.optimizer = make_adam(model.parameters(), base_lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.cursor, self.best = Cursor(), Best()
        self.memory = Frugal(model, cache, method or type(model).__name__, folder.name)
        self.writer: Writer  # while `run` runs

    def run(self) -> Best:
        """Trains to the last epoch, from the saved state if there is one.

        Log and state of an epoch are written while the next one computes; all is on disk when this returns.

        Raises:
            Interrupted: `stop` said so; the state is saved.
            ValueError: a loss or gradient is not finite.
            OutOfMemory: nothing of `smmil.memory` helps.
            OSError: log or state cannot be written; told at the latest an epoch later.
        """
        self._resume()
        saved = time.monotonic()
        with Writer() as self.writer:
            while self.cursor.epoch <= self.options.epochs:
                row = self._epoch()
                self.cursor = Cursor(epoch=self.cursor.epoch + 1)
                resumable = self._is_state_due(time.monotonic() - saved)
                self._save(row, resumable=resumable)
                saved = time.monotonic() if resumable else saved
                self.report(row)
        return self.best

    def _is_state_due(self, seconds: float) -> bool:
        """Whether the epoch just ended leaves a state: after the last one, or `seconds` after the state before."""
        done = self.cursor.epoch - 1
        if done == self.options.epochs:
            return True
        return done % self.options.checkpoint_every == 0 and seconds >= self.options.checkpoint_seconds

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
        try:
            self.memory.until_done(self._steps, self._place)
        except Interrupted:
            cursor.seconds += time.perf_counter() - started
            self._save()
            self.writer.wait()
            raise
        row: dict[str, Any] = {"epoch": cursor.epoch, "lr": learning_rate, **self._train_means()}
        row |= self.memory.until_done(self._validate, lambda: {"validation of epoch": cursor.epoch})
        self._check_finite(row)
        row["selection"] = selection_score(row["val_bag_auroc"], row["val_selection_bce"])
        row["kept"] = row["selection"] >= self.best.score
        if row["kept"]:
            self.best = Best(cursor.epoch, row["selection"], _snapshot(self.model))
        row |= self.memory.relief.settings
        row["seconds"] = round(cursor.seconds + time.perf_counter() - started, 4)
        return row | peak_memory(self.cache.device)

    def _steps(self) -> None:
        """The steps that are left of the epoch under way."""
        steps = chunks(self.cursor.order, self.options.batch_size)
        left = steps[self.cursor.step :]
        batches = [self.memory.relief.passes(index) for index in left]
        stream = self.cache.batches(chain.from_iterable(batches), self.model.needs)
        for index, passes in zip(left, batches, strict=True):
            if self.stop():
                raise Interrupted
            first, *others = passes
            batch = next(self._taken([first], stream))
            if others:
                self._step(batch, self._taken(others, stream), len(index))
            else:
                self._step(batch)
            self.cursor.step += 1
            self.on_step(self.cursor.epoch, self.cursor.step, len(steps))

    def _taken(self, passes: Iterable[Sequence[int]], stream: Iterator[BagBatch]) -> Iterator[BagBatch]:
        """The batches of some passes, each made known before it is packed."""
        for index in passes:
            self.memory.under_way = index
            yield next(stream)

    def _place(self) -> dict[str, Any]:
        return {"epoch": self.cursor.epoch, "training step": self.cursor.step + 1}

    def _validate(self) -> dict[str, Any]:
        size = self.memory.relief.bags_per_pass
        # which pass fails is not known here: the fullest counts
        passes = chunks(self.val, size or self.options.batch_size)
        self.memory.under_way = max(passes, key=lambda index: (len(index), self.cache.rows(index)))
        return validate(self.model, self.cache, self.val, self.options, *([] if size is None else [size]))

    def _step(self, batch: BagBatch, rest: Iterable[BagBatch] = (), n_bags: int | None = None) -> None:
        """One optimiser step. Sums stay on the device: reading them every step would make it wait.

        Args:
            batch: the bags of the step, or of its first pass.
            rest: further passes.
            n_bags: of all passes together; None = of `batch`.
        """
        self.memory.undo = Undo(self.model, self.cache.device)
        self.optimizer.zero_grad(set_to_none=True)
        n_bags = n_bags or batch.n_bags
        values = self._backward(batch, n_bags)
        with frozen_parametrizations(self.model):
            for part in rest:
                for name, value in self._backward(part, n_bags).items():
                    values[name] = values[name] + value
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        values["grad_norm"] = torch.nn.utils.get_total_norm(gradients).double()
        self.memory.updating = True
        self.optimizer.step()
        self.memory.updating, self.memory.undo = False, None
        for name, value in values.items():
            self.cursor.sums[name] = self.cursor.sums[name] + value if name in self.cursor.sums else value

    def _backward(self, batch: BagBatch, n_bags: int) -> dict[str, Tensor]:
        """Adds the gradient of a pass, as its share of the mean over `n_bags`; (term -> sum over its bags)."""
        terms = self.model.loss(batch, forward(self.model, batch, self.options.precision))
        total = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(total if batch.n_bags == n_bags else total * (batch.n_bags / n_bags))
        return {name: term.detach().double() * batch.n_bags for name, term in {**terms, "": total}.items()}

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

    def _save(self, row: dict[str, Any] | None = None, *, resumable: bool = True) -> None:
        """Hands an epoch's log row and the state of this moment to the writer, once it has written what it has."""
        self.writer.wait()
        self.writer.submit(partial(_write, self.folder, row, self._state() if resumable else None))

    def _state(self) -> dict[str, Any]:
        moving = {
            "key": self.key,
            "cursor": vars(self.cursor),
            "best": None,
            "memory": vars(self.memory.relief),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order_generator": self.generator.get_state(),
            "rng": rng_state(),
        }
        # the best weights are a copy that is replaced and never written into
        return {**frozen(moving), "best": dict(vars(self.best))}

    def _resume(self) -> None:
        state = load_state(self.folder / "state.pt")
        if state is not None and state["key"] == self.key:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["order_generator"])
            restore_rng_state(state["rng"])
            self.best = Best(**state["best"])
            # a state of an earlier version has no such entry
            self.memory.resume(state.get("memory", {}))
            self.cursor = Cursor(**state["cursor"])
            self.cursor.sums = {name: value.to(self.cache.device) for name, value in self.cursor.sums.items()}
        truncate_log(self.folder / "log.jsonl", self.cursor.epoch)


def _write(folder: Path, row: dict[str, Any] | None, state: dict[str, Any] | None) -> None:
    """The log first: a state stands for rows that are on disk."""
    if row is not None:
        append_log(folder / "log.jsonl", row)
    if state is not None:
        save_state(folder / "state.pt", state)


def _snapshot(model: MILModel) -> dict[str, Any]:
    """A copy of the state dict on the CPU (tensors; extra state is needed for training only)."""
    weights = model.state_dict().items()
    return {name: value.detach().cpu().clone() for name, value in weights if isinstance(value, Tensor)}
