"""The configuration of an experiment: `Config`, its validation and its JSON schema.

`config.yaml` holds the paper's values. The file of a preset, your files and `--config` items override single keys, in
this order (`read_settings`). The JSON schema `workflow/schemas/config.schema.json` is generated with
`python -m smmil.config --schema`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from preprocessing.common.cli import nearest
from preprocessing.datasets import get_dataset
from preprocessing.features.encoders import get_encoder
from preprocessing.features.transforms import resolve_policy
from smmil.config.methods import check_arguments, known_methods
from smmil.config.quirks import method_changes
from smmil.config.sections import (
    DatasetConfig,
    FeaturesConfig,
    Folder,
    MethodOptions,
    ReportConfig,
    ScoreWith,
    SweepConfig,
    TrainingConfig,
    WeightsConfig,
)
from smmil.config.training_options import ProtocolOptions, TrainingOptions
from smmil.config.variants import Variant, base_method
from smmil.installation import workflow_folder

BASE = workflow_folder() / "config.yaml"
# of `paper`, the settings are config.yaml; those of another one stand in workflow/NAME.yaml
Preset = Literal["paper", "study"]


class Config(ProtocolOptions):
    """The whole experiment."""

    preset: Preset = Field(
        default="paper", description="defaults below your own keys: the paper's, or workflow/study.yaml for own data"
    )
    results: Folder = Field(default="results", description="folder of everything that is computed")
    datasets: dict[str, DatasetConfig] = Field(description="name -> dataset")
    use: list[str] | None = Field(default=None, description="datasets of this run; null = all of them")
    methods: list[str] = Field(min_length=1, description="rows of Tables 1 and 2, keys of smmil.config.methods.METHODS")
    more_methods: list[str] = Field(default=[], description="further rows of Tables 6 to 10")
    sweeps: dict[str, SweepConfig] = Field(default={}, description="name -> runs of an ablation figure")
    method_options: MethodOptions = Field(default={}, description="arguments of single methods")
    weights: WeightsConfig = WeightsConfig()
    features: FeaturesConfig = FeaturesConfig()
    training: TrainingConfig = TrainingConfig()
    report: ReportConfig = ReportConfig()
    container: str | None = Field(
        default=None,
        min_length=1,
        description="image for `--sdm apptainer`: a file or an address such as docker://NAME:TAG",
    )

    @field_validator("methods", "more_methods")
    @classmethod
    def _methods(cls, methods: list[str]) -> list[str]:
        known_methods(methods)
        twice = sorted({method for method in methods if methods.count(method) > 1})
        if twice:
            raise ValueError(f"found {', '.join(twice)} twice, expected each method once")
        return methods

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for method, options in self.method_options.items():
            check_arguments(method, options, f"method_options.{method}")
            method_changes(self.active_quirks, method, options)
        self._check_datasets("use", self.use or ())
        for name, sweep in self.sweeps.items():
            for value in sweep.values:
                check_arguments(sweep.method, {sweep.argument: value}, f"sweeps.{name}")
            self._check_datasets(f"sweeps.{name}", sweep.datasets)
        if not self.datasets:
            raise ValueError("datasets: found none, expected yours by name, with kind, root and encoders")
        if not self.used:
            raise ValueError(f"use: found [], expected some of {', '.join(self.datasets)}, or null for all of them")
        for name, dataset in self.used.items():
            self._check_encoders(name, dataset)
        for name, dataset in self.datasets.items():
            if not name.isascii() or not name.isidentifier():
                raise ValueError(f"datasets.{name}: use letters, digits and _ in the name of a dataset")
            if dataset.score_with:
                self._check_scored(f"datasets.{name}.score_with", dataset, dataset.score_with)
        return self

    def _check_datasets(self, where: str, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self.datasets))
        if unknown:
            raise ValueError(f"{where}: unknown datasets {unknown}, expected some of {', '.join(self.datasets)}")

    def _check_scored(self, where: str, dataset: DatasetConfig, runs: ScoreWith) -> None:
        trained = self.datasets.get(runs.dataset)
        if trained is None or not trained.train or runs.method not in self.methods:
            raise ValueError(f"{where}: no runs of {runs.dataset}/{runs.method} are trained")
        for role, encoders in (("trained", trained.encoders), ("scored", dataset.encoders)):
            if runs.encoder not in encoders:
                raise ValueError(f"{where}: {runs.encoder} is no encoder of the {role} dataset")

    def _check_encoders(self, name: str, dataset: DatasetConfig) -> None:
        for key in dataset.encoders:
            where = f"datasets.{name}.encoders"
            try:
                encoder = get_encoder(key)
            except ValueError as error:
                # features of other programs are imported under names of their own
                if Path(self.results, name, "features", key).is_dir():
                    continue
                raise ValueError(f"{where}: {error}") from None
            published, fixed = encoder.published, encoder.fixed_input
            try:
                resolve_policy(self.features.resize_policy, published=published, fixed_input=fixed, encoder=key)
            except ValueError as error:
                raise ValueError(f"features.resize_policy, {where}: {error}") from None

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
    """Validate a configuration as read from YAML; `source` names it in messages.

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
        hint = nearest(str(item["loc"][-1]), _all_keys())
        return f"{key}: unknown key{hint}; `smmil config --schema` lists the keys"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and isinstance(item["input"], Mapping):
        # a check of several keys names them
        return f"{key}: {message}" if item["loc"] else message
    value = json.dumps(item["input"], default=str)
    return f"{key}: {message} (found {value if len(value) < 120 else value[:120] + '...'})"


def _all_keys() -> set[str]:
    sections = Config.model_json_schema()
    return {key for part in (sections, *sections["$defs"].values()) for key in part.get("properties", {})}


def json_schema() -> str:
    """Return the JSON schema of the configuration, as committed in `workflow/schemas/config.schema.json`."""
    schema = Config.model_json_schema()
    # editors check override files, too, which give a few keys only
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `base` with those of `override` in their place, section by section as Snakemake does."""
    merged = dict(base)
    for key, value in override.items():
        before = merged.get(key)
        nested = before if isinstance(before, Mapping) else {}
        merged[key] = merge(nested, value) if isinstance(value, Mapping) else value
    return merged


def read_settings(files: Iterable[Path], items: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of config.yaml, of the preset, of your files and of single items; the last one counts.

    Args:
        files: your files, in the order of `snakemake --configfile`; config.yaml among them is read once, below all.
        items: keys given one by one, as `snakemake --config` takes them.

    Raises:
        ValueError: a file that cannot be read, or an unknown preset.
    """
    given: dict[str, Any] = {}
    for file in files:
        if not (BASE.is_file() and file.is_file() and file.samefile(BASE)):
            given = merge(given, load_yaml(file))
    given = merge(given, items or {})
    values = load_yaml(BASE) if BASE.is_file() else {}
    preset = given.get("preset", "paper")
    if preset not in get_args(Preset):
        raise ValueError(f"preset: found {preset!r}, expected one of {', '.join(get_args(Preset))}")
    if preset != "paper":
        for key, value in load_yaml(BASE.parent / f"workflow/{preset}.yaml").items():
            # an empty section of a preset empties that of config.yaml
            values[key] = merge(values.get(key, {}), value) if isinstance(value, Mapping) and value else value
    return merge(values, given)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; an empty one has none.

    Raises:
        ValueError: no such file, not YAML, no mapping, or a key twice, of which only the last would count.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a configuration, e.g. config.yaml")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values, twice = yaml.safe_load(text), ", ".join(_repeated(yaml.compose(text)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{path}: {place}not YAML in UTF-8: {problem}") from error
    if twice:
        raise ValueError(f"{path}: keys that stand twice in one section, where only the last counts: {twice}")
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}: found {type(values).__name__}, expected keys with values, e.g. `results: results`")
    return dict(values or {})


def _repeated(node: Any) -> Iterator[str]:
    """Yield the keys that a node of YAML, or one in it, has twice."""
    if node is None or node.id == "scalar":
        return
    pairs = node.value if node.id == "mapping" else [(None, part) for part in node.value]
    seen: set[str] = set()
    for key, part in pairs:
        if key is not None and key.id == "scalar":
            if key.value in seen:
                yield f"{key.value} (line {key.start_mark.line + 1})"
            seen.add(key.value)
        yield from _repeated(part)
