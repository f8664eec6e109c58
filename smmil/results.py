"""Reads what training leaves behind: prediction files, their index and metrics files; every reader checks at the door.

Predictions npz of one run (validation and test bags, B bags, M instances): `bag_id` (B,), `split` (B,) "val" | "test",
`y` (B,), `bag_logit` (B,), `offsets` (B+1,), `instance_score` (M,), `coverage` (M,), `y_inst` (M,) and `meta`, a JSON
string with dataset, encoder, method, protocol, run, seed, lr, selection_score and random_weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ARRAYS = ("bag_id", "split", "y", "bag_logit", "offsets", "instance_score", "coverage", "y_inst")
META = ("dataset", "encoder", "method", "protocol", "run", "seed", "lr", "selection_score")


@dataclass(frozen=True)
class Predictions:
    """One run's saved predictions.

    Attributes:
        path: the file they came from.
        meta: run, seed, lr, dataset, encoder, method, protocol, selection_score, random_weights.
        arrays: the arrays of the module docstring by name.
    """

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    def part(self, split: str) -> dict[str, npt.NDArray[Any]]:
        """The bags of one split ("val" or "test") with their instances, in stored order, `offsets` starting at 0."""
        return self.select(self.arrays["split"] == split)

    def select(self, bags: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
        """The bags of a mask (B,) with their instances."""
        sizes = np.diff(self.arrays["offsets"])
        rows = np.repeat(bags, sizes)
        chosen = {name: self.arrays[name][bags] for name in ("bag_id", "split", "y", "bag_logit")}
        chosen |= {name: self.arrays[name][rows] for name in ("instance_score", "coverage", "y_inst")}
        return chosen | {"offsets": np.append(0, np.cumsum(sizes[bags]))}

    def bag(self, bag_id: str) -> dict[str, npt.NDArray[Any]]:
        """One bag.

        Raises:
            ValueError: the file holds no such bag.
        """
        mask = self.arrays["bag_id"] == bag_id
        if not mask.any():
            raise ValueError(f"{self.path}: no bag {bag_id!r} among {len(mask)} predicted bags")
        return self.select(mask)


def load_predictions(path: Path | str) -> Predictions:
    """Loads and checks one predictions file.

    Raises:
        ValueError: a missing array or meta key, or lengths that do not fit; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such predictions file; train the run first")
    with np.load(path, allow_pickle=False) as archive:
        missing = [name for name in (*ARRAYS, "meta") if name not in archive.files]
        if missing:
            raise ValueError(f"{path}: found arrays {sorted(archive.files)}, missing {missing}")
        arrays = {name: archive[name] for name in ARRAYS}
        meta = json.loads(str(archive["meta"]))
    missing = [key for key in META if key not in meta]
    if missing:
        raise ValueError(f"{path}: meta has the keys {sorted(meta)}, missing {missing}")
    _check_lengths(path, arrays)
    return Predictions(path, meta, arrays)


def _check_lengths(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    n_bags, offsets = len(arrays["bag_id"]), arrays["offsets"]
    found = {name: len(arrays[name]) for name in ARRAYS}
    expected = dict.fromkeys(("bag_id", "split", "y", "bag_logit"), n_bags) | {"offsets": n_bags + 1}
    size = int(offsets[-1]) if len(offsets) else 0
    expected |= dict.fromkeys(("instance_score", "coverage", "y_inst"), size)
    wrong = [f"{name}: found {found[name]}, expected {n}" for name, n in expected.items() if found[name] != n]
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
    """The prediction files an `index.json` lists, in its order.

    The index is `{"runs": [{"run": NAME, "file": FILE}, ...]}`; FILE is relative to the index.

    Raises:
        ValueError: not such a file, or no run in it.
    """
    path = Path(path)
    index = read_json(path)
    runs = index.get("runs")
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) and "run" in run for run in runs):
        raise ValueError(f"{path}: expected a non-empty list 'runs' of objects with 'run' and 'file'")
    return [path.parent / run.get("file", f"{run['run']}.npz") for run in runs]


def read_json(path: Path | str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found a JSON {type(value).__name__}, expected an object")
    return value


def json_argument(text: str, name: str) -> dict[str, Any]:
    """A JSON object given on the command line, either itself or as the path of a file.

    Raises:
        ValueError: neither; the message names the argument.
    """
    if not text.lstrip().startswith("{"):
        return read_json(text)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: not JSON ({error})") from error
    return dict(value)


def read_metrics(path: Path | str) -> dict[str, Any]:
    """A metrics file of `smmil.evaluate`.

    Raises:
        ValueError: a key is missing; the message names the file.
    """
    metrics = read_json(path)
    missing = [key for key in ("dataset", "encoder", "method", "protocol", "splits") if key not in metrics]
    if missing:
        raise ValueError(f"{path}: not a metrics file, missing {missing}")
    return metrics
