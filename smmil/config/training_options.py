"""Settings of training: each key is declared once, here, and inherited wherever it can be written.

| class | inherited by |
|---|---|
| `ProtocolOptions` | `Config`, `TrainingOptions` |
| `LabelOptions`, `BagOptions` | `DatasetConfig`, `TrainingOptions` |
| `DataOptions` | `TrainingOptions`; loading takes it alone |
| `ScheduleOptions` | `TrainingConfig`, `TrainingOptions` |

`TrainingOptions` is what one training job receives (`--config-json` of `smmil.train`). The defaults are the paper's.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from preprocessing.common.options import Options
from smmil.config.quirks import SettingsByQuirk, active_quirks, training_changes

RateChoice = Literal["split", "method"]
DEVICES = r"^(auto|cpu|cuda(:[0-9]+)?)$"


class ProtocolOptions(Options):
    """The paper's text or its released code."""

    protocol: Literal["as_written", "as_released"] = Field(
        default="as_written", description="the paper's text, or its released code; docs/reference/protocol.md"
    )
    quirks: dict[str, bool] = Field(
        default={}, description="single differences between the two, on top of protocol, e.g. {sm_alpha_rule: true}"
    )

    @field_validator("quirks")
    @classmethod
    def _known_quirks(cls, quirks: dict[str, bool]) -> dict[str, bool]:
        active_quirks("as_written", quirks)
        return quirks

    @property
    def active_quirks(self) -> frozenset[str]:
        """The active differences between the paper's text and its released code."""
        return active_quirks(self.protocol, self.quirks)


class LabelOptions(Options):
    """Labels and graph of a dataset, made from the stored arrays."""

    label_rule: Literal["strict", "halving"] = Field(
        default="strict",
        description="instance label: coverage > threshold; halving lowers it until a positive bag has one",
    )
    label_threshold: float = Field(
        default=0.5, ge=0, lt=1, description="lesion fraction above which a tile is positive"
    )
    edge_weight: Literal["none", "feature_distance"] = Field(default="none", description="1, or exp(-|x_i - x_j| / P)")
    drop_inconsistent: bool = Field(
        default=False, description="leave out bags that contradict their instance labels, or have none (PANDA)"
    )


class DataOptions(LabelOptions):
    """Everything that turns stored arrays into labels and graphs; quirks set the two keys below."""

    self_loop: bool = Field(default=False, description="every instance is also a neighbour of itself")
    label_order: Literal["stored", "by_name"] = Field(
        default="stored", description="by_name: labels in stored order for instances sorted by lattice cell as text"
    )


class BagOptions(LabelOptions):
    """How the bags of a dataset are split, batched and weighted in training."""

    val_share: float = Field(default=0.2, gt=0, lt=1, description="share of the training bags used for validation")
    batch_size: int = Field(default=32, ge=1, description="bags per training step")
    class_weight: bool = Field(default=False, description="weight positive bags by n_neg / n_pos of the training split")


class ScheduleOptions(Options):
    """Epochs, learning rates and arithmetic of a training."""

    epochs: int = Field(default=50, ge=1, description="epochs, no early stop")
    learning_rates: list[float] = Field(
        default=[1e-4, 1e-5], min_length=1, description="candidates, chosen on validation"
    )
    learning_rate_choice: RateChoice = Field(
        default="split", description="the better rate of every split, or one for all splits of a method (best mean)"
    )
    splits: list[int] = Field(default=[1, 2, 3, 4, 5], min_length=1, description="seeds of the train/validation splits")
    warmup_epochs: int = Field(default=5, ge=0, description="epochs of the linear warm-up")
    warmup_start: float = Field(default=0.1, gt=0, le=1, description="first factor of the learning rate")
    device: str = Field(default="auto", pattern=DEVICES, description="auto | cpu | cuda | cuda:1")
    precision: Literal["float32", "tf32", "bf16"] = Field(
        default="float32", description="arithmetic of a training step"
    )
    deterministic: bool = Field(default=True, description="deterministic kernels where torch has them")
    checkpoint_every: int = Field(default=1, ge=1, description="epochs between resumable states; a signal always saves")
    checkpoint_seconds: float = Field(default=30.0, ge=0, description="least time between them; 0 = every such epoch")
    tensorboard: bool = Field(default=False, description="event files beside log.jsonl; needs the tensorboard package")

    @field_validator("splits", "learning_rates")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        # Run directories are named with %g, so two rates that print alike would share one.
        if len({f"{value:g}" for value in values}) != len(values):
            raise ValueError(f"found {values}, expected each once")
        if any(value < 0 for value in values):
            raise ValueError(f"found {values}, expected no negative number")
        return values


class TrainingOptions(ProtocolOptions, DataOptions, BagOptions, ScheduleOptions):
    """Settings of the training of one (dataset, encoder, method)."""

    threads: int | None = Field(default=None, ge=1, description="torch threads; null = torch's choice")

    @classmethod
    def gather(cls, *sections: Options, batch_size: int) -> "TrainingOptions":
        """Return the options that sections of the configuration hold, with another batch size."""
        names = [(section, name) for section in sections for name in type(section).model_fields]
        values = {name: getattr(section, name) for section, name in names if name in cls.model_fields}
        return cls.model_validate({**values, "batch_size": batch_size})

    def under_quirks(self, method: str, released: SettingsByQuirk | None = None) -> "TrainingOptions":
        """Return a copy with the changes of the active quirks for a method, not a variant.

        Applying them twice has no effect. `released` is that of the kind of dataset (`Dataset.released`); None =
        unknown, its changes are left out.
        """
        changes = training_changes(self.active_quirks, method, released or {})
        return type(self).model_validate({**self.model_dump(), **changes})

    @property
    def data(self) -> DataOptions:
        """The options of loading."""
        return DataOptions(**self.model_dump(include=set(DataOptions.model_fields)))

    @property
    def text(self) -> str:
        """The options as JSON, for a command line."""
        return self.model_dump_json()

    @property
    def key_values(self) -> dict[str, Any]:
        """The options that decide a run's numbers."""
        values = self.model_dump(mode="json", exclude=set(NOT_IN_KEY))
        return {**values, "quirks": sorted(self.active_quirks & {"select_val_loss"})}


# Settings that do not change the numbers of a run, or enter its key (`smmil.artifacts.runs`) resolved.
NOT_IN_KEY = frozenset(
    {
        *ProtocolOptions.model_fields,
        *DataOptions.model_fields,
        *("device", "threads", "deterministic", "checkpoint_every", "checkpoint_seconds", "tensorboard"),
        *("splits", "learning_rates", "learning_rate_choice"),
    }
)
