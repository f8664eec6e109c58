"""Analyse the predictions of one dataset and encoder: rows of predictions in, `Analysis` and its pictures out.

A bag is called positive when its logit is above 0, as for the bag F1. A patient is positive if any of its bags is, and
its logit is the largest of its bags', as one positive slide makes a positive patient.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from smmil.analysis.charts import draw_charts
from smmil.analysis.curves import mean_precision_recall, mean_roc
from smmil.analysis.long_tables import PredictionRow, prediction_rows
from smmil.analysis.records import (
    Analysis,
    Calibration,
    Confusion,
    MethodAnalysis,
    MethodCalls,
    PatientAnalysis,
    WrongBag,
)
from smmil.artifacts.records import PredictionIndex
from smmil.config import stage_versions
from smmil.config.methods import METHODS
from smmil.evaluate.calibration import bin_bags, n_bins, sigmoid
from smmil.evaluate.metrics import auroc, average_precision

HISTOGRAM_BINS = 20
Item = TypeVar("Item")
Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True)
class Scores:
    """Labels (B,) and logits (B,) per split, of the same bags or patients."""

    y: npt.NDArray[np.int64]
    logits: Mapping[int, npt.NDArray[np.float64]]


def write_analysis(
    out: Path, indexes: Sequence[Path], bags: Mapping[str, Path], instances: Path | None, command: str
) -> None:
    """Write the analysis of the predictions of some methods, with the pictures beside it.

    There is an `index.json` per method, at least one; `bags` has bags.csv by dataset, for the patients, `instances`
    the folder with `thumbnails/`.
    """
    records = [PredictionIndex.read(index) for index in indexes]
    analysis = analyse(records[0].dataset, records[0].encoder, prediction_rows(indexes, bags))
    random = any(record.random_weights for record in records)
    wrong = tuple(_with_picture(bag, instances, out.parent) for bag in analysis.wrong_bags)
    analysis = analysis.model_copy(update={"random_weights": random, "wrong_bags": wrong})
    out.parent.mkdir(parents=True, exist_ok=True)
    stamps = {"command": command, "stage_version": stage_versions.ANALYSIS}
    analysis.model_copy(update={"charts": draw_charts(analysis, out.parent), **stamps}).write(out)


def _with_picture(bag: WrongBag, instances: Path | None, folder: Path) -> WrongBag:
    path = instances / "thumbnails" / f"{bag.bag}.jpg" if instances else None
    if path is None or not path.is_file():
        return bag
    return bag.model_copy(update={"picture": Path(os.path.relpath(path, folder)).as_posix()})


def analyse(dataset: str, encoder: str, rows: Iterable[PredictionRow]) -> Analysis:
    """Analyse predictions of one dataset and encoder, every method on the same test bags, in any order.

    Raises:
        ValueError: rows of another dataset or encoder, or methods that were tested on other bags.
    """
    rows = list(rows)
    if others := {(row.dataset, row.encoder) for row in rows} - {(dataset, encoder)}:
        raise ValueError(f"found predictions of {sorted(others)}, expected {dataset} / {encoder} alone")
    order = list(METHODS)
    labelled = [row for row in rows if row.label is not None]
    bags = {row.bag: row for row in sorted(rows, key=lambda row: row.bag)}
    for (method, split), entries in _grouped(rows, lambda row: (row.method, row.split)).items():
        if differing := sorted(bags.keys() ^ {row.bag for row in entries}):
            raise ValueError(f"{method}, split {split}: tested on other bags than the rest, e.g. {differing[:5]}")
    by_method = dict(sorted(_grouped(labelled, lambda row: row.method).items(), key=lambda item: order.index(item[0])))
    scores = {method: _scores(entries, lambda row: row.bag) for method, entries in by_method.items()}
    labels = [row.label for row in bags.values() if row.label is not None]
    patients, patient_notes = _patients(by_method)
    positive = _grouped([row for row in bags.values() if row.label is not None], _patient)
    return Analysis(
        dataset=dataset,
        encoder=encoder,
        splits=tuple(sorted({row.split for row in rows})),
        n_bags=len(labels),
        n_positive=sum(labels),
        n_unlabelled=len(bags) - len(labels),
        methods=tuple(_method(method, entry) for method, entry in scores.items()),
        wrong_bags=tuple(wrong_bags(labelled)),
        n_patients=len(positive) if patients else 0,
        n_positive_patients=sum(any(row.label for row in entries) for entries in positive.values()) if patients else 0,
        patients=tuple(patients),
        notes=(*_class_notes(len(bags), labels), *patient_notes),
    )


def _class_notes(n_bags: int, labels: Sequence[int]) -> list[str]:
    if not n_bags:
        return ["No bag has the split test, so nothing is predicted."]
    if not labels:
        return ["No test bag has a label, so there is nothing to compare the predictions with."]
    if len(set(labels)) == 1:
        kind = "positive" if labels[0] else "negative"
        return [f"All {len(labels)} labelled test bags are {kind}: ROC and precision-recall curves need both classes."]
    return []


def _grouped(items: Iterable[Item], key: Callable[[Item], Group]) -> dict[Group, list[Item]]:
    groups: dict[Group, list[Item]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _scores(rows: Iterable[PredictionRow], unit: Callable[[PredictionRow], str]) -> Scores:
    """Return the scores of bags or patients, by name: the largest label and logit of the rows of a unit."""
    splits, labels = {}, {}
    for split, entries in sorted(_grouped(rows, lambda row: row.split).items()):
        units = sorted(_grouped(entries, unit).items())
        labels = {name: max(row.label or 0 for row in members) for name, members in units}
        splits[split] = np.array([max(row.logit for row in members) for _, members in units], np.float64)
    return Scores(np.array([*labels.values()], np.int64), splits)


def _method(method: str, scores: Scores) -> MethodAnalysis:
    y, logits = scores.y, [*scores.logits.values()]
    pooled_y, pooled = np.tile(y, len(logits)), np.concatenate(logits)
    # runs are pooled for calibration only: probabilities have a common scale, logits have none
    bins = bin_bags(pooled_y, pooled, bins=n_bins(len(y)))
    both = len(np.unique(y)) == 2
    probability = sigmoid(pooled)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    positive, negative = (np.histogram(probability[pooled_y == label], edges)[0] for label in (1, 0))
    return MethodAnalysis(
        method=method,
        roc=mean_roc(y, logits),
        auroc=_values(auroc, scores),
        precision_recall=mean_precision_recall(y, logits),
        average_precision=_values(average_precision, scores) if both else (),
        calibration=Calibration(
            probability=tuple(bins.probability.tolist()),
            share=tuple(bins.share.tolist()),
            bags=tuple(bins.bags.tolist()),
        ),
        confusion=_confusions(scores),
        positive=tuple(positive.tolist()),
        negative=tuple(negative.tolist()),
    )


def _values(metric: Callable[[Any, Any], float | None], scores: Scores) -> tuple[float, ...]:
    values = (metric(scores.y, logit) for logit in scores.logits.values())
    return tuple(value for value in values if value is not None)


def _confusions(scores: Scores) -> tuple[Confusion, ...]:
    from sklearn.metrics import confusion_matrix

    result = []
    for seed, logit in scores.logits.items():
        (tn, fp), (fn, tp) = confusion_matrix(scores.y, logit > 0, labels=[0, 1]).tolist()
        result.append(Confusion(seed=seed, true_negative=tn, false_positive=fp, false_negative=fn, true_positive=tp))
    return tuple(result)


def wrong_bags(rows: Iterable[PredictionRow]) -> list[WrongBag]:
    """Return the bags that any run calls wrong: most wrong runs first, then the largest mean error of probability."""
    order = list(METHODS)
    result = []
    for bag, entries in sorted(_grouped(rows, lambda row: row.bag).items()):
        first = entries[0]
        if first.label is None or all(row.correct for row in entries):
            continue
        methods = sorted(_grouped(entries, lambda row: row.method).items(), key=lambda item: order.index(item[0]))
        result.append(
            WrongBag(
                **_calls("", entries).as_json(),
                bag=bag,
                patient=first.patient,
                label=first.label,
                n_instances=first.n_instances,
                methods=tuple(_calls(method, members) for method, members in methods),
            )
        )
    return sorted(result, key=lambda b: (-b.wrong / b.runs, -abs(b.probability - b.label), b.bag))


def _calls(method: str, rows: Sequence[PredictionRow]) -> MethodCalls:
    probabilities = sorted(row.probability for row in rows)
    return MethodCalls(
        method=method,
        probability=fmean(probabilities),
        low=probabilities[0],
        high=probabilities[-1],
        wrong=sum(not row.correct for row in rows),
        runs=len(rows),
    )


def _patient(row: PredictionRow) -> str:
    """Return the patient of a bag; a bag without one is a patient of its own, whose name no patient has."""
    return row.patient or f"\0{row.bag}"


def _patients(by_method: Mapping[str, Sequence[PredictionRow]]) -> tuple[list[PatientAnalysis], list[str]]:
    """Return the results by patient, and why there are none."""
    rows = [row for entries in by_method.values() for row in entries]
    if not any(row.patient for row in rows):
        return [], []
    sizes = {name: len({row.bag for row in entries}) for name, entries in _grouped(rows, _patient).items()}
    if max(sizes.values()) < 2:
        return [], ["No patient has two test bags, so results by patient are those by bag."]
    result = []
    for method, entries in by_method.items():
        scores = _scores(entries, _patient)
        areas = _values(auroc, scores)
        result.append(PatientAnalysis(method=method, auroc=areas, confusion=_confusions(scores)))
    return result, []
