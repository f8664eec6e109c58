"""Splits: both classes on both sides, groups whole, the asked share, the same for the same seed."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smmil.data.splits import make_split, read_splits, write_splits


@dataclass(frozen=True)
class Row:
    bag_id: str
    y: float
    group: str = ""
    split: str = "train"


def rows(n_negative: int, n_positive: int) -> list[Row]:
    return [Row(f"b{i:03d}", float(i >= n_negative)) for i in range(n_negative + n_positive)]


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 10**6), st.sampled_from([0.1, 0.15, 0.2, 0.5]))
def test_the_share_holds_in_each_class_when_every_bag_is_its_own_group(negative, positive, seed, share):
    bags = rows(negative, positive)
    split = make_split(bags, seed, share)
    assert sorted(split.train + split.val) == [bag.bag_id for bag in bags]
    assert make_split(bags, seed, share) == split
    validated = Counter(int(bag.y) for bag in bags if bag.bag_id in split.val)
    for label, n in ((0, negative), (1, positive)):
        assert 1 <= validated[label] <= n - 1
        assert abs(validated[label] - share * n) <= 0.5 or validated[label] in (1, n - 1)


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=12, max_size=80), st.integers(0, 1000))
def test_groups_are_never_cut_and_order_of_rows_does_not_matter(items, seed):
    bags = [Row(f"b{i:03d}", float(label), f"g{group}") for i, (group, label) in enumerate(items)]
    try:
        split = make_split(bags, seed, 0.25)
    except ValueError as error:
        assert "expected both classes" in str(error)
        return
    assert make_split(bags[::-1], seed, 0.25) == split
    sides = {bag.group: set() for bag in bags}
    for bag in bags:
        sides[bag.group].add(bag.bag_id in split.val)
    assert all(len(side) == 1 for side in sides.values())
    for part in (split.train, split.val):
        assert {bag.y for bag in bags if bag.bag_id in part} == {0.0, 1.0}


def test_every_seed_gives_another_split():
    assert len({make_split(rows(40, 40), seed, 0.2).val for seed in range(5)}) == 5


def test_given_validation_bags_are_kept_whatever_the_seed_and_test_bags_stay_out():
    bags = [*rows(4, 4), Row("v0", 0.0, split="val"), Row("v1", 1.0, split="val"), Row("t", 1.0, split="test")]
    for seed in (1, 2):
        split = make_split(bags, seed, 0.2)
        assert split.val == ("v0", "v1")
        assert split.train == tuple(f"b{i:03d}" for i in range(8))


@pytest.mark.parametrize(("negative", "positive"), [(5, 0), (5, 1), (0, 3)])
def test_a_class_that_cannot_be_on_both_sides_is_an_error_that_counts(negative, positive):
    with pytest.raises(ValueError, match=rf"{negative} negative and {positive} positive bags in .* groups.*Add bags"):
        make_split(rows(negative, positive), 1, 0.2)


def test_a_share_outside_zero_and_one_is_an_error():
    with pytest.raises(ValueError, match="val_share"):
        make_split(rows(4, 4), 1, 1.0)


def test_splits_file_round_trip_and_equal_bytes(tmp_path: Path):
    bags = [*rows(6, 6), Row("t", 1.0, split="test"), Row("score", 0.0, split="")]
    splits = [make_split(bags, seed, 0.3) for seed in (1, 2)]
    write_splits(tmp_path / "a.csv", bags, splits)
    write_splits(tmp_path / "b.csv", bags[::-1], splits)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    back = read_splits(tmp_path / "a.csv")
    assert set(back) == {1, 2} and "score" not in back[1]
    assert back[2]["t"] == "test"
    assert {name for name, part in back[2].items() if part == "val"} == set(splits[1].val)
