"""Findings: the verdict against a hand-made oracle and its limits, and what the sentences say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from smmil.artifacts.records import ComparisonsFile
from smmil.findings import findings, main, verdict

SETTINGS = {"resamples": 1000, "seed": 0, "level": 0.95, "over": "test bags, paired"}


def difference(
    first: list[float], second: list[float], interval: tuple[float, float] | None = (0.01, 0.2)
) -> dict[str, Any]:
    splits = np.subtract(first, second)
    return {
        "first": np.mean(first),
        "second": np.mean(second),
        "difference": splits.mean(),
        "splits": splits.tolist(),
        "first_splits": first,
        "second_splits": second,
        "interval": interval,
        "resamples": 1000,
    }


def undefined(reason: str = "a run lacks the metric (one class only)") -> dict[str, Any]:
    return {"resamples": 0, "reason": reason}


def comparisons(
    instance: dict[str, Any], bag: dict[str, Any] | None = None, *, random_weights: bool = False
) -> ComparisonsFile:
    sides = [
        {"encoder": "e", "method": method, "protocol": "as_written", "quirks": [], "runs": ["r"]}
        for method in ("smap_early", "abmil")
    ]
    metrics = {"instance_auroc": instance, "bag_auroc": bag or undefined()}
    record = {"dataset": "toy", "first": sides[0], "second": sides[1], "seeds": [1, 2, 3], "metrics": metrics}
    record |= {"random_weights": random_weights, "bootstrap": SETTINGS}
    return ComparisonsFile.model_validate({"titles": {"toy": "Toy"}, "comparisons": [record]})


def test_a_clear_difference_is_one_plain_sentence() -> None:
    (finding,) = findings(comparisons(difference([0.95, 0.96, 0.97], [0.83, 0.84, 0.85], (0.09, 0.14))))
    assert finding.verdict == "better"
    assert finding.text == (
        "Toy: SmAP localises lesions better than ABMIL: instance AUROC 0.960 against 0.840, difference +0.120 "
        "(95 % interval +0.090 to +0.140; 3 of 3 splits)"
    )
    (turned,) = findings(comparisons(difference([0.83, 0.84, 0.85], [0.95, 0.96, 0.97], (-0.14, -0.09))))
    assert turned.verdict == "worse" and "SmAP localises lesions worse than ABMIL" in turned.text
    assert "difference -0.120 (95 % interval -0.140 to -0.090; 3 of 3 splits)" in turned.text


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.floats(-1, 1), st.floats(0, 1))
def test_the_verdict_needs_interval_and_spread_and_turns_with_the_sign(
    splits: list[float], low: float, width: float
) -> None:
    interval, mean = (low, low + width), float(np.mean(splits))
    clear = (low > 0 or low + width < 0) and abs(mean) > np.std(splits, ddof=1)
    assume(abs(abs(mean) - np.std(splits, ddof=1)) > 1e-9)
    expected = ("better" if mean > 0 else "worse") if clear else "no clear difference"
    assert verdict(mean, interval, splits) == expected
    turned = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert verdict(-mean, (-interval[1], -low), [-value for value in splits]) == turned


def test_without_interval_or_splits_nothing_is_clear() -> None:
    for values, interval, text in (
        ((3, 0.9, 0.5), None, "(no interval; 3 of 3 splits, ± 0.000 over splits)"),
        ((3, 0.9, 0.5), (0.0, 0.4), "(95 % interval +0.000 to +0.400; 3 of 3"),
        ((1, 0.9, 0.5), (0.3, 0.5), "1 split); fewer than 3 splits say nothing about the chance of training"),
        ((2, 0.9, 0.5), (0.3, 0.5), "fewer than 3 splits"),
    ):
        n, first, second = values
        (finding,) = findings(comparisons(difference([first] * int(n), [second] * int(n), interval)))
        assert finding.verdict == "no clear difference"
        assert (
            "no clear difference between SmAP and ABMIL in localising lesions" in finding.text and text in finding.text
        )


def test_a_spread_over_splits_above_the_difference_is_shown() -> None:
    (finding,) = findings(comparisons(difference([0.9, 0.6, 0.95], [0.5, 0.75, 0.8])))
    assert finding.verdict == "no clear difference" and "2 of 3 splits, ± 0.275 over splits)" in finding.text


def test_inverted_runs_and_random_encoders_are_said() -> None:
    (finding,) = findings(comparisons(difference([0.9, 0.9, 0.9], [0.2, 0.3, 0.6]), random_weights=True))
    assert finding.inverted == (0, 2) and finding.random_weights
    assert "inverted (instance AUROC below 0.5): 2 of 3 runs of ABMIL" in finding.text
    assert finding.text.endswith("random encoder weights: this only shows that the pipeline runs")
    (both,) = findings(comparisons(difference([0.1, 0.9, 0.9], [0.2, 0.3, 0.6])))
    assert "1 of 3 runs of SmAP and 2 of 3 runs of ABMIL" in both.text
    # a bag AUROC below one half is no inverted attention
    (bags,) = findings(comparisons(undefined(), difference([0.4, 0.4, 0.4], [0.3, 0.3, 0.3])))
    assert bags.inverted == (0, 0) and "Toy: SmAP classifies bags better than ABMIL: bag AUROC 0.400" in bags.text


def test_a_metric_that_is_undefined_gives_its_reason() -> None:
    (finding,) = findings(comparisons(undefined("a run lacks the metric (one class only)")))
    assert (finding.verdict, finding.difference) == ("not compared", None)
    assert finding.text.endswith("cannot be compared by instance AUROC: a run lacks the metric (one class only)")


def test_the_command_prints_one_line_per_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "comparisons.json"
    comparisons(difference([0.95, 0.96, 0.97], [0.83, 0.84, 0.85])).write(path)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.startswith("Toy: SmAP localises lesions better than ABMIL")
    assert main([str(tmp_path / "none.json")]) == 2
    path.write_text('{"comparisons": 1}')
    assert main([str(path)]) == 2
    errors = capsys.readouterr().err
    assert "none.json: no such file" in errors and "expected ComparisonsFile" in errors
