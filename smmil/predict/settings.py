"""How a new image has to be prepared so that a run may score it: recovered from the run and its dataset, and checked.

A run's `config.json` names the encoder, the hash of its weights and the resize policy. How slides were cut and features
stored is recorded with every bag of the dataset the run learned from (`results/D/instances`, `results/D/features/E`);
that folder is found from the run's place or given (`smmil.predictions.reference`). Settings that were not recorded are
not guessed: the error names the argument that states them.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from preprocessing.common.cli import nearest
from preprocessing.features.encoders import weights_hash
from smmil.artifacts.records import Json, RunConfig, RunDone, RunsFile
from smmil.predictions.reference import Reference, find_dataset, read_reference

_RANDOM = re.compile(r"(.+)@random-(\d+)")


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
class Model:
    """A finished run, and how an image has to be prepared for it.

    Attributes:
        run: its directory.
        config: how it was trained.
        done: its result.
        encoder: of its features.
        reference: bags of its dataset.
        dtype: of its stored features.
        precision: of its encoder.
    """

    run: Path
    config: RunConfig
    done: RunDone
    encoder: Encoder
    reference: Reference
    dtype: str
    precision: str

    @property
    def name(self) -> str:
        """Method and run, `smap_early/split1_lr0.0001`."""
        return f"{self.run.resolve().parent.name}/{self.run.resolve().name}"

    @property
    def modality(self) -> str:
        """Modality of its bags; that of a slide if they are not at hand."""
        return next((attrs.modality for attrs in self.reference.instances), "wsi")


def load_model(
    run: Path, weights: Path, dataset_folder: Path | None = None, dtype: str | None = None, precision: str | None = None
) -> Model:
    """Read a run with what an image needs to be scored by it.

    Raises:
        ValueError: no finished run, other weights, or a setting of its features that is neither recorded nor given.
    """
    config, done = read_run(run)
    encoder = encoder_of(config, run, weights)
    reference = read_reference(find_dataset(run, dataset_folder), config, run)
    stated = (_stated("dtype", dtype, reference.dtype), _stated("precision", precision, reference.precision))
    return Model(run, config, done, encoder, reference, *stated)


def _stated(name: str, argument: str | None, recorded: str) -> str:
    """Return a setting of the run's features, given or recorded."""
    if argument and recorded and argument != recorded:
        raise ValueError(f"--{name} {argument}: the run's features are {recorded}; leave the argument out")
    if not (argument or recorded):
        raise ValueError(f"the {name} of the run's features is not recorded with the run; give --{name}")
    return argument or recorded


def runs_in(folders: Iterable[Path]) -> list[Path]:
    """Return the runs of a command line, in its order; the folder of a method stands for its chosen runs."""
    runs: list[Path] = []
    for folder in folders:
        if (folder / "runs.json").is_file():
            runs += [folder / run.run for run in RunsFile.read(folder / "runs.json").chosen]
        else:
            runs.append(folder)
    return list(dict.fromkeys(runs))


def read_run(folder: Path) -> tuple[RunConfig, RunDone]:
    """Read `config.json` and `done.json` of a finished run.

    Raises:
        ValueError: no run, an unfinished one, or a folder of several runs (they are named).
    """
    if (folder / "runs.json").is_file():
        runs = ", ".join(run.run for run in RunsFile.read(folder / "runs.json").chosen)
        raise ValueError(f"{folder}: a folder of runs, expected one of them; chosen on validation: {runs}")
    if not folder.is_dir():
        names = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise ValueError(f"{folder}: not a finished run: no such folder{nearest(folder.name, names)}")
    if not (folder / "config.json").is_file() or not (folder / "done.json").is_file():
        raise ValueError(f"{folder}: not a finished run, expected results/DATASET/runs/ENCODER/METHOD or a run in it")
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
