"""Settings of one training job (`--config-json` of `smmil.train`); the defaults are the paper's.

The workflow fills them from two sections of the configuration: `training` (the protocol) and the data set (share of
validation bags, batch size, class weight, labels). Unknown keys are an error.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from preprocessing.common.options import Options
from smmil.config.quirks import active_quirks, training_changes

# Settings that do not change the numbers of a run, or enter its key (`smmil.artifacts.runs`) resolved.
NOT_IN_KEY = frozenset(
    {
        "device",
        "threads",
        "deterministic",
        "checkpoint_every",
        "checkpoint_seconds",
        "splits",
        "learning_rates",
        "label_rule",
        "label_threshold",
        "edge_weight",
        "drop_inconsistent",
        "self_loop",
        "label_order",
        "tensorboard",
        "protocol",
        "quirks",
    }
)


class TrainingOptions(Options):
    """The training protocol of one (dataset, encoder, method)."""

    epochs: int = Field(default=50, ge=1, description="epochs, no early stop")
    learning_rates: list[float] = Field(
        default=[1e-4, 1e-5], min_length=1, description="candidates, chosen on validation"
    )
    splits: list[int] = Field(default=[1, 2, 3, 4, 5], min_length=1, description="seeds of the splits")
    val_share: float = Field(default=0.2, gt=0, lt=1, description="share of the training bags used for validation")
    batch_size: int = Field(default=32, ge=1, description="bags per training step")
    warmup_epochs: int = Field(default=5, ge=0, description="epochs of the linear warm-up")
    warmup_start: float = Field(default=0.1, gt=0, le=1, description="first factor of the learning rate")
    class_weight: bool = Field(default=False, description="weight positive bags by n_neg / n_pos of the training split")
    protocol: Literal["as_written", "as_released"] = Field(
        default="as_written", description="the paper's text, or its released code; docs/protocol.md"
    )
    quirks: dict[str, bool] = Field(default={}, description="single differences between the two, on top of protocol")
    label_rule: Literal["strict", "halving"] = Field(default="strict", description="instance labels, see loading")
    label_threshold: float = Field(default=0.5, ge=0, lt=1, description="coverage above which an instance is positive")
    edge_weight: Literal["none", "feature_distance"] = Field(default="none", description="weights of the graph's edges")
    drop_inconsistent: bool = Field(default=False, description="leave out bags that contradict their instance labels")
    self_loop: bool = Field(default=False, description="every instance is also a neighbour of itself")
    label_order: Literal["stored", "by_name"] = Field(default="stored", description="instance labels, see loading")
    device: str = Field(default="auto", description="auto | cpu | cuda")
    precision: Literal["float32", "tf32", "bf16"] = Field(default="float32", description="arithmetic of a step")
    deterministic: bool = Field(default=True, description="deterministic kernels where torch has them")
    threads: int | None = Field(default=None, ge=1, description="torch threads; null = torch's choice")
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

    @field_validator("quirks")
    @classmethod
    def _known_quirks(cls, quirks: dict[str, bool]) -> dict[str, bool]:
        active_quirks("as_written", quirks)
        return quirks

    @property
    def active(self) -> frozenset[str]:
        """The active differences between the paper's text and its released code."""
        return active_quirks(self.protocol, self.quirks)

    def under_quirks(self, method: str) -> "TrainingOptions":
        """Return a copy with the changes of the active quirks that do not depend on the kind of data set.

        The workflow applies them too (`smmil.config.experiment.training_options`); applying them twice has no effect.
        """
        return self.model_copy(update=training_changes(self.active, None, method))

    @property
    def text(self) -> str:
        """The options as JSON, for a command line."""
        return self.model_dump_json()

    @property
    def key_values(self) -> dict[str, Any]:
        """The options that decide a run's numbers."""
        values = self.model_dump(mode="json", exclude=set(NOT_IN_KEY))
        return {**values, "quirks": sorted(self.active & {"select_val_loss"})}
