"""How a new image has to be prepared so that a run may score it: recovered from the run and its dataset, and checked.

A run's `config.json` names the encoder, the hash of its weights and the resize policy. How slides were cut and features
stored is recorded with every bag of the dataset the run learned from (`results/D/instances`, `results/D/features/E`);
that folder is found from the run's place or given (`smmil.predictions.reference`). Settings that were not recorded are
not guessed: the error names the argument that states them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from preprocessing.common.cli import nearest
from preprocessing.features.encoders import weights_hash
from preprocessing.features.stage import FeatureSettings
from smmil.artifacts.records import Json, RunConfig, RunDone, RunsFile
from smmil.predictions.reference import Reference, read_reference

_RANDOM = re.compile(r"(.+)@random-(\d+)")


@dataclass(frozen=True)
class Model:
    """A finished run, and how an image has to be prepared for it.

    Attributes:
        run: its directory.
        config: how it was trained.
        done: its result.
        encoder: name of its encoder.
        features: how its features were extracted.
        reference: bags of its dataset.
    """

    run: Path
    config: RunConfig
    done: RunDone
    encoder: str
    features: FeatureSettings
    reference: Reference

    @property
    def name(self) -> str:
        """Method and run, `smap_early/split1_lr0.0001`."""
        return "/".join(self.run.resolve().parts[-2:])

    @property
    def modality(self) -> str:
        """Modality of its bags; that of a slide if they are not at hand."""
        return next((attrs.modality for attrs in self.reference.instances), "wsi")


def load_model(
    run: Path, weights: Path, dataset_folder: Path | None = None, dtype: str | None = None, precision: str | None = None
) -> Model:
    """Read a run with what an image needs to be scored by it.

    Raises:
        ValueError: no finished run, a folder of several, features whose encoder is not known here (a table, an import),
            missing or other weights, or a setting of the features that is neither recorded nor given.
    """
    if (run / "runs.json").is_file():
        names = ", ".join(chosen.run for chosen in RunsFile.read(run / "runs.json").chosen)
        raise ValueError(f"{run}: a folder of runs, expected one of them; chosen on validation: {names}")
    if not run.is_dir():
        folders = [path.name for path in run.parent.iterdir() if path.is_dir()] if run.parent.is_dir() else []
        raise ValueError(f"{run}: not a finished run: no such folder{nearest(run.name, folders)}")
    if not (run / "config.json").is_file() or not (run / "done.json").is_file():
        raise ValueError(f"{run}: not a finished run, expected results/DATASET/runs/ENCODER/METHOD or a run in it")
    config, done = RunConfig.read(run / "config.json"), RunDone.read(run / "done.json")
    facts = config.features
    recorded = (facts.encoder, facts.weights_sha256, facts.resize_policy)
    if not all(recorded) or "unknown" in recorded[1:]:
        raise ValueError(
            f"{run}: it learned from features whose encoder or weights are not recorded (a table, or files of another "
            "tool), so features of a new image cannot be made; extract them there and import them "
            "(python -m preprocessing.exchange), then score with smmil.score --run"
        )
    # Random weights have no file: they are made again from the seed in the encoder's name.
    match = _RANDOM.fullmatch(facts.encoder)
    name, mode, seed = (match[1], "random", int(match[2])) if match else (facts.encoder, "pretrained", 0)
    sha256 = weights_hash(name, weights, mode, seed)
    if sha256 != facts.weights_sha256:
        raise ValueError(
            f"{weights}: weights of {name} have SHA-256 {sha256[:16]}..., the run learned from "
            f"{facts.weights_sha256[:16]}...; give the folder with those weights (--weights)"
        )
    reference = read_reference(run, config, dataset_folder)
    stated = (_stated("dtype", dtype, reference.dtype), _stated("precision", precision, reference.precision))
    features = FeatureSettings(weights, mode, seed, facts.resize_policy, *stated)
    return Model(run, config, done, name, features, reference)


def _stated(name: str, argument: str | None, recorded: str) -> str:
    """Return a setting of the run's features, given or recorded."""
    if argument and recorded and argument != recorded:
        raise ValueError(f"--{name} {argument}: the run's features are {recorded}; leave the argument out")
    if not (argument or recorded):
        raise ValueError(f"the {name} of the run's features is not recorded with the run; give --{name}")
    return argument or recorded


def instance_options(modality: str, reference: Reference, options: Json | None) -> Json:
    """Return the options of the instances stage, `{"wsi": {...}}` or `{"ct": {...}}`, presets resolved.

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
    recorded: dict[str, dict[str, JsonValue]] = {}
    for attrs in reference.instances:
        if attrs.instance_options is None:
            raise ValueError("the run's dataset was imported, its cutting is not known here; state it with --options")
        settings = attrs.instance_options.model_dump(mode="json")
        recorded[json.dumps(settings, sort_keys=True)] = settings
    first, *others = recorded.values()
    if others:
        differs = sorted(name for name in first.keys() | others[0].keys() if first.get(name) != others[0].get(name))
        raise ValueError(
            f"bags of the run's dataset were cut with different settings ({', '.join(differs)}); run its instances "
            "stage again, or state the settings with --options"
        )
    return {modality: first}
