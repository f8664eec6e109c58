"""Test bags for a manifest without a column `split`: a seeded share of every label, patients kept together."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHARE = 0.25
# one for the test, two for training and validation
FEWEST = 3


@dataclass(frozen=True)
class Labelled:
    """A labelled bag; bags of one patient share a group, "" = a patient of its own."""

    bag_id: str
    label: int
    group: str = ""


def draw_splits(bags: Sequence[Labelled], *, share: float, seed: int) -> Mapping[str, str]:
    """Return bag -> train or test.

    A patient counts as positive if one of its bags is. Of each label, the nearest number of patients to the share is
    drawn, at least one; none where fewer than three have the label. The order of the bags has no effect.

    Args:
        bags: labelled bags.
        share: of the patients of each label, for the test.
        seed: of the draw.
    """
    patients: dict[str, list[Labelled]] = {}
    for bag in bags:
        # a bag_id has no blank
        patients.setdefault(f" {bag.group}" if bag.group else bag.bag_id, []).append(bag)

    def place(patient: Sequence[Labelled]) -> str:
        return hashlib.sha256(f"{seed} {min(bag.bag_id for bag in patient)}".encode()).hexdigest()

    splits = dict.fromkeys((bag.bag_id for bag in bags), "train")
    for label in (0, 1):
        same = sorted((p for p in patients.values() if max(bag.label for bag in p) == label), key=place)
        n_test = max(1, round(share * len(same))) if share and len(same) >= FEWEST else 0
        splits |= {bag.bag_id: "test" for patient in same[:n_test] for bag in patient}
    return splits
