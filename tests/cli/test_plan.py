"""`smmil run --plan`: the arithmetic of the estimate, its honesty, and the measurements on small slides and scans."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from preprocessing.features.encoders import ENCODERS
from smmil.cli import probe as probing
from smmil.cli.estimate import BagProbe, DatasetProbe, Machine, StepProbe, as_bytes, estimate, rounded
from smmil.cli.pipeline import read_config
from smmil.config.outputs import all_pairings
from smmil.planning import Plan
from tests.cli import code_of
from tests.helpers.cohorts import WSI, Cohort, picture, write_scan, write_slide
from tests.helpers.train_helpers import make_dataset
from tests.helpers.workflows import write_config

SAMPLE = (BagProbe(80, 2.0, 1000, 10), BagProbe(120, 4.0, 3000, 10))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """100 bags in shards of 25, two methods, 5 splits of 10 epochs."""
    monkeypatch.chdir(tmp_path)
    dataset = {"kind": "custom", "root": ".", "source": {"manifest": "m.csv"}, "encoders": ["resnet18"]}
    values = {"use": ["mine"], "datasets": {"mine": dataset}, "methods": ["abmil", "smap_early"], "more_methods": []}
    values |= {"training": {"epochs": 10, "learning_rates": [1e-4]}, "features": {"workers": 2}}
    values |= {"report": {"tables": ["table2"], "figures": ["fig4"]}}
    return read_config([Path(write_config(tmp_path, values))])


class Tiny(torch.nn.Module):
    """A network that is quick: the mean of each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.colours(x).mean((2, 3))


@pytest.fixture
def measured() -> DatasetProbe:
    """Measurements on two of 100 bags."""
    steps = {"abmil": StepProbe(0.01, 1000), "smap_early": StepProbe(0.03, 2000)}
    return DatasetProbe("mine", 100, 64, 12, 24, SAMPLE, 50.0, steps)


def test_the_estimate_is_what_the_measurements_multiply_to(config, measured):
    result = estimate(config, [measured], Machine(4, "CPU", 2.0), {"mine": 1024})
    cut, features, training, jobs = result.items
    # 100 bags of 3 s on four cores, 20 files each
    assert (cut.seconds, cut.bytes, cut.files) == (75, 200_000, 1000)
    # 10,000 tiles, two jobs of two threads side by side
    assert features.seconds == 100 and features.bytes == 10_000 * 1024
    # 5 runs x (10 epochs x (64 + 12/3) bags + (12 + 24)/3 bags) of both methods, which run side by side
    assert training.seconds == pytest.approx(5 * (10 * 68 + 12) * 0.04 / 2) and training.bytes == 5 * 3000
    # cut and features of 4 shards, three jobs per training, some for data, tables and figures
    assert jobs.seconds == (8 + 6 + 3 + 3) * 2.0 / 4
    assert result.total.seconds == pytest.approx(sum(item.seconds for item in result.items))
    assert "2 of 100 bags were cut (80 to 120 tiles); error of the sum ± 20 %" in result.basis[1]


def test_twice_the_bags_take_twice_the_time_and_a_gpu_is_not_divided(config, measured):
    machine = Machine(4, "CPU", 0.0)
    double = replace(measured, bags=200, train=128, val=24, test=48)
    one, two = (estimate(config, [p], machine, {"mine": 1024}).total for p in (measured, double))
    assert two.seconds == pytest.approx(2 * one.seconds) and two.bytes > 1.9 * one.bytes
    gpu = estimate(config, [measured], replace(machine, device="H"), {"mine": 1024}).items
    cpu = estimate(config, [measured], machine, {"mine": 1024}).items
    assert [a.seconds / b.seconds for a, b in zip(gpu[:3], cpu[:3], strict=True)] == pytest.approx([1, 2, 2])


def test_what_was_not_measured_is_said(config, measured):
    steps = {**measured.steps, "smap_early": StepProbe(0.01, 1000, measured=False)}
    result = estimate(config, [replace(measured, steps=steps, sample=SAMPLE[:1])], Machine(1, "CPU", 0), {"mine": 1})
    assert "error of the sum unknown" in result.basis[1] and "smap_early" in result.basis[2]
    assert replace(measured, bags=2).spread == 0 and math.isinf(replace(measured, sample=SAMPLE[:1]).spread)


def test_numbers_are_rounded_to_two_digits():
    assert [rounded(n) for n in (0, 7.4, 99, 1234, 98_765)] == ["0", "7", "99", "1,200", "99,000"]
    assert [as_bytes(n) for n in (900, 2.34e6, 5.43e9, 123e9)] == ["1 kB", "2 MB", "5.4 GB", "120 GB"]


def test_slides_and_scans_are_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        ENCODERS, "tiny", replace(ENCODERS["resnet18"], name="tiny", dim=3, build=Tiny, cut=lambda model: model)
    )
    cohort = Cohort(tmp_path)
    for i in range(3):
        write_slide(cohort.raw / f"s{i}.tif", picture((128, 128, 512 - 64 * i, 448)))
        cohort.add(f"s{i}", f"s{i}.tif", label=str(i % 2))
    write_scan(cohort.raw / "scan", slices=5)
    slides = {"kind": "custom", "root": "raw", "source": {"manifest": "manifest.csv"}, "encoders": ["tiny"]}
    assert cohort.list_bags() == 0
    (tmp_path / "scans.csv").write_text("bag_id,image,label,split\nscan,scan,1,train\n")
    scans = {**slides, "source": {"manifest": "scans.csv"}, "instances": {"ct": {"slice_px": 32}}, "train": False}
    values = {"use": ["mine", "scans"], "datasets": {"mine": {**slides, "instances": {"wsi": WSI}}, "scans": scans}}
    values |= {"methods": ["abmil", "smap_early"], "features": {"batch_size": 4, "resize_policy": "native"}}
    values |= {"report": {"tables": ["table2"], "figures": ["fig4"]}, "sweeps": {}, "more_methods": []}
    config = read_config([Path(write_config(tmp_path, values))])
    monkeypatch.setattr(probing, "_start_seconds", lambda: 1.0)
    monkeypatch.setattr(probing, "ENCODE_SECONDS", 0.1)
    monkeypatch.setattr(probing, "STEP_SECONDS", 0.01)
    (mine, scan), machine = probing.probe(config, 2, lambda text: None)
    cohort.cut()
    assert sorted(bag.instances for bag in mine.sample) == sorted(entry.n for entry in cohort.entries().values())
    # what the real stage leaves on disk
    store = [path for path in (cohort.results / "instances/store/s0").rglob("*") if path.is_file()]
    assert all(bag.files == len(store) + 2 for bag in mine.sample)
    assert (mine.bags, mine.train, mine.val) == (3, 2, 1) and [bag.instances for bag in scan.sample] == [5]
    assert {*mine.steps} == {m for d, _, m in all_pairings(config) if d == "mine"} and not scan.steps
    assert all(step.seconds > 0 and step.bytes > 1000 for step in mine.steps.values())
    assert min(mine.tiles_per_second, scan.tiles_per_second) > 0 and machine.cores == 2
    plan = Plan(config)
    items = estimate(config, [mine, scan], machine, {n: plan.instance_bytes(n) for n in config.used}).items
    assert [item.stage for item in items] == ["cut", "features", "training", "cut", "features", "jobs"]
    assert not (tmp_path / "results/mine/features").exists()


def test_a_plan_without_data_or_with_odd_cores_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, {"use": ["rsna"]})
    assert code_of("run", "--plan") == 2
    assert "datasets.rsna: RSNA: no DICOM file" in capsys.readouterr().err
    assert code_of("run", "--plan", "--cores", "0") == 2
    assert "--cores: found '0'" in capsys.readouterr().err


def test_of_imported_features_only_the_training_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probing, "_start_seconds", lambda: 1.0)
    monkeypatch.setattr(probing, "STEP_SECONDS", 0.01)
    make_dataset(tmp_path / "results/mine")
    lines = [f"bag{i:02d},bag{i:02d}.tif,{i % 2},{'train' if i < 12 else 'test'}\n" for i in range(16)]
    (tmp_path / "m.csv").write_text("bag_id,image,label,split\n" + "".join(lines))
    dataset = {"kind": "custom", "root": ".", "source": {"manifest": "m.csv"}, "encoders": ["tiny"]}
    values = {"preset": "study", "use": ["mine"], "results": "results", "datasets": {"mine": dataset}}
    result = probing.measured(read_config([Path(write_config(tmp_path, values))]), "2")
    assert [item.stage for item in result.items] == ["training", "jobs"] and result.items[0].seconds > 0
    assert "16 of 16 bags are imported (1 tiles); error of the sum ± 0 %" in result.basis[1]
