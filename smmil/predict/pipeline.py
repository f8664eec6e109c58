"""Predict one new slide or scan with finished runs, through the stages that every dataset goes through."""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from preprocessing.bags.rows import FAULTY, BagRow, printable, resolve
from preprocessing.bags.shards import Outcome, attempt
from preprocessing.common.options import parse_instance_options
from preprocessing.datasets.custom import WSI_SUFFIXES
from preprocessing.datasets.listing import list_bags
from preprocessing.exchange.tables import bag_id_of, write_csv
from preprocessing.features.stage import Resources, extract
from preprocessing.instances.stage import cut_bag
from preprocessing.scans.folder import DICOM_SUFFIXES, is_dicom
from preprocessing.store.attrs import InstanceAttrs
from preprocessing.store.bags import read_instance_attrs
from smmil.artifacts.hashes import versions
from smmil.artifacts.records import Json
from smmil.artifacts.results import SIGNED, Predictions, load_predictions
from smmil.data.loading import Listing, feature_facts, load_listed
from smmil.data.sources import Source
from smmil.data.splits import BagInfo
from smmil.data.stored import read_geometry
from smmil.evaluate.calibration import sigmoid
from smmil.evaluate.signs import UNSUPPORTED, is_unsupported
from smmil.predict.outputs import Scored, draw_extremes, draw_heatmap, write_geojson, write_instances
from smmil.predict.records import ModelFacts, Prediction
from smmil.predict.settings import Model, instance_options, load_model
from smmil.predictions.reference import check_like_training
from smmil.predictions.runs import data_options
from smmil.predictions.scoring import score_bags
from smmil.predictions.signed import DIRECTION_FILE, read_direction

log = logging.getLogger(__name__)

_LEARNED = {"train": "training", "val": "validation"}
MANIFEST = "manifest.csv"
FILES = ("instances.csv", "heatmap.png", "heatmap.pdf", "top_tiles.png", "top_tiles.pdf", "tiles.geojson")
Map = Literal["score", "signed", "signed_sm"]


@dataclass(frozen=True)
class Preparation:
    """How an image is prepared and what is drawn; see the arguments of `predict`."""

    device: str = "auto"
    threads: int = 2
    batch_size: int = 64
    map: Map = "score"
    options: Json | None = None
    any_resolution: bool = False
    keep_features: bool = False


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
    map: Map = "score",
    dataset_folder: Path | str | None = None,
    options: Json | None = None,
    dtype: str | None = None,
    precision: str | None = None,
    any_resolution: bool = False,
    keep_features: bool = False,
) -> Prediction:
    """Predict one slide or scan with one run; `smmil.predict.batch.predict_images` takes many of both.

    Args:
        image: slide file, folder of one CT series (`FOLDER#3`: SeriesNumber 3) or one DICOM slide, or a .dcm file.
        model: directory of a finished run.
        out: folder to write to.
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
        keep_features: keep the features in `out/bag`, too, for a quick second call.

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
    settings = Preparation(
        device,
        threads,
        batch_size,
        map=map,
        options=options,
        any_resolution=any_resolution,
        keep_features=keep_features,
    )
    folder = None if dataset_folder is None else Path(dataset_folder)
    loaded = load_model(Path(model), Path(weights), folder, dtype, precision)
    check_models([loaded], settings)
    return predict_runs(Path(image), {Path(out): loaded}, Path(out), settings, bag_id=bag_id, mpp=mpp)[0]


def check_models(models: Sequence[Model], settings: Preparation) -> None:
    """Raise before the first image is opened if an argument fits none, or runs do not share tiles and features.

    Raises:
        ValueError: the argument, or the runs, and what to do.
    """
    if settings.threads < 1:
        raise ValueError(f"--threads: found {settings.threads}, expected at least 1")
    first = models[0]
    for model in models[1:]:
        for what, theirs, ours in (
            ("dataset", model.config.dataset, first.config.dataset),
            ("features", model.config.features, first.config.features),
            ("dtype", model.features.dtype, first.features.dtype),
            ("precision", model.features.precision, first.features.precision),
        ):
            if theirs != ours:
                raise ValueError(
                    f"--model: {model.run} has another {what} than {first.run}; runs that predict together learned "
                    "from the same features of one dataset, so predict with each in a call of its own"
                )
    for model in models if settings.map != "score" else ():
        if read_direction(model.run, model.done.weights_sha256) is None:
            raise ValueError(
                f"--map {settings.map}: {model.run / DIRECTION_FILE} is missing or not of this run, so it has no "
                "sign-aware score; train the run again, or leave the argument out"
            )
    if any(model.config.random_weights for model in models):
        log.warning("RANDOM ENCODER WEIGHTS: the encoder %s is untrained, so predictions mean nothing", first.encoder)


@contextlib.contextmanager
def _quiet_stages() -> Iterator[None]:
    """Leave out the progress of the stages, which speaks of bags and shards, unless debug lines are wanted."""
    loggers = [logging.getLogger(name) for name in ("preprocessing", "smmil.predictions")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        if not logger.isEnabledFor(logging.DEBUG):
            logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def predict_runs(
    image: Path,
    models: Mapping[Path, Model],
    out: Path,
    settings: Preparation,
    *,
    bag_id: str | None = None,
    mpp: float | None = None,
) -> list[Prediction]:
    """Predict one image with several runs of one dataset; it is cut and encoded once.

    Args:
        image: as for `predict`, like `bag_id` and `mpp`.
        models: folder to write to -> run.
        out: folder of the image, for its bag.
        settings: how it is prepared.
        bag_id: name of the bag.
        mpp: um per px at level 0.

    Raises:
        ValueError: the image cannot be read, or was not made like the bags the runs learned from.
    """
    # Files of an earlier prediction must not remain if this one fails.
    for folder in models:
        for name in ("prediction.json", *FILES):
            (folder / name).unlink(missing_ok=True)
    root, name = _located(image)
    first = next(iter(models.values()))
    dataset = first.config.dataset
    with _quiet_stages(), _bag_folder(out, keep_features=settings.keep_features) as bag:
        # The image goes through the stages as a dataset of one bag, so that it is treated as those of the run were.
        row = _list_image(root, name, bag, dataset, bag_id, mpp, first.modality)
        if FAULTY in row.note:
            raise ValueError(f"{image}: {row.note}")
        options = instance_options(row.modality, first.reference, settings.options)
        cut_options = parse_instance_options(json.dumps(options))
        instances, features = bag / "instances", bag / "features"
        outcome = _attempt(row, image, lambda row: cut_bag(row, cut_options, root, instances, dataset=dataset))
        if outcome.state == "empty":
            empty = {"probability": None, "logit": None, "predicted": None, "instances": 0}
            facts = {**empty, "state": "empty", "reason": outcome.reason, "warnings": outcome.warnings}
            return [_write(folder, row, options, model, facts) for folder, model in models.items()]
        attrs = read_instance_attrs(instances / "store", row.bag_id)
        like_training = check_like_training(attrs, first.reference, any_resolution=settings.any_resolution)
        resources = Resources(settings.device, settings.batch_size, settings.threads)
        places = (first.features, root, instances, features)
        _attempt(row, image, lambda row: extract(row, first.encoder, *places, dataset=dataset, resources=resources))
        cut = _Cut(row, root, attrs, options, (*outcome.warnings, *like_training), bag)
        return [_predict_cut(cut, model, folder, settings) for folder, model in models.items()]


@dataclass(frozen=True)
class _Cut:
    """An image that is cut and encoded in the folder `bag`."""

    row: BagRow
    root: Path
    attrs: InstanceAttrs
    options: Json
    warnings: tuple[str, ...]
    bag: Path


def _predict_cut(cut: _Cut, model: Model, out: Path, settings: Preparation) -> Prediction:
    """Score an image with one run, and write its files."""
    bag_id, instances, attrs = cut.row.bag_id, cut.bag / "instances", cut.attrs
    scores = _score(model, bag_id, cut.bag, settings)
    arrays = read_geometry(instances, bag_id, ["coords", "grid"])[1]
    logit, split = float(scores.arrays["bag_logit"][0]), model.reference.split
    warnings = [*cut.warnings]
    if "signed_score" in scores.arrays and split is not None and is_unsupported(split):
        warnings.append(UNSUPPORTED)
    if part := _LEARNED.get(model.reference.part_of(bag_id, arrays["coords"])):
        warnings.append(f"a {part} image of the run, so its probability says nothing about new images")
    signed = {name: scores.arrays[f"{name}_score"] for name in SIGNED if f"{name}_score" in scores.arrays}
    scored = Scored(
        bag_id=bag_id,
        attrs=attrs,
        coords=arrays["coords"],
        grid=arrays["grid"],
        scores=scores.arrays["instance_score"].astype(np.float64),
        probability=float(sigmoid(np.array([logit]))[0]),
        threshold=split.threshold if split is not None else None,
        method=model.config.method,
        random_weights=scores.meta.random_weights,
        signed={name: values.astype(np.float64) for name, values in signed.items()},
        warnings=tuple(warnings),
    )
    write_instances(out / "instances.csv", scored)
    drawn = scored if settings.map == "score" else scored.as_signed(settings.map)
    draw_heatmap(out / "heatmap.png", drawn, instances / "thumbnails")
    # The files of a scan are relative to its folder.
    draw_extremes(out / "top_tiles.png", drawn, cut.root if scored.is_scan else resolve(cut.root, cut.row.images[0]))
    if not scored.is_scan:
        write_geojson(out / "tiles.geojson", scored)
    resolution = {name: getattr(attrs, name) for name in ("mpp", "mpp_source", "tile_mpp")}
    above = None if scored.threshold is None else int((scored.scores > scored.threshold).sum())
    facts = {
        **{name: value for name, value in resolution.items() if name in attrs.model_fields_set},
        "warnings": warnings,
        "state": "ok",
        "instances": len(scored.scores),
        "logit": logit,
        "probability": scored.probability,
        "predicted": int(scored.probability > 0.5),
        "random_weights": scored.random_weights,
        "instance_threshold": scored.threshold,
        "instances_above_threshold": above,
        "signed_agreement": scores.meta.signed_agreement,
        "map": settings.map,
        "versions": versions(),
    }
    # Written last: a folder with this file is complete.
    return _write(out, cut.row, cut.options, model, facts)


def _write(out: Path, row: BagRow, options: Json, model: Model, facts: Mapping[str, object]) -> Prediction:
    """Write and return `prediction.json`, with what it says of every image, with or without tissue."""
    config, settings = model.config, model.features
    names = {"run": model.run.resolve().name, "protocol": config.protocol}
    image = {"bag_id": row.bag_id, "modality": row.modality, "options": options}
    image["features"] = config.features.as_json() | {"dtype": settings.dtype, "precision": settings.precision}
    image["model"] = config.common(ModelFacts) | model.done.common(ModelFacts) | names
    prediction = Prediction.model_validate({**image, **facts})
    prediction.write(out / "prediction.json")
    return prediction


@contextlib.contextmanager
def _bag_folder(out: Path, *, keep_features: bool) -> Iterator[Path]:
    """Yield a folder for the bag of an image. Of a fresh one, tiles and scores stay in `out/bag`, for the viewer.

    Raises:
        ValueError: there are other files in `out/bag`.
    """
    final = out / "bag"
    if keep_features:
        yield final
        return
    # Only a folder of an earlier call may go: in `--out .` the user's own slides may lie in a folder of this name.
    if final.is_dir() and any(final.iterdir()) and not (final / MANIFEST).is_file():
        raise ValueError(
            f"{final}: holds other files than the bag of an earlier prediction; choose another folder (--out)"
        )
    present = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        # Renamed when it is complete, so that a killed call leaves no half-written bag, and two calls do not meet.
        with tempfile.TemporaryDirectory(prefix=".bag-", dir=out) as folder:
            bag = Path(folder) / "bag"
            try:
                yield bag
            finally:
                # The bag of an earlier call goes with its other files, also if this image is refused.
                shutil.rmtree(final, ignore_errors=True)
            if (bag / "scores").is_dir():
                shutil.rmtree(bag / "features")
                bag.rename(final)
    finally:
        # Nothing is left of an image that is refused.
        if not present and not any(out.iterdir()):
            out.rmdir()


def _attempt(row: BagRow, image: Path, work: Callable[[BagRow], Outcome]) -> Outcome:
    """Run a stage on the image; a failure of any kind becomes a `ValueError` with its reason in one line."""
    outcome = attempt(row, work, quiet=True)
    if outcome.state == "failed":
        prefix = "" if str(image) in outcome.reason else f"{image}: "
        raise ValueError(f"{prefix}{outcome.reason}")
    return outcome


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
    manifest = bag / MANIFEST
    is_told = path.is_dir() or path.name.lower().endswith((*WSI_SUFFIXES, *DICOM_SUFFIXES)) or is_dicom(path)
    line = (bag_id, name, "", "", "" if mpp is None else repr(mpp), "" if is_told else modality)
    write_csv(manifest, ("bag_id", "image", "label", "split", "mpp", "modality"), [line])
    return list_bags(dataset, "custom", root, {"manifest": str(manifest.resolve())}, bag / "bags.csv")[0]


def _score(model: Model, bag_id: str, bag: Path, settings: Preparation) -> Predictions:
    """Score the stored bag with the run, into `scores` of the folder of the bag."""
    instances, features = bag / "instances", bag / "features" / model.encoder
    # Runs of two methods may have the same name.
    out = bag / "scores" / model.encoder / model.name
    options = data_options(model.config.data)
    source = Source(
        listing=Listing([BagInfo(bag_id, float("nan"), "", "")]),
        inputs={},
        data={},
        facts=feature_facts(features, bag_id),
        loader=lambda infos: load_listed(infos, instances, features, options),
    )
    score_bags([model.run], source, out, where=str(features), device=settings.device, threads=settings.threads)
    return load_predictions(out / f"{model.run.resolve().name}.npz")
