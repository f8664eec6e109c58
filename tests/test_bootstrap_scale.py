"""Bootstrap of many bags: the way without pair counts gives the same bits, and the memory of many bags stays small."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smmil import bootstrap


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 120), bags=st.integers(1, 30), steps=st.integers(1, 40))
def test_sorted_resamples_are_those_of_the_pair_counts(seed: int, rows: int, bags: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    y, bag = rng.integers(0, 2, rows), rng.integers(0, bags, rows)
    # few distinct scores: ties within and across bags
    score = rng.integers(0, steps, rows) / 7
    weights = bootstrap.draw_weights(bags, 20, seed)
    paired = bootstrap.auroc_resamples(weights, *bootstrap.concordant_pairs(y, score, bag, bags))
    np.testing.assert_array_equal(bootstrap.sorted_auroc_resamples(y, score, bag, weights), paired)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    y, score, bag = rng.integers(0, 2, 90), rng.normal(size=90), rng.integers(0, 9, 90)
    weights = bootstrap.draw_weights(9, 31, 1)
    whole = bootstrap.sorted_auroc_resamples(y, score, bag, weights)
    monkeypatch.setattr(bootstrap, "SORTED_ELEMENTS", 4 * 90)
    np.testing.assert_array_equal(bootstrap.sorted_auroc_resamples(y, score, bag, weights), whole)


def test_intervals_of_many_bags_need_no_matrix_of_bags(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    bags = 1200
    y = np.arange(bags) % 2
    part = {
        "y": y.astype(np.float32),
        "bag_logit": rng.normal(size=bags) + y,
        "offsets": np.arange(bags + 1) * 2,
        "y_inst": np.repeat(y, 2).astype(np.int8),
        "instance_score": rng.normal(size=2 * bags).astype(np.float32),
    }
    paired = bootstrap.intervals([(part, 0.0, None)], resamples=40)
    monkeypatch.setattr(bootstrap, "MOST_PAIRED_BAGS", 1000)
    tracemalloc.start()
    found = bootstrap.intervals([(part, 0.0, None)], resamples=40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == paired
    # one matrix of bags would be bags^2 x 8 bytes
    assert peak < bags**2 * 8
