"""The one configuration of an experiment: typed, unknown keys refused, every key with meaning and unit.

`config.yaml` holds the paper's values; a second file given with `--configfile` overrides single keys. The JSON schema
in `workflow/schemas/config.schema.json` is generated from here (`python -m smmil.config --schema`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from preprocessing.common.options import Options
from smmil.config.quirks import active_quirks, method_changes, training_changes
from smmil.config.sections import (
    DatasetConfig,
    FeaturesConfig,
    ReportConfig,
    SweepConfig,
    TrainingConfig,
    WeightsConfig,
    known_methods,
)
from smmil.config.training_options import TrainingOptions
from smmil.config.variants import Variant, base_method


class Config(Options):
    """The whole experiment."""

    results: str = Field(default="results", description="folder of everything that is computed")
    protocol: Literal["as_written", "as_released"] = Field(
        default="as_written", description="the paper's text, or its released code; docs/protocol.md"
    )
    quirks: dict[str, bool] = Field(
        default={}, description="single differences between the two, on top of protocol, e.g. {sm_alpha_rule: true}"
    )
    datasets: dict[str, DatasetConfig] = Field(description="name -> dataset")
    use: list[str] | None = Field(default=None, description="datasets of this run; null = all of them")
    methods: list[str] = Field(min_length=1, description="rows of Tables 1 and 2, keys of smmil.models.MODELS")
    more_methods: list[str] = Field(default=[], description="further rows of Tables 6 to 10")
    sweeps: dict[str, SweepConfig] = Field(default={}, description="name -> runs of an ablation figure")
    method_options: dict[str, dict[str, Any]] = Field(default={}, description="arguments of single methods")
    weights: WeightsConfig = WeightsConfig()
    features: FeaturesConfig = FeaturesConfig()
    training: TrainingConfig = TrainingConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("quirks")
    @classmethod
    def _quirks(cls, quirks: dict[str, bool]) -> dict[str, bool]:
        active_quirks("as_written", quirks)
        return quirks

    @field_validator("methods", "more_methods")
    @classmethod
    def _methods(cls, methods: list[str]) -> list[str]:
        known_methods(methods)
        return methods

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        known_methods(self.method_options)
        for method, options in self.method_options.items():
            method_changes(self.active_quirks, method, options)
        unknown = sorted(set(self.use or []) - set(self.datasets))
        if unknown:
            raise ValueError(f"use: unknown datasets {unknown}, expected some of {', '.join(self.datasets)}")
        for name, sweep in self.sweeps.items():
            known_methods([sweep.method])
            strange = sorted(set(sweep.datasets) - set(self.datasets))
            if strange:
                raise ValueError(
                    f"sweeps.{name}: unknown datasets {strange}, expected some of {', '.join(self.datasets)}"
                )
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
    def active_quirks(self) -> frozenset[str]:
        """The differences between text and release that act."""
        return active_quirks(self.protocol, self.quirks)

    @property
    def trained(self) -> dict[str, DatasetConfig]:
        """The datasets of this run that train."""
        return {name: dataset for name, dataset in self.used.items() if dataset.train}

    def variants_on(self, dataset: str) -> dict[str, Variant]:
        """The variants of all sweeps on a dataset, by name; without T = exact where the quirk `sm_exact` acts."""
        sweeps = [sweep for sweep in self.sweeps.values() if dataset in sweep.datasets]
        variants = [variant for sweep in sweeps for variant in sweep.variants]
        if "sm_exact" in self.active_quirks:
            variants = [variant for variant in variants if (variant.argument, variant.value) != ("T", "exact")]
        return {variant.name: variant for variant in variants}

    @property
    def used(self) -> dict[str, DatasetConfig]:
        """The datasets of this run."""
        return {name: dataset for name, dataset in self.datasets.items() if self.use is None or name in self.use}


def training_options(config: Config, dataset: str, method: str) -> TrainingOptions:
    """The settings of the training job of a method (or variant) on a dataset, the active quirks included."""
    chosen = config.datasets[dataset]
    values: dict[str, Any] = {
        **config.training.model_dump(exclude={"split_jobs"}),
        "val_share": chosen.val_share,
        "batch_size": chosen.batch_size_of(method),
        "class_weight": chosen.class_weight,
        "label_rule": chosen.label_rule,
        "label_threshold": chosen.label_threshold,
        "drop_inconsistent": chosen.drop_inconsistent,
        "edge_weight": chosen.edge_weight,
        "protocol": config.protocol,
        "quirks": config.quirks,
    }
    return TrainingOptions(**values | training_changes(config.active_quirks, chosen.kind, base_method(method)))


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
