"""Results as tables in long form: `predictions.csv` and `metrics.csv`, one observation a row.

The columns are the fields of `PredictionRow` and `MetricRow`; numbers are in full precision, unknown values empty.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from preprocessing.bags.table import read_bags
from preprocessing.common.files import write_text
from smmil.artifacts.chosen_runs import chosen_predictions
from smmil.artifacts.records import Metrics, SplitMetrics
from smmil.artifacts.results import Predictions, split_values
from smmil.config.methods import display_name
from smmil.evaluate.calibration import sigmoid


@dataclass(frozen=True)
class PredictionRow:
    """What the chosen run of one split says about one test bag.

    Attributes:
        dataset: name of the dataset.
        encoder: name of the feature extractor.
        method: key of the method.
        method_name: its name in the tables.
        split: seed of the training/validation split.
        learning_rate: the one that validation chose.
        run: name of the run.
        bag: name of the bag.
        patient: the `group` of bags.csv; "" = unknown.
        label: 0 or 1; None = unknown.
        n_instances: tiles or slices of the bag.
        logit: bag logit.
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


@dataclass(frozen=True)
class MetricRow:
    """One metric of one split, or its mean over the splits.

    Attributes:
        dataset: name of the dataset.
        encoder: name of the feature extractor.
        method: key of the method.
        method_name: its name in the tables.
        statistic: "split" or "mean".
        split: seed of the split; None for the mean.
        learning_rate: the one that validation chose for the split; None for the mean.
        metric: as in the metrics JSON.
        value: None where undefined.
        std: sample standard deviation over the splits (n - 1); None for a split.
        low: lower end of the 95 % bootstrap interval of the mean over test bags; None for a split.
        high: upper end.
        n_splits: splits that define the value.
        inverted: for AUROCs, how many of them are below .5; else None.
        reason: why the value is undefined.
    """

    dataset: str
    encoder: str
    method: str
    method_name: str
    statistic: str
    split: int | None
    learning_rate: float | None
    metric: str
    value: float | None
    std: float | None
    low: float | None
    high: float | None
    n_splits: int
    inverted: int | None
    reason: str


Row = PredictionRow | MetricRow


def prediction_rows(indexes: Iterable[Path], bags: Mapping[str, Path]) -> Iterator[PredictionRow]:
    """Yield the predictions of the chosen runs by training and split, test bags in stored order.

    Args:
        indexes: `index.json` of each training.
        bags: bags.csv by dataset, for the patients.
    """
    patients = {dataset: {row.bag_id: row.group for row in read_bags(path)} for dataset, path in bags.items()}
    for index in indexes:
        for run in chosen_predictions(index).values():
            yield from run_rows(run, patients.get(run.meta.dataset, {}))


def run_rows(run: Predictions, patients: Mapping[str, str]) -> Iterator[PredictionRow]:
    """Yield the predictions of one run for its test bags; `patients` by bag."""
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
            yield from (_split_row(entry, split, metric) for split in entry.splits)
            yield _mean_row(entry, metric)


def _split_row(entry: Metrics, split: SplitMetrics, metric: str) -> MetricRow:
    value = split.test.values.get(metric)
    return MetricRow(
        dataset=entry.dataset,
        encoder=entry.encoder,
        method=entry.method,
        method_name=display_name(entry.method),
        statistic="split",
        split=split.seed,
        learning_rate=split.lr,
        metric=metric,
        value=value,
        std=None,
        low=None,
        high=None,
        n_splits=int(value is not None),
        inverted=_inverted(metric, [] if value is None else [value]),
        reason="" if value is not None else split.test.undefined.get(metric, "undefined"),
    )


def _mean_row(entry: Metrics, metric: str) -> MetricRow:
    values = [value for _, value in split_values(entry, metric)]
    low, high = (entry.bootstrap and entry.bootstrap.intervals.get(metric)) or (None, None)
    return MetricRow(
        dataset=entry.dataset,
        encoder=entry.encoder,
        method=entry.method,
        method_name=display_name(entry.method),
        statistic="mean",
        split=None,
        learning_rate=None,
        metric=metric,
        value=fmean(values) if values else None,
        std=stdev(values) if len(values) > 1 else None,
        low=low,
        high=high,
        n_splits=len(values),
        inverted=_inverted(metric, values),
        reason="" if values else "no split defines it",
    )


def _inverted(metric: str, values: Sequence[float]) -> int | None:
    return sum(value < 0.5 for value in values) if "_auroc" in metric and values else None


def to_csv(kind: type[Row], rows: Iterable[Row]) -> str:
    """Return rows as CSV; `kind` names the columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(map(astuple, rows))
    return stream.getvalue()


def write_predictions(path: Path, indexes: Iterable[Path], bags: Mapping[str, Path]) -> None:
    """Write `predictions.csv`, see `prediction_rows`."""
    write_text(path, to_csv(PredictionRow, prediction_rows(indexes, bags)))


def write_metrics(path: Path, metrics: Iterable[Metrics]) -> None:
    """Write `metrics.csv`, see `metric_rows`."""
    write_text(path, to_csv(MetricRow, metric_rows(metrics)))
