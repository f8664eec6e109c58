"""Training / validation splits: stratified by bag label, grouped by patient, fixed by a seed.

The data set fixes the test set; a seed divides the training part (paper: five splits, validation share 15 % for RSNA
and 20 % for PANDA and CAMELYON16). All bags of a group (patient, study) are on one side. The result depends on ids,
labels, groups and the seed, not on the order of the rows. Under the quirk `splits` scikit-learn divides single bags.
"""

import csv
import io
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.common.files import write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BagInfo:
    """The facts of a bag that are known before its arrays are read; enough to make splits.

    Attributes:
        bag_id: unique name.
        y: label, 0 or 1, NaN = unlabelled.
        split: `train`, `val` or `test`, or empty (score only).
        group: patient or study; empty = the bag is its own group.
    """

    bag_id: str
    y: float
    split: str
    group: str


@dataclass(frozen=True)
class Split:
    """One division of the training part; ids are sorted, under the quirk `splits` in the order of scikit-learn.

    The validation bags `val` select the epoch, the learning rate and the thresholds.
    """

    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]


def make_split(bags: Sequence[BagInfo], seed: int, val_share: float, *, released: bool = False) -> Split:
    """Divide the training bags into training and validation; bags with split `test` or empty are ignored.

    If there are bags with split `val`, they are the validation set for every seed. Otherwise groups are shuffled within
    each stratum (negative, positive and mixed groups) and taken for validation while that brings the stratum's share of
    bags closer to `val_share`; at least one group per class. `released`: divide single bags with scikit-learn, whatever
    their group (quirk `splits`).

    Raises:
        ValueError: both sides cannot have both classes; the message counts bags and says what to do.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share: found {val_share}, expected a share strictly between 0 and 1")
    pool = sorted((bag for bag in bags if bag.split == "train"), key=lambda bag: bag.bag_id)
    fixed = sorted((bag for bag in bags if bag.split == "val"), key=lambda bag: bag.bag_id)
    if fixed:
        return _fixed_split(pool, fixed, seed)
    groups = _groups(pool)
    train, val = _divide_bags(pool, seed, val_share) if released else _divide_groups(groups, seed, val_share)
    for part, members in (("validation", val), ("training", train)):
        if not _count(members, 0) or not _count(members, 1):
            raise ValueError(
                f"split of seed {seed}: the {part} part would hold {_count(members, 0)} negative and"
                f" {_count(members, 1)} positive bags, expected both classes. The training part has {_count(pool, 0)}"
                f" negative and {_count(pool, 1)} positive bags in {len(groups)} groups (val_share {val_share}). Add"
                " bags, split large groups if they are not one patient, or name the validation bags with split 'val' in"
                " the manifest"
            )
    if released:  # the order decides which bags share a validation batch (row 14 of docs/reference/protocol.md)
        return Split(seed, tuple(bag.bag_id for bag in train), tuple(bag.bag_id for bag in val))
    return Split(seed, _ids(train), _ids(val))


def _divide_groups(groups: Mapping[str, list[BagInfo]], seed: int, share: float) -> tuple[list[BagInfo], list[BagInfo]]:
    """Return training and validation bags, whole groups on either side."""
    rng, chosen = random.Random(seed), set[str]()
    for classes in ({0}, {1}, {0, 1}):
        names = [name for name in sorted(groups) if {int(bag.y) for bag in groups[name]} == classes]
        rng.shuffle(names)
        missing = math.floor(share * sum(len(groups[name]) for name in names) + 0.5)
        for name in names:
            if abs(missing - len(groups[name])) < abs(missing):
                chosen.add(name)
                missing -= len(groups[name])
    for label in (0, 1):
        holders = [name for name in sorted(groups) if _count(groups[name], label)]
        inside, outside = [name for name in holders if name in chosen], [name for name in holders if name not in chosen]
        full = [] if inside and outside else inside or outside
        # A class that one side lacks comes from the other, which keeps a group. The smallest group changes the shares
        # least; the seed breaks ties.
        if len(full) > 1:
            rng.shuffle(full)
            chosen ^= {min(full, key=lambda name: len(groups[name]))}
    val = [bag for name in chosen for bag in groups[name]]
    return [bag for name, members in groups.items() if name not in chosen for bag in members], val


def _divide_bags(pool: list[BagInfo], seed: int, share: float) -> tuple[list[BagInfo], list[BagInfo]]:
    """Return training and validation bags as the released code draws them, in scikit-learn's order."""
    from sklearn.model_selection import train_test_split

    try:
        train, val = train_test_split(pool, test_size=share, random_state=seed, stratify=[bag.y for bag in pool])
    except ValueError as error:
        raise ValueError(
            f"split of seed {seed}: {_count(pool, 0)} negative and {_count(pool, 1)} positive training bags cannot be"
            f" divided as released with val_share {share} ({error}); add bags, or set quirks: {{splits: false}}"
        ) from None
    shared = {bag.group for bag in train if bag.group} & {bag.group for bag in val}
    if shared:
        log.warning("split of seed %d: %d groups lie in training and in validation, as released", seed, len(shared))
    return train, val


def _fixed_split(pool: list[BagInfo], fixed: list[BagInfo], seed: int) -> Split:
    shared = sorted({bag.group for bag in pool if bag.group} & {bag.group for bag in fixed})
    if shared:
        log.warning("%d groups lie in training and in the given validation set, e.g. %s", len(shared), shared[0])
    if not _count(pool, 0) or not _count(pool, 1):
        raise ValueError(
            f"training part: found {_count(pool, 0)} negative and {_count(pool, 1)} positive bags beside the given"
            " validation set, expected both classes; move bags from split 'val' to 'train' or add bags"
        )
    if not _count(fixed, 0) or not _count(fixed, 1):
        log.warning("the given validation set has one class only: epochs are selected by the loss alone (AUROC = 0)")
    return Split(seed, _ids(pool), _ids(fixed))


def _ids(bags: Sequence[BagInfo]) -> tuple[str, ...]:
    return tuple(sorted(bag.bag_id for bag in bags))


def _count(bags: Sequence[BagInfo], label: int) -> int:
    return sum(1 for bag in bags if int(bag.y) == label)


def _groups(bags: Sequence[BagInfo]) -> dict[str, list[BagInfo]]:
    """Group the bags; a bag without a group is its own group, with a prefix that avoids name clashes."""
    groups: dict[str, list[BagInfo]] = {}
    for bag in bags:
        if math.isnan(bag.y):
            raise ValueError(f"bag {bag.bag_id}: split 'train' without a label; give a label or leave the split empty")
        groups.setdefault(f"group:{bag.group}" if bag.group else f"bag:{bag.bag_id}", []).append(bag)
    return groups


def write_splits(path: Path | str, bags: Sequence[BagInfo], splits: Sequence[Split]) -> None:
    """Write `bag_id, split1, split2, ...` (columns by seed; cells train, val, test), sorted, atomically."""
    parts = [{**dict.fromkeys(split.train, "train"), **dict.fromkeys(split.val, "val")} for split in splits]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["bag_id", *(f"split{split.seed}" for split in splits)])
    for bag in sorted(bags, key=lambda item: item.bag_id):
        if bag.split:
            writer.writerow([bag.bag_id, *(part.get(bag.bag_id, bag.split) for part in parts)])
    write_text(path, stream.getvalue())


def read_splits(path: Path | str) -> dict[int, dict[str, str]]:
    """Read `write_splits`: seed -> bag id -> train, val or test.

    Raises:
        ValueError: the file has another header.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    header = rows[0] if rows else []
    seeds = [name.removeprefix("split") for name in header[1:]]
    if header[:1] != ["bag_id"] or not all(seed.isdigit() for seed in seeds):
        raise ValueError(f"{path}: found the header {header}, expected bag_id, split1, split2, ...")
    return {int(seed): {row[0]: row[column + 1] for row in rows[1:]} for column, seed in enumerate(seeds)}
