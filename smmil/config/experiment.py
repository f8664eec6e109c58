"""The configuration of an experiment: `Config`, its validation and its JSON schema.

`config.yaml` holds the paper's values; a second file given with `--configfile` overrides single keys. The JSON schema
`workflow/schemas/config.schema.json` is generated with `python -m smmil.config --schema`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from preprocessing.datasets import get_dataset
from smmil.config.methods import known_methods
from smmil.config.quirks import method_changes
from smmil.config.sections import (
    DatasetConfig,
    FeaturesConfig,
    ReportConfig,
    SweepConfig,
    TrainingConfig,
    WeightsConfig,
)
from smmil.config.training_options import ProtocolOptions, TrainingOptions
from smmil.config.variants import Variant, base_method


class Config(ProtocolOptions):
    """The whole experiment."""

    results: str = Field(default="results", description="folder of everything that is computed")
    datasets: dict[str, DatasetConfig] = Field(description="name -> dataset")
    use: list[str] | None = Field(default=None, description="datasets of this run; null = all of them")
    methods: list[str] = Field(min_length=1, description="rows of Tables 1 and 2, keys of smmil.config.methods.METHODS")
    more_methods: list[str] = Field(default=[], description="further rows of Tables 6 to 10")
    sweeps: dict[str, SweepConfig] = Field(default={}, description="name -> runs of an ablation figure")
    method_options: dict[str, dict[str, Any]] = Field(default={}, description="arguments of single methods")
    weights: WeightsConfig = WeightsConfig()
    features: FeaturesConfig = FeaturesConfig()
    training: TrainingConfig = TrainingConfig()
    report: ReportConfig = ReportConfig()

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
            unknown = sorted(set(sweep.datasets) - set(self.datasets))
            if unknown:
                raise ValueError(
                    f"sweeps.{name}: unknown datasets {unknown}, expected some of {', '.join(self.datasets)}"
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
    def trained(self) -> dict[str, DatasetConfig]:
        """The datasets of this run that train."""
        return {name: dataset for name, dataset in self.used.items() if dataset.train}

    def variants_on(self, dataset: str) -> dict[str, Variant]:
        """Return the variants of all sweeps on a dataset by name; T = exact is left out under `sm_exact`."""
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
    """Return the settings of the training of a method or variant on a dataset, the active quirks included."""
    chosen = config.datasets[dataset]
    options = TrainingOptions.gather(config, config.training, chosen, batch_size=chosen.batch_size_of(method))
    return options.under_quirks(base_method(method), get_dataset(chosen.kind).released)


def parse_config(values: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a configuration.

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
    value = json.dumps(item["input"], default=str)
    return f"{key}: {item['msg']} (found {value if len(value) < 120 else value[:120] + '...'})"


def json_schema() -> str:
    """Return the JSON schema of the configuration, as committed in `workflow/schemas/config.schema.json`."""
    schema = Config.model_json_schema()
    # editors check override files, too, which give a few keys only
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        ValueError: not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
