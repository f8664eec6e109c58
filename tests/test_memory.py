"""Out of memory, injected: numbers stay, each level is taken once, the state keeps it, the end is one message."""

import json
import logging

import pytest
import torch

from smmil import train, training
from smmil.memory import OutOfMemory, Relief
from smmil.models import MODELS, build_model
from smmil.runs import load_state, read_log
from smmil.training import Fit
from smmil.undo import Undo, frozen_parametrizations
from tests.memory_helpers import CPU, Budget, P, assert_close, bags, device_is_full, fit, more_than, numbers, resident
from tests.train_helpers import Noisy, make_dataset, train_arguments

DETERMINISTIC = {"abmil": {}, "smap_early": {}, "t_ap": {}, "clam": {"dropout": 0.0}, "dsmil": {}}
# a training step of theirs in passes is not the step in one: they draw random numbers, move prototypes, or (GTP)
# normalise over the batch
OTHER_DRAWS = {"clam", "clam_mb", "smclam", "pathgcn", "transmil", "setmil", "iibmil", "gtp"}


@pytest.mark.parametrize("where", ["forward", "backward", "packing"])
@pytest.mark.parametrize("method", DETERMINISTIC)
def test_a_run_in_passes_is_the_run_in_whole_batches(method, where, tmp_path, monkeypatch, caplog):
    """Batches of 4 and 3 bags; two fit. Class weight, batch-wise losses and power iterations come out the same."""
    whole = fit(tmp_path / "whole", method, method_options=DETERMINISTIC[method])
    whole.run()
    running = fit(tmp_path / "parts", method, method_options=DETERMINISTIC[method])
    budget = Budget(running, more_than(2), where, monkeypatch)
    with caplog.at_level(logging.WARNING):
        running.run()
    assert_close(running, whole, 1e-6)
    assert budget.raised == 1 and len(caplog.records) == 1
    assert "2 bag(s) per pass" in caplog.text and "CUDA out of memory" in caplog.text and "second" not in caplog.text
    assert [row["bags_per_pass"] for row in read_log(running.folder / "log.jsonl")] == [2, 2]
    assert all("bags_per_pass" not in row for row in read_log(whole.folder / "log.jsonl"))


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_in_float32_loss_and_gradient_agree_to_a_millionth(method, tmp_path):
    made = bags(8, torch.float32)
    gradients, losses = [], []
    for size in (8, 3, 1):
        running = fit(tmp_path, method, made=made, method_options=DETERMINISTIC[method])
        running.model.train()
        first, *others = [running.cache.batch(part) for part in Relief(size).passes(range(8))]
        running._step(first, others, 8)
        losses.append(float(running.cursor.sums[""]))
        gradients.append(torch.cat([p.grad.flatten() for p in running.model.parameters() if p.grad is not None]))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-6)
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) < 1e-6


@pytest.mark.parametrize("method", sorted(MODELS))
def test_which_methods_change_when_a_step_is_done_in_passes(method, tmp_path):
    """All others give the same gradient, DFTD too: on a CPU its draws are one per instance, in order."""
    gradients = []
    for size in (4, 2):
        running = fit(tmp_path, method, made=bags(4))
        running.model.train()
        running.model.start_epoch(9)
        torch.manual_seed(1)
        first, *others = [running.cache.batch(part) for part in Relief(size).passes(range(4))]
        running._step(first, others, 4)
        gradients.append(torch.cat([p.grad.flatten() for p in running.model.parameters() if p.grad is not None]))
    same = float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-9
    assert same == (method not in OTHER_DRAWS)


@pytest.mark.parametrize(("most", "raised"), [(3, 1), (2, 1), (1, 2)])
def test_passes_halve_until_they_fit_and_stay_so(most, raised, tmp_path, monkeypatch):
    running = fit(tmp_path)
    budget = Budget(running, more_than(most), "forward", monkeypatch)
    running.run()
    assert budget.raised == raised == len(running.memory.relief.events)
    failed = 2 * raised - 1
    assert max(n for _, n in budget.passes[failed:]) <= most
    assert [event["then"]["bags_per_pass"] for event in running.memory.relief.events] == [2, 1][:raised]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_compiled_kernel_may_run_out_of_memory_too(where, tmp_path, monkeypatch, caplog):
    running = fit(tmp_path)
    budget = Budget(running, more_than(2), where, monkeypatch)
    budget.error = MemoryError("attention: no memory for the keys of 9 rows")
    running.run()
    assert budget.raised == 1 and "attention: no memory" in caplog.text


def test_validation_alone_may_run_out_of_memory_too(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole")
    whole.run()
    running = fit(tmp_path / "parts")
    budget = Budget(running, lambda f, batch: not f.model.training and batch.n_bags > 2, "forward", monkeypatch)
    running.run()
    assert budget.raised == 1 and running.memory.relief.events[0]["validation of epoch"] == 1
    assert_close(running, whole, 1e-6)


@pytest.mark.parametrize("method", ["noisy", "smap_early", "iibmil", "gtp"])
def test_a_failed_step_leaves_no_trace(method, tmp_path, monkeypatch):
    """Draws, power iterations, soft labels, prototypes and running means: as if the run had begun in passes."""
    options = {"warmup_epochs": 0, "z": 8, "width": 16} if method == "iibmil" else {"width": 16}

    def made(name: str) -> Fit:
        torch.manual_seed(0)
        model = Noisy(P) if method == "noisy" else build_model(method, P, **options)
        return fit(tmp_path / name, model=model)

    begun = made("begun")
    begun.memory.relief = Relief(2)
    begun.run()
    failed = made("failed")
    budget = Budget(failed, more_than(2), "backward", monkeypatch)
    failed.run()
    assert budget.raised == 1
    assert numbers(failed.folder) == numbers(begun.folder)
    for name, value in begun.model.state_dict().items():
        assert torch.equal(value, failed.model.state_dict()[name]), name


def test_undo_puts_back_what_a_step_moves():
    model = build_model("iibmil", P).double()
    model.labels.put("a", torch.ones(3))
    undo = Undo(model, CPU)
    drawn = torch.rand(3)
    model.labels.put("a", torch.zeros(3))
    model.labels.put("b", torch.zeros(2))
    model.prototypes += 1
    undo.restore()
    assert torch.equal(torch.rand(3), drawn) and not model.prototypes.any()
    assert list(model.labels.values) == [model.labels.key("a")] and model.labels.get("a", torch.zeros(3)).sum() == 3


def test_power_iterations_are_held_and_go_on_afterwards():
    model = build_model("smap_early", P).train()
    weight = model.pool.w.weight
    with frozen_parametrizations(model):
        held = [model.pool.w.weight for _ in range(2)]
    assert torch.equal(held[0], held[1]) and torch.equal(held[0], weight)
    # a vector has converged after one step; the matrix has not
    assert not torch.equal(model.pool.W.weight, model.pool.W.weight)


def test_then_the_features_go_to_host_memory(tmp_path, monkeypatch, caplog):
    begun = fit(tmp_path / "begun")
    begun.memory.relief = Relief(1)
    begun.run()
    running = resident(fit(tmp_path / "moved"))
    assert running.cache.resident and running.cache.bags[0].x.numel() == 0
    budget = Budget(running, device_is_full, "backward", monkeypatch)
    with caplog.at_level(logging.WARNING):
        running.run()
    assert budget.raised == 3 == len(caplog.records)
    assert not running.cache.resident and running.cache.bags[0].x.shape == (2, P)
    assert running.memory.relief.settings == {"bags_per_pass": 1, "features_in_host_memory": True}
    for name, value in begun.model.state_dict().items():
        assert torch.equal(value, running.model.state_dict()[name]), name


def test_a_method_with_batch_norm_keeps_its_batches_if_host_memory_is_enough(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole", "gtp")
    whole.run()
    running = resident(fit(tmp_path / "moved", "gtp"))
    Budget(running, device_is_full, "forward", monkeypatch)
    running.run()
    assert running.memory.relief.settings == {"features_in_host_memory": True}
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, running.model.state_dict()[name]), name


def test_at_the_end_one_message_names_bag_method_and_ways_out(tmp_path, monkeypatch):
    running = resident(fit(tmp_path / "run"))
    running.memory.method = "smap_early"
    # bag 3 is the largest, 11 instances: alone it is too much
    budget = Budget(running, lambda f, batch: "bag3" in batch.bag_ids, "forward", monkeypatch)
    with pytest.raises(OutOfMemory) as caught:
        running.run()
    text = str(caught.value)
    assert budget.raised == 4
    for part in ("run run", "epoch 1", "training step", "largest bag bag3 with 11 x 6 features", "method smap_early"):
        assert part in text
    for part in ("1 bag(s) per pass, features in host memory", "batch_size", "T of Sm", "linear", "on cpu", "bf16"):
        assert part in text
    assert caught.value.__context__ is None


def test_a_half_done_update_is_not_tried_again(tmp_path, monkeypatch):
    running = fit(tmp_path)

    def refuse() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(running.optimizer, "step", refuse)
    with pytest.raises(OutOfMemory, match="whole batches"):
        running.run()


def test_other_errors_pass(tmp_path, monkeypatch):
    running = fit(tmp_path)
    monkeypatch.setattr(running.model, "forward", lambda batch: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        running.run()
    assert not running.memory.relief.events


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_run_goes_on_at_its_level_without_running_out_again(after, tmp_path, monkeypatch):
    straight = resident(fit(tmp_path / "straight"))
    with monkeypatch.context() as patch:
        Budget(straight, device_is_full, "forward", patch)
        straight.run()
    stopped = resident(fit(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        Budget(stopped, device_is_full, "forward", patch)
        # asked before every step and every attempt at one: three attempts fail
        asked = iter(range(100))
        stopped.stop = lambda: next(asked) >= after + 3
        with pytest.raises(training.Interrupted):
            stopped.run()
    saved = load_state(tmp_path / "stopped" / "state.pt")["memory"]
    assert (saved["bags_per_pass"], saved["host"], len(saved["events"])) == (1, True, 3)
    resumed = resident(fit(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        budget = Budget(resumed, device_is_full, "forward", patch)
        resumed.run()
    assert budget.raised == 0 and resumed.memory.relief == straight.memory.relief
    assert numbers(resumed.folder) == numbers(straight.folder)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_job_records_what_it_did_and_keeps_its_keys(tmp_path, monkeypatch):
    dataset, method = make_dataset(tmp_path / "data"), "abmil"
    assert train.main(train_arguments(dataset, tmp_path / "whole", method)) == 0
    backward = training.Fit._backward

    def small(running, batch, n_bags):
        if batch.n_bags > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(running, batch, n_bags)

    monkeypatch.setattr(training.Fit, "_backward", small)
    assert train.main(train_arguments(dataset, tmp_path / "parts", method)) == 0
    whole, parts = (
        json.loads((tmp_path / name / "split1_lr0.01" / "config.json").read_text()) for name in ("whole", "parts")
    )
    relief = parts.pop("memory")
    assert relief["bags_per_pass"] == 2 and not relief["host"] and len(relief["events"]) == 1
    event = relief["events"][0]
    assert (event["epoch"], event["training step"], event["bags"], event["features"]) == (1, 1, 3, 5)
    assert whole == parts and whole["numerics"]["deterministic"] and whole["numerics"]["cudnn_allow_tf32"] is False
    listed = [json.loads((tmp_path / name / "runs.json").read_text())["runs"][0] for name in ("whole", "parts")]
    assert listed[0]["key"] == listed[1]["key"] and set(listed[0]) == set(listed[1])
    assert listed[0]["selection_score"] == pytest.approx(listed[1]["selection_score"], rel=1e-5)


def test_a_hopeless_job_ends_with_one_line(tmp_path, monkeypatch, capsys):
    dataset = make_dataset(tmp_path / "data")

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.Fit, "_backward", refuse)
    assert train.main(train_arguments(dataset, tmp_path / "out", "abmil")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "run split1_lr0.01, epoch 1, training step 1: out of memory on cpu" in line and "method abmil" in line
