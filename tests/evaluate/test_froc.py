"""Average FROC and Dice against cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smmil.artifacts.results import Arrays
from smmil.evaluate import froc as module
from smmil.evaluate.froc import Froc, bag_dice, detections, froc_resamples, lesion_confidence

# a picture per bag: score and label of every tile, None = no tile
Picture = list[list[tuple[float, int] | None]]


def arrays(bags: list[tuple[int, Picture]]) -> tuple[Arrays, np.ndarray]:
    """Arrays and scores of bags drawn as pictures."""
    tiles = [
        [(row, col, *cell) for row, line in enumerate(picture) for col, cell in enumerate(line) if cell is not None]
        for _, picture in bags
    ]
    rows = np.array([tile for bag in tiles for tile in bag], float).reshape(-1, 4)
    offsets = np.append(0, np.cumsum([len(bag) for bag in tiles]))
    y, grid = np.array([y for y, _ in bags], float), rows[:, :2].astype(int)
    return {"y": y, "offsets": offsets, "y_inst": rows[:, 3].astype(int), "grid": grid}, rows[:, 2]


def line(scores: list[float], labels: list[int] | None = None) -> Picture:
    return [list(zip(scores, labels or [0] * len(scores), strict=True))]


def froc(*bags: tuple[int, Picture]) -> Froc:
    return module.froc(*arrays(list(bags)))


def test_a_case_by_hand() -> None:
    # lesions: {.9 .2} found at .9 (its peak), {.5} in the other bag found at .5; the .4 beside a lesion is no false one
    positive = line([0.9, 0.2, 0.1, 0.4, 0.3], [1, 1, 0, 0, 0])
    # peaks of the two negative bags: .8 and .3, .6
    found = froc((1, positive), (1, line([0.5, 0.1], [1, 0])), (0, line([0.8, 0.2, 0.3])), (0, line([0.1, 0.6, 0.5])))
    assert (found.lesions, found.normal_bags) == (2, 2)
    # per negative bag: no false positive down to .9 -> 1/2 found; one (.5) at .8, two (1.0) at .6, still 1/2;
    # at .5 with two false positives both are found; so 1/4 and 1/2 read 1/2, from 1 on everything reads 1
    assert found.sensitivity == (0.5, 0.5, 1.0, 1.0, 1.0, 1.0)
    assert found.average == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("scores", "labels", "sensitivity"),
    [
        # thresholds 4: 1/2 found, none false; 3: one false; 2: all found with one false -> (0, .5), (1, 1)
        ([4.0, 0.0, 2.0], [1, 0, 1], (0.625, 0.75, 1.0, 1.0, 1.0, 1.0)),
        # a lesion that no detection lies on is never found, however low the threshold
        ([4.0, 0.0, 1.0, 2.0], [1, 0, 1, 0], (0.5,) * 6),
        # a false positive that ties with a lesion enters with it
        ([3.0], [1], (0.25, 0.5, 1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_between_two_points_the_curve_is_straight_and_beyond_the_last_it_is_flat(
    scores: list[float], labels: list[int], sensitivity: tuple[float, ...]
) -> None:
    assert froc((1, line(scores, labels)), (0, line([3.0]))).sensitivity == sensitivity


def test_lesions_touch_over_corners_and_not_over_gaps() -> None:
    def lesions(labels: list[list[int]]) -> int:
        picture: Picture = [[(float(i * 10 + j), y) for j, y in enumerate(row)] for i, row in enumerate(labels)]
        return froc((1, picture), (0, line([0.0]))).lesions

    assert lesions([[1, 0], [0, 1]]) == 1
    assert lesions([[1, 0, 1], [0, 0, 0], [1, 0, 0]]) == 3
    # a missing tile between two positive ones parts them
    assert froc((1, [[(1.0, 1), None, (2.0, 1)]]), (0, line([0.0]))).lesions == 2


def test_detections_are_local_maxima_over_eight_neighbours() -> None:
    picture: Picture = [[(1.0, 0), (5.0, 0), (1.0, 0)], [(4.0, 0), (0.0, 0), None], [(2.0, 0), None, (3.0, 0)]]
    part, score = arrays([(1, picture)])
    # 4 touches 5 over a corner; 3 touches only the 0
    assert sorted(score[detections(score, part["grid"])]) == [3.0, 5.0]
    # wherever the lattice starts
    assert (detections(score, part["grid"] + [7, -90]) == detections(score, part["grid"])).all()
    assert detections(np.zeros(0), np.zeros((0, 2), int)).tolist() == []


def test_a_constant_score_is_one_detection_whatever_the_stored_order() -> None:
    part, score = arrays([(0, [[(1.0, 0)] * 4] * 3)])
    for order in (np.arange(12), np.arange(12)[::-1], np.random.default_rng(0).permutation(12)):
        grid = part["grid"][order]
        assert grid[detections(score[order], grid)].tolist() == [[0, 0]]


def test_tiles_of_unknown_label_count_in_negative_bags_only() -> None:
    positive = line([0.9, 0.1, 0.5], [-1, 0, 1])
    found = froc((1, positive), (0, line([0.7])))
    # the .9 counts for nothing; the lesion (.5) comes with one false positive
    assert found.lesions == 1 and found.sensitivity == (0.25, 0.5, 1.0, 1.0, 1.0, 1.0)
    assert froc((1, positive), (0, line([0.7], [-1]))) == found


def test_unlabelled_bags_take_no_part_and_what_is_missing_is_said() -> None:
    lesion, healthy = line([1.0], [1]), line([0.0])
    assert froc((1, lesion)).reason == "no negative bag"
    assert froc((1, healthy), (0, healthy)).reason.startswith("no lesion")
    part, score = arrays([(1, lesion), (0, healthy), (0, line([9.0]))])
    part["y"] = np.array([1, 0, np.nan])
    assert module.froc(part, score).normal_bags == 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_monotone_map_a_turn_and_the_order_of_tiles_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    part, score = arrays(
        [(b % 2, [[(rng.normal(), int(rng.random() < 0.3) * (b % 2)) for _ in range(5)]]) for b in range(6)]
    )
    order = np.concatenate([rng.permutation(5) + 5 * b for b in range(6)])
    moved = {**part, "y_inst": part["y_inst"][order], "grid": part["grid"][order]}
    same = [
        module.froc(part, np.exp(score) + 3),
        module.froc({**part, "grid": part["grid"][:, ::-1] * [1, -1]}, score),
        module.froc(moved, score[order]),
    ]
    assert all(turned == module.froc(part, score) for turned in same)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_resampled_froc_is_that_of_the_repeated_bags(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # few distinct scores: ties, and lesions without a detection on them; a bag without label; too few bags at times
    bags: list[tuple[int, Picture]] = [
        (b % 2, line(rng.integers(0, 4, 5).tolist(), (rng.integers(0, 2, 5) * (b % 2)).tolist())) for b in range(4)
    ]
    part, score = arrays(bags)
    part["y"][3] = part["y"][3] if seed % 2 else np.nan
    weights = rng.multinomial(4, [0.25] * 4, size=8).astype(float)
    for w, drawn in zip(weights.astype(int), froc_resamples(part, score, weights), strict=True):
        picked = np.repeat(np.arange(4), w)
        repeated, scores = arrays([bags[b] for b in picked])
        slow = module.froc({**repeated, "y": part["y"][picked]}, scores).average
        assert np.isnan(drawn) if slow is None else drawn == pytest.approx(slow, abs=1e-12)


def test_two_tiles_in_one_cell_count_as_the_better_one() -> None:
    score, grid = np.array([1.0, 3.0, 2.0]), np.array([[0, 0], [0, 0], [0, 1]])
    assert detections(score, grid).tolist() == [False, True, False]
    assert lesion_confidence(np.array([1, 0, 0]), score, grid).tolist() == [3.0]


def test_dice_by_hand() -> None:
    part = {"offsets": np.array([0, 3, 5, 7]), "y_inst": np.array([1, 1, 0, 0, 0, 1, -1])}
    score = np.array([0.9, 0.1, 0.8, 0.9, 0.9, 0.5, 0.9])
    # bag 0: called {0, 2}, true {0, 1}: 2 / 4; bag 1 has no positive; bag 2: .5 is not above .5, -1 is left out
    dice = bag_dice(part, score, 0.5)
    assert dice[0] == 0.5 and np.isnan(dice[1]) and dice[2] == 0.0
    assert bag_dice(part, score, 0.4)[2] == 1.0
