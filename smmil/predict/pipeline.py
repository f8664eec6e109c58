"""Predict one new slide or scan with one finished run, through the stages that every dataset goes through."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue

from preprocessing.bags.rows import FAULTY, BagRow, printable, resolve
from preprocessing.bags.shards import Outcome, attempt
from preprocessing.common.files import write_text
from preprocessing.common.options import parse_instance_options
from preprocessing.datasets.custom import WSI_SUFFIXES
from preprocessing.datasets.listing import list_bags
from preprocessing.exchange.tables import bag_id_of, write_csv
from preprocessing.features.stage import FeatureSettings, Resources, extract
from preprocessing.instances.stage import cut_bag
from preprocessing.scans.folder import DICOM_SUFFIXES, is_dicom
from preprocessing.store.bags import read_instance_attrs
from smmil.artifacts.hashes import versions
from smmil.artifacts.records import FeatureFacts, Json, Record, RunConfig, RunDone
from smmil.artifacts.results import SIGNED, Predictions, load_predictions
from smmil.data.loading import BagInfo, Listing, feature_facts, load_listed
from smmil.data.sources import Source
from smmil.data.stored import read_geometry
from smmil.evaluate.calibration import sigmoid
from smmil.evaluate.signs import UNSUPPORTED, is_unsupported
from smmil.predict.outputs import Scored, draw_heatmap, instances_csv, write_geojson
from smmil.predict.settings import encoder_of, instance_options, read_run
from smmil.predictions.reference import check_like_training, find_dataset, read_reference
from smmil.predictions.runs import data_options
from smmil.predictions.scoring import score_bags, single_run
from smmil.predictions.signed import DIRECTION_FILE, read_direction

log = logging.getLogger(__name__)

FILES = ("instances.csv", "heatmap.png", "heatmap.pdf", "tiles.geojson")


class ModelFacts(Record):
    """The run that made a prediction."""

    dataset: str
    encoder: str
    method: str
    seed: int
    learning_rate: float
    run: str
    protocol: str
    selection_score: float
    weights_sha256: str


class StoredFeatures(FeatureFacts):
    """Identity of the features, and how they were computed and stored."""

    dtype: str
    precision: str


class Prediction(Record):
    """`prediction.json`: the prediction of one image.

    Attributes:
        bag_id: name of the image.
        modality: "wsi" or "ct".
        state: "ok", or "empty" without tissue; then there are no scores.
        reason: why it is empty.
        probability: probability that the image is positive.
        logit: logit of the bag.
        predicted: 1 if the probability is above 0.5.
        instances: number of tiles or slices.
        instance_threshold: threshold of instance scores from validation, None if unknown.
        instances_above_threshold: number of instances above it.
        signed_agreement: correlation of the sign-aware score with the logit over validation bags, None if the run has
            no direction.
        map: scores in the picture, "score", "signed" or "signed_sm".
        mpp: um per px at level 0.
        mpp_source: where that comes from.
        tile_mpp: um per px of a tile.
        random_weights: whether the encoder is untrained.
        warnings: what looks wrong with the image (`preprocessing.instances.checks`), what could not be compared with
            the training, and a sign-aware score not to be trusted.
        options: how the image was cut.
        features: encoder, weights, dtype and precision.
        model: the run.
        versions: of the software.
    """

    bag_id: str
    modality: str
    state: Literal["ok", "empty"]
    reason: str = ""
    probability: float | None
    logit: float | None
    predicted: int | None
    instances: int
    instance_threshold: float | None = None
    instances_above_threshold: int | None = None
    signed_agreement: float | None = None
    map: str = ""
    mpp: int | float | None = None
    mpp_source: str = ""
    tile_mpp: int | float | None = None
    random_weights: bool = False
    warnings: tuple[str, ...] = ()
    options: Mapping[str, JsonValue]
    features: StoredFeatures
    model: ModelFacts
    versions: Mapping[str, str] = {}


def predict(
    image: Path | str,
    model: Path | str,
    out: Path | str,
    *,
    mpp: float | None = None,
    weights: Path | str = "weights",
    device: str = "auto",
    threads: int = 2,
    batch_size: int = 64,
    bag_id: str | None = None,
    map: Literal["score", "signed", "signed_sm"] = "score",
    dataset_folder: Path | str | None = None,
    options: Json | None = None,
    dtype: str | None = None,
    precision: str | None = None,
    any_resolution: bool = False,
) -> Prediction:
    """Predict one slide or scan and write the files of the command `python -m smmil.predict`.

    Args:
        image: slide file, folder of one CT series (`FOLDER#3`: SeriesNumber 3) or one DICOM slide, or a .dcm file.
        model: directory of a finished run.
        out: folder to write to; `out/bag` keeps the bag store for a second call.
        mpp: um per px at level 0, where the file has none or a wrong one.
        weights: folder of the encoder's weights.
        device: auto, cpu or cuda.
        threads: threads for decoding and torch.
        batch_size: tiles per encoder step.
        bag_id: name of the bag; None = that of the file or folder.
        map: scores in the picture: the run's own, the sign-aware ones, or these smoothed by Sm.
        dataset_folder: results folder of the run's dataset, where the run does not lie in it.
        options: how that dataset was cut, `{"wsi": {...}}` or `{"ct": {...}}`, where it is not recorded.
        dtype: of its stored features, where it is not recorded.
        precision: of its encoder, where it is not recorded.
        any_resolution: accept a resolution that the run has never seen.

    Returns:
        The content of `prediction.json`.

    Raises:
        ValueError: an unreadable image, an unfinished run, or an encoder, weights, tile size or resolution other than
            those of the run; nothing is predicted then.

    Example:
        >>> import smmil
        >>> run = "results/camelyon16/runs/resnet50_bt/smap_early/split1_lr0.0001"
        >>> smmil.predict("slide.svs", run, "slide").probability
        0.8731
    """
    image, model, out, weights = Path(image), Path(model), Path(out), Path(weights)
    if threads < 1:
        raise ValueError(f"--threads: found {threads}, expected at least 1")
    config, done = read_run(model)
    encoder = encoder_of(config, model, weights)
    folder = None if dataset_folder is None else Path(dataset_folder)
    reference = read_reference(find_dataset(model, folder), config, model)
    if map != "score" and read_direction(model, done.weights_sha256) is None:
        raise ValueError(
            f"--map {map}: {model / DIRECTION_FILE} is missing or not of this run, so it has no sign-aware score; "
            "train the run again, or leave the argument out"
        )
    # Files of an earlier prediction must not remain if this one fails.
    for name in ("prediction.json", *FILES):
        (out / name).unlink(missing_ok=True)
    dtype = _stated("dtype", dtype, reference.dtype)
    precision = _stated("precision", precision, reference.precision)
    bag, (root, name) = out / "bag", _located(image)
    modality = next((attrs.modality for attrs in reference.instances), "wsi")
    row = _list_image(root, name, bag, config.dataset, bag_id, mpp, modality)
    if FAULTY in row.note:
        raise ValueError(f"{image}: {row.note}")
    chosen = instance_options(row.modality, reference, options)
    shared = {
        "bag_id": row.bag_id,
        "modality": row.modality,
        "options": chosen,
        "features": {**config.features.as_json(), "dtype": dtype, "precision": precision},
        "model": _model_facts(model, config, done),
    }
    instances, features = bag / "instances", bag / "features"
    cut_options = parse_instance_options(json.dumps(chosen))
    outcome = _attempt(row, image, lambda row: cut_bag(row, cut_options, root, instances, dataset=config.dataset))
    if outcome.state == "empty":
        log.warning("%s: %s; nothing to predict", row.bag_id, outcome.reason)
        nothing = {"probability": None, "logit": None, "predicted": None, "instances": 0}
        empty = Prediction.model_validate(
            {**shared, **nothing, "state": "empty", "reason": outcome.reason, "warnings": outcome.warnings}
        )
        empty.write(out / "prediction.json")
        return empty
    attrs = read_instance_attrs(instances / "store", row.bag_id)
    warnings = [*outcome.warnings, *check_like_training(attrs, reference, any_resolution=any_resolution)]
    settings = FeatureSettings(weights, encoder.mode, encoder.seed, encoder.policy, dtype, precision)
    resources = Resources(device, batch_size, threads)
    places = (root, instances, features)
    _attempt(
        row,
        image,
        lambda row: extract(row, encoder.name, settings, *places, dataset=config.dataset, resources=resources),
    )
    scores = _score(model, row.bag_id, instances, features / encoder.name, bag / "scores", device, threads)
    coords, grid = (read_geometry(instances, row.bag_id, ["coords", "grid"])[1][name] for name in ("coords", "grid"))
    logit = float(scores.arrays["bag_logit"][0])
    split = reference.split
    if "signed_score" in scores.arrays and split is not None and is_unsupported(split):
        warnings.append(UNSUPPORTED)
    scored = Scored(
        bag_id=row.bag_id,
        attrs=attrs,
        coords=coords,
        grid=grid,
        scores=scores.arrays["instance_score"].astype(np.float64),
        probability=float(sigmoid(np.array([logit]))[0]),
        threshold=split.threshold if split is not None else None,
        method=config.method,
        random_weights=scores.meta.random_weights,
        signed={
            name: scores.arrays[f"{name}_score"].astype(np.float64)
            for name in SIGNED
            if f"{name}_score" in scores.arrays
        },
        warnings=tuple(warnings),
    )
    write_text(out / "instances.csv", instances_csv(scored))
    draw_heatmap(out / "heatmap.png", scored if map == "score" else scored.as_signed(map), instances / "thumbnails")
    if not scored.is_scan:
        write_geojson(out / "tiles.geojson", scored)
    resolution = {name: getattr(attrs, name) for name in ("mpp", "mpp_source", "tile_mpp")}
    prediction = Prediction.model_validate(
        {
            **shared,
            **{name: value for name, value in resolution.items() if name in attrs.model_fields_set},
            "warnings": warnings,
            "state": "ok",
            "instances": len(scored.scores),
            "logit": logit,
            "probability": scored.probability,
            "predicted": int(scored.probability > 0.5),
            "random_weights": scored.random_weights,
            "instance_threshold": scored.threshold,
            "instances_above_threshold": scored.above_threshold,
            "signed_agreement": scores.meta.signed_agreement,
            "map": map,
            "versions": versions(),
        }
    )
    # Written last: a folder with this file is complete.
    prediction.write(out / "prediction.json")
    log.info("%s: probability %.4f, %d instances; %s", row.bag_id, scored.probability, len(scored.scores), out)
    return prediction


def _attempt(row: BagRow, image: Path, work: Callable[[BagRow], Outcome]) -> Outcome:
    """Run a stage on the image; a failure of any kind becomes a `ValueError` with its reason in one line."""
    outcome = attempt(row, work)
    if outcome.state == "failed":
        prefix = "" if str(image) in outcome.reason else f"{image}: "
        raise ValueError(f"{prefix}{outcome.reason}")
    return outcome


def _stated(name: str, argument: str | None, recorded: str) -> str:
    """Return a setting of the run's features, given or recorded."""
    if argument and recorded and argument != recorded:
        raise ValueError(f"--{name} {argument}: the run's features are {recorded}; leave the argument out")
    if not (argument or recorded):
        raise ValueError(f"the {name} of the run's features is not recorded with the run; give --{name}")
    return argument or recorded


def _located(image: Path) -> tuple[Path, str]:
    """Return the folder that holds the image, links resolved, and its name there with `#series`, if any."""
    series = ""
    if not image.exists() and "#" in image.name:
        name, _, number = image.name.rpartition("#")
        image, series = image.with_name(name), f"#{number}"
    if not image.exists():
        raise ValueError(f"{image}{series}: no such file or folder")
    path = image.resolve()
    return path.parent, f"{printable(path.name)}{series}"


def _list_image(
    root: Path, name: str, bag: Path, dataset: str, bag_id: str | None, mpp: float | None, modality: str
) -> BagRow:
    """Write `bags.csv` of the one image, as for a custom dataset with a manifest.

    A file that tells nothing of its kind has the run's `modality`; reading it then says what it is.
    """
    path = resolve(root, name)
    if not path.exists():
        path = resolve(root, name.rpartition("#")[0])
    bag_id = bag_id or bag_id_of(path.name if path.is_dir() else path.stem)
    manifest = bag / "manifest.csv"
    is_told = path.is_dir() or path.name.lower().endswith((*WSI_SUFFIXES, *DICOM_SUFFIXES)) or is_dicom(path)
    line = (bag_id, name, "", "", "" if mpp is None else repr(mpp), "" if is_told else modality)
    write_csv(manifest, ("bag_id", "image", "label", "split", "mpp", "modality"), [line])
    return list_bags(dataset, "custom", root, {"manifest": str(manifest.resolve())}, bag / "bags.csv")[0]


def _score(
    run: Path, bag_id: str, instances: Path, features: Path, out: Path, device: str, threads: int
) -> Predictions:
    """Score the stored bag with the run."""
    training = single_run(run)
    options = data_options(training.data)
    source = Source(
        listing=Listing([BagInfo(bag_id, float("nan"), "", "")]),
        inputs={},
        data={},
        facts=feature_facts(features, bag_id),
        loader=lambda infos: load_listed(infos, instances, features, options),
    )
    score_bags(training, source, out, where=str(features), device=device, threads=threads)
    return load_predictions(out / f"{run.resolve().name}.npz")


def _model_facts(run: Path, config: RunConfig, done: RunDone) -> ModelFacts:
    return ModelFacts(
        dataset=config.dataset,
        encoder=config.encoder,
        method=config.method,
        seed=config.seed,
        learning_rate=config.learning_rate,
        run=run.resolve().name,
        protocol=config.protocol,
        selection_score=done.selection_score,
        weights_sha256=done.weights_sha256,
    )
