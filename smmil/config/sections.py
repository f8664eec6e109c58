"""Sections of the configuration (`Config`): datasets, weights, features, training, sweeps, report."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from preprocessing.bags.identity import Compare
from preprocessing.common.options import Options, ct_options, wsi_options
from preprocessing.datasets import DATASETS, get_dataset
from preprocessing.datasets.base import parse_options
from preprocessing.features.transforms import check_policy
from smmil.config.methods import WITH_GLOBAL, get_method, group_of, known_methods
from smmil.config.targets import FIGURES, TABLES
from smmil.config.training_options import DEVICES, BagOptions, ScheduleOptions
from smmil.config.variants import Variant, base_method


def _folder(path: str) -> str:
    if not path.strip() or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise ValueError("expected the path of a folder, without line breaks or control characters")
    if path.startswith(("-", "~")):
        raise ValueError(f"write the whole path: {path[0]!r} at its start has another meaning on command lines")
    return path


def _checked(check: Callable[[Any], object]) -> AfterValidator:
    """Return a validator that keeps a value which `check` accepts; it raises ValueError for others."""

    def validate(value: Any) -> Any:
        check(value)
        return value

    return AfterValidator(validate)


Folder = Annotated[str, AfterValidator(_folder)]
Kind = Annotated[str, _checked(get_dataset)]
Policy = Annotated[str, _checked(check_policy)]
WsiKeys = Annotated[dict[str, Any], _checked(wsi_options)]
CtKeys = Annotated[dict[str, Any], _checked(ct_options)]
BatchSizes = Annotated[dict[str, Annotated[int, Field(ge=1)]], _checked(known_methods)]
MethodOptions = Annotated[dict[str, dict[str, Any]], _checked(known_methods)]
SplitJobs = Annotated[bool | list[str], _checked(lambda value: known_methods(() if isinstance(value, bool) else value))]


class InstancesConfig(Options):
    """How bags of a dataset become instances; keys as in `preprocessing/common/options.py`."""

    wsi: WsiKeys = Field(default={}, description="slides: preset and overrides, e.g. {preset: 20x}")
    ct: CtKeys = Field(default={}, description="CT: preset and overrides, e.g. {preset: sa_mil}")


class ScoreWith(Options):
    """Which trained runs score the bags of a dataset that trains nothing itself."""

    dataset: str = Field(description="dataset whose runs are used")
    encoder: str = Field(description="encoder of those runs; the same one extracts the features here")
    method: str = Field(description="method of those runs")


class DatasetConfig(BagOptions):
    """One dataset: where it is, how it is cut into instances, how it is split and trained."""

    kind: Kind = Field(description="which module reads the raw folder", json_schema_extra={"enum": [*DATASETS]})
    root: Folder = Field(description="raw folder")
    source: dict[str, Any] = Field(
        default={}, description="keys of the dataset module, e.g. manifest, partition, test_list"
    )
    encoders: list[str] = Field(min_length=1, description="feature extractors; append new ones at the end")
    main_encoder: str | None = Field(default=None, description="extractor of Tables 1 and 2; null = the first")
    instances: InstancesConfig = InstancesConfig()
    compare_files: Compare = Field(
        default="time", description="how a replaced raw file is recognised: size and time, or every byte (content)"
    )
    bags_per_shard: int = Field(default=25, ge=1, description="bags per preprocessing job")
    allowed_failures: int = Field(default=0, ge=0, description="failed bags per shard before the job ends non-zero")
    batch_size_transformer: int | None = Field(
        default=None, ge=1, description="same for transformers; null = batch_size"
    )
    batch_sizes: BatchSizes = Field(default={}, description="bags per training step of single methods")
    train: bool = Field(default=True, description="false = only preprocess, and score if score_with is given")
    score_with: ScoreWith | None = Field(default=None, description="score the bags with runs of another dataset")

    @model_validator(mode="after")
    def _consistent(self) -> "DatasetConfig":
        if self.main_encoder is not None and self.main_encoder not in self.encoders:
            raise ValueError(f"main_encoder {self.main_encoder!r} is not in encoders {self.encoders}")
        if len(set(self.encoders)) != len(self.encoders):
            raise ValueError(f"encoders {self.encoders} names one twice")
        parse_options(self.kind, get_dataset(self.kind).options, self.source)
        return self

    @property
    def table_encoder(self) -> str:
        """The encoder of Tables 1 and 2."""
        return self.main_encoder or self.encoders[0]

    def batch_size_of(self, method: str) -> int:
        """Return the bags per training step of a method or variant."""
        usual = self.batch_size_transformer if group_of(method) == WITH_GLOBAL else None
        return self.batch_sizes.get(base_method(method), usual or self.batch_size)


class WeightsConfig(Options):
    """Where encoder weights come from."""

    folder: Folder = Field(default="weights", description="folder of the checksummed weight files")
    mode: Literal["pretrained", "random"] = Field(
        default="pretrained", description="random = seeded random encoders for trials; marks every result as such"
    )


class FeaturesConfig(Options):
    """How features are computed and stored."""

    resize_policy: Policy = Field(default="resize224", description="resize224 | weights | native | resize<px>")
    dtype: Literal["float16", "float32"] = Field(default="float16", description="stored precision")
    precision: Literal["float32", "bf16"] = Field(default="float32", description="arithmetic of the encoder")
    batch_size: int = Field(default=64, ge=1, description="tiles per encoder step")
    workers: int = Field(default=2, ge=1, description="decode threads per job")
    device: str = Field(default="auto", pattern=DEVICES, description="auto | cpu | cuda | cuda:1")


class TrainingConfig(ScheduleOptions):
    """The training protocol (paper, Section 5 and Appendix)."""

    split_jobs: SplitJobs = Field(
        default=False, description="one training job per split instead of one for all splits; true, or some methods"
    )

    def is_split(self, method: str) -> bool:
        """Return whether a method or variant is trained by one job per split."""
        return self.split_jobs if isinstance(self.split_jobs, bool) else base_method(method) in self.split_jobs


class SweepConfig(Options):
    """Other values of one argument of one method: the points of an ablation figure."""

    method: Annotated[str, _checked(get_method)] = Field(description="method whose argument is varied")
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
