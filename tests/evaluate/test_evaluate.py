"""What evaluation adds to the raw metrics: calibration, lesions, energies, signs, spread and the released gate."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.artifacts.records import PartMetrics
from smmil.config.definitions import definitions
from smmil.config.quirks import QUIRKS
from smmil.evaluate import metrics
from smmil.evaluate.calibration import calibration_error
from smmil.evaluate.runs import as_evaluated, evaluate_runs, spread
from tests.helpers.predictions import BAGS, part, write_run


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_calibration_error_by_hand() -> None:
    y, z = np.array([0, 1, 1, 1]), np.array([logit(p) for p in (0.2, 0.4, 0.6, 0.8)])
    # one bin: |.75 - .5|; two bins: |.5 - .3| and |1 - .7| with half of the bags each
    assert calibration_error(y, z) == pytest.approx(0.25)
    assert calibration_error(y, z, bins=2) == pytest.approx(0.25)
    assert calibration_error(y, z, bins=4) == pytest.approx((0.2 + 0.6 + 0.4 + 0.2) / 4)
    assert calibration_error(np.zeros(0), np.zeros(0)) is None


def test_bins_hold_ten_bags_and_are_fifteen_at_most() -> None:
    # 40 bags, four bins of ten: labels and probabilities disagree by .1, -.1, .1, -.1, which fewer bins would hide
    p = np.repeat([0.2, 0.4, 0.6, 0.8], 10)
    wanted = np.repeat([0.3, 0.3, 0.7, 0.7], 10)
    y = np.concatenate([np.arange(10) < round(10 * share) for share in wanted[::10]]).astype(float)
    z = np.array([logit(value) for value in p])
    assert calibration_error(y, z) == pytest.approx(0.1)
    many = np.random.default_rng(0)
    scores = many.normal(size=4000) * 2
    labels = (many.random(4000) < 1 / (1 + np.exp(-scores))).astype(float)
    assert calibration_error(labels, scores) == calibration_error(labels, scores, bins=15)
    # calibrated by construction, then made over-confident
    assert (calibration_error(labels, scores) or 1) < 0.05 < 0.1 < (calibration_error(labels, 5 * scores) or 0)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=1, max_size=60), st.integers(0, 99))
def test_calibration_does_not_depend_on_the_order_and_a_certain_truth_has_none(
    rows: list[tuple[int, int]], seed: int
) -> None:
    y, z = (np.array(column, float) for column in zip(*rows, strict=True))
    order = np.random.default_rng(seed).permutation(len(y))
    assert calibration_error(y, z) == pytest.approx(calibration_error(y[order], z[order]), abs=1e-12)
    assert calibration_error(y, np.where(y == 1, 800.0, -800.0)) == 0.0


def test_lesions_energies_and_signs_by_hand() -> None:
    found = metrics.run_metrics(part(BAGS[2:], full=True), part(BAGS[:2], full=True))
    test, values = found.test, found.test.values
    # threshold .6 of validation; t1: called and true {.8, .95}; t2: called and true {.65}
    assert values["instance_dice"] == pytest.approx(1.0)
    # lesions .8 and .95 are apart (the .1 between them), .65 is the third; the false one is .7 in the negative bag:
    # 2/3 before it, 3/3 with one false positive per negative bag
    assert test.froc_sensitivity == pytest.approx({"0.25": 0.75, "0.5": 5 / 6, "1": 1, "2": 1, "4": 1, "8": 1})
    assert values["instance_froc"] == pytest.approx((0.75 + 5 / 6 + 4) / 6)
    assert (values["dirichlet_raw"], values["dirichlet_normalised"]) == (3.0, 0.5)
    # the helper's sign-aware score is minus the score: everything mirrored
    assert values["signed_instance_auroc"] == pytest.approx(1 - values["instance_auroc"])
    assert test.signed_inverted and not test.inverted
    assert found.thresholds["signed_"] == pytest.approx(-0.1)
    json.dumps(test.as_json(), allow_nan=False)


def test_definitions_say_what_was_computed() -> None:
    plain, released = definitions(), definitions(QUIRKS)
    changed = {name for name in plain if plain[name] != released[name]}
    assert changed == {"instance_auroc", "instance_auroc_within", "instance_f1"}
    assert "ungated" in plain["instance_auroc"] and "ungated" not in released["instance_auroc"]
    assert not [text for text in (*plain.values(), *released.values()) if "{" in text]


def test_without_the_optional_arrays_the_metrics_are_left_out() -> None:
    test = metrics.run_metrics(part(BAGS[2:]), part(BAGS[:2])).test
    assert not [key for key in test.as_json() if key.startswith(("signed_", "dirichlet_", "froc_"))]
    assert "instance_froc" not in test.values and test.values["instance_dice"] == 1.0


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_permuted_test_labels_change_no_threshold_and_permuted_validation_labels_do(gated: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bags = [(f"b{i}", "", float(i % 2), rng.normal(), rng.normal(size=20), np.arange(20) < 9) for i in range(12)]
    parts = (part(own, full=True) for own in (bags[:6], bags[6:]))  # type: ignore[arg-type]
    val, test = (as_evaluated([], one, gated=gated) for one in parts)
    before = metrics.run_metrics(test, val)
    turned = {"y": 1 - test["y"], "y_inst": rng.permutation(test["y_inst"])}
    after = metrics.run_metrics({**test, **turned}, val)
    assert after.thresholds == before.thresholds and len(after.thresholds) == 3
    assert after.test.values["instance_auroc"] != before.test.values["instance_auroc"]
    other = metrics.run_metrics(test, {**val, "y_inst": 1 - val["y_inst"]})
    assert other.thresholds != before.thresholds


def test_spread_by_hand() -> None:
    tests: list[dict[str, Any]] = [
        {"instance_auroc": 0.9, "inverted": False, "bag_auroc": 0.8, "bag_ece": 0.1, "signed_instance_auroc": 0.4},
        {"instance_auroc": 0.2, "inverted": True, "bag_auroc": 0.7, "bag_ece": 0.3, "signed_inverted": True},
        {"instance_auroc": None, "bag_auroc": 0.6, "bag_ece": 0.2, "n_bags": 4},
    ]
    spreads = spread([PartMetrics.model_validate(test) for test in tests])
    assert spreads["instance_auroc"].as_json() == pytest.approx(
        {"mean": 0.55, "std": 0.35 * 2**0.5, "median": 0.55, "worst": 0.2, "n": 2, "inverted": 1}
    )
    assert spreads["bag_auroc"].worst == 0.6 and spreads["bag_auroc"].inverted is None
    # of an error the largest is the worst
    assert spreads["bag_ece"].worst == 0.3 and spreads["bag_ece"].median == pytest.approx(0.2)
    signed = spreads["signed_instance_auroc"]
    assert (signed.n, signed.std, signed.worst, signed.inverted) == (1, None, 0.4, 1)
    assert set(spreads) == {"instance_auroc", "signed_instance_auroc", "bag_auroc", "bag_ece"}


def test_the_gate_is_primary_under_its_quirk_only(tmp_path: Path) -> None:
    plain = evaluate_runs([write_run(tmp_path / "a", full=True)], resamples=20)
    quirks = ("eval_gate_by_bag",)
    released = evaluate_runs([write_run(tmp_path / "b", full=True, quirks=quirks)], resamples=20)
    raw, gated = plain.splits[0], released.splits[0]
    raw_values, gated_values, area = raw.test.values, gated.test.values, "instance_auroc"
    assert (plain.quirks, released.quirks) == ((), quirks)
    assert gated_values[area] == pytest.approx(9.5 / 12) == raw.gated[area]
    assert gated.ungated is not None and gated.ungated[area] == raw_values[area] == pytest.approx(11 / 12)
    assert raw.ungated is None and gated.gated == raw.gated
    assert gated_values["bag_auroc"] == raw_values["bag_auroc"]
    assert gated_values["dirichlet_raw"] == raw_values["dirichlet_raw"]
    low, high = released.bootstrap.intervals[area]
    assert low <= 9.5 / 12 <= high and released.spread[area].mean == pytest.approx(9.5 / 12)
    json.dumps([plain.as_json(), released.as_json()], allow_nan=False)
