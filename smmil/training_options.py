"""Everything one training job can be told (`--config-json` of `smmil.train`); defaults are the paper's.

The workflow fills it from two sections of the configuration: `training` (the protocol) and the dataset's own keys
(share of validation bags, batch size, class weight, labels). Unknown keys are refused.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from preprocessing.options import Options
from smmil.protocol import active_quirks, training_changes

# where and how fast a run computes, and what picks runs rather than shapes them, leave its key (`smmil.runs`) alone
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
        "quirks",
    }
)
# options that came later: left out of the text at their defaults, so that no finished job sees a changed argument
LATER = ("self_loop", "label_order", "tensorboard", "quirks", "checkpoint_seconds")


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
    checkpoint_seconds: float = Field(default=5.0, ge=0, description="least time between them; 0 = every such epoch")
    tensorboard: bool = Field(default=False, description="event files beside log.jsonl; needs the tensorboard package")

    @field_validator("splits", "learning_rates")
    @classmethod
    def _each_once(cls, values: list[Any]) -> list[Any]:
        # a run's directory is named with %g: two rates that print alike would share it
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
        """The differences between text and release that act."""
        return active_quirks(self.protocol, self.quirks)

    def under_quirks(self, method: str) -> "TrainingOptions":
        """The same with what the active quirks change, as far as it does not hang on the kind of data set.

        The workflow has said those too (`smmil.config.training_options`); saying them twice changes nothing.
        """
        return self.model_copy(update=training_changes(self.active, None, method))

    @property
    def text(self) -> str:
        """As JSON, for a command line."""
        fields = type(self).model_fields
        unused = {name for name in LATER if getattr(self, name) == fields[name].get_default(call_default_factory=True)}
        return self.model_dump_json(exclude=unused)

    @property
    def key_values(self) -> dict[str, Any]:
        """What of it decides a run's numbers.

        The protocol's name decides none (other settings and `quirks` do), but it stands in the keys of finished runs.
        """
        values = {**self.model_dump(mode="json", exclude=set(NOT_IN_KEY)), "protocol": "as_written"}
        deciding = sorted(self.active & {"select_val_loss"})
        return {**values, "quirks": deciding} if deciding else values
