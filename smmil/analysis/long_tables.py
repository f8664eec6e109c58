"""Results as tables in long form: `predictions.csv` and `metrics.csv`, one observation a row.

The columns are the fields of `PredictionRow` and `MetricRow`; numbers are in full precision, unknown values empty.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from preprocessing.bags.table import read_bags
from preprocessing.common.files import write_text
from smmil.artifacts.chosen_runs import chosen_predictions
from smmil.artifacts.records import Metrics
from smmil.artifacts.results import Predictions, split_values
from smmil.config.methods import display_name
from smmil.evaluate.calibration import sigmoid


@dataclass(frozen=True)
class PredictionRow:
    """What the chosen run of one split says about one test bag.

    Attributes:
        patient: the `group` of bags.csv; "" = unknown.
        label: 0 or 1; None = unknown.
        probability: sigmoid(logit).
        call: 1 if the logit is above 0, else 0.
        correct: 1 if the call equals the label, else 0; None without a label.
    """

    dataset: str
    encoder: str
    method: str
    method_name: str
    split: int
    learning_rate: float
    run: str
    bag: str
    patient: str
    label: int | None
    n_instances: int
    logit: float
    probability: float
    call: int
    correct: int | None


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of one split (`statistic` is "split"), or its mean over the splits ("mean").

    Attributes:
        value: None where undefined; `reason` says why.
        std: sample standard deviation over the splits (n - 1); None for a split.
        low, high: 95 % bootstrap interval of the mean over test bags; None for a split.
        n_splits: splits that define the value.
        inverted: for AUROCs, how many of them are below .5; else None.
    """

    dataset: str
    encoder: str
    method: str
    method_name: str
    statistic: str
    split: int | None = None
    learning_rate: float | None = None
    metric: str
    value: float | None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    n_splits: int
    inverted: int | None
    reason: str


def prediction_rows(indexes: Iterable[Path], bags: Mapping[str, Path]) -> Iterator[PredictionRow]:
    """Yield the predictions of the chosen runs by training and split; `bags` has bags.csv by dataset, for patients."""
    patients = {dataset: {row.bag_id: row.group for row in read_bags(path)} for dataset, path in bags.items()}
    # a generator, as the predictions of the whole paper need not be in memory at once
    for index in indexes:
        for run in chosen_predictions(index).values():
            yield from _run_rows(run, patients.get(run.meta.dataset, {}))


def _run_rows(run: Predictions, patients: Mapping[str, str]) -> Iterator[PredictionRow]:
    meta, test = run.meta, run.part("test")
    columns = zip(
        *(test["bag_id"].tolist(), test["y"].tolist(), np.diff(test["offsets"]).tolist()),
        *(test["bag_logit"].tolist(), sigmoid(test["bag_logit"]).tolist()),
        strict=True,
    )
    for bag, y, size, logit, probability in columns:
        label, call = None if np.isnan(y) else int(y), int(logit > 0)
        yield PredictionRow(
            dataset=meta.dataset,
            encoder=meta.encoder,
            method=meta.method,
            method_name=display_name(meta.method),
            split=meta.seed,
            learning_rate=meta.lr,
            run=meta.run,
            bag=bag,
            patient=patients.get(bag, ""),
            label=label,
            n_instances=size,
            logit=logit,
            probability=probability,
            call=call,
            correct=None if label is None else int(call == label),
        )


def metric_rows(metrics: Iterable[Metrics]) -> Iterator[MetricRow]:
    """Yield every test metric: a row per split, then the mean over the splits."""
    for entry in metrics:
        for metric in dict.fromkeys(name for split in entry.splits for name in split.test.values):
            for split in entry.splits:
                value = split.test.values.get(metric)
                reason = "" if value is not None else split.test.undefined.get(metric, "undefined")
                place = {"statistic": "split", "split": split.seed, "learning_rate": split.lr}
                yield _metric_row(entry, metric, [] if value is None else [value], reason=reason, **place)
            values = [value for _, value in split_values(entry, metric)]
            low, high = (entry.bootstrap and entry.bootstrap.intervals.get(metric)) or (None, None)
            spread = {"std": stdev(values) if len(values) > 1 else None, "low": low, "high": high}
            reason = "" if values else "no split defines it"
            yield _metric_row(entry, metric, values, reason=reason, statistic="mean", **spread)


def _metric_row(entry: Metrics, metric: str, values: Sequence[float], **more: Any) -> MetricRow:
    return MetricRow(
        dataset=entry.dataset,
        encoder=entry.encoder,
        method=entry.method,
        method_name=display_name(entry.method),
        metric=metric,
        value=fmean(values) if values else None,
        n_splits=len(values),
        inverted=sum(value < 0.5 for value in values) if "_auroc" in metric and values else None,
        **more,
    )


def write_rows(path: Path, kind: type[PredictionRow | MetricRow], rows: Iterable[PredictionRow | MetricRow]) -> None:
    """Write rows as CSV; `kind` names the columns."""
    stream = io.StringIO()
    # pandas would write other digits than repr, and NaN for an unknown whole number
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(map(astuple, rows))
    write_text(path, stream.getvalue())
