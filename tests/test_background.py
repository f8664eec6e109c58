"""Writing beside training: same bytes, own errors, nothing left undone, a whole state whenever a job is killed."""

import errno
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

from preprocessing import cli
from smmil import train, training
from smmil.background import Writer, frozen
from smmil.models import MODELS
from smmil.optimizer import make_adam
from smmil.runs import MEASURED, load_state, read_log, save_state
from tests.train_helpers import make_dataset, register_noisy, train_arguments
from tests.workflows import ROOT

RUN = "split1_lr0.01"


@pytest.fixture(autouse=True)
def noisy():
    register_noisy()
    yield
    MODELS.pop("noisy")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("results") / "tiny")


def living_state() -> tuple[nn.Module, torch.optim.Optimizer, dict]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    optimizer = make_adam(model.parameters(), 0.1)
    table = torch.arange(12.0).view(3, 4)
    state = {"optimizer": optimizer.state_dict(), "model": model.state_dict(), "part": table[1:, ::2], "all": table}
    return model, optimizer, {**state, "order": [3, 1, 2], "nothing": torch.empty(0), "rest": (1, None, "a")}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()


def test_a_copy_gives_the_bytes_of_the_original_and_later_steps_do_not_move_it(tmp_path):
    model, optimizer, _ = living_state()
    step(model, optimizer)
    state = {**living_state()[2], "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    save_state(tmp_path / "at_once", state)
    copied = frozen(state)
    step(model, optimizer)
    state["all"].add_(1)
    state["order"].append(4)
    save_state(tmp_path / "later", copied)
    assert (tmp_path / "later").read_bytes() == (tmp_path / "at_once").read_bytes()
    assert not torch.equal(copied["model"]["0.weight"], model.state_dict()["0.weight"])
    # tied weights stay tied, and what hangs on a state dict stays
    assert copied["model"]["0.weight"].data_ptr() == copied["model"]["2.weight"].data_ptr()
    assert copied["model"]._metadata == state["model"]._metadata


def test_a_write_waits_for_the_one_before_and_the_context_for_the_last():
    order: list[str] = []

    def slow(name: str) -> None:
        order.append(f"{name} begins")
        time.sleep(0.05)
        order.append(f"{name} ends")

    with Writer() as writer:
        writer.submit(lambda: slow("first"))
        assert "first ends" not in order
        writer.submit(lambda: slow("second"))
        assert "first ends" in order and "second ends" not in order
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]


def refuse() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "state.pt")


def test_an_error_of_the_thread_is_raised_where_the_run_waits_and_once():
    with Writer() as writer:
        writer.submit(refuse)
        with pytest.raises(OSError, match="No space left on device"):
            writer.submit(lambda: pytest.fail("began after a failure"))
        writer.wait()
    with pytest.raises(OSError, match="No space left on device"), Writer() as writer:
        writer.submit(refuse)


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_thread(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="not finite"), Writer() as writer:
        writer.submit(refuse)
        raise ValueError("not finite")
    assert "No space left on device" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]


def test_a_full_disk_ends_a_job_with_the_line_of_a_write_that_is_waited_for(dataset, tmp_path, monkeypatch, capsys):
    whole_file, seen = cli.whole_file, []

    def full(path):
        if path.name == "state.pt":
            seen.append(path)
            if len(seen) == 2:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return whole_file(path)

    monkeypatch.setattr(cli, "whole_file", full)
    assert train.main(train_arguments(dataset, tmp_path)) == 1
    told = capsys.readouterr().err
    assert "error: cannot write" in told and "state.pt" in told and "Traceback" not in told
    assert load_state(tmp_path / RUN / "state.pt")["cursor"]["epoch"] == 2
    assert not (tmp_path / RUN / "done.json").exists()


def test_an_interrupt_waits_for_its_state(dataset, tmp_path, monkeypatch):
    save, step_of = training.save_state, training.Fit._step

    def slowly(path, state):
        time.sleep(0.2)
        save(path, state)

    def step_and_signal(fit, batch):
        step_of(fit, batch)
        if (fit.cursor.epoch, fit.cursor.step) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "save_state", slowly)
    monkeypatch.setattr(training.Fit, "_step", step_and_signal)
    assert train.main(train_arguments(dataset, tmp_path)) == 128 + signal.SIGTERM
    cursor = load_state(tmp_path / RUN / "state.pt")["cursor"]
    assert (cursor["epoch"], cursor["step"]) == (2, 2)


KILLED = """
import sys
from smmil import train
from tests.train_helpers import register_noisy
register_noisy()
print("started", flush=True)
train.main(sys.argv[1:])
"""


def test_killed_at_any_moment_the_state_is_whole_and_the_run_ends_as_if_never_killed(dataset, tmp_path):
    asked = {"epochs": 150, "threads": 1}
    assert train.main(train_arguments(dataset, tmp_path / "straight", **asked)) == 0
    arguments, state = train_arguments(dataset, tmp_path / "killed", **asked), tmp_path / "killed" / RUN / "state.pt"
    draw, reached = random.Random(0), 1
    for _ in range(3):
        job = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
        before = state.stat().st_mtime_ns if state.exists() else 0
        while job.poll() is None and (state.stat().st_mtime_ns if state.exists() else 0) == before:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.3))
        job.kill()
        job.wait()
        if state.exists():
            # a damaged one would be None; no epoch that a state told of is lost
            found = load_state(state)["cursor"]["epoch"]
            logged = len(read_log(state.parent / "log.jsonl"))
            assert found >= reached and found - 1 <= logged <= found
            reached = found
    assert reached > 1
    assert train.main(arguments) == 0
    ends = [(tmp_path / side / RUN / "best.safetensors").read_bytes() for side in ("straight", "killed")]
    assert ends[0] == ends[1]
    rows = [
        [{**row, **dict.fromkeys(MEASURED, 0)} for row in read_log(tmp_path / side / RUN / "log.jsonl")]
        for side in ("straight", "killed")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 150
