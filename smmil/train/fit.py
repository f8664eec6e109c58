"""One training run: resumable at every batch, bit for bit the same with or without interruption on a CPU.

Protocol (methods.md sections 3, 5 and 6): Adam with PyTorch's defaults; learning rate times .1 .28 .46 .64 .82 1 1 ...
by epoch; batches of whole bags in a seeded order, none dropped. The selection score is `validation bag AUROC -
validation BCE`; the weights of the epoch with the highest score are kept (ties: the later epoch). With one class in
validation, AUROC counts as 0. A class weight applies to the training and the validation loss.

Shapes: see `smmil.data.batch.BagBatch`. Losses are means over the bags of an epoch.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from smmil.artifacts.records import LogRow
from smmil.artifacts.runs import append_log, load_state, save_state, truncate_log
from smmil.compute.devices import peak_memory, restore_rng_state, rng_state
from smmil.config.training_options import TrainingOptions
from smmil.data.batch import BagBatch
from smmil.data.cache import BagCache, chunks
from smmil.evaluate.metrics import auroc
from smmil.layers.segments import segment_softmax, segment_sum
from smmil.models.base import MILModel, forward


class Interrupted(Exception):
    """Training was stopped on request; the saved state continues exactly here."""


@dataclass
class Best:
    """The selected epoch so far (1-based; 0 = none yet)."""

    epoch: int = 0
    score: float = -math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Cursor:
    """Position in a run.

    Attributes:
        epoch: 1-based.
        step: batches of this epoch already done.
        order: training bags of this epoch in order; empty before it starts.
        sums: (term -> sum over bags) as float64 scalars on the device; `grad_norm` sums over steps.
        seconds: on this epoch, over all sessions.
    """

    epoch: int = 1
    step: int = 0
    order: list[int] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def class_weight(labels: Sequence[float]) -> float:
    """Return pos_weight = n_negative / n_positive of the training bags."""
    n, positive = len(labels), sum(y == 1 for y in labels)
    if not 0 < positive < n:
        raise ValueError(f"class_weight: found {positive} positive of {n} training bags, expected both classes")
    return (n - positive) / positive


def warmup_factor(epoch: int, warmup_epochs: int, start: float) -> float:
    """Return the learning rate factor of an epoch (1-based): linear from `start` to 1, then 1 (`LinearLR`).

    The closed form needs no scheduler state in a resumed run.
    """
    done = epoch - 1
    return 1.0 if done >= warmup_epochs else start + (1.0 - start) * done / warmup_epochs


@dataclass
class Fit:
    """One run.

    Attributes:
        model: freshly initialised, on its device.
        cache: all bags of the job.
        train: positions of the training bags in the cache.
        val: positions of the validation bags.
        options: training options.
        base_lr: learning rate after warm-up.
        seed: seed of the order of bags.
        folder: the run directory.
        key: key of the run; a state with another key is ignored.
        stop: called before every batch; True saves the state and raises `Interrupted`.
        report: called with the log row of every finished epoch.
        on_step: called after every step with the epoch, the step and the number of steps per epoch.
    """

    model: MILModel
    cache: BagCache
    train: Sequence[int]
    val: Sequence[int]
    options: TrainingOptions
    base_lr: float
    seed: int
    folder: Path
    key: str
    stop: Callable[[], bool] = lambda: False
    report: Callable[[LogRow], None] = lambda row: None
    on_step: Callable[[int, int, int], None] = lambda epoch, step, steps: None
    cursor: Cursor = field(default_factory=Cursor)
    best: Best = field(default_factory=Best)

    def __post_init__(self) -> None:
        # On the CPU the fused kernel saves 5 to 19 % of a step.
        fused = self.cache.device.type == "cpu" or None
        self.optimizer = torch.optim.Adam(self.model.parameters(), self.base_lr, fused=fused)
        self.generator = torch.Generator().manual_seed(self.seed)

    def run(self) -> Best:
        """Train to the last epoch, from the saved state if there is one.

        Raises:
            Interrupted: `stop` returned True; the state is saved.
            ValueError: a loss or gradient is not finite.
        """
        self._resume()
        saved = time.monotonic()
        while self.cursor.epoch <= self.options.epochs:
            row = self._epoch()
            self.cursor = Cursor(epoch=self.cursor.epoch + 1)
            # The log comes first, so that every epoch of a state has its row on disk.
            append_log(self.folder / "log.jsonl", row)
            done = row.epoch == self.options.epochs
            late = time.monotonic() - saved >= self.options.checkpoint_seconds
            if done or (late and row.epoch % self.options.checkpoint_every == 0):
                self._save()
                saved = time.monotonic()
            self.report(row)
        return self.best

    def _epoch(self) -> LogRow:
        started, cursor = time.perf_counter(), self.cursor
        warmup = warmup_factor(cursor.epoch, self.options.warmup_epochs, self.options.warmup_start)
        learning_rate = self.base_lr * warmup
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if not cursor.order:
            cursor.order = [self.train[i] for i in torch.randperm(len(self.train), generator=self.generator).tolist()]
        self.model.train()
        self.model.start_epoch(cursor.epoch)
        try:
            self._steps()
        except Interrupted:
            cursor.seconds += time.perf_counter() - started
            self._save()
            raise
        values = {**self._train_means(), **validate(self.model, self.cache, self.val, self.options)}
        self._check_finite(values)
        score = selection_score(values["val_bag_auroc"], values["val_selection_bce"] or 0.0)
        # Of equal scores the later epoch is kept: it was trained longer.
        kept = score >= self.best.score
        if kept:
            self.best = Best(cursor.epoch, score, _snapshot(self.model))
        seconds = round(cursor.seconds + time.perf_counter() - started, 4)
        row = {"epoch": cursor.epoch, "lr": learning_rate, **values, "selection": score, "kept": kept}
        return LogRow.model_validate({**row, "seconds": seconds, **peak_memory(self.cache.device)})

    def _steps(self) -> None:
        """Run the remaining steps of the current epoch."""
        steps = chunks(self.cursor.order, self.options.batch_size)
        batches = self.cache.batches(steps[self.cursor.step :], self.model.needs)
        for _ in range(self.cursor.step, len(steps)):
            if self.stop():
                raise Interrupted
            self._step(next(batches))
            self.cursor.step += 1
            self.on_step(self.cursor.epoch, self.cursor.step, len(steps))

    def _step(self, batch: BagBatch) -> None:
        """Run one optimiser step. Sums stay on the device, so that a step does not wait for it."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.model.loss(batch, forward(self.model, batch, self.options.precision))
        total = torch.stack(list(terms.values())).sum()
        torch.autograd.backward(total)
        values = {name: term.detach().double() * batch.n_bags for name, term in {**terms, "": total}.items()}
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        values["grad_norm"] = torch.nn.utils.get_total_norm(gradients).double()
        self.optimizer.step()
        for name, value in values.items():
            self.cursor.sums[name] = self.cursor.sums[name] + value if name in self.cursor.sums else value

    def _train_means(self) -> dict[str, float]:
        sums = {name: float(value) for name, value in self.cursor.sums.items()}
        norm = sums.pop("grad_norm") / self.cursor.step
        losses = {f"loss_{name}" if name else "loss": value / len(self.train) for name, value in sums.items()}
        return {**losses, "grad_norm": norm}

    def _check_finite(self, values: Mapping[str, float | None]) -> None:
        bad = [f"{name} = {value}" for name, value in values.items() if value is not None and not math.isfinite(value)]
        if bad:
            raise ValueError(
                f"run {self.folder.name}, epoch {self.cursor.epoch}: {', '.join(bad)}; expected finite numbers. Lower"
                " the learning rate, use precision float32, or look for extreme features; the last state is kept"
            )

    def _save(self) -> None:
        state = {
            "key": self.key,
            "cursor": vars(self.cursor),
            "best": vars(self.best),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order_generator": self.generator.get_state(),
            "rng": rng_state(),
        }
        save_state(self.folder / "state.pt", state)

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


def _snapshot(model: MILModel) -> dict[str, Tensor]:
    """Return a copy of the state dict's tensors on the CPU; extra state serves training only."""
    weights = model.state_dict().items()
    return {name: value.detach().cpu().clone() for name, value in weights if isinstance(value, Tensor)}


def selection_score(bag_auroc: float | None, bce: float) -> float:
    """Return validation bag AUROC (0 if undefined: one class) minus validation BCE."""
    return (0.0 if bag_auroc is None else bag_auroc) - bce


@torch.no_grad()
def validate(
    model: MILModel, cache: BagCache, index: Sequence[int], options: TrainingOptions
) -> dict[str, float | None]:
    """Compute the validation metrics of one epoch on the bags at `index`; sets the model to eval mode.

    Returns:
        `val_loss`, `val_loss_<term>` (means over bags), `val_bag_auroc` and `val_instance_auroc` (None if undefined),
        `val_selection_bce` (bag cross entropy with class weight, for the selection score; mean over bags, or mean of
        batch means as released), `val_score_entropy` (entropy of the softmax of a bag's instance scores over log N,
        mean over bags: 1 = uniform, 0 = one instance).
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
    released = "select_val_loss" in options.active_quirks
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
    """Compute the entropy of each bag's softmax over its maximum log N: (M,) -> (B,); 0 for a single instance."""
    entropy = segment_sum(torch.special.entr(segment_softmax(score, batch.offsets))[:, None], batch.offsets)[:, 0]
    return entropy / batch.sizes.clamp(min=2).double().log()
