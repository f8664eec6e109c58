"""Training jobs: variants of a method, jobs cut into parts, TensorBoard beside the log."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

from smmil.artifacts.runs import read_log
from smmil.config.methods import WITH_GLOBAL, WITHOUT_GLOBAL, display_name, group_of
from smmil.config.variants import Variant
from smmil.train import __main__ as train
from smmil.train import job
from smmil.train.specs import check_variant
from tests.helpers.grids import predict_method
from tests.helpers.train_helpers import train_arguments
from tests.helpers.workflows import fake_raw, planned, write_config


def listed(out: Path, name: str = "runs.json") -> dict:
    return json.loads((out / name).read_text())


# ---- variants


@pytest.mark.parametrize(
    ("variant", "shown"),
    [
        (Variant("smap_early", "alpha", 0.1), "SmAP, α = 0.1"),
        (Variant("smap_early", "alpha", 1e-05), "SmAP, α = 1e-05"),
        (Variant("smap_mid", "T", 20), "SmAP-mid, T = 20"),
        (Variant("smap_early", "T", "exact"), "SmAP, T exact"),
        (Variant("smtap", "spectral_norm", False), "SmTAP, no spectral norm"),
        (Variant("smtap", "spectral_norm", True), "SmTAP, spectral norm"),
        (Variant("dsmil", "q_dim", 64), "DSMIL, q_dim = 64"),
    ],
)
def test_a_variant_is_shown_by_its_method_and_argument(variant, shown):
    assert display_name(variant.name) == shown
    assert re.fullmatch("[a-z0-9_]+", variant.name)


def test_a_variant_stands_in_the_group_of_its_method():
    assert group_of("smap_early__alpha_0p1") == WITHOUT_GLOBAL and group_of("smtap__t_5") == WITH_GLOBAL
    assert display_name("unheard_of") == "unheard_of" and display_name("smap_early") == "SmAP"


def test_a_variant_trains_its_method_with_its_argument_under_its_name(dataset, tmp_path):
    name, options = "smap_early__alpha_0p1", ["--method-options", '{"alpha": 0.1}']
    assert train.main([*train_arguments(dataset, tmp_path / "v", name, epochs=1), *options]) == 0
    assert train.main([*train_arguments(dataset, tmp_path / "m", "smap_early", epochs=1), *options]) == 0
    variant, method = listed(tmp_path / "v"), listed(tmp_path / "m")
    assert variant["method"] == name and method["method"] == "smap_early"
    assert variant["method_options"] == {"alpha": 0.1}
    # the same training in all but its name
    assert variant["runs"] == method["runs"]
    config = listed(tmp_path / "v" / "split1_lr0.01", "config.json")
    assert (config["method"], config["name"]) == ("smap_early", name)
    predict_method(dataset, tmp_path / "v", tmp_path / "predictions")
    assert listed(tmp_path / "predictions", "index.json")["method"] == name


def test_a_name_that_tells_another_argument_is_refused(dataset, tmp_path, capsys):
    arguments = train_arguments(dataset, tmp_path, "smap_early__alpha_0p1")
    assert train.main([*arguments, "--method-options", '{"alpha": 0.9}']) == 2
    assert "smap_early__alpha_0p1" in capsys.readouterr().err and not (tmp_path / "runs.json").exists()
    check_variant("smap_early__spectral_norm_false", {"T": 5, "spectral_norm": False})
    with pytest.raises(ValueError, match="expected e.g. smap_early__alpha_0p1"):
        check_variant("smap_early__spectral_norm_false", {})


# ---- parts


def test_a_part_that_no_split_has_is_refused(dataset, tmp_path, capsys):
    assert train.main([*train_arguments(dataset, tmp_path, "abmil"), "--part", "7"]) == 2
    assert "--part: found 7, expected one of the split seeds [1]" in capsys.readouterr().err


def test_single_methods_are_cut_into_parts_with_their_variants(tmp_path):
    """Here under the other protocol."""
    fake_raw(tmp_path, panda=1, scans=10)
    rsna = {"encoders": ["resnet18"], "source": {"scans": 10}}
    values = {"use": ["rsna"], "datasets": {"rsna": rsna}, "protocol": "as_released", "quirks": {"train_lr": False}}
    training = {"split_jobs": ["smap_early"], "splits": [1, 2, 3]}
    config = write_config(tmp_path, {**values, "training": training})
    runs = [f"results/rsna/runs/resnet18/{method}/runs.json" for method in ("smap_early__t_50", "smap_early", "abmil")]
    jobs = planned(tmp_path, *runs, "--configfile", config)
    assert jobs["train_runs"] == 3 and jobs["train_part"] == 6


# ---- TensorBoard


def test_tensorboard_without_its_package_is_one_clear_error_before_training(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    assert train.main(train_arguments(dataset, tmp_path, "abmil", tensorboard=True)) == 2
    error = capsys.readouterr().err
    assert "tensorboard is not installed" in error and "Traceback" not in error
    assert not (tmp_path / "split1_lr0.01").exists()


class FakeWriter:
    """Stands for SummaryWriter: remembers what reaches it."""

    made: list["FakeWriter"] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        FakeWriter.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_tensorboard(monkeypatch):
    FakeWriter.made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(job, "find_spec", lambda name: object())


def test_every_number_of_the_log_reaches_tensorboard_and_the_run_stays_the_same(dataset, tmp_path, fake_tensorboard):
    assert train.main(train_arguments(dataset, tmp_path / "a", "abmil", epochs=3, tensorboard=True)) == 0
    assert train.main(train_arguments(dataset, tmp_path / "b", "abmil", epochs=3)) == 0
    (writer,) = FakeWriter.made
    assert writer.folder == str(tmp_path / "a" / "split1_lr0.01") and writer.closed and writer.purge_step == 1
    for row in read_log(tmp_path / "a" / "split1_lr0.01" / "log.jsonl"):
        expected = {
            name: float(value) for name, value in row.as_json().items() if name != "epoch" and value is not None
        }
        assert {name: value for name, value, step in writer.scalars if step == row.epoch} == expected
    assert (tmp_path / "a" / "runs.json").read_bytes() == (tmp_path / "b" / "runs.json").read_bytes()


def test_event_files_are_written_where_the_package_is(dataset, tmp_path):
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    assert train.main(train_arguments(dataset, tmp_path, "abmil", epochs=2, tensorboard=True)) == 0
    assert list((tmp_path / "split1_lr0.01").glob("events.out.tfevents.*"))
