"""Whether a list of bags can be trained on and tested, from labels and splits alone."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from preprocessing.bags.rows import BagRow

LABELS = ("0", "1")


@dataclass(frozen=True)
class Cohort:
    """Numbers of the bags that are not skipped by (split, label), both as text, and of those with a group (patient)."""

    parts: Mapping[tuple[str, str], int]
    grouped: int = 0

    @classmethod
    def of_rows(cls, rows: Iterable[BagRow]) -> "Cohort":
        """Count the rows of bags.csv."""
        used = [row for row in rows if not row.skip]
        parts = Counter((row.split, "" if row.label is None else str(row.label)) for row in used)
        return cls(parts, sum(bool(row.group) for row in used))

    def labels(self, split: str) -> list[int]:
        """Return the numbers of negative and of positive bags of a split."""
        return [self.parts.get((split, label), 0) for label in LABELS]

    @property
    def problems(self) -> list[str]:
        """Why nothing can be trained; [] if it can."""
        train = self.labels("train")
        # without given validation bags, some of each class are taken from the training part
        least = 1 if any(self.labels("val")) else 2
        if min(train) >= least:
            return []
        unlabelled = sum(count for (_, label), count in self.parts.items() if not label)
        remedy = f"{unlabelled} bags have no label, so fill it in" if unlabelled else "add bags"
        return [
            f"found {train[0]} negative and {train[1]} positive bags with split train, expected at least {least} of "
            f"each; {remedy}, or set `train: false` to preprocess and score only"
        ]

    def remarks(self, splits: int) -> list[str]:
        """Return what will leave cells of the tables empty or weak; `splits` is the number of training splits."""
        train, val, test = map(self.labels, ("train", "val", "test"))
        remarks = []
        if idle := sum(self.labels("")):
            remarks.append(f"{idle} labelled bags have no split, so they are neither trained on nor tested")
        if not any(test):
            remarks.append(
                "no bag has split test, so its tables and figures will be empty; name some (a manifest without the "
                "column split has them drawn)"
            )
        elif not all(test):
            remarks.append(f"{test[0]} negative and {test[1]} positive test bags; AUROC needs both classes")
        if any(val) and not all(val):
            remarks.append(
                f"{val[0]} negative and {val[1]} positive validation bags; epochs and learning rates are chosen by the "
                "loss alone, because AUROC needs both classes"
            )
        if min(train) < splits and not any(val):
            remarks.append(
                f"{train[0]} negative and {train[1]} positive training bags for {splits} splits; their spread will say "
                "little (training.splits)"
            )
        return remarks
