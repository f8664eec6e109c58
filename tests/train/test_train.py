"""Training jobs: stopped and resumed is never stopped, bit for bit; what is redone, and what is left behind."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from smmil.artifacts.records import RunsFile
from smmil.artifacts.runs import load_state, read_log
from smmil.train import __main__ as train
from smmil.train import fit as training
from smmil.train import job
from smmil.train.fit import Fit
from tests.helpers.train_helpers import register_noisy, signal_after, timeless, train_arguments

ROOT = Path(__file__).resolve().parents[2]
RUN = "split1_lr0.01"
pytestmark = pytest.mark.usefixtures("noisy")


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    """Two runs (learning rates) that nothing interrupted."""
    register_noisy()
    out = tmp_path_factory.mktemp("straight")
    assert train.main(train_arguments(dataset, out, learning_rates=[0.01, 0.001])) == 0
    return out


def assert_same_run(a: Path, b: Path) -> None:
    assert timeless(a / "log.jsonl") == timeless(b / "log.jsonl")
    for name in ("best.safetensors", "direction.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert (a / "done.json").read_bytes() == (b / "done.json").read_bytes()


def test_same_seed_same_bits_and_another_seed_other_bits(dataset, straight, tmp_path):
    assert train.main(train_arguments(dataset, tmp_path / "a", splits=[1, 2])) == 0
    assert_same_run(tmp_path / "a" / RUN, straight / RUN)
    other = (tmp_path / "a" / "split2_lr0.01" / "best.safetensors").read_bytes()
    assert other != (straight / RUN / "best.safetensors").read_bytes()


def test_another_choice_of_the_learning_rate_trains_nothing_again(dataset, tmp_path):
    settings = {"splits": [1, 2], "learning_rates": [0.01, 0.001], "epochs": 1}
    assert train.main(train_arguments(dataset, tmp_path, **settings)) == 0
    scores = {"split1_lr0.01": 0.3, "split1_lr0.001": 0.4, "split2_lr0.01": 0.9, "split2_lr0.001": 0.1}
    for run, score in scores.items():
        path = tmp_path / run / "done.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "selection_score": score}))
    trained = {run: (tmp_path / run / "best.safetensors").stat().st_mtime_ns for run in scores}
    chosen = {}
    for choice in ("split", "method"):
        assert train.main(train_arguments(dataset, tmp_path, **settings, learning_rate_choice=choice)) == 0
        listed = RunsFile.read(tmp_path / "runs.json")
        assert listed.learning_rate_choice == choice
        chosen[choice] = [run.run for run in listed.chosen]
    assert chosen == {"split": ["split1_lr0.001", "split2_lr0.01"], "method": ["split1_lr0.01", "split2_lr0.01"]}
    assert {run: (tmp_path / run / "best.safetensors").stat().st_mtime_ns for run in scores} == trained


PROGRAM = """
import sys
from smmil.train import __main__ as train
from tests.helpers.train_helpers import register_noisy
register_noisy()
train.main(sys.argv[1:])
"""


def test_killed_while_it_saves_the_state_is_complete_and_the_run_ends_as_if_never_killed(dataset, tmp_path):
    """Where the kill falls differs from run to run; tests/faults has a campaign of them."""
    settings = {"epochs": 100, "threads": 1}
    assert train.main(train_arguments(dataset, tmp_path / "straight", **settings)) == 0
    arguments, state = train_arguments(dataset, tmp_path / "killed", **settings), tmp_path / "killed" / RUN / "state.pt"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        time.sleep(0.001)
    time.sleep(0.1)
    process.kill()
    process.wait()
    # A damaged state would be None, and the epochs of a state are never lost.
    epoch, logged = load_state(state)["cursor"]["epoch"], len(read_log(state.parent / "log.jsonl"))
    assert epoch > 1 and epoch - 1 <= logged <= epoch
    assert train.main(arguments) == 0
    assert_same_run(tmp_path / "straight" / RUN, tmp_path / "killed" / RUN)


@pytest.mark.parametrize("batches", [1, 4, 5])
def test_stopped_inside_an_epoch_by_a_signal_then_resumed_equals_never_stopped(
    dataset, straight, tmp_path, monkeypatch, batches
):
    arguments = train_arguments(dataset, tmp_path, learning_rates=[0.01, 0.001])
    signal_after(monkeypatch, batches, signal.SIGUSR1)
    assert train.main(arguments) == 128 + signal.SIGUSR1
    state = load_state(tmp_path / RUN / "state.pt")
    # 8 training bags in batches of 3: three steps an epoch
    position = (state["cursor"]["epoch"], state["cursor"]["step"])
    assert position == (1 + batches // 3, batches % 3)
    assert not (tmp_path / "runs.json").exists()
    assert train.main(arguments) == 0
    assert_same_run(tmp_path / RUN, straight / RUN)
    assert not (tmp_path / RUN / "state.pt").exists()


@pytest.mark.parametrize("every", [1, 2])
def test_a_crash_between_log_and_state_resumes_from_the_state_and_repeats_no_row(
    dataset, straight, tmp_path, monkeypatch, every
):
    arguments = train_arguments(dataset, tmp_path, learning_rates=[0.01, 0.001], checkpoint_every=every)
    append, rows = training.append_log, []

    def append_and_crash(path, row):
        append(path, row)
        rows.append(row)
        if len(rows) == 4:
            raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(training, "append_log", append_and_crash)
        with pytest.raises(OSError, match="disk full"):
            train.main(arguments)
    assert load_state(tmp_path / RUN / "state.pt")["cursor"]["epoch"] == {1: 4, 2: 3}[every]
    assert len(read_log(tmp_path / RUN / "log.jsonl")) == 4 and not (tmp_path / "runs.json").exists()
    assert train.main(arguments) == 0
    for run in (RUN, "split1_lr0.001"):
        assert_same_run(tmp_path / run, straight / run)
    assert (tmp_path / "runs.json").read_bytes() == (straight / "runs.json").read_bytes()


@pytest.mark.parametrize(("seconds", "states"), [(0.0, [1, 2, 3, 4]), (2.0, [2, 4]), (2.5, [3, 4]), (60.0, [4])])
def test_short_epochs_share_a_state(dataset, tmp_path, monkeypatch, seconds, states):
    """A clock that goes one second an epoch; the last epoch leaves a state in any case."""
    epoch, save, now, saved = Fit._epoch, Fit._save, [0], []

    def a_second(fit):
        now[0] += 1
        return epoch(fit)

    def noted(fit):
        saved.append(fit.cursor.epoch - 1)
        save(fit)

    monkeypatch.setattr(Fit, "_epoch", a_second)
    monkeypatch.setattr(Fit, "_save", noted)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: 0.0))
    assert train.main(train_arguments(dataset, tmp_path, checkpoint_seconds=seconds)) == 0
    assert saved == states
    assert [row.epoch for row in read_log(tmp_path / RUN / "log.jsonl")] == [1, 2, 3, 4]


def test_finished_runs_are_not_touched_and_a_changed_setting_redoes_them(dataset, straight, tmp_path, monkeypatch):
    arguments = train_arguments(dataset, tmp_path)
    assert train.main(arguments) == 0
    before = (tmp_path / RUN / "best.safetensors").stat().st_mtime_ns
    listed = (tmp_path / "runs.json").read_bytes()
    # the workflow removes a declared output before it reruns a rule
    (tmp_path / "runs.json").unlink()
    monkeypatch.setattr(job, "_train_pending", lambda *_: pytest.fail("nothing was left to train"))
    assert train.main(arguments) == 0
    assert (tmp_path / "runs.json").read_bytes() == listed
    # another threshold of instance labels, other threads: the weights stay
    assert train.main(train_arguments(dataset, tmp_path, label_threshold=0.3, checkpoint_every=3)) == 0
    monkeypatch.undo()
    register_noisy()
    assert train.main(train_arguments(dataset, tmp_path, warmup_epochs=1)) == 0
    assert (tmp_path / RUN / "best.safetensors").stat().st_mtime_ns != before
    assert [row.epoch for row in read_log(tmp_path / RUN / "log.jsonl")] == [1, 2, 3, 4]
    assert read_log(tmp_path / RUN / "log.jsonl")[1].lr == 0.01


def test_what_a_run_leaves_behind(dataset, straight):
    config = json.loads((straight / RUN / "config.json").read_text())
    assert (config["seed"], config["learning_rate"], config["in_features"]) == (1, 0.01, 5)
    assert len(config["split"].pop("bags_sha256")) == 64
    assert config["split"] == {"train_bags": 8, "train_positive_bags": 4, "val_bags": 4, "val_positive_bags": 2}
    assert config["random_weights"] is True and config["features"]["encoder"] == "tiny"
    assert set(config["versions"]) == {"smmil", "python", "torch", "numpy"} and config["device"] == "cpu"
    rows = read_log(straight / RUN / "log.jsonl")
    expected = {"epoch", "lr", "loss", "loss_bce", "grad_norm", "val_loss", "val_loss_bce", "val_bag_auroc", "seconds"}
    expected |= {"val_instance_auroc", "val_selection_bce", "val_score_entropy", "selection", "kept", "memory_mib"}
    assert all(set(row.as_json()) == expected for row in rows)
    memory = [row.memory_mib for row in rows]
    assert memory == sorted(memory) and 50 < memory[0] <= memory[-1] < 100_000
    np.testing.assert_allclose([row.lr for row in rows], [0.001, 0.0055, 0.01, 0.01], rtol=1e-12)
    kept = [row for row in rows if row.selection == max(r.selection for r in rows)][-1]
    done = json.loads((straight / RUN / "done.json").read_text())
    assert (done["best_epoch"], done["selection_score"]) == (kept.epoch, kept.selection)
    listed = json.loads((straight / "runs.json").read_text())
    assert [run["run"] for run in listed["runs"]] == [RUN, "split1_lr0.001"]
    assert sum(run["chosen"] for run in listed["runs"]) == 1
    best = max(listed["runs"], key=lambda run: (run["selection_score"], run["lr"]))
    assert best["chosen"]
    for path in straight.rglob("*.json*"):
        assert str(dataset) not in path.read_text() and str(straight) not in path.read_text()


def test_a_diverging_run_is_named_with_its_epoch(dataset, tmp_path, capsys):
    assert train.main(train_arguments(dataset, tmp_path, learning_rates=[1e30], warmup_start=1)) == 2
    error = capsys.readouterr().err
    assert "error: run split1_lr1e+30, epoch 1:" in error and "nan" in error and "learning rate" in error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"--method": "nomil"}, "method: found 'nomil'"),
        ({"--config-json": '{"epoch": 3}'}, "--config-json: epoch: Extra inputs are not permitted (found 3)"),
        ({"--config-json": "{"}, "--config-json: not JSON"),
        ({"--learning-rates": "0.1,x"}, "--learning-rates: found '0.1,x'"),
        ({"--splits": "1,1"}, "expected each once"),
        (
            {"--config-json": '{"device": "abacus"}'},
            "device: String should match pattern '^(auto|cpu|cuda(:[0-9]+)?)$' (found 'abacus')",
        ),
        ({"--table": "t.csv"}, "expected one of the two"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(dataset, tmp_path, capsys, extra, message):
    arguments = train_arguments(dataset, tmp_path)
    assert train.main([*arguments, *(item for pair in extra.items() for item in pair)]) == 2
    assert message in capsys.readouterr().err
