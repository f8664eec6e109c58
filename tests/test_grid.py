"""A tiny grid end to end: its numbers are those written down, however it was interrupted or cut into jobs.

The numbers are renewed where they are meant to change (another rule, another metric) by pasting what
`python -m tests.grids` prints. Only then: the margins of the seed below (best epochs, chosen rates, orders of scores)
were looked at with features moved by 1e-6 and 1e-5, one and two threads, with and without the compiled kernels, and
with narrower vectors; no decision changed, no number moved by more than a tenth of the tolerance.
"""

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from smmil import train
from tests.grids import (
    METHODS,
    finish_grid,
    make_grid_dataset,
    metric_numbers,
    run_numbers,
    table_numbers,
    train_command,
    train_grid,
)
from tests.train_helpers import signal_after, timeless

# far above rounding, far below what another seed, rate, optimiser, threshold or metric does
TOLERANCE = {"abs": 5e-4, "rel": 5e-4}
STEPS = 8 * 6  # of a run: epochs, batches

RUNS = {
    "abmil split1_lr0.003": (5, True, 0.3588, 0.1499),
    "abmil split1_lr0.0003": (8, False, 0.2828, 0.6016),
    "abmil split2_lr0.003": (4, True, 0.4804, 0.213),
    "abmil split2_lr0.0003": (8, False, 0.3826, 0.5364),
    "smap_early split1_lr0.003": (5, True, 0.2828, 0.1653),
    "smap_early split1_lr0.0003": (8, False, 0.2611, 0.5663),
    "smap_early split2_lr0.003": (6, True, 0.6084, 0.2872),
    "smap_early split2_lr0.0003": (8, False, 0.3549, 0.5932),
    "smtap split1_lr0.003": (1, False, -0.1357, 0.0011),
    "smtap split1_lr0.0003": (1, True, 0.0074, 0.0009),
    "smtap split2_lr0.003": (1, False, 0.4543, 0.1445),
    "smtap split2_lr0.0003": (4, True, 0.6778, 0.1206),
}
METRICS = {
    "abmil 1": (0.003, 2.9475, 0.8611, 0.8, 0.5152, 0.098, 0.8066, 0.4762, 10.2731),
    "abmil 2": (0.003, 4.67, 0.8681, 0.7857, 0.5029, 0.1021, 0.7264, 0.381, 26.133),
    "smap_early 1": (0.003, 1.3602, 0.9653, 0.8462, 0.3764, 0.0872, 0.9135, 0.5263, 1.6629),
    "smap_early 2": (0.003, 2.9039, 0.9097, 0.8462, 0.4094, 0.0943, 0.9088, 0.4706, 2.9237),
    "smtap 1": (0.0003, -0.1158, 0.8542, 0.7619, 0.5877, 0.0736, 0.522, 0.3704, 0.0274),
    "smtap 2": (0.0003, 0.6091, 0.8542, 0.75, 0.5278, 0.126, 0.9418, 0.6087, 0.5402),
}
TABLE = {
    "instance_auroc.mean": (0.9112, 0.7665, 0.7319),
    "instance_auroc.std": (0.0033, 0.0567, 0.2969),
    "instance_auroc.n_splits": (2.0, 2.0, 2.0),
    "instance_auroc.ci95_low": (0.8285, 0.6523, 0.6291),
    "instance_auroc.ci95_high": (0.9626, 0.8655, 0.8388),
    "instance_auroc.median": (0.9112, 0.7665, 0.7319),
    "instance_auroc.worst": (0.9088, 0.7264, 0.522),
    "instance_auroc.inverted": (0.0, 0.0, 0.0),
    "instance_f1.mean": (0.4985, 0.4286, 0.4895),
    "instance_f1.std": (0.0394, 0.0673, 0.1685),
    "instance_f1.n_splits": (2.0, 2.0, 2.0),
    "instance_f1.ci95_low": (0.1614, 0.2273, 0.3418),
    "instance_f1.ci95_high": (0.7093, 0.6077, 0.6011),
    "instance_f1.median": (0.4985, 0.4286, 0.4895),
    "instance_f1.worst": (0.4706, 0.381, 0.3704),
    "rank": (1.0, 2.0, 1.0),
    "signed_instance_auroc.mean": (0.9764, 0.9355, 0.9458),
    "signed_instance_auroc.std": (0.0089, 0.0356, 0.03),
    "signed_instance_auroc.n_splits": (2.0, 2.0, 2.0),
    "signed_instance_auroc.ci95_low": (0.9368, 0.8544, 0.8793),
    "signed_instance_auroc.ci95_high": (0.9972, 0.9778, 0.983),
    "signed_instance_auroc.median": (0.9764, 0.9355, 0.9458),
    "signed_instance_auroc.worst": (0.9701, 0.9104, 0.9245),
    "signed_instance_auroc.inverted": (0.0, 0.0, 0.0),
    "signed_instance_f1.mean": (0.7824, 0.6429, 0.6927),
    "signed_instance_f1.std": (0.0458, 0.202, 0.0042),
    "signed_instance_f1.n_splits": (2.0, 2.0, 2.0),
    "signed_instance_f1.ci95_low": (0.6031, 0.4585, 0.4964),
    "signed_instance_f1.ci95_high": (0.9567, 0.7843, 0.8474),
    "signed_instance_f1.median": (0.7824, 0.6429, 0.6927),
    "signed_instance_f1.worst": (0.75, 0.5, 0.6897),
    "signed_rank": (1.0, 2.0, 1.0),
    "instance_auprc.mean": (0.7374, 0.4549, 0.5806),
    "instance_auprc.std": (0.0147, 0.0292, 0.3386),
    "instance_auprc.n_splits": (2.0, 2.0, 2.0),
    "instance_auprc.median": (0.7374, 0.4549, 0.5806),
    "instance_auprc.worst": (0.727, 0.4342, 0.3412),
    "instance_froc.mean": (0.8958, 0.6528, 0.7361),
    "instance_froc.std": (0.108, 0.0786, 0.2553),
    "instance_froc.n_splits": (2.0, 2.0, 2.0),
    "instance_froc.median": (0.8958, 0.6528, 0.7361),
    "instance_froc.worst": (0.8194, 0.5972, 0.5556),
    "instance_dice.mean": (0.3611, 0.3472, 0.3986),
    "instance_dice.std": (0.0393, 0.0982, 0.1434),
    "instance_dice.n_splits": (2.0, 2.0, 2.0),
    "instance_dice.ci95_low": (0.1, 0.1786, 0.2438),
    "instance_dice.ci95_high": (0.6331, 0.5405, 0.5621),
    "instance_dice.median": (0.3611, 0.3472, 0.3986),
    "instance_dice.worst": (0.3333, 0.2778, 0.2972),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_grid_dataset(tmp_path_factory.mktemp("grid") / "data")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight")
    train_grid(data, out)
    finish_grid(data, out)
    return out


def assert_near(found: Mapping[str, tuple[float, ...]], expected: Mapping[str, tuple[float, ...]]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, **TOLERANCE), name


def test_every_run_ends_at_the_epoch_rate_score_and_loss_written_down(straight: Path) -> None:
    assert_near(run_numbers(straight), RUNS)


def test_thresholds_and_test_metrics_are_those_written_down(straight: Path) -> None:
    assert_near(metric_numbers(straight), METRICS)


def test_table_1_is_the_one_written_down(straight: Path) -> None:
    assert_near(table_numbers(straight), TABLE)


def assert_same_grid(found: Path, straight: Path) -> None:
    """Every file equal to the byte, logs but for the times in them: weights, predictions, metrics, table."""
    names = sorted(path.relative_to(straight) for path in straight.rglob("*") if path.is_file())
    suffixes = {name.suffix for name in names}
    assert suffixes == {".safetensors", ".npz", ".json", ".jsonl", ".csv"}
    assert sorted(path.relative_to(found) for path in found.rglob("*") if path.is_file()) == names
    for name in names:
        if name.name == "log.jsonl":
            assert timeless(found / name) == timeless(straight / name), name
        else:
            assert (found / name).read_bytes() == (straight / name).read_bytes(), name


def stop_inside(data: Path, out: Path, method: str, steps: int, signum: int) -> str:
    """Starts a job, stops it by a signal after so many steps; the run that it was in."""
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, steps, signum)
        assert train.main(train_command(data, out, method)) == 128 + signum
    assert not (out / "runs" / method / "runs.json").exists()
    (state,) = (out / "runs" / method).rglob("state.pt")
    return state.parent.name


def test_a_grid_interrupted_in_two_jobs_and_resumed_equals_the_straight_one_to_the_byte(
    data: Path, straight: Path, tmp_path: Path
) -> None:
    first, later = METHODS[0], METHODS[-1]
    # in the fourth epoch of the second run of the first job; between two epochs of the third run of the last
    assert stop_inside(data, tmp_path, first, STEPS + 20, signal.SIGUSR1) == "split1_lr0.0003"
    for method in METHODS[:-1]:
        assert train.main(train_command(data, tmp_path, method)) == 0
    assert stop_inside(data, tmp_path, later, 2 * STEPS + 12, signal.SIGTERM) == "split2_lr0.003"
    train_grid(data, tmp_path)
    finish_grid(data, tmp_path)
    assert_same_grid(tmp_path, straight)


def test_a_grid_cut_into_a_job_per_split_equals_the_whole_to_the_byte(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in METHODS:
        for seed in ("2", "1"):
            command = train_command(data, tmp_path, method)
            done = tmp_path / f"part{seed}.json"
            assert train.main([*command, "--done", str(done), "--part", seed]) == 0
            done.unlink()
    monkeypatch.setattr(train, "train_runs", lambda *_: pytest.fail("the parts left something to train"))
    train_grid(data, tmp_path)
    finish_grid(data, tmp_path)
    assert_same_grid(tmp_path, straight)
