"""A tiny grid end to end: stored reference numbers, also after interruptions and when split into jobs.

To change numbers, replace `RUNS`, `METRICS` and `TABLE` by the output of `python -m tests.helpers.grids`.
Data and rates have wide margins (best epochs, chosen rates, order of scores): perturbing features by 1e-6, two threads,
no compiled kernel or narrow vectors change no number by more than a tenth of the tolerance, perturbing by 1e-5 by more
than half of it.
"""

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from smmil.artifacts.records import RunsFile
from smmil.train import __main__ as train
from smmil.train import job
from tests.helpers.grids import (
    METHODS,
    finish_grid,
    make_grid_dataset,
    metric_numbers,
    run_numbers,
    table_numbers,
    train_command,
    train_grid,
)
from tests.helpers.train_helpers import signal_after, timeless

# far above rounding, far below what another seed, rate, optimiser, threshold or metric does
TOLERANCE = 5e-4
STEPS = 8 * 6  # of a run: epochs, batches

RUNS = {
    "abmil split1_lr0.002": (5, True, 0.2316, 0.268),
    "abmil split1_lr0.0002": (8, False, 0.103, 0.6789),
    "abmil split2_lr0.002": (3, False, 0.3142, 0.2633),
    "abmil split2_lr0.0002": (5, True, 0.3232, 0.6289),
    "smap_early split1_lr0.002": (5, True, 0.2124, 0.2835),
    "smap_early split1_lr0.0002": (6, False, 0.1381, 0.637),
    "smap_early split2_lr0.002": (6, True, 0.4381, 0.3774),
    "smap_early split2_lr0.0002": (8, False, 0.2619, 0.6643),
    "smtap split1_lr0.002": (1, False, -0.1981, 0.0066),
    "smtap split1_lr0.0002": (1, True, -0.036, 0.0046),
    "smtap split2_lr0.002": (8, False, 0.4537, 0.1414),
    "smtap split2_lr0.0002": (4, True, 0.5223, 0.1559),
}
METRICS = {
    "abmil 1": (0.002, 2.7032, 1.9867, 0.9028, 0.8889, 0.5169, 0.168, 0.8333, 0.4444, 7.7273),
    "abmil 2": (0.0002, 0.0685, 0.1689, 0.6597, 0.5926, 0.6762, 0.14, 0.4843, 0.1622, 0.3151),
    "smap_early 1": (0.002, 0.7527, 0.6643, 0.9097, 0.8462, 0.4893, 0.1555, 0.8774, 0.6154, 1.6296),
    "smap_early 2": (0.002, 2.0335, 3.5341, 0.8194, 0.8, 0.5328, 0.075, 0.8192, 0.48, 2.3725),
    "smtap 1": (0.0002, -0.1151, 0.3737, 0.7778, 0.6957, 0.6326, 0.1068, 0.4733, 0.2759, 0.0243),
    "smtap 2": (0.0002, 0.0632, 6.4873, 0.7431, 0.75, 0.6906, 0.0793, 0.8679, 0.4737, 0.2978),
}
TABLE = {
    "instance_auroc.mean": (0.8483, 0.6588, 0.6706),
    "instance_auroc.std": (0.0411, 0.2468, 0.2791),
    "instance_auroc.ci95_low": (0.7378, 0.5667, 0.5567),
    "instance_auroc.ci95_high": (0.9158, 0.7485, 0.7878),
    "instance_auroc_within.mean": (0.8917, 0.6667, 0.8083),
    "instance_auroc_within.std": (0.0825, 0.2593, 0.0825),
    "instance_auroc_within.ci95_low": (0.7997, 0.4664, 0.5793),
    "instance_auroc_within.ci95_high": (0.9839, 0.824, 0.9507),
    "instance_f1.mean": (0.5477, 0.3033, 0.3748),
    "instance_f1.std": (0.0957, 0.1996, 0.1399),
    "instance_f1.ci95_low": (0.3074, 0.1292, 0.2443),
    "instance_f1.ci95_high": (0.6745, 0.4133, 0.5065),
    "rank": (1.0, 2.0, 1.0),
    "signed_instance_auroc.mean": (0.9261, 0.9025, 0.8475),
    "signed_instance_auroc.std": (0.0067, 0.0378, 0.0823),
    "signed_instance_auroc.ci95_low": (0.8282, 0.8082, 0.7377),
    "signed_instance_auroc.ci95_high": (0.9876, 0.9741, 0.9281),
    "signed_instance_auroc_within.mean": (0.9, 0.8917, 0.825),
    "signed_instance_auroc_within.std": (0.0236, 0.0354, 0.0825),
    "signed_instance_auroc_within.ci95_low": (0.75, 0.7292, 0.6669),
    "signed_instance_auroc_within.ci95_high": (1.0, 1.0, 1.0),
    "signed_instance_f1.mean": (0.4866, 0.55, 0.3853),
    "signed_instance_f1.std": (0.2841, 0.0707, 0.1408),
    "signed_instance_f1.ci95_low": (0.2875, 0.316, 0.195),
    "signed_instance_f1.ci95_high": (0.6473, 0.7552, 0.558),
    "signed_sm_instance_auroc.mean": (0.875, 0.8632, 0.8294),
    "signed_sm_instance_auroc.std": (0.0033, 0.0267, 0.0434),
    "signed_sm_instance_auroc.ci95_low": (0.7607, 0.7489, 0.7403),
    "signed_sm_instance_auroc.ci95_high": (0.9564, 0.9289, 0.9038),
    "signed_rank": (1.5, 1.5, 1.0),
    "instance_auprc.mean": (0.5775, 0.4025, 0.468),
    "instance_auprc.std": (0.0126, 0.211, 0.3168),
    "instance_auprc.ci95_low": (0.3771, 0.2741, 0.3),
    "instance_auprc.ci95_high": (0.7855, 0.5545, 0.6425),
    "instance_froc.mean": (0.8681, 0.6042, 0.7014),
    "instance_froc.std": (0.1277, 0.2848, 0.1277),
    "instance_froc.ci95_low": (0.7561, 0.4761, 0.4888),
    "instance_froc.ci95_high": (0.9594, 0.7447, 0.8906),
    "instance_dice.mean": (0.5139, 0.2778, 0.3778),
    "instance_dice.std": (0.1375, 0.0786, 0.2318),
    "instance_dice.ci95_low": (0.2606, 0.1071, 0.2256),
    "instance_dice.ci95_high": (0.7195, 0.4229, 0.5283),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_grid_dataset(tmp_path_factory.mktemp("grid") / "data")


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the grid without interruptions."""
    out = tmp_path_factory.mktemp("straight")
    train_grid(data, out)
    finish_grid(data, out)
    return out


def assert_near(numbers: Mapping[str, tuple[float, ...]], expected: Mapping[str, tuple[float, ...]]) -> None:
    assert list(numbers) == list(expected)
    for name, values in expected.items():
        assert numbers[name] == pytest.approx(values, abs=TOLERANCE, rel=TOLERANCE), name


@pytest.mark.parametrize(
    ("numbers", "stored"), [(run_numbers, RUNS), (metric_numbers, METRICS), (table_numbers, TABLE)]
)
def test_epochs_rates_and_losses_metrics_and_table_1_are_those_stored(straight: Path, numbers, stored) -> None:
    assert_near(numbers(straight), stored)


def assert_same_grid(grid: Path, straight: Path) -> None:
    """Compare all files to the byte, logs without times: weights, predictions, metrics, table."""
    names = sorted(path.relative_to(straight) for path in straight.rglob("*") if path.is_file())
    suffixes = {name.suffix for name in names}
    assert suffixes == {".safetensors", ".npz", ".json", ".jsonl", ".csv"}
    assert sorted(path.relative_to(grid) for path in grid.rglob("*") if path.is_file()) == names
    for name in names:
        if name.name == "log.jsonl":
            assert timeless(grid / name) == timeless(straight / name), name
        else:
            assert (grid / name).read_bytes() == (straight / name).read_bytes(), name


def stop_inside(data: Path, out: Path, method: str, steps: int, signum: int) -> str:
    """Stop a job by a signal after some steps; return the name of the interrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, steps, signum)
        assert train.main(train_command(data, out, method)) == 128 + signum
    assert not (out / "runs" / method / "runs.json").exists()
    (state,) = (out / "runs" / method).rglob("state.pt")
    return state.parent.name


def test_a_grid_of_interrupted_jobs_and_of_jobs_per_split_equals_the_straight_one_to_the_byte(
    data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, middle, last = METHODS
    # in the fourth epoch of the second run of the first job; between two epochs of the third run of the last
    assert stop_inside(data, tmp_path, first, STEPS + 20, signal.SIGUSR1) == "split1_lr0.0002"
    assert stop_inside(data, tmp_path, last, 2 * STEPS + 12, signal.SIGTERM) == "split2_lr0.002"
    for method in (first, last):
        assert train.main(train_command(data, tmp_path, method)) == 0
    for seed in (2, 1):
        done = tmp_path / "part.json"
        command = train_command(data, tmp_path, middle)
        assert train.main([*command, "--done", str(done), "--part", str(seed)]) == 0
        runs = RunsFile.read(done).runs
        assert [run.seed for run in runs] == [seed, seed] and sum(run.chosen for run in runs) == 1
        done.unlink()
    assert not (tmp_path / "runs" / middle / "runs.json").exists()
    monkeypatch.setattr(job, "_train_pending", lambda *_: pytest.fail("something was left to train"))
    train_grid(data, tmp_path)
    finish_grid(data, tmp_path)
    assert_same_grid(tmp_path, straight)
