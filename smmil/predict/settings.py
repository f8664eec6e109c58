"""How a new image has to be prepared so that a run may score it: recovered from the run and its dataset, and checked.

A run's `config.json` names the encoder, the hash of its weights and the resize policy. How slides were cut and features
stored is recorded with every bag of the dataset the run learned from (`results/D/instances`, `results/D/features/E`);
that folder is found from the run's place or given. Settings that were not recorded are not guessed: the error names the
argument that states them. After cutting, the new bag is compared with bags of that dataset.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFERENCE_BAGS = 64
TILE_MPP_TOLERANCE = 0.10
_RANDOM = re.compile(r"(.+)@random-(\d+)")
_SAME = {
    "wsi": ("recipe", "tile_px", "lattice", "contour_fn", "use_padding", "min_tissue", "otsu_bgr"),
    "ct": ("windows", "slice_px"),
}


@dataclass(frozen=True)
class Encoder:
    """The encoder of a run as the features stage takes it.

    Attributes:
        name: key of the encoder.
        mode: pretrained or random.
        seed: of random weights.
        policy: resize policy.
        sha256: of the weights the run's features were made with.
    """

    name: str
    mode: str
    seed: int
    policy: str
    sha256: str


@dataclass(frozen=True)
class Reference:
    """Bags of the dataset a run learned from.

    Attributes:
        instances: attributes of some stored bags, without bags that have settings of their own.
        dtype: of the stored features, "" if unknown.
        precision: of the encoder's arithmetic, "" if unknown.
        threshold: of instance scores, chosen on validation; None if unknown.
    """

    instances: list[dict[str, Any]] = field(default_factory=list)
    dtype: str = ""
    precision: str = ""
    threshold: float | None = None


def read_run(folder: Path) -> dict[str, Any]:
    """`config.json` of a finished run.

    Raises:
        ValueError: no run, an unfinished one, or a folder of several runs (they are named).
    """
    from smmil.artifacts.hashes import read_json

    if (folder / "runs.json").is_file():
        runs = [run["run"] for run in read_json(folder / "runs.json")["runs"] if run.get("chosen")]
        raise ValueError(f"{folder}: a folder of runs, expected one of them; chosen on validation: {', '.join(runs)}")
    if not (folder / "config.json").is_file() or not (folder / "done.json").is_file():
        raise ValueError(f"{folder}: not a finished run (config.json and done.json); train it first")
    return read_json(folder / "config.json")


def encoder_of(config: Mapping[str, Any], run: Path, weights: Path) -> Encoder:
    """The encoder of a run, its weights checked against those the run learned from.

    Raises:
        ValueError: features whose encoder is not known here (a table, an import), missing or other weights.
    """
    from preprocessing.features.encoders import weights_hash

    facts = config.get("features") or {}
    missing = [name for name in ("encoder", "weights_sha256", "resize_policy") if not facts.get(name)]
    if missing or "unknown" in (facts["weights_sha256"], facts["resize_policy"]):
        raise ValueError(
            f"{run}: it learned from features whose encoder or weights are not recorded (a table, or files of another "
            "tool), so features of a new image cannot be made; extract them there and import them "
            "(python -m preprocessing.exchange), then score with smmil.score --run"
        )
    match = _RANDOM.fullmatch(str(facts["encoder"]))
    name, mode, seed = (match[1], "random", int(match[2])) if match else (str(facts["encoder"]), "pretrained", 0)
    found = weights_hash(name, weights, mode, seed)
    if found != facts["weights_sha256"]:
        raise ValueError(
            f"{weights}: weights of {name} have SHA-256 {found[:16]}..., the run learned from "
            f"{str(facts['weights_sha256'])[:16]}...; give the folder with those weights (--weights)"
        )
    return Encoder(name, mode, seed, str(facts["resize_policy"]), found)


def dataset_folder(run: Path, given: Path | None) -> Path | None:
    """`results/D` of a run: as given, or above the folder `runs` the run lies in; None if it is not there.

    Raises:
        ValueError: the folder given holds no instances.
    """
    if given is not None:
        if not (given / "instances" / "store").is_dir():
            raise ValueError(f"{given}: no instances/store in it, expected the results folder of the run's dataset")
        return given
    above = next((path.parent for path in run.resolve().parents if path.name == "runs"), None)
    return above if above is not None and (above / "instances" / "store").is_dir() else None


def read_reference(folder: Path | None, config: Mapping[str, Any], run: Path) -> Reference:
    """What the stored bags of the run's dataset say; empty without its folder."""
    from preprocessing.store.bags import read_attrs
    from preprocessing.store.files import check_chunk

    if folder is None:
        return Reference()
    names = _sample(folder / "instances" / "store")
    found = [read_attrs(folder / "instances" / "store", name) for name in names]
    found = [attrs for attrs in found if attrs["store"]["n"] and "overrides" not in attrs]
    store = folder / "features" / str(config["encoder"]) / "store"
    stored = _sample(store) if store.is_dir() else []
    dtype, precision = "", ""
    if stored:
        dtype = check_chunk(store / stored[0] / "features")[0].name
        precision = str(read_attrs(store, stored[0]).get("precision", ""))
    return Reference(found, dtype, precision, _threshold(folder, config, run))


def _sample(store: Path) -> list[str]:
    names = sorted(path.name for path in store.iterdir() if not path.name.startswith("."))
    return names[:: max(1, len(names) // REFERENCE_BAGS)][:REFERENCE_BAGS]


def _threshold(folder: Path, config: Mapping[str, Any], run: Path) -> float | None:
    from smmil.artifacts.records import Metrics

    path = folder / "metrics" / str(config["encoder"]) / f"{run.resolve().parent.name}.json"
    if not path.is_file():
        return None
    return next((split.threshold for split in Metrics.read(path).splits if split.run == run.resolve().name), None)


def instance_options(modality: str, reference: Reference, given: str | None) -> dict[str, Any]:
    """Options of the instances stage, `{"wsi": {...}}` or `{"ct": {...}}`.

    Args:
        modality: of the new image.
        reference: bags of the run's dataset.
        given: `--options`, which come first.

    Raises:
        ValueError: another modality than the dataset's, or settings that its bags do not record or disagree about.
    """
    from preprocessing.common.options import instance_options as parse

    trained = {str(attrs.get("modality", "wsi")) for attrs in reference.instances}
    if trained and trained != {modality}:
        raise ValueError(f"a {modality} image, but the run learned from {', '.join(sorted(trained))} bags")
    if given is not None:
        return {modality: parse(given)[modality]}
    if not reference.instances:
        raise ValueError(
            "how the run's dataset was cut is not recorded with the run, and its results folder is not where the run "
            "lies; give it with --dataset-folder results/NAME, or state the settings with --options "
            """'{"wsi": {"preset": ...}}'"""
        )
    return {modality: _recorded_options(reference)}


def _recorded_options(reference: Reference) -> dict[str, Any]:
    """Return the settings that the dataset's bags record, presets resolved."""
    if any("instance_options" not in attrs for attrs in reference.instances):
        raise ValueError("the run's dataset was imported, its cutting is not known here; state it with --options")
    recorded = {json.dumps(attrs["instance_options"], sort_keys=True) for attrs in reference.instances}
    first, *others = (json.loads(text) for text in sorted(recorded))
    if others:
        differs = sorted(name for name in first.keys() | others[0].keys() if first.get(name) != others[0].get(name))
        raise ValueError(
            f"bags of the run's dataset were cut with different settings ({', '.join(differs)}); run its instances "
            "stage again, or state the settings with --options"
        )
    return dict(first)


def check_like_training(attrs: Mapping[str, Any], reference: Reference, *, any_resolution: bool) -> list[str]:
    """Compares a new bag with bags of the run's dataset.

    Args:
        attrs: of the new bag.
        reference: bags of the run's dataset.
        any_resolution: whether another resolution is only told.

    Returns:
        Warnings.

    Raises:
        ValueError: other tile size, lattice, tissue thresholds or windows, or a resolution the run has never seen.
    """
    from preprocessing.common.options import TissueOptions

    if not reference.instances:
        return ["no bag of the run's dataset at hand: tile size and resolution could not be compared with it"]
    first = reference.instances[0]
    modality = str(attrs.get("modality", "wsi"))
    differs = [
        f"{name}: {_shown(attrs.get(name))} here, {_shown(first.get(name))} trained"
        for name in _SAME[modality]
        if attrs.get(name) != first.get(name)
    ]
    ours, theirs = attrs.get("tissue", {}), first.get("tissue", {})
    fixed = set(ours) & set(theirs) & set(TissueOptions.model_fields)
    differs += [
        f"tissue.{name}: {ours[name]!r} here, {theirs[name]!r} trained"
        for name in sorted(fixed)
        if ours[name] != theirs[name]
    ]
    if differs:
        raise ValueError(f"not cut as the run's dataset was ({'; '.join(differs)}); correct --options")
    seen = [float(other["tile_mpp"]) for other in reference.instances if other.get("tile_mpp")]
    mpp = attrs.get("tile_mpp")
    if not seen or mpp is None or min(seen) * (1 - TILE_MPP_TOLERANCE) <= mpp <= max(seen) * (1 + TILE_MPP_TOLERANCE):
        return []
    text = f"tiles of {mpp:.4g} um/px, the run learned from {min(seen):.4g}..{max(seen):.4g} um/px"
    if any_resolution:
        return [text]
    raise ValueError(f"{text}; correct the slide's resolution with --mpp, or accept this with --any-resolution")


def _shown(value: Any) -> str:
    return json.dumps(value)
