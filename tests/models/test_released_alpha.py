"""Row 1 of docs/reference/protocol.md over a run: the release's fixed alpha = a is the paper's 1 - a, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smmil.train import __main__ as train
from tests.helpers.grids import predict_method
from tests.helpers.train_helpers import make_dataset, timeless, train_arguments

RUN = "split1_lr0.01"
A = 0.3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("tiny"))


def trained(data: Path, out: Path, method: str, alpha: float, **options: Any) -> dict[str, Any]:
    """Log, weights and predictions of a run with a fixed alpha; arrays as bytes, what only names the run left out."""
    fixed = ["--method-options", json.dumps({"alpha": alpha})]
    assert train.main([*train_arguments(data, out, method, **options), *fixed]) == 0
    predict_method(data, out, out / "predictions")
    artifacts: dict[str, Any] = {"log": timeless(out / RUN / "log.jsonl")}
    artifacts |= {name: (out / RUN / f"{name}.safetensors").read_bytes() for name in ("best", "direction")}
    with np.load(out / "predictions" / f"{RUN}.npz", allow_pickle=False) as archive:
        return artifacts | {name: archive[name].tobytes() for name in archive.files if name != "meta"}


@pytest.mark.parametrize("method", ["smap_early", "smap_late", "smtap", "smdsmil"])
def test_a_fixed_alpha_as_released_trains_and_predicts_as_one_minus_alpha_as_written(
    data: Path, tmp_path: Path, method: str
) -> None:
    released = trained(data, tmp_path / "released", method, A, quirks={"sm_alpha_rule": True})
    mirrored = trained(data, tmp_path / "mirrored", method, 1 - A)
    assert released.keys() == mirrored.keys() >= {"log", "best", "direction", "bag_logit", "instance_score"}
    for name, value in released.items():
        assert value == mirrored[name], name
    written = trained(data, tmp_path / "written", method, A)
    assert all(written[name] != released[name] for name in ("log", "best", "bag_logit", "instance_score"))


def test_at_one_half_the_released_rule_of_alpha_changes_nothing(data: Path, tmp_path: Path) -> None:
    released = trained(data, tmp_path / "released", "smap_early", 0.5, quirks={"sm_alpha_rule": True})
    assert released == trained(data, tmp_path / "written", "smap_early", 0.5)
