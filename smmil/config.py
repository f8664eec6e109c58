"""The one configuration of an experiment: typed, unknown keys refused, every key with meaning and unit.

`config.yaml` holds the paper's values; a second file given with `--configfile` overrides single keys. The JSON schema
in `workflow/schemas/config.schema.json` is generated from here (`python -m smmil.config --schema`).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from preprocessing.cli import guard
from preprocessing.options import Options, ct_options, wsi_options
from smmil.methods_table import METHODS, WITH_GLOBAL
from smmil.training_options import TrainingOptions


class InstancesConfig(Options):
    """How bags of a dataset become instances; keys as in `preprocessing/options.py`."""

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
        _known_methods(self.batch_sizes)
        return self

    @property
    def table_encoder(self) -> str:
        """The encoder of Tables 1 and 2."""
        return self.main_encoder or self.encoders[0]

    def batch_size_of(self, method: str) -> int:
        """Bags per training step of a method."""
        if method in self.batch_sizes:
            return self.batch_sizes[method]
        transformer = METHODS[method][1] == WITH_GLOBAL
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


class ReportConfig(Options):
    """What the report shows."""

    map_bags: int = Field(default=3, ge=0, description="test bags per dataset with attention maps")
    qc_bags: int = Field(default=200, ge=1, description="thumbnails per contact sheet, the oddest first")
    bootstrap: int = Field(default=1000, ge=0, description="resamples of the test bags behind each interval")


class Config(Options):
    """The whole experiment."""

    results: str = Field(default="results", description="folder of everything that is computed")
    protocol: Literal["as_written"] = Field(default="as_written", description="the paper's text")
    datasets: dict[str, DatasetConfig] = Field(description="name -> dataset")
    use: list[str] | None = Field(default=None, description="datasets of this run; null = all of them")
    methods: list[str] = Field(min_length=1, description="rows of the tables, keys of smmil.models.MODELS")
    method_options: dict[str, dict[str, Any]] = Field(default={}, description="arguments of single methods")
    weights: WeightsConfig = WeightsConfig()
    features: FeaturesConfig = FeaturesConfig()
    training: TrainingConfig = TrainingConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("methods")
    @classmethod
    def _methods(cls, methods: list[str]) -> list[str]:
        _known_methods(methods)
        return methods

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        _known_methods(self.method_options)
        unknown = sorted(set(self.use or []) - set(self.datasets))
        if unknown:
            raise ValueError(f"use: unknown datasets {unknown}, expected some of {', '.join(self.datasets)}")
        for name, dataset in self.datasets.items():
            if not name.isascii() or not name.isidentifier():
                raise ValueError(f"datasets.{name}: use letters, digits and _ in the name of a dataset")
            with_runs = dataset.score_with
            if with_runs is None:
                continue
            trained = self.datasets.get(with_runs.dataset)
            if trained is None or not trained.train or with_runs.method not in self.methods:
                raise ValueError(
                    f"datasets.{name}.score_with: no runs of {with_runs.dataset}/{with_runs.method} are trained"
                )
            for role, encoders in (("trained", trained.encoders), ("scored", dataset.encoders)):
                if with_runs.encoder not in encoders:
                    raise ValueError(
                        f"datasets.{name}.score_with: {with_runs.encoder} is no encoder of the {role} dataset"
                    )
        return self

    @property
    def used(self) -> dict[str, DatasetConfig]:
        """The datasets of this run."""
        return {name: dataset for name, dataset in self.datasets.items() if self.use is None or name in self.use}


def training_options(config: Config, dataset: str, method: str) -> TrainingOptions:
    """The settings of the training job of a method on a dataset."""
    chosen = config.datasets[dataset]
    return TrainingOptions(
        **config.training.model_dump(),
        val_share=chosen.val_share,
        batch_size=chosen.batch_size_of(method),
        class_weight=chosen.class_weight,
        label_rule=chosen.label_rule,
        label_threshold=chosen.label_threshold,
        drop_inconsistent=chosen.drop_inconsistent,
        edge_weight=chosen.edge_weight,
        protocol=config.protocol,
    )


def _known_methods(names: Sequence[str] | Mapping[str, Any]) -> None:
    unknown = sorted(set(names) - set(METHODS))
    if unknown:
        raise ValueError(f"unknown methods {unknown}, expected some of {', '.join(sorted(METHODS))}")


def parse_config(values: Mapping[str, Any], source: str = "config") -> Config:
    """Validates a configuration.

    Args:
        values: as read from YAML; Snakemake's own additions are not expected here.
        source: what to name in messages.

    Raises:
        ValueError: every problem on its own line: key, what is wrong, what was found.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_problem(item) for item in error.errors()]
        raise ValueError(f"{source}: {len(lines)} problem(s)\n" + "\n".join(f"  {line}" for line in lines)) from error


def _problem(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key; `python -m smmil.config --schema` lists the keys"
    found = json.dumps(item["input"], default=str)
    return f"{key}: {item['msg']} (found {found if len(found) < 120 else found[:120] + '...'})"


def json_schema() -> str:
    """The JSON schema of the configuration, as committed in `workflow/schemas/config.schema.json`."""
    return json.dumps(Config.model_json_schema(), indent=1, sort_keys=True) + "\n"


def load_yaml(path: Path) -> Any:
    """Reads one YAML file.

    Raises:
        ValueError: not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from error


@guard
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the schema, or checks a configuration file and prints it with every default filled in."""
    parser = argparse.ArgumentParser(prog="python -m smmil.config", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", help="print the JSON schema")
    parser.add_argument("file", nargs="?", type=Path, default=Path("config.yaml"), help="file to check")
    args = parser.parse_args(argv)
    if args.schema:
        print(json_schema(), end="")
        return 0
    print(parse_config(load_yaml(args.file), str(args.file)).model_dump_json(indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
