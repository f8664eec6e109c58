"""The sections of the configuration (`Config`): data sets, weights, features, training, sweeps, report."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from preprocessing.common.options import Options, ct_options, wsi_options
from smmil.config.methods import METHODS, WITH_GLOBAL
from smmil.config.targets import FIGURES, TABLES
from smmil.config.variants import Variant, base_method


def known_methods(names: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuses unknown methods.

    Raises:
        ValueError: naming them.
    """
    unknown = sorted(set(names) - set(METHODS))
    if unknown:
        raise ValueError(f"unknown methods {unknown}, expected some of {', '.join(sorted(METHODS))}")


class InstancesConfig(Options):
    """How bags of a dataset become instances; keys as in `preprocessing/common/options.py`."""

    wsi: dict[str, Any] = Field(default={}, description="slides: preset and overrides, e.g. {preset: 20x}")
    ct: dict[str, Any] = Field(default={}, description="CT: preset and overrides, e.g. {preset: sa_mil}")

    @model_validator(mode="after")
    def _resolves(self) -> "InstancesConfig":
        wsi_options(self.wsi)
        ct_options(self.ct)
        return self


class ScoreWith(Options):
    """Which trained runs score the bags of a dataset that trains nothing itself."""

    dataset: str = Field(description="dataset whose runs are used")
    encoder: str = Field(description="encoder of those runs; the same one extracts the features here")
    method: str = Field(description="method of those runs")


class DatasetConfig(Options):
    """One dataset: where it is, how it is cut into instances, how it is split and trained."""

    kind: Literal["camelyon16", "panda", "rsna", "own"] = Field(description="which module reads the raw folder")
    root: str = Field(description="raw folder")
    source: dict[str, Any] = Field(
        default={}, description="keys of the dataset module, e.g. manifest, partition, test_list"
    )
    encoders: list[str] = Field(min_length=1, description="feature extractors; append new ones at the end")
    main_encoder: str | None = Field(default=None, description="extractor of Tables 1 and 2; null = the first")
    instances: InstancesConfig = InstancesConfig()
    bags_per_shard: int = Field(default=25, ge=1, description="bags per preprocessing job")
    allowed_failures: int = Field(default=0, ge=0, description="failed bags per shard before the job ends non-zero")
    val_share: float = Field(default=0.2, gt=0, lt=1, description="share of the training bags used for validation")
    batch_size: int = Field(default=32, ge=1, description="bags per training step")
    batch_size_transformer: int | None = Field(
        default=None, ge=1, description="same for transformers; null = batch_size"
    )
    batch_sizes: dict[str, int] = Field(default={}, description="bags per training step of single methods")
    class_weight: bool = Field(default=False, description="weight positive bags by n_neg / n_pos of the training split")
    label_rule: Literal["strict", "halving"] = Field(
        default="strict",
        description="instance label: coverage > threshold; halving lowers it until a positive bag has one",
    )
    label_threshold: float = Field(
        default=0.5, ge=0, lt=1, description="lesion fraction above which a tile is positive"
    )
    drop_inconsistent: bool = Field(
        default=False, description="leave out bags that contradict their instance labels, or have none (PANDA)"
    )
    edge_weight: Literal["none", "feature_distance"] = Field(default="none", description="1, or exp(-|x_i - x_j| / P)")
    train: bool = Field(default=True, description="false = only preprocess, and score if score_with is given")
    score_with: ScoreWith | None = Field(default=None, description="score the bags with runs of another dataset")

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetConfig":
        if self.main_encoder is not None and self.main_encoder not in self.encoders:
            raise ValueError(f"main_encoder {self.main_encoder!r} is not in encoders {self.encoders}")
        if len(set(self.encoders)) != len(self.encoders):
            raise ValueError(f"encoders {self.encoders} names one twice")
        known_methods(self.batch_sizes)
        return self

    @property
    def table_encoder(self) -> str:
        """The encoder of Tables 1 and 2."""
        return self.main_encoder or self.encoders[0]

    def batch_size_of(self, method: str) -> int:
        """Bags per training step of a method."""
        if base_method(method) in self.batch_sizes:
            return self.batch_sizes[base_method(method)]
        transformer = METHODS[base_method(method)][1] == WITH_GLOBAL
        return self.batch_size_transformer or self.batch_size if transformer else self.batch_size


class WeightsConfig(Options):
    """Where encoder weights come from."""

    folder: str = Field(default="weights", description="folder of the checksummed weight files")
    mode: Literal["pretrained", "random"] = Field(
        default="pretrained", description="random = seeded random encoders for trials; marks every result as such"
    )


class FeaturesConfig(Options):
    """How features are computed and stored."""

    resize_policy: str = Field(default="resize224", description="resize224 | weights | native | resize<px>")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="stored precision")
    precision: Literal["float32", "bf16"] = Field(default="float32", description="arithmetic of the encoder")
    batch_size: int = Field(default=64, ge=1, description="tiles per encoder step")
    workers: int = Field(default=2, ge=1, description="decode threads per job")
    device: str = Field(default="auto", description="auto | cpu | cuda")


class TrainingConfig(Options):
    """The training protocol (paper, Section 5 and Appendix)."""

    epochs: int = Field(default=50, ge=1, description="epochs, no early stop")
    learning_rates: list[float] = Field(
        default=[1e-4, 1e-5], min_length=1, description="candidates, chosen on validation"
    )
    splits: list[int] = Field(default=[1, 2, 3, 4, 5], min_length=1, description="seeds of the train/validation splits")
    warmup_epochs: int = Field(default=5, ge=0, description="epochs of the linear warm-up")
    warmup_start: float = Field(default=0.1, gt=0, le=1, description="first factor of the learning rate")
    device: str = Field(default="auto", description="auto | cpu | cuda")
    precision: Literal["float32", "bf16"] = Field(default="float32", description="arithmetic of a training step")
    deterministic: bool = Field(default=True, description="deterministic kernels where torch has them")
    checkpoint_every: int = Field(default=1, ge=1, description="epochs between resumable states")
    checkpoint_seconds: float = Field(default=30.0, ge=0, description="least time between them; 0 = every such epoch")
    tensorboard: bool = Field(default=False, description="event files beside log.jsonl; needs the tensorboard package")
    split_jobs: bool | list[str] = Field(
        default=False, description="one training job per split instead of one for all splits; true, or some methods"
    )

    @field_validator("split_jobs")
    @classmethod
    def _split_jobs(cls, value: bool | list[str]) -> bool | list[str]:
        known_methods([] if isinstance(value, bool) else value)
        return value

    def is_split(self, method: str) -> bool:
        """Whether a method (or variant of one) is trained by one job per split."""
        return self.split_jobs if isinstance(self.split_jobs, bool) else base_method(method) in self.split_jobs


class SweepConfig(Options):
    """Other values of one argument of one method: the points of an ablation figure."""

    method: str = Field(description="method whose argument is varied")
    argument: str = Field(description="its argument: alpha (figures 6a, 12), spectral_norm (6b), T (7)")
    values: list[float | int | bool | str] = Field(min_length=1, description="values, each trained like a method")
    datasets: list[str] = Field(min_length=1, description="datasets it is trained on, with their main encoder")

    @property
    def variants(self) -> list[Variant]:
        """The points of the sweep."""
        return [Variant(self.method, self.argument, value) for value in self.values]


class ReportConfig(Options):
    """What the report shows."""

    tables: list[str] = Field(default=[*TABLES], description="tables of `tables`, `report` and `all`")
    figures: list[str] = Field(default=[*FIGURES], description="figures of `figures`, `report` and `all`")
    map_bags: int = Field(default=3, ge=0, description="test bags per dataset with attention maps")
    qc_bags: int = Field(default=200, ge=1, description="thumbnails per contact sheet, the oddest first")
    bootstrap: int = Field(default=1000, ge=0, description="resamples of the test bags behind each interval")
    partial: bool = Field(
        default=False, description="true = tables, figures and report of the finished trainings; nothing is trained"
    )

    @field_validator("tables", "figures")
    @classmethod
    def _known(cls, names: list[str], info: ValidationInfo) -> list[str]:
        known = TABLES if info.field_name == "tables" else FIGURES
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"unknown {info.field_name} {unknown}, expected some of {', '.join(known)}")
        return names
