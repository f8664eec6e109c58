"""Score bags with finished runs, for bags of other data sets; the command line is `smmil.score`.

`scores.csv` has one line per bag of `bags.csv`:

| column | meaning |
|---|---|
| `state` | ok, refused, empty, skipped or failed; only ok bags have scores |
| `probability` | mean over runs of sigmoid(bag logit) |
| `probability_sd` | its standard deviation over runs (ddof 1; empty with one run) |
| `predicted` | 1 if the mean probability is above 0.5 |
| `reason` | why a bag is refused: other features than the run's, or cut otherwise than its dataset |
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessing.exchange.tables import write_csv
from smmil.artifacts.hashes import hash_file
from smmil.artifacts.records import FeatureFacts, IndexEntry, PredictionIndex, PredictionMeta, RunConfig, RunsFile
from smmil.compute.devices import choose_device, numerics
from smmil.data.batch import Bag
from smmil.data.cache import BagCache
from smmil.data.sources import Source
from smmil.evaluate.calibration import sigmoid
from smmil.predictions.reference import check_like_training, read_reference
from smmil.predictions.runs import check_features, load_run, predict_bags, write_predictions
from smmil.predictions.signed import read_direction

log = logging.getLogger(__name__)
COLUMNS = ("bag_id", "state", "label", "instances", "probability", "probability_sd", "predicted", "runs", "reason")


def runs_in(folders: Iterable[Path]) -> list[Path]:
    """Return the runs of a command line, in its order; the folder of a method stands for its chosen runs."""
    runs: list[Path] = []
    for folder in folders:
        listed = folder / "runs.json"
        runs += [folder / run.run for run in RunsFile.read(listed).chosen] if listed.is_file() else [folder]
    return list(dict.fromkeys(runs))


def score_bags(
    runs: Sequence[Path],
    source: Source,
    out: Path,
    *,
    where: str,
    dataset_folder: Path | None = None,
    any_resolution: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> PredictionIndex:
    """Score all usable bags of a data set; write an npz per run, `scores.csv` and `index.json`.

    A bag that was cut or encoded otherwise than those the runs learned from is refused: `scores.csv` gives the reason,
    and the others are scored.

    Args:
        runs: directories of finished runs of one method that score together.
        source: bags, with the features that the runs were trained on.
        out: folder of the files.
        where: origin of the features, for messages.
        dataset_folder: results folder of the runs' dataset; None = where the runs lie.
        any_resolution: accept resolutions that the runs have never seen.
        device: auto, cpu or cuda.
        threads: of torch.

    Raises:
        ValueError: no usable bag, an unfinished run, or all bags are refused.
        OutOfMemory: a bag fits neither on the device nor on the CPU.
    """
    if not source.listing.bags:
        raise ValueError(
            f"{where}: found no bag to score: all are empty or failed; see the QC page of the instances stage"
        )
    refused = _refusals(runs, source, where, dataset_folder, any_resolution=any_resolution)
    bags, thresholds = source.load([info.bag_id for info in source.listing.bags if info.bag_id not in refused])
    torch_device = choose_device(device)
    entries, logits = [], []
    with numerics(torch_device, threads=threads):
        cache = BagCache(bags, torch_device)
        for folder in runs:
            model, config, done = load_run(folder, torch_device)
            direction = read_direction(folder, done.weights_sha256)
            arrays = predict_bags(model, cache, bags, range(len(bags)), ["score"] * len(bags), direction)
            meta = PredictionMeta(
                dataset=config.dataset,
                encoder=config.encoder,
                seed=config.seed,
                method=config.name,
                run=folder.resolve().name,
                lr=config.learning_rate,
                protocol=config.protocol,
                selection_score=done.selection_score,
                random_weights=config.random_weights or source.random_weights,
                label_thresholds=thresholds,
            )
            if direction is not None:
                meta = meta.model_copy(update={"signed_agreement": direction.agreement})
            path = out / f"{meta.run}.npz"
            write_predictions(path, arrays, meta)
            log.info("%d bags, %d instances scored with %s", len(bags), len(arrays["y_inst"]), meta.run)
            facts = {"run": meta.run, "random_weights": meta.random_weights}
            entries.append(IndexEntry.model_validate({**facts, "file": path.name, "sha256": hash_file(path)}))
            logits.append(arrays["bag_logit"])
    _write_scores(out / "scores.csv", bags, np.stack(logits), source.listing.excluded, refused)
    names = {"dataset": meta.dataset, "encoder": meta.encoder, "method": meta.method, "protocol": meta.protocol}
    index = PredictionIndex.model_validate({**names, "runs": entries})
    index.write(out / "index.json")
    return index


def _refusals(
    runs: Sequence[Path], source: Source, where: str, dataset_folder: Path | None, *, any_resolution: bool
) -> dict[str, str]:
    """Return the reason of every bag that the runs may not score.

    Raises:
        ValueError: all bags are refused.
    """
    trained = [RunConfig.read(folder / "config.json") for folder in runs]
    if source.records is None:
        for config in trained:
            check_features(config.features, FeatureFacts.model_validate(source.facts), where)
        return {}
    refused: dict[str, str] = {}
    warned: dict[str, str] = {}
    reference = read_reference(runs[0], trained[0], dataset_folder)
    for info in source.listing.bags:
        attrs, recorded = source.records(info.bag_id)
        try:
            for config in trained:
                check_features(config.features, FeatureFacts.model_validate(recorded), info.bag_id)
            for warning in check_like_training(attrs, reference, any_resolution=any_resolution):
                warned.setdefault(warning, info.bag_id)
        except ValueError as error:
            refused[info.bag_id] = str(error)
    # Most bags share a warning, so each is logged once with an example.
    for warning, bag_id in warned.items():
        log.warning("%s: %s (e.g. bag %s)", where, warning, bag_id)
    if refused:
        total, (bag_id, reason) = len(source.listing.bags), next(iter(refused.items()))
        text = f"{where}: {len(refused)} of {total} bags refused, e.g. {bag_id}: {reason}"
        if len(refused) == total:
            raise ValueError(text)
        log.warning("%s; scores.csv names them all", text)
    return refused


def _write_scores(
    path: Path,
    bags: Sequence[Bag],
    logits: npt.NDArray[np.float64],
    excluded: Mapping[str, Sequence[str]],
    refused: Mapping[str, str],
) -> None:
    """Write the table of all bags, scored or not, sorted by id.

    Args:
        path: CSV file.
        bags: the scored bags.
        logits: (R,B), one row per run.
        excluded: state -> ids of bags without features.
        refused: id -> reason of bags that the runs may not score.
    """
    rows: list[dict[str, object]] = [
        {"bag_id": bag_id, "state": state} for state, bag_ids in excluded.items() for bag_id in bag_ids
    ]
    rows += [{"bag_id": bag_id, "state": "refused", "reason": reason} for bag_id, reason in refused.items()]
    for bag, probability in zip(bags, sigmoid(logits).T, strict=True):
        rows.append(
            {
                "bag_id": bag.bag_id,
                "state": "ok",
                "label": "" if math.isnan(bag.y) else int(bag.y),
                "instances": len(bag),
                "probability": f"{probability.mean():.4f}",
                "probability_sd": f"{probability.std(ddof=1):.4f}" if len(probability) > 1 else "",
                "predicted": int(probability.mean() > 0.5),
                "runs": len(probability),
            }
        )
    rows.sort(key=lambda row: str(row["bag_id"]))
    write_csv(path, COLUMNS, ([row.get(column, "") for column in COLUMNS] for row in rows))
