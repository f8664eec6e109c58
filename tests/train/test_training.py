"""The loop and the protocol's rules by hand: warm-up, selection, class weight, validation, batches, states."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smmil.artifacts.records import LogRow
from smmil.artifacts.runs import RunSpec, load_state, load_weights, read_log, save_state, save_weights
from smmil.config.training_options import TrainingOptions
from smmil.data.batch import Bag
from smmil.data.cache import BagCache, chunks
from smmil.models import build_model
from smmil.models.abmil import ABMIL
from smmil.train import fit as training
from smmil.train import progress as live
from smmil.train.fit import Fit, class_weight, selection_score, validate, warmup_factor
from smmil.train.progress import Progress
from tests.helpers.predictions import log_row

RUN = "split1_lr0.01"


def validation(auroc: float, bce: float) -> dict[str, float | None]:
    """What `validate` returns for these two values."""
    unused = {"val_instance_auroc": None, "val_score_entropy": 1.0}
    return {"val_bag_auroc": auroc, "val_selection_bce": bce, "val_loss": bce, **unused}


def row_of(epoch: int, **values: float | None) -> LogRow:
    return LogRow.model_validate(log_row(epoch, **{"selection": 0.3, "val_bag_auroc": 0.9, "val_loss": 0.6, **values}))


def test_warm_up_is_torchs_linear_lr():
    factors = [warmup_factor(epoch, 5, 0.1) for epoch in range(1, 9)]
    np.testing.assert_allclose(factors, [0.1, 0.28, 0.46, 0.64, 0.82, 1, 1, 1], rtol=1e-12)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    for factor in factors:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(factor, rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert warmup_factor(1, 0, 0.1) == 1.0


def test_adam_has_torchs_defaults(tmp_path):
    optimizer = fit([tiny_bag(0), tiny_bag(1)], tmp_path).optimizer
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    settings = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False, "fused": True}
    assert {name: group[name] for name in settings} == settings


def test_selection_keeps_the_later_of_equal_epochs(tmp_path, monkeypatch):
    """Hand-made history (AUROC, BCE): scores .3 .5 .4 .5 .45; one class in validation counts AUROC 0."""
    history = iter([(0.9, 0.6), (1.0, 0.5), (0.9, 0.5), (0.75, 0.25), (0.95, 0.5)])

    monkeypatch.setattr(training, "validate", lambda *_: validation(*next(history)))
    bags = [tiny_bag(i) for i in range(4)]
    best = fit(bags, tmp_path, epochs=5).run()
    assert (best.epoch, best.score) == (4, 0.5)
    assert [row.kept for row in read_log(tmp_path / "log.jsonl")] == [True, True, False, True, False]
    assert selection_score(None, 0.3) == -0.3


def tiny_bag(i: int, n: int = 3) -> Bag:
    generator = torch.Generator().manual_seed(i)
    return Bag(
        bag_id=f"b{i}",
        x=torch.randn(n, 4, generator=generator),
        neighbors=torch.full((n, 1), -1),
        grid=torch.zeros(n, 2, dtype=torch.int64),
        coords=torch.zeros(n, 2),
        y=float(i % 2),
        y_inst=torch.full((n,), i % 2),
        coverage=torch.full((n,), float(i % 2)),
        split="train",
    )


def fit(bags: list[Bag], folder: Path, **options) -> Fit:
    torch.manual_seed(0)
    weight = options.pop("pos_weight", None)
    model = build_model("abmil", 4, pos_weight=weight, width=8, attention_dim=4)
    index = list(range(len(bags)))
    settings = TrainingOptions(device="cpu", batch_size=2, **options)
    cache = BagCache(bags, torch.device("cpu"))
    return Fit(model, cache, index, index, settings, 0.01, 0, folder, "k")


def test_class_weight_is_the_ratio_of_the_training_bags():
    assert class_weight([0, 0, 0, 1]) == 3.0
    with pytest.raises(ValueError, match="0 positive of 2"):
        class_weight([0.0, 0.0])


def test_class_weight_reaches_training_gradient_and_validation_loss(tmp_path):
    """A batch of positive bags: twice the weight, twice the gradient; negatives are not touched."""
    for label, factor in ((1, 2.0), (0, 1.0)):
        gradients, losses = [], []
        for weight in (1.0, 2.0):
            running = fit([tiny_bag(label), tiny_bag(label + 2)], tmp_path, pos_weight=weight)
            losses.append(validate(running.model, running.cache, [0, 1], running.options))
            running._step(running.cache.batch([0, 1]))
            gradients.append([p.grad.clone() for p in running.model.parameters()])
        for one, two in zip(*gradients, strict=True):
            torch.testing.assert_close(two, factor * one)
        for name in ("val_loss_bce", "val_selection_bce"):
            assert losses[1][name] == pytest.approx(factor * losses[0][name], rel=1e-6)


def test_one_class_in_validation_has_no_auroc(tmp_path):
    running = fit([tiny_bag(0), tiny_bag(2)], tmp_path)
    row = validate(running.model, running.cache, [0, 1], running.options)
    assert row["val_bag_auroc"] is None and row["val_instance_auroc"] is None


@given(st.integers(1, 50), st.integers(1, 50))
def test_batches_drop_no_bag_and_are_full_but_the_last(n, size):
    parts = chunks(range(n), size)
    assert [i for part in parts for i in part] == list(range(n))
    assert all(len(part) == size for part in parts[:-1]) and 1 <= len(parts[-1]) <= size


def test_prefetched_batches_are_the_same_in_the_same_order(monkeypatch):
    bags = [tiny_bag(i, n=i + 1) for i in range(5)]
    cache = BagCache(bags, torch.device("cpu"))
    indices = [[4, 0], [2], [1, 3]]
    plain = list(cache.batches(indices))
    # "meta" is neither CPU nor resident: the way through the reading thread, without a copy to a device
    cache.device, cache.resident = torch.device("meta"), False
    for a, b in zip(plain, cache.batches(indices), strict=True):
        assert a.bag_ids == b.bag_ids
        torch.testing.assert_close(a.x, b.x)


def test_states_and_weights_round_trip_and_misfits_are_refused(tmp_path):
    model = build_model("abmil", 4, width=8, attention_dim=4)
    weights = {**model.state_dict(), "labels._extra_state": {"bag": 1}}
    assert save_weights(tmp_path / "a", weights) == save_weights(tmp_path / "b", dict(reversed(weights.items())))
    other = build_model("abmil", 4, width=8, attention_dim=4)
    load_weights(other, tmp_path / "a")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(ValueError, match="weights do not fit"):
        load_weights(build_model("abmil", 5, width=8, attention_dim=4), tmp_path / "a")
    save_state(tmp_path / "s", {"epoch": 3})
    assert load_state(tmp_path / "s") == {"epoch": 3} and load_state(tmp_path / "none") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "s"]


def test_run_names_and_keys():
    facts = {"dataset": "d", "encoder": "e", "method": "m", "method_options": {}, "training": {"epochs": 1}}
    spec = RunSpec(**facts, data={}, inputs={"bags": "0"}, seed=1, learning_rate=1e-5)
    assert spec.name == "split1_lr1e-05"
    assert spec.key != spec.model_copy(update={"method_options": {"width": 2}}).key


def test_the_best_epoch_before_an_interruption_stays_the_best(tmp_path, monkeypatch):
    """Scores fall after epoch 1: its weights must survive a crash in epoch 3, and be those of epoch 1."""

    def falling(model, *_):
        calls.append({name: value.clone() for name, value in model.state_dict().items()})
        return validation(1.0 / len(calls), 0.0)

    calls: list[dict] = []
    monkeypatch.setattr(training, "validate", falling)
    bags = [tiny_bag(i) for i in range(4)]
    running = fit(bags, tmp_path, epochs=4)
    monkeypatch.setattr(running, "stop", lambda: len(calls) == 2)
    with pytest.raises(training.Interrupted):
        running.run()
    best = fit(bags, tmp_path, epochs=4).run()
    assert (best.epoch, best.score, len(calls)) == (1, 1.0, 4)
    assert all(torch.equal(best.weights[name], value) for name, value in calls[0].items())
    assert not torch.equal(best.weights["classifier.weight"], calls[3]["classifier.weight"])


def test_bf16_trains_to_finite_float32_weights(tmp_path):
    best = fit([tiny_bag(i) for i in range(4)], tmp_path, epochs=1, precision="bf16").run()
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in best.weights.values())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "moves", "lines"), [(Terminal(), 50, 0), (io.StringIO(), 0, 6)])
def test_on_a_terminal_one_line_moves_and_in_a_log_a_few_lines_stand(caplog, stream, moves, lines):
    caplog.set_level("INFO")
    progress = Progress(runs=1, epochs=50, stream=stream)
    progress.start(RUN)
    for epoch in range(1, 51):
        progress(row_of(epoch, kept=epoch == 2))
    assert stream.getvalue().count("\r") == moves and stream.getvalue().count("\n") == (moves > 0)
    assert len(caplog.records) == lines and ("best +0.3000 at 2" in caplog.text) == (lines > 0)


@pytest.fixture
def clock(monkeypatch, caplog) -> list[float]:
    """The seconds that `time.monotonic` gives."""
    seconds = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: seconds[0])
    caplog.set_level("INFO")
    return seconds


def test_a_log_is_never_silent_for_longer_than_half_a_minute_and_an_epoch(caplog, clock):
    progress = Progress(runs=1, epochs=1000, stream=io.StringIO())
    progress.start(RUN)
    logged = []
    for epoch in range(1, 101):
        clock[0] += 7
        progress(row_of(epoch, val_bag_auroc=None if epoch == 1 else 0.9))
        if len(caplog.records) > len(logged):
            logged.append(epoch)
    # the first epoch, and from then on every fifth: 35 s after the line before
    assert logged == [*range(1, 101, 5)] and "val AUROC undefined" in caplog.messages[0]
    for text in ("epoch 6/1000", "loss 0.5000", "val AUROC 0.9000", "left 1:55:58"):
        assert text in caplog.messages[1]


def test_a_long_epoch_is_not_silent(caplog, clock):
    """Epochs of 200 steps, half a second each: a line every 30 s, with the last epoch's figures and the time left."""
    progress = Progress(runs=1, epochs=10, stream=io.StringIO())
    progress.start(RUN)
    for epoch in (1, 2):
        for step in range(1, 201):
            clock[0] += 0.5
            progress.step(epoch, step, 200)
        progress(row_of(epoch, kept=True))
    # after 30, 60 and 90 s; 100 s the epoch; 130, 160 and 190 s; 200 s the epoch
    assert [("step" in line) for line in caplog.messages] == [True, True, True, False] * 2
    # 10 epochs of 100 s less 30 s; of the first epoch nothing is known yet
    assert caplog.messages[0] == f"{RUN} (1/1)  epoch 1/10 step 60/200  left 0:16:10"
    assert caplog.messages[3].endswith("best +0.3000 at 1  left 0:15:00")
    assert caplog.messages[4].endswith(
        "epoch 2/10 step 60/200  (epoch 1: loss 0.5000  val loss 0.6000  val AUROC 0.9000  best +0.3000 at 1)"
        "  left 0:14:30"
    )


def test_a_run_tells_of_every_step_once_also_after_a_stop(tmp_path):
    steps: list[tuple[int, int, int]] = []
    for stop in (lambda: len(steps) == 3, lambda: False):
        running = fit([tiny_bag(i) for i in range(7)], tmp_path, epochs=2)
        running.on_step, running.stop = lambda *step: steps.append(step), stop
        with contextlib.suppress(training.Interrupted):
            running.run()
    assert steps == [(epoch, step, 4) for epoch in (1, 2) for step in range(1, 5)]


def test_a_method_hears_of_every_epoch_before_its_first_step(tmp_path, monkeypatch):
    heard: list[int] = []
    monkeypatch.setattr(ABMIL, "start_epoch", lambda self, epoch: heard.append(epoch))
    fit([tiny_bag(i) for i in range(6)], tmp_path, epochs=3).run()
    assert heard == [1, 2, 3]
