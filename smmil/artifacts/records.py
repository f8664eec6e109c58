"""Records of the files that training, prediction and evaluation leave on disk, one per format.

| file | record |
|---|---|
| `runs/E/M/runs.json` | `RunsFile` |
| `runs/E/M/RUN/config.json`, `done.json` | `RunConfig`, `RunDone` |
| `runs/E/M/RUN/log.jsonl` | `LogRow` per line |
| `predictions/E/M/RUN.npz` (array `meta`), `index.json` | `PredictionMeta`, `PredictionIndex` |
| `metrics/E/M.json` | `Metrics` |
| output of `smmil.comparisons` | `Comparison` |
| `tables/comparisons.json` | `ComparisonsFile` |

Optional fields that were not set are not written. Metrics that are undefined are None.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from preprocessing.common.cli import validation_problems
from preprocessing.common.files import write_json
from smmil.config.training_options import RateChoice

Json = Mapping[str, JsonValue]
# Keyword arguments of a method, JSON values.
MethodOptions = Mapping[str, Any]
Values = Mapping[str, float | None]


class Record(BaseModel):
    """Base of the records: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a JSON file; as `parse`, and ValueError if the file is missing."""
        try:
            return cls.parse(Path(path).read_bytes(), path)
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file") from error

    @classmethod
    def parse(cls, text: str | bytes, source: Path | str) -> Self:
        """Parse JSON; ValueError names the source and the keys that are missing, unknown or of another type."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{source}: expected {cls.__name__}, found {validation_problems(error)}") from error

    def write(self, path: Path | str) -> None:
        """Write a JSON file atomically; equal content gives equal bytes."""
        write_json(path, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return the fields that were set, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)

    def common(self, kind: type["Record"]) -> dict[str, object]:
        """Return the values of the fields that another kind of record has, too."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in kind.model_fields}


class Trained(Record):
    """What the files of one (dataset, encoder, method or variant) share."""

    dataset: str
    encoder: str
    method: str
    protocol: str
    random_weights: bool = False


class FeatureFacts(Record):
    """Identity of the features that a run was trained on; all unset for a CSV table."""

    encoder: str = ""
    weights_sha256: str = ""
    resize_policy: str = ""
    random_weights: bool = False


class RunFields(Record):
    """What decides the numbers of a run, see `smmil.artifacts.runs.RunSpec`."""

    dataset: str
    encoder: str
    method: str
    method_options: MethodOptions
    training: Json
    data: Json
    inputs: Mapping[str, str]
    seed: int
    learning_rate: float


class SplitCounts(Record):
    """Bags of the split of a run, and a hash of their ids."""

    bags_sha256: str
    train_bags: int
    train_positive_bags: int
    val_bags: int
    val_positive_bags: int


class RunConfig(RunFields):
    """`config.json`: everything needed to rebuild and to judge a run; `name` is the method or variant."""

    name: str
    features: FeatureFacts
    random_weights: bool
    key: str
    stage_version: int
    versions: Mapping[str, str]
    device: str
    numerics: Json
    in_features: int
    pos_weight: float | None
    split: SplitCounts

    @property
    def protocol(self) -> str:
        """`as_written` or `as_released`."""
        return str(self.training["protocol"])


class RunDone(Record):
    """`done.json`: the selected epoch of a finished run and its validation score."""

    key: str
    best_epoch: int
    selection_score: float
    weights_sha256: str


class RunEntry(RunDone):
    """A run listed in `runs.json`; `chosen` marks the learning rate that validation chose for its split."""

    run: str
    seed: int
    lr: float
    chosen: bool


class RunsFile(Trained):
    """`runs.json`: the finished runs of one training."""

    method_options: MethodOptions = {}
    quirks: tuple[str, ...] = ()
    training: Json = {}
    data: Json = {}
    inputs: Mapping[str, str] = {}
    features: FeatureFacts = FeatureFacts()
    bags: int = 0
    excluded: Mapping[str, tuple[str, ...]] = {}
    learning_rate_choice: RateChoice = "split"
    runs: tuple[RunEntry, ...]

    @property
    def chosen(self) -> list[RunEntry]:
        """The runs that validation chose, one per split."""
        return [run for run in self.runs if run.chosen]


class LogRow(Record):
    """One line of `log.jsonl`: an epoch (1-based). Other keys are loss terms, `loss_<term>` and `val_loss_<term>`.

    Losses are means over bags, `grad_norm` over steps; an AUROC is None if undefined. `val_selection_bce` is the bag
    cross entropy in the score `selection`, `val_score_entropy` the entropy of a bag's instance scores in [0, 1]. `kept`
    marks the best epoch so far. `memory_mib` is the peak resident memory of the process, `device_memory_mib` that of
    tensors on the GPU.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    epoch: int
    lr: float
    loss: float
    grad_norm: float
    val_loss: float
    val_selection_bce: float
    val_bag_auroc: float | None
    val_instance_auroc: float | None
    val_score_entropy: float
    selection: float
    kept: bool
    seconds: float | None = None
    memory_mib: int | float | None = None
    device_memory_mib: int | float | None = None


class PredictionMeta(Trained):
    """`meta` of a predictions file; predictions of other data sets (`smmil.score`) lack some fields."""

    method_options: MethodOptions = {}
    quirks: tuple[str, ...] = ()
    run: str
    seed: int
    lr: float
    selection_score: float
    best_epoch: int | None = None
    chosen: bool | None = None
    key: str = ""
    label_thresholds: Mapping[str, float] = {}
    signed_agreement: float | None = None


class IndexEntry(Record):
    """One run of a prediction index; `file` is relative to the index."""

    run: str
    file: str
    sha256: str
    random_weights: bool | None = None
    seed: int | None = None
    lr: float | None = None
    selection_score: float | None = None
    best_epoch: int | None = None
    chosen: bool | None = None


class PredictionIndex(Trained):
    """`index.json`: the predictions files of one training."""

    learning_rate_choice: RateChoice = "split"
    runs: tuple[IndexEntry, ...] = Field(min_length=1)


class PartMetrics(Record):
    """Metrics of the test or validation bags of one run; metric values are extra keys, see `values`.

    The prefixes `signed_` and `signed_sm_` stand for the sign-aware and the smoothed sign-aware score.

    Attributes:
        n_bags: labelled bags; the other counts accordingly.
        n_in_bag: positive bags with labelled instances of both classes, over which in-bag AUROCs are averaged.
        n_not_in_bag: positive bags without.
        inverted: whether the instance AUROC is below 0.5.
        froc_sensitivity: sensitivity by rate of false positives per negative bag.
        undefined: reason by metric whose value is None.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    n_bags: int = 0
    n_positive_bags: int = 0
    n_unlabelled_bags: int = 0
    n_instances: int = 0
    n_positive_instances: int = 0
    n_in_bag: int = 0
    n_not_in_bag: int = 0
    inverted: bool = False
    signed_inverted: bool = False
    signed_sm_inverted: bool = False
    froc_sensitivity: Mapping[str, float] = {}
    signed_froc_sensitivity: Mapping[str, float] = {}
    signed_sm_froc_sensitivity: Mapping[str, float] = {}
    undefined: Mapping[str, str] = {}

    @property
    def values(self) -> Values:
        """Metric values by name: `bag_*`, `dirichlet_*`, `instance_*`, `signed_instance_*`, `signed_sm_instance_*`."""
        return self.__pydantic_extra__


class Candidate(Record):
    """A run among which validation chose, with its main test metrics."""

    run: str
    lr: float
    selection_score: float
    chosen: bool
    test: Values


class SplitMetrics(Record):
    """Metrics of the run that validation chose for one split.

    Attributes:
        threshold: of instance scores, from validation; `signed_` and `signed_sm_` as in `PartMetrics`.
        gated: threshold and instance metrics with the scores of bags called negative set to -5.
        ungated: the same without gating, where the primary metrics are gated.
        signed_agreement: reliability of the sign-aware score (`smmil.predictions.signed`).
        candidates: all runs of the split.
    """

    seed: int
    lr: float
    run: str
    selection_score: float | None = None
    threshold: float | None = None
    signed_threshold: float | None = None
    signed_sm_threshold: float | None = None
    test: PartMetrics
    val: PartMetrics = PartMetrics()
    gated: Values = {}
    ungated: Values | None = None
    signed_agreement: float | None = None
    candidates: tuple[Candidate, ...] = ()


class Spread(Record):
    """How a test metric varies over the splits, see `smmil.evaluate.runs`."""

    mean: float | None
    std: float | None
    median: float | None
    worst: float | None
    n: int
    inverted: int | None


class Bootstrap(Record):
    """Settings of a bootstrap and, in metrics files, the percentile interval of every metric."""

    resamples: int
    seed: int
    level: float
    over: str
    intervals: Mapping[str, tuple[float, float] | None] = {}


class Metrics(Trained):
    """Metrics of one training, written by `smmil.evaluate`.

    Attributes:
        quirks: active quirks; None = those of the protocol's preset.
        job: peak memory of training by name, where metrics were read from training logs (never in a file).
    """

    method_options: MethodOptions = {}
    quirks: tuple[str, ...] | None = None
    learning_rate_choice: RateChoice = "split"
    stage_version: int = 0
    splits: tuple[SplitMetrics, ...]
    spread: Mapping[str, Spread] = {}
    bootstrap: Bootstrap | None = None
    definitions: Mapping[str, str] = {}
    job: Values = {}


class ComparedMethod(Record):
    """One side of a comparison and the compared runs."""

    encoder: str
    method: str
    protocol: str
    quirks: tuple[str, ...]
    learning_rate_choice: RateChoice = "split"
    runs: tuple[str, ...]


class Difference(Record):
    """Paired difference of a metric, see `smmil.evaluate.comparisons`; None with a `reason` where undefined.

    `first` and `second` are means over the splits, `splits` are the differences.
    """

    first: float | None = None
    second: float | None = None
    difference: float | None = None
    splits: tuple[float, ...] | None = None
    first_splits: tuple[float, ...] | None = None
    second_splits: tuple[float, ...] | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    resamples: int
    reason: str = ""


class Comparison(Record):
    """Two methods compared over the same test bags, by metric."""

    dataset: str
    first: ComparedMethod
    second: ComparedMethod
    seeds: tuple[int, ...]
    metrics: Mapping[str, Difference]
    random_weights: bool
    bootstrap: Bootstrap


class ComparisonsFile(Record):
    """`comparisons.json`: every pair of the table `comparisons` that has predictions; `titles` name the datasets."""

    titles: Mapping[str, str]
    comparisons: tuple[Comparison, ...]
