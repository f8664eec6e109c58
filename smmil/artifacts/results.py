"""Read and check prediction files, their index and metrics files.

Predictions npz of one run (validation and test bags, B bags, M instances): `bag_id` (B,), `split` (B,) "val" | "test" |
"score", `y` (B,), `bag_logit` (B,), `offsets` (B+1,), `instance_score` (M,), `coverage` (M,), `y_inst` (M,) and `meta`,
a JSON string (`smmil.artifacts.records.PredictionMeta`). Readers treat `signed_score` (M,), `signed_sm_score` (M,),
`grid` (M,2) and `energy` (B,2), see `smmil.predictions.runs`, as optional.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smmil.artifacts.hashes import hash_file, zip_damage
from smmil.artifacts.records import Metrics, PredictionIndex, PredictionMeta

Arrays = dict[str, npt.NDArray[Any]]

ARRAYS = ("bag_id", "split", "y", "bag_logit", "offsets", "instance_score", "coverage", "y_inst")
# prefix of metrics and thresholds -> array of instance scores
SCORES = {"": "instance_score", "signed_": "signed_score", "signed_sm_": "signed_sm_score"}
# sign-aware scores: stored as `{key}_score` -> name in pictures
SIGNED = {"signed": "sign-aware score", "signed_sm": "smoothed sign-aware score"}
BAG_ARRAYS = ("bag_id", "split", "y", "bag_logit", "energy")
INSTANCE_ARRAYS = (*SCORES.values(), "coverage", "y_inst", "grid")
OPTIONAL = ("signed_score", "signed_sm_score", "grid", "energy")
AGAIN = "delete the index.json beside it and run the workflow again: it predicts this run again, and no other"


@dataclass(frozen=True)
class Predictions:
    """One run's saved predictions: what they are of, and the arrays of the module docstring by name."""

    path: Path
    meta: PredictionMeta
    arrays: Arrays

    def part(self, split: str) -> Arrays:
        """Return the bags of one split ("val" or "test") in stored order, with their instances and `offsets` (B+1,)."""
        return self.select(self.arrays["split"] == split)

    def select(self, bags: npt.NDArray[np.bool_]) -> Arrays:
        """Return the bags of a mask (B,) with their instances and `offsets` (B+1,)."""
        sizes = np.diff(self.arrays["offsets"])
        rows = np.repeat(bags, sizes)
        chosen = {name: self.arrays[name][bags] for name in BAG_ARRAYS if name in self.arrays}
        chosen |= {name: self.arrays[name][rows] for name in INSTANCE_ARRAYS if name in self.arrays}
        return chosen | {"offsets": np.append(0, np.cumsum(sizes[bags]))}

    def bag(self, bag_id: str) -> Arrays:
        """Return one bag as arrays of B = 1 bags and M = N instances; ValueError if the file holds no such bag."""
        mask = self.arrays["bag_id"] == bag_id
        if not mask.any():
            raise ValueError(f"{self.path}: no bag {bag_id!r} among {len(mask)} predicted bags")
        return self.select(mask)


def load_predictions(path: Path | str) -> Predictions:
    """Load and check one predictions file.

    Raises:
        ValueError: a damaged file, a missing array or meta key, or lengths that do not fit; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such predictions file; train the run first")
    if damage := zip_damage(path):
        raise ValueError(f"{path}: damaged ({damage}); {AGAIN}")
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in (*ARRAYS, "meta") if name not in archive.files]
        if missing:
            raise ValueError(f"{path}: found arrays {sorted(archive.files)}, missing {missing}")
        arrays = {name: archive[name] for name in (*ARRAYS, *OPTIONAL) if name in archive.files}
        meta = PredictionMeta.parse(str(archive["meta"]), f"{path}: meta")
    _check_lengths(path, arrays)
    return Predictions(path, meta, arrays)


def _check_lengths(path: Path, arrays: Arrays) -> None:
    n_bags, offsets = len(arrays["bag_id"]), arrays["offsets"]
    expected = dict.fromkeys(BAG_ARRAYS, n_bags) | {"offsets": n_bags + 1}
    expected |= dict.fromkeys(INSTANCE_ARRAYS, int(offsets[-1]) if len(offsets) else 0)
    lengths = {name: len(array) for name, array in arrays.items()}
    wrong = [f"{name}: found {n}, expected {expected[name]}" for name, n in lengths.items() if n != expected[name]]
    if np.any(np.diff(offsets) < 0) or (len(offsets) and offsets[0] != 0):
        wrong.append("offsets must start at 0 and not decrease")
    if wrong:
        raise ValueError(f"{path}: lengths do not fit ({'; '.join(wrong)})")
    if len(np.unique(arrays["bag_id"])) != n_bags:
        raise ValueError(f"{path}: a bag is predicted twice")
    other = sorted(set(np.unique(arrays["split"]).tolist()) - {"val", "test", "score"})
    if other:
        raise ValueError(f"{path}: found the splits {other}, expected val, test or score")


def read_index(path: Path | str) -> list[Path]:
    """Return the prediction files that an `index.json` lists, in its order.

    Raises:
        ValueError: not an index, or a file that changed since the index was written.
    """
    path = Path(path)
    files = []
    for run in PredictionIndex.read(path).runs:
        file = path.parent / run.file
        if run.sha256 and file.is_file() and hash_file(file) != run.sha256:
            raise ValueError(f"{file}: changed since {path.name} was written (another checksum); {AGAIN}")
        files.append(file)
    return files


def split_values(metrics: Metrics | None, metric: str) -> list[tuple[int, float]]:
    """Return (seed, value) of the splits that define a test metric, in seed order; [] without metrics."""
    splits = sorted(metrics.splits, key=lambda split: (split.seed, split.run)) if metrics else []
    values = [(split.seed, split.test.values.get(metric)) for split in splits]
    return [(seed, value) for seed, value in values if value is not None]


def inverted(values: Sequence[tuple[int, float]], least: float = 0.5) -> list[int]:
    """Return the seeds of the splits whose value, by default an AUROC, is below `least`."""
    return [seed for seed, value in values if value < least]
