"""How a new image has to be prepared so that a run may score it: recovered from the run and its dataset, and checked.

A run's `config.json` names the encoder, the hash of its weights and the resize policy. How slides were cut and features
stored is recorded with every bag of the dataset the run learned from (`results/D/instances`, `results/D/features/E`);
that folder is found from the run's place or given. Settings that were not recorded are not guessed: the error names the
argument that states them. After cutting, the new bag is compared with bags of that dataset.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from preprocessing.common.options import TissueOptions
from preprocessing.features.encoders import weights_hash
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_feature_attrs, read_instance_attrs
from preprocessing.store.files import check_chunk
from smmil.artifacts.records import Json, Metrics, RunConfig, RunDone, RunsFile

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
    """

    name: str
    mode: str
    seed: int
    policy: str


@dataclass(frozen=True)
class Reference:
    """Bags of the dataset a run learned from.

    Attributes:
        instances: attributes of some stored bags, without bags that have settings of their own.
        dtype: of the stored features, "" if unknown.
        precision: of the encoder's arithmetic, "" if unknown.
        threshold: of instance scores, chosen on validation; None if unknown.
    """

    instances: tuple[InstanceAttrs, ...] = ()
    dtype: str = ""
    precision: str = ""
    threshold: float | None = None


def read_run(folder: Path) -> tuple[RunConfig, RunDone]:
    """Read `config.json` and `done.json` of a finished run.

    Raises:
        ValueError: no run, an unfinished one, or a folder of several runs (they are named).
    """
    if (folder / "runs.json").is_file():
        runs = ", ".join(run.run for run in RunsFile.read(folder / "runs.json").chosen)
        raise ValueError(f"{folder}: a folder of runs, expected one of them; chosen on validation: {runs}")
    if not (folder / "config.json").is_file() or not (folder / "done.json").is_file():
        raise ValueError(f"{folder}: not a finished run (config.json and done.json); train it first")
    return RunConfig.read(folder / "config.json"), RunDone.read(folder / "done.json")


def encoder_of(config: RunConfig, run: Path, weights: Path) -> Encoder:
    """Return the encoder of a run, after comparing its weights with those the run learned from.

    Raises:
        ValueError: features whose encoder is not known here (a table, an import), missing or other weights.
    """
    facts = config.features
    recorded = (facts.encoder, facts.weights_sha256, facts.resize_policy)
    if not all(recorded) or "unknown" in recorded[1:]:
        raise ValueError(
            f"{run}: it learned from features whose encoder or weights are not recorded (a table, or files of another "
            "tool), so features of a new image cannot be made; extract them there and import them "
            "(python -m preprocessing.exchange), then score with smmil.score --run"
        )
    match = _RANDOM.fullmatch(facts.encoder)
    name, mode, seed = (match[1], "random", int(match[2])) if match else (facts.encoder, "pretrained", 0)
    sha256 = weights_hash(name, weights, mode, seed)
    if sha256 != facts.weights_sha256:
        raise ValueError(
            f"{weights}: weights of {name} have SHA-256 {sha256[:16]}..., the run learned from "
            f"{facts.weights_sha256[:16]}...; give the folder with those weights (--weights)"
        )
    return Encoder(name, mode, seed, facts.resize_policy)


def find_dataset(run: Path, folder: Path | None) -> Path | None:
    """Return `results/D` of a run: as given, or above the folder `runs` of the run; None if it is not there.

    Raises:
        ValueError: the folder given holds no instances.
    """
    if folder is not None:
        if not (folder / "instances" / "store").is_dir():
            raise ValueError(f"{folder}: no instances/store in it, expected the results folder of the run's dataset")
        return folder
    above = next((path.parent for path in run.resolve().parents if path.name == "runs"), None)
    return above if above is not None and (above / "instances" / "store").is_dir() else None


def read_reference(folder: Path | None, config: RunConfig, run: Path) -> Reference:
    """Read what the stored bags of the run's dataset record; empty without its folder."""
    if folder is None:
        return Reference()
    instances, features = folder / "instances" / "store", folder / "features" / config.encoder / "store"
    attrs = [read_instance_attrs(instances, name) for name in _sample(instances)]
    comparable = tuple(bag for bag in attrs if bag.store.n and "overrides" not in bag.model_fields_set)
    dtype, precision = "", ""
    if features.is_dir() and (stored := _sample(features)):
        dtype = check_chunk(features / stored[0] / "features")[0].name
        precision = read_feature_attrs(features, stored[0]).precision
    return Reference(comparable, dtype, precision, _threshold(folder, config, run))


def _sample(store: Path) -> list[str]:
    names = sorted(path.name for path in store.iterdir() if not path.name.startswith("."))
    return names[:: max(1, len(names) // REFERENCE_BAGS)][:REFERENCE_BAGS]


def _threshold(folder: Path, config: RunConfig, run: Path) -> float | None:
    path = folder / "metrics" / config.encoder / f"{run.resolve().parent.name}.json"
    if not path.is_file():
        return None
    return next((split.threshold for split in Metrics.read(path).splits if split.run == run.resolve().name), None)


def instance_options(modality: str, reference: Reference, options: Json | None) -> Json:
    """Return the options of the instances stage, `{"wsi": {...}}` or `{"ct": {...}}`.

    Args:
        modality: of the new image.
        reference: bags of the run's dataset.
        options: settings that take precedence.

    Raises:
        ValueError: another modality than the dataset's, or settings that its bags do not record or disagree about.
    """
    trained = {attrs.modality for attrs in reference.instances}
    if trained and trained != {modality}:
        raise ValueError(f"a {modality} image, but the run learned from {', '.join(sorted(trained))} bags")
    if options is not None:
        return {modality: options.get(modality, {})}
    if not reference.instances:
        raise ValueError(
            "how the run's dataset was cut is not recorded with the run, and its results folder is not where the run "
            "lies; give it with --dataset-folder results/NAME, or state the settings with --options "
            """'{"wsi": {"preset": ...}}'"""
        )
    return {modality: _recorded_options(reference)}


def _recorded_options(reference: Reference) -> dict[str, JsonValue]:
    """Return the settings that the dataset's bags record, presets resolved."""
    recorded: set[str] = set()
    for attrs in reference.instances:
        if attrs.instance_options is None:
            raise ValueError("the run's dataset was imported, its cutting is not known here; state it with --options")
        recorded.add(json.dumps(attrs.instance_options.model_dump(mode="json"), sort_keys=True))
    first, *others = (json.loads(text) for text in sorted(recorded))
    if others:
        differs = sorted(name for name in first.keys() | others[0].keys() if first.get(name) != others[0].get(name))
        raise ValueError(
            f"bags of the run's dataset were cut with different settings ({', '.join(differs)}); run its instances "
            "stage again, or state the settings with --options"
        )
    return dict(first)


def check_like_training(attrs: InstanceAttrs, reference: Reference, *, any_resolution: bool) -> list[str]:
    """Compare a new bag with bags of the run's dataset.

    Args:
        attrs: of the new bag.
        reference: bags of the run's dataset.
        any_resolution: whether another resolution is only a warning.

    Returns:
        Warnings.

    Raises:
        ValueError: other tile size, lattice, tissue thresholds or windows, or a resolution the run has never seen.
    """
    if not reference.instances:
        return ["no bag of the run's dataset at hand: tile size and resolution could not be compared with it"]
    here, trained = attrs.as_json(), reference.instances[0].as_json()
    differs = [
        f"{name}: {json.dumps(here.get(name))} here, {json.dumps(trained.get(name))} trained"
        for name in _SAME[attrs.modality]
        if here.get(name) != trained.get(name)
    ]
    ours, theirs = here.get("tissue") or {}, trained.get("tissue") or {}
    differs += [
        f"tissue.{name}: {ours[name]!r} here, {theirs[name]!r} trained"
        for name in sorted(set(ours) & set(theirs) & set(TissueOptions.model_fields))
        if ours[name] != theirs[name]
    ]
    if differs:
        raise ValueError(f"not cut as the run's dataset was ({'; '.join(differs)}); correct --options")
    known = [float(other.tile_mpp) for other in reference.instances if other.tile_mpp]
    mpp = attrs.tile_mpp
    if not known or mpp is None:
        return []
    lowest, highest = min(known), max(known)
    if lowest * (1 - TILE_MPP_TOLERANCE) <= mpp <= highest * (1 + TILE_MPP_TOLERANCE):
        return []
    text = f"tiles of {mpp:.4g} um/px, the run learned from {lowest:.4g}..{highest:.4g} um/px"
    if any_resolution:
        return [text]
    raise ValueError(f"{text}; correct the slide's resolution with --mpp, or accept this with --any-resolution")
